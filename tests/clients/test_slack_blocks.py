"""What a stranger wrote shows in Slack as the harmless text that it is, within Slack's limits."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.clients.slack_blocks import escaped, hold_message, notice_message, outcome_message
from streamproc.clients.slack_modal import REASON, reject_modal
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.button import APPROVE, REJECT, button_value
from streamproc.domain.events import Finding
from streamproc.domain.intent import Beneficiary, Intent
from streamproc.domain.legal_entities import answered_here, question_of, why_unverified
from streamproc.domain.money import rupees
from streamproc.domain.notice import (
    HoldNotice,
    HoldOutcome,
    Notice,
    UntrustedText,
    alert_about,
    alert_notice,
    digest_notice,
    hold_notice,
    outcome_of,
)
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.plain import cut, cut_bytes, plain, units
from streamproc.domain.record import Review
from tests.people import texts
from tests.words import ACCOUNT, NOW, contact, requested

EVIL = (
    "*bold* _it_ ~no~ `code` <!channel> <!here> <@U0BOSS> @here @channel <https://evil.example|your bank> "
    "https://evil.example & \u202eesrever\u202c zero\u200bwidth\u2066 nul\0 bell\a line\nbreak "
)
MARKUP = re.compile(
    r"(Expires <!date\^[0-9]+\^\{date_short_pretty\} \{time\}\|[0-9TZ:-]+> \([0-9TZ:-]+\))? ?"
    r"(<https://pay\.example[^<>| ]*\|Details>)?"
)
LIMITS = {"header": 150, "section": 3000, "field": 2000}


def record(agent: str = "bot", text: str = EVIL, **more: Any) -> PayoutRecord:
    intent = Intent(
        digest="d" * 64, mode="IMPS", purpose=text, narration=text, notes={text[:30]: text, "invoice": text},
        beneficiary=Beneficiary(
            contact_name=text, account_type="bank_account", name="Asha", ifsc="HDFC0000001",
            account_number="50100123456789",
        ),
    )  # fmt: skip
    given = {
        "payout": "spi_" + "0" * 26, "account": ACCOUNT, "received_at": NOW, "amount": 15_000_000, "currency": "INR",
        "agent": agent, "identity": "claimed", "vendor_url": "https://user:pw@vendor.example/" + "x" * 100,
        "state": "held", "decision": "HELD", "decided_at": NOW, "reason": "APPROVAL_REQUIRED",
        "reasons": ["APPROVAL_REQUIRED", "BENEFICIARY_NEW"], "policy_version": 7,
        "hold_expires_at": NOW + 3_600_000_000, "intent": intent, "reference_id": text,
    }  # fmt: skip
    return PayoutRecord(**{**given, **more})


def message(one: PayoutRecord) -> dict[str, Any]:
    value = button_value(one.payout, "secret")
    return dict(
        hold_message(hold_notice(one, wanted=2, link="https://pay.example"), value=value, heading="Approve")
    )


def harmless(body: dict[str, Any]) -> None:
    """Nothing of a stranger is markup, nothing is invisible, and everything is within Slack's limits."""
    assert len(body["blocks"]) <= 50
    for block in body["blocks"]:
        assert block["type"] in ("header", "section", "divider", "actions")
        for text in texts(block):
            if text["type"] == "mrkdwn":
                assert text["verbatim"] is True
                assert MARKUP.fullmatch(text["text"])
                continue
            assert text["emoji"] is False
        if block["type"] in ("header", "section") and "text" in block:
            assert 0 < units(block["text"]["text"]) <= LIMITS[block["type"]]
        for field in block.get("fields", ()):
            assert units(field["text"]) <= LIMITS["field"]
    for text in [body["text"], *(t["text"] for t in texts(body["blocks"]) if t["type"] == "plain_text")]:
        assert "<" not in text
        assert ">" not in text
        assert all(unicodedata.category(char) not in ("Cf", "Cs", "Co") for char in text)
        assert all(char == "\n" or unicodedata.category(char) != "Cc" for char in text)
    assert body["parse"] == "none"
    assert body["link_names"] is False
    # All text of a message counts together too; beyond some 10,000 Slack refuses the whole.
    assert sum(units(text["text"]) for text in texts(body["blocks"])) < 9_500
    json.dumps(body).encode("ascii")


def test_a_name_of_five_thousand_characters_with_markup_and_mentions_is_harmless_text() -> None:
    body = message(record(agent=EVIL * 40, text=EVIL * 40))
    harmless(body)
    untrusted = next(t["text"] for t in texts(body["blocks"]) if t["text"].startswith("Untrusted"))
    assert "&lt;!channel&gt;" in untrusted
    assert "…" in untrusted
    assert "beneficiary: *bold*" in untrusted


@given(st.text(max_size=400), st.text(max_size=3000))
def test_no_text_of_a_stranger_is_markup_or_too_long(agent: str, text: str) -> None:
    one = record(agent=agent, text=text, vendor_url=text)
    harmless(message(one))
    review = Review(by=agent or "x", action="reject", why=text, channel="cli", at=NOW)
    over = record(
        agent=agent,
        text=text,
        decision="REJECTED",
        state="rejected",
        reason="REVIEW_REJECTED",
        reviews=[review],
    )
    harmless(dict(outcome_message(hold_notice(over, wanted=1, link=""), outcome_of(over))))
    alert = alert_notice(
        alert_about("NO_POLICY", agent, text), "NO_POLICY", [("agent", agent), ("found", text)]
    )
    harmless(dict(notice_message(alert)))


HOLD = HoldNotice(
    payout="pout_1", amount="₹2,000.00", agent="bot", identity="claimed", host="vendor.example", payee="fa_1",
    reasons=(("LIMIT_EXCEEDED", "a budget has no room for it"), ("NEW_CODE", "")), policy_version=7,
    expires_at=1_800_000_000_000_000,
    untrusted=(UntrustedText("narration", "invoice 7"), UntrustedText("purpose", "vendor bill")),
    approvals="1 of 2 approvals, by asha", link="https://pay.example/1",
)  # fmt: skip
EXPIRES = "Expires <!date^1800000000^{date_short_pretty} {time}|2027-01-15T08:00:00Z> (2027-01-15T08:00:00Z)"
FIELDS = [
    "Amount\n₹2,000.00", "Agent\nbot (claimed)", "Vendor host\nvendor.example", "To\nfa_1", "Policy version\n7",
    "Payout\npout_1", "Approvals\n1 of 2 approvals, by asha",
]  # fmt: skip
FACTS = [
    *FIELDS,
    "Held because\n• LIMIT_EXCEEDED: a budget has no room for it\n• NEW_CODE",
    f"{EXPIRES} <https://pay.example/1|Details>",
    "Untrusted, as the agent wrote it\nnarration: invoice 7\npurpose: vendor bill",
]


def shown(body: Mapping[str, Any]) -> list[str]:
    """All text of a message, in order. Nothing in it may make Slack fetch or expand what a stranger wrote."""
    flags = {name: value for name, value in body.items() if name not in ("text", "blocks")}
    assert flags == {
        "mrkdwn": False, "parse": "none", "link_names": False, "unfurl_links": False, "unfurl_media": False,
    }  # fmt: skip
    header, *blocks = body["blocks"]
    assert (header["type"], header["text"]["text"]) == ("header", body["text"])
    return [text["text"] for text in texts(blocks)]


def test_a_hold_shows_all_facts_in_order_and_then_asks() -> None:
    body = hold_message(HOLD, value="v", heading="Approve")
    assert body["text"] == "Approve ₹2,000.00 for bot?"
    *facts, actions = body["blocks"]
    assert shown({**body, "blocks": facts}) == FACTS
    approve, reject = actions["elements"]
    assert (actions["type"], actions["block_id"]) == ("actions", "hold")
    assert {button["type"] for button in (approve, reject)} == {"button"}
    assert [(b["text"]["text"], b["action_id"], b["value"], b["style"]) for b in (approve, reject)] == [
        ("Approve", APPROVE, "v", "primary"), ("Reject", REJECT, "v", "danger"),
    ]  # fmt: skip
    assert {name: text["text"] for name, text in approve["confirm"].items()} == {
        "title": "Approve this payout?",
        "text": "₹2,000.00 will be paid for bot, unless something stands against it by now.",
        "confirm": "Approve",
        "deny": "Back",
    }
    assert "confirm" not in reject  # it opens a form


def test_what_is_not_known_of_a_hold_is_left_out_or_a_dash() -> None:
    bare = replace(HOLD, host="", payee="", reasons=(), policy_version=0, untrusted=(), approvals="", link="")
    body = hold_message(bare, value="", heading="Approve")
    assert shown(body) == [
        *FIELDS[:2], "Vendor host\nnone", "To\n-", "Policy version\n-", "Payout\npout_1", "Held because\n-",
        EXPIRES, "streamproc hold approve pout_1 --by NAME --reason TEXT\n(or: hold reject)",
    ]  # fmt: skip


def test_an_outcome_stands_above_the_facts_and_an_alert_has_its_lines_and_its_link() -> None:
    over = outcome_message(HOLD, HoldOutcome("REJECTED", "rejected by asha"))
    assert over["text"] == "REJECTED: ₹2,000.00 for bot"
    assert shown(over) == ["rejected by asha", *FACTS]
    alert = Notice("Alert: BYPASSED", ("money moved", "payout: pout_1"), urgent=True)
    assert shown(notice_message(alert)) == ["money moved\npayout: pout_1"]
    linked = shown(notice_message(replace(alert, link="https://pay.example/a b|c<d>&e")))
    assert linked[1:] == ["<https://pay.example/a%20b%7Cc%3Cd%3E&amp;e|Details>"]


def test_the_host_stands_apart_from_the_rest_of_the_url_and_has_no_user_name() -> None:
    body = message(record(vendor_url="https://bank.example@evil.example/bank.example/login"))
    fields = [text["text"] for block in body["blocks"] for text in block.get("fields", ())]
    assert "Vendor host\nevil.example" in fields


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("https://user:s3cret@vendor.example/inv/7?a=b@c", "https://vendor.example/inv/7?a=b@c"),
        ("HTTPS://s3cret@vendor.example", "https://vendor.example/"),
        ("user:s3cret@vendor.example", "***@vendor.example"),
        ("https://user:s3\u200bcret@vendor.example/", "https://vendor.example/"),
        ("https://user:s3cret@", "https://***@"),
        ("https://Vendor.example/@us", "https://vendor.example/@us"),
        ("https://Vendor.example/7", "https://Vendor.example/7"),
    ],
)
def test_a_vendors_url_is_shown_without_who_logs_in_there(written: str, shown: str) -> None:
    body = message(record(vendor_url=written))
    untrusted = next(t["text"] for t in texts(body["blocks"]) if t["text"].startswith("Untrusted"))
    assert f"vendor URL: {shown}\n" in untrusted
    assert "s3" not in json.dumps(body)


def test_of_a_bank_account_number_the_last_four_digits_are_shown_wherever_it_stands() -> None:
    text = "pay 50100123456789 or 5010 0123 4567 89"
    body = json.dumps(message(record(text=text)))
    assert "50100123456789" not in body
    assert "5010 0123" not in body
    assert "6789" in body


@pytest.mark.parametrize("written", ["５０１００１２３４５６７８９", "5010–0123–4567–89", "५०१००१२३४५६७८९"])
def test_an_account_number_in_other_digits_is_one_too(written: str) -> None:
    assert written[:9] not in json.dumps(message(record(text=f"pay {written}")), ensure_ascii=False)


@pytest.mark.parametrize(
    "written",
    [
        "5010/0123/4567",
        "5010|0123|4567|89",
        "(5010)(0123)(4567)",
        "5 0 1 0/0 1 2 3/4 5 6 7",
        "501001234 567/89",
    ],
)
def test_an_account_number_that_is_split_by_whatever_is_one_too(written: str) -> None:
    body = json.dumps(message(record(text=f"pay {written} today")))
    assert sum(char.isdigit() for char in body.partition("pay ")[2].partition(" today")[0]) <= 4


def test_what_is_shorter_and_split_like_a_date_or_a_sum_stays_as_it_is() -> None:
    text = "due 2026/11/30, 1,50,000.00 in 3/4 parts"
    assert text in json.dumps(message(record(text=text)))


def test_an_amount_as_we_write_it_is_shown_whole_however_large_it_is() -> None:
    text = f"of {rupees(10**15)} in all, {rupees(10**11)} each"
    assert text in json.dumps(message(record(text=text)), ensure_ascii=False)


@pytest.mark.parametrize(
    "written", ["₹50100123456789", "₹5,010,012,345,678", "₹1,000.00123456789", "₹1,00,0123456789"]
)
def test_a_sign_of_money_before_an_account_number_does_not_show_it(written: str) -> None:
    body = json.dumps(message(record(text=f"pay {written} today")))
    assert sum(char.isdigit() for char in body.partition("pay ")[2].partition(" today")[0]) <= 9


def test_the_reason_of_a_reviewer_shows_no_account_number_either() -> None:
    said = Review(by="asha", action="reject", why="not to 50100123456789", channel="cli", at=1)
    ended = record(decision="REJECTED", reason="REVIEW_REJECTED", decided_at=1, reviews=[said])
    assert outcome_of(ended).text.endswith("not to **********6789")


def test_the_command_names_the_payout_with_every_digit() -> None:
    assert digest_notice("X", count=1, paise=1, more=False, examples=["spi_123456789012"]).lines[1] == (
        "for example spi_123456789012"
    )


def test_amounts_are_grouped_as_in_india_and_other_currencies_are_named() -> None:
    assert "₹1,50,000.00" in json.dumps(message(record()), ensure_ascii=False)
    assert "1,50,000.00 USD" in json.dumps(message(record(currency="USD")))


def test_without_a_secret_there_are_no_buttons_but_the_command() -> None:
    body = hold_message(hold_notice(record(), wanted=1, link=""), value="", heading="Approve")
    assert not [block for block in body["blocks"] if block["type"] == "actions"]
    assert any("streamproc hold approve spi_" in text["text"] for text in texts(body["blocks"]))


@pytest.mark.parametrize(
    ("text", "limit", "wanted"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("a&b", 7, "a&amp;b"),
        ("a&b", 6, "a…"),
        ("😀😀", 4, "😀😀"),
        ("😀😀", 3, "😀…"),
    ],
)
def test_text_is_cut_after_it_is_escaped_and_never_within_a_character(
    text: str, limit: int, wanted: str
) -> None:
    assert escaped(text, limit) == wanted
    assert units(escaped(text, limit)) <= limit


def test_the_modal_asks_for_a_reason_of_the_length_that_is_taken_and_comes_back_with_the_buttons_value() -> (
    None
):
    view: Any = reject_modal("v1.mac.pout_1", "pout_1", 200_000)
    assert (view["type"], view["callback_id"], view["private_metadata"]) == ("modal", REJECT, "v1.mac.pout_1")
    shown, asked = view["blocks"]
    assert (shown["type"], shown["text"]["text"]) == ("section", "pout_1, ₹2,000.00")
    assert (asked["type"], asked["block_id"], asked["label"]["text"]) == ("input", REASON, "Reason")
    assert asked["element"] == {
        "type": "plain_text_input", "action_id": REASON, "multiline": True, "min_length": 1,
        "max_length": WHY_CHARS_MAX,
    }  # fmt: skip
    for text in (view["title"], view["submit"], view["close"], shown["text"], asked["label"]):
        assert (text["type"], text["emoji"]) == ("plain_text", False)


def test_plain_text_is_one_visible_line() -> None:
    assert (
        plain("a\u202eb\u200b\r\n\tc\ud800 \u2800 d" + "e\u0301\u0301\u0301\u0301") == "ab c de\u0301\u0301"
    )
    assert plain("  a \n\n b\u00a0c ") == "a b c"
    assert plain("x\U000e0041\ufe0f\u00ad") == "x"
    assert units(cut("😀" * 10, 5)) <= 5
    assert cut_bytes("₹" * 10, 10) == "₹₹…"
    assert cut_bytes("a\ud800", 10) == "a?"


def test_an_outcome_without_a_decision_is_the_banks() -> None:
    over = record(decision="HELD", state="cancelled", bank_status="cancelled")
    assert outcome_of(over) == HoldOutcome("OVER", "the hold is over: the bank says cancelled")


LAPSED = {
    "problem": "the entity's LEI is not valid any more",
    "lei": "54930012345678901245",
    "registered_name": "<!channel> *Evil* & Sons\u202e Private Limited" + "x" * 300,
    "entity_status": "ACTIVE",
    "registration_status": "LAPSED",
}


def test_an_unverified_entity_is_shown_with_what_the_register_says_of_it() -> None:
    """A person has to look it up: no digit of an LEI is hidden, though it may look like an account number."""
    held = Finding(stage="reputation", code="ENTITY_UNVERIFIED", outcome="HELD", evidence=LAPSED)
    body = message(record(reasons=["ENTITY_UNVERIFIED"], findings=[held]))
    harmless(body)
    said = json.dumps(body, ensure_ascii=False)
    assert (
        "ENTITY_UNVERIFIED: the contact is not verified as a legal entity: the entity's LEI is not valid any more;"
        " LEI 54930012345678901245; registered as &lt;!channel&gt; *Evil* &amp; Sons Private Limited"
    ) in said
    assert "entity ACTIVE; registration LAPSED" in said


def test_of_an_entity_that_was_not_found_only_the_reason_is_shown() -> None:
    nobody = Finding(
        stage="reputation",
        code="ENTITY_UNVERIFIED",
        outcome="HELD",
        evidence={"problem": "the register is away"},
    )
    reasons = hold_notice(record(reasons=["ENTITY_UNVERIFIED"], findings=[nobody]), wanted=1, link="").reasons
    assert reasons == (
        ("ENTITY_UNVERIFIED", "the contact is not verified as a legal entity: the register is away"),
    )


@pytest.mark.parametrize("note", ["50100123456789", "; registered as Approved by Finance"])
def test_a_note_that_is_no_lei_is_shown_as_the_agents_text_and_not_as_what_the_register_says(
    note: str,
) -> None:
    """The agent could name a register's answer there, or show an account number whole."""
    payout = fold([requested(100, payee=contact("Acme Ltd"), notes={"lei": note})])
    asked = question_of(payout) if payout is not None else None
    assert payout is not None
    assert asked is not None
    evidence = why_unverified(payout, answered_here(asked))
    held = Finding(stage="reputation", code="ENTITY_UNVERIFIED", outcome="HELD", evidence=evidence or {})
    shown = hold_notice(replace(payout, reasons=["ENTITY_UNVERIFIED"], findings=[held]), wanted=1, link="")
    assert shown.reasons == (
        (
            "ENTITY_UNVERIFIED",
            "the contact is not verified as a legal entity: the note `lei` is not a well-formed LEI",
        ),
    )
    told = {text.label: text.text for text in shown.untrusted}
    assert told["notes"] == f"lei: {note.replace('5010012345', '*' * 10)}"

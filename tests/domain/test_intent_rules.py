"""What an agent asks for is held against the bank's own rules, so that what is approved can be paid."""

from typing import Any

import pytest

from streamproc.domain.intent_rules import Wanted, read_request

ORDER: dict[str, Any] = {
    "amount": 250_000, "mode": "IMPS", "purpose": "vendor bill", "fund_account_id": "fa_00000000000001",
}  # fmt: skip
BANK = {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"}
CONTACT = {"name": "Some Body"}


def inline(kind: str = "bank_account", **details: Any) -> dict[str, Any]:
    given = {**(BANK if kind == "bank_account" else {"address": "some.body@exampleupi"}), **details}
    order = {**ORDER, "mode": "IMPS" if kind == "bank_account" else "UPI"}
    del order["fund_account_id"]
    return {**order, "fund_account": {"account_type": kind, kind: given, "contact": CONTACT}}


def fields(order: dict[str, Any]) -> set[str]:
    found = read_request(order)
    return set() if isinstance(found, Wanted) else {problem.field for problem in found}


@pytest.mark.parametrize(
    "order",
    [
        ORDER,
        {**ORDER, "mode": "RTGS", "amount": 2_00_000_00},
        {**ORDER, "mode": "IMPS", "amount": 5_00_000_00},
        {**ORDER, "mode": "NEFT", "amount": 50_00_000_00},
        {
            **ORDER,
            "notes": {f"n{i}": "x" * 256 for i in range(15)},
            "narration": "Invoice 1042 of November 20",
        },
        {**ORDER, "notes": []},
        inline(),
        inline("vpa"),
        {**inline(), "currency": "INR"},
        {**inline(), "currency": "USD"},
    ],
)
def test_what_can_be_governed_is_taken(order: dict[str, Any]) -> None:
    assert fields(order) == set()


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({**ORDER, "amount": 99}, "amount"),
        ({**ORDER, "amount": True}, "amount"),
        ({**ORDER, "amount": "250000"}, "amount"),
        ({**ORDER, "amount": 2500.0}, "amount"),
        ({**ORDER, "amount": 5_00_000_00 + 1}, "amount"),
        ({**ORDER, "mode": "RTGS", "amount": 2_00_000_00 - 1}, "amount"),
        ({**ORDER, "mode": "UPI", "amount": 1_00_000_00 + 1}, "amount"),
        ({**ORDER, "mode": "imps"}, "mode"),
        ({**ORDER, "mode": "card"}, "mode"),
        ({**ORDER, "currency": "usd"}, "currency"),
        ({**ORDER, "currency": "USDT"}, "currency"),
        ({**ORDER, "currency": 356}, "currency"),
        ({**ORDER, "purpose": ""}, "purpose"),
        ({**ORDER, "purpose": "x" * 401}, "purpose"),
        ({**ORDER, "narration": "x" * 31}, "narration"),
        ({**ORDER, "narration": "a/b"}, "narration"),
        ({**ORDER, "notes": {f"n{i}": "x" for i in range(16)}}, "notes"),
        ({**ORDER, "notes": {"n": "x" * 257}}, "notes.n"),
        ({**ORDER, "notes": {"n": 7}}, "notes.n"),
        ({**ORDER, "notes": {"n": "a\ud800"}}, "notes.n"),
        ({**ORDER, "notes": {"agent_id": "rival"}}, "notes.agent_id"),
        ({**ORDER, "reference_id": "mine"}, "reference_id"),
        ({**ORDER, "queue_if_low_balance": True}, "queue_if_low_balance"),
        ({**ORDER, "fund_account_id": "pout_1"}, "fund_account_id"),
        ({**ORDER, "fund_account": {}}, "fund_account_id"),
        ({k: v for k, v in ORDER.items() if k != "fund_account_id"}, "fund_account_id"),
        ({**inline(), "mode": "UPI", "amount": 100}, "fund_account.account_type"),
        (inline(ifsc="HDFC1000001"), "fund_account.bank_account.ifsc"),
        (inline(account_number="1234"), "fund_account.bank_account.account_number"),
        (inline(account_number="12 34 56"), "fund_account.bank_account.account_number"),
        (inline(name="ab"), "fund_account.bank_account.name"),
        (inline(iban="x"), "fund_account.bank_account.iban"),
        (inline("vpa", address="no-at-sign"), "fund_account.vpa.address"),
        (inline("vpa", address="a@b@c"), "fund_account.vpa.address"),
        ({**inline(), "fund_account": {"account_type": "card"}}, "fund_account.account_type"),
        (
            {**inline(), "fund_account": {"account_type": "vpa", "vpa": {"address": "a@b"}}},
            "fund_account.contact",
        ),
    ],
)
def test_what_the_bank_refuses_is_refused_by_field(order: dict[str, Any], field: str) -> None:
    assert field in fields(order)


CONTROLS = "\0\n\x1b\x7f\x80\x85\x9f"
HIDDEN = "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\U000e0000\U000e0041\U000e007f"


@pytest.mark.parametrize("field", ["amount", "mode", "purpose"])
def test_a_field_that_is_missing_is_said_to_be(field: str) -> None:
    """An agent that left it out must not look for a mistake in a value that it never gave."""
    wrong = read_request({name: value for name, value in ORDER.items() if name != field})
    assert isinstance(wrong, list)
    assert [(one.field, one.problem.partition(";")[0]) for one in wrong] == [(field, "is missing")]


@pytest.mark.parametrize("char", [*CONTROLS, *HIDDEN, "\ud800"])
def test_what_a_reader_would_obey_or_not_see_is_refused_by_field(char: str) -> None:
    text = f"vendor{char}bill"
    for order, field in (
        ({**ORDER, "purpose": text}, "purpose"),
        ({**ORDER, "narration": text}, "narration"),
        ({**ORDER, "vendor_url": f"https://{text}.example.com/"}, "vendor_url"),
        ({**ORDER, "notes": {"n": text}}, "notes.n"),
        ({**ORDER, "notes": {text: "n"}}, "notes.vendor\ufffdbill"),
        ({**ORDER, text: "n"}, "vendor\ufffdbill"),
        (inline(name=text), "fund_account.bank_account.name"),
    ):
        assert fields(order) == {field}
    order = inline()
    for name, value in (("name", text), ("type", text), ("email", f"{text}@example.com")):
        order["fund_account"]["contact"] = CONTACT | {name: value}
        assert fields(order) == {f"fund_account.contact.{name}"}


def test_names_in_indian_scripts_keep_their_joiners() -> None:
    name = "क्\u200dष \u0d28\u0d4d\u200c"
    assert fields(inline(name=name) | {"purpose": name, "notes": {name: name}}) == set()


def test_the_same_request_has_the_same_digest_however_it_is_written() -> None:
    one, two = read_request(inline()), read_request(dict(reversed(inline().items())))
    other = read_request(inline(account_number="000011113333"))
    assert isinstance(one, Wanted)
    assert isinstance(other, Wanted)
    assert one == two
    assert one.intent.digest != other.intent.digest

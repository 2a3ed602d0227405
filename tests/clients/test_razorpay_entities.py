import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.clients.razorpay_entities import (
    NOTE_CHARS_MAX,
    NOTES_MAX,
    MalformedPayout,
    clean,
    read_notes,
    read_payout,
)
from streamproc.domain.events import BankPayout
from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.states import BANK_RANK


def entity(**changes: object) -> dict[str, object]:
    """A payout as the bank sends it, with some fields changed."""
    plain: dict[str, object] = {
        "id": "pout_Lq3vD0pZ8m2XkA",
        "entity": "payout",
        "fund_account_id": "fa_Lq3uN5tR1yWbQe",
        "amount": 250_000,
        "currency": "INR",
        "notes": {"agent_id": "agent-7", "vendor_url": "https://vendor.example/pay"},
        "fees": 590,
        "tax": 90,
        "status": "pending",
        "purpose": "payout",
        "utr": None,
        "mode": "IMPS",
        "reference_id": None,
        "narration": "Invoice 17",
        "created_at": 1_760_000_000,
        "status_details": {"reason": "pending_approval", "description": "Waits", "source": "business"},
    }
    return plain | changes


def good(**changes: object) -> BankPayout:
    payout = read_payout(entity(**changes))
    assert isinstance(payout, BankPayout)
    return payout


def problem(**changes: object) -> str:
    payout = read_payout(entity(**changes))
    assert isinstance(payout, MalformedPayout)
    return payout.problem


def test_a_plain_payout_is_read_whole() -> None:
    assert good() == BankPayout(
        id="pout_Lq3vD0pZ8m2XkA",
        amount=250_000,
        currency="INR",
        status="pending",
        created_at=1_760_000_000,
        fund_account_id="fa_Lq3uN5tR1yWbQe",
        mode="IMPS",
        purpose="payout",
        narration="Invoice 17",
        fees=590,
        tax=90,
        reason="pending_approval",
        notes={"agent_id": "agent-7", "vendor_url": "https://vendor.example/pay"},
    )


@pytest.mark.parametrize("amount", [100, AMOUNT_MAX_PAISE])
def test_amounts_at_the_limits_are_payouts(amount: int) -> None:
    assert good(amount=amount).amount == amount


@pytest.mark.parametrize(
    "amount",
    [
        99,
        0,
        -100,
        AMOUNT_MAX_PAISE + 1,
        pytest.param(10**5000, id="huge"),
        True,
        100.0,
        1e3,
        "250000",
        None,
        [100],
        {},
    ],
)
def test_an_amount_that_is_no_integer_of_paise_within_the_limits_is_malformed(amount: object) -> None:
    assert problem(amount=amount).startswith("amount ")


def test_true_is_not_one_paisa() -> None:
    assert problem(amount=True) == "amount true is not an integer of paise"


@pytest.mark.parametrize("bad_id", [None, "", 7, "a" * 65, "pout/../x", "pout_é", "pout_1\n", ["pout_1"]])
def test_an_id_that_cannot_be_a_key_is_malformed_and_not_kept(bad_id: object) -> None:
    payout = read_payout(entity(id=bad_id))
    assert isinstance(payout, MalformedPayout)
    assert (payout.payout, payout.problem[:3]) == ("", "id ")


def test_two_payouts_without_an_id_are_told_apart() -> None:
    one, other = read_payout(entity(id=None, amount=200)), read_payout(entity(id=None, amount=300))
    assert isinstance(one, MalformedPayout)
    assert isinstance(other, MalformedPayout)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("currency", [None, "", "  ", 356, ["INR"]])
def test_a_missing_currency_is_malformed(currency: object) -> None:
    assert problem(currency=currency).startswith("currency ")


def test_a_foreign_currency_is_the_policys_business() -> None:
    assert good(currency="USD").currency == "USD"


@pytest.mark.parametrize("status", sorted(BANK_RANK))
def test_every_documented_status_is_read(status: str) -> None:
    assert good(status=status).status == status


@pytest.mark.parametrize("status", [None, "", "Pending", "created", 1, ["pending"]])
def test_another_status_is_malformed(status: object) -> None:
    assert problem(status=status).startswith("status ")


def test_a_problem_shows_no_more_than_forty_characters_of_the_value() -> None:
    assert problem(amount="9" * 500) == f'amount "{"9" * 39} is not an integer of paise'


@pytest.mark.parametrize("nothing", [None, 5, "text", [], True])
def test_what_is_no_entity_at_all_is_malformed(nothing: object) -> None:
    payout = read_payout(nothing)
    assert isinstance(payout, MalformedPayout)
    assert payout.payout == ""


@pytest.mark.parametrize("fees", [None, "590", 590.0, True, -1, AMOUNT_MAX_PAISE + 1])
def test_fees_that_are_no_amount_are_zero(fees: object) -> None:
    payout = good(fees=fees, tax=fees)
    assert (payout.fees, payout.tax) == (0, 0)


def test_an_expanded_fund_account_gives_its_id_and_nothing_else_of_it() -> None:
    expanded = {"id": "fa_1", "bank_account": {"name": "A. Person", "account_number": "112200112200"}}
    payout = good(fund_account_id=None, fund_account=expanded)
    assert payout.fund_account_id == "fa_1"
    assert "112200112200" not in repr(payout)
    assert "A. Person" not in repr(payout)


def test_a_payout_without_a_fund_account_is_taken() -> None:
    assert good(fund_account_id=None).fund_account_id == ""


@pytest.mark.parametrize("details", [None, [], "x", {"reason": None, "description": None, "source": None}])
def test_status_details_may_be_null_or_hold_nulls(details: object) -> None:
    assert good(status_details=details).reason == ""


@pytest.mark.parametrize("notes", [[], {}, None, "text", 7, True, [1, "x", None]])
def test_notes_may_be_an_empty_list_or_nothing(notes: object) -> None:
    assert good(notes=notes).notes == {}


def test_notes_may_be_absent() -> None:
    without = entity()
    del without["notes"]
    payout = read_payout(without)
    assert isinstance(payout, BankPayout)
    assert payout.notes == {}


def test_notes_hold_numbers_booleans_null_and_nested_values_as_text() -> None:
    notes = {
        "n": 17,
        "f": 1.5,
        "yes": True,
        "no": False,
        "nil": None,
        "deep": {"a": [1, "ü"]},
        "big": 10**5000,
    }
    assert read_notes(notes) == {
        "n": "17",
        "f": "1.5",
        "yes": "true",
        "no": "false",
        "nil": "",
        "deep": '{"a":[1,"\\u00fc"]}',
        "big": "a number too long to write",
    }


def test_a_list_of_note_objects_is_their_union() -> None:
    assert read_notes([{"agent_id": "a"}, {"x": 1}]) == {"agent_id": "a", "x": "1"}


def test_many_notes_cannot_push_out_the_ones_that_rules_read() -> None:
    notes = read_notes(
        {f"k{n}": "v" for n in range(200)} | {"vendor_url": "https://evil.example", "agent_id": "a"}
    )
    assert len(notes) == NOTES_MAX
    assert (notes["vendor_url"], notes["agent_id"]) == ("https://evil.example", "a")


def test_notes_are_cut_and_made_printable_without_merging_keys() -> None:
    notes = read_notes({"k\x00": "\x1b[2Jx\ud800\n", "k": "y" * 300})
    assert notes == {"k\ufffd": "\ufffd[2Jx\ufffd ", "k": "y" * NOTE_CHARS_MAX}


def test_line_breaks_inside_a_vendor_url_are_dropped_as_browsers_do() -> None:
    assert read_notes({"vendor_url": "https://ev\til.ex\nample"}) == {"vendor_url": "https://evil.example"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(entity())), anything)
def test_whatever_stands_in_a_field_the_result_can_be_stored(field: str, value: object) -> None:
    payout = read_payout(entity(**{field: value}))
    text = repr(payout)
    assert "\x00" not in text
    for part in (
        (payout.notes | {"n": payout.narration, "u": payout.utr}).items()
        if isinstance(payout, BankPayout)
        else ()
    ):
        json.dumps(part, ensure_ascii=False).encode("utf-8")
        assert all(character.isprintable() or ord(character) > 159 for character in "".join(part))


def test_where_the_money_goes_is_not_kept_of_the_notes() -> None:
    notes = {
        "agent_id": "bot",
        "VPA_HANDLE": "asha@okbank",
        "payee_ifsc": "X",
        "account_number": "1",
        "invoice": "7",
    }
    for _ in range(2):  # what was read of a key is known the second time
        assert read_notes(notes) == {"agent_id": "bot", "invoice": "7"}


def test_a_key_longer_than_a_note_is_cut_and_says_of_whom_it_tells_also_behind_that() -> None:
    long = "k" * NOTE_CHARS_MAX
    assert read_notes({long + "x": "7", long + "vpa": "asha@okbank"}) == {long: "7"}


def test_what_turns_the_direction_of_a_line_becomes_visible_and_the_joiners_of_indian_scripts_stay() -> None:
    for char in "\x1b\x7f\x85\x9f\u061c\u200b\u200e\u2028\u2029\u202e\u2069\ufeff\U000e0041\ud800":
        assert clean(f"a{char}b", 10) == "a\ufffdb"
        assert read_notes({f"k{char}": f"v{char}"}) == {"k\ufffd": "v\ufffd"}
    assert clean("क्\u200dष", 10) == "क्\u200dष"

"""An agent's signature is good for the payout that it was made for and for no other; the docs' recipe makes it."""

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from streamproc.domain.events import Identity, PayoutObserved
from streamproc.domain.identity import identity_of
from streamproc.domain.payouts import fold
from streamproc.domain.policy import PolicyBook, parse_policy_file, plan_changes, scopes_after
from streamproc.errors import InputError
from tests.words import NOW, observed

DOCS = Path(__file__).parents[2] / "docs" / "governance.md"
FACTS: dict[str, Any] = {
    "agent": "bot",
    "amount_paise": 250_000,
    "currency": "INR",
    "fund_account": "fa_1",
    "reference_id": "inv-7",
}


def recipe() -> dict[str, Any]:
    """What the code in the docs defines, with a key of its own."""
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    return made


BOT, OTHER = recipe(), recipe()


def paid(notes: dict[str, str], **other: Any) -> PayoutObserved:
    facts = {**FACTS, **other}
    event = observed(
        amount=facts["amount_paise"], currency=facts["currency"], fund_account=facts["fund_account"]
    )
    return replace(event, facts=replace(event.facts, notes=notes, reference_id=facts["reference_id"]))


def identity(event: PayoutObserved, *keys: str, agent: str = "bot") -> Identity:
    listed = ", ".join(f'"{key}"' for key in keys)
    text = f"{{policies: {{bot: {{}}}}, agents: {{{agent}: {{public_keys: [{listed}]}}}}}}"
    file = parse_policy_file(text, name="test.yaml")
    changes = plan_changes({}, file, prune=False, at=NOW, by="test", why="test")
    record = fold([event])
    assert record is not None
    return identity_of(record, PolicyBook(scopes_after({}, *changes)))


def test_what_the_recipe_signs_is_verified_and_fits_a_note() -> None:
    notes = BOT["agent_notes"](**FACTS)
    assert identity(paid(notes), BOT["public_key"]) == "verified"
    assert identity(paid(notes), OTHER["public_key"], BOT["public_key"]) == "verified"
    assert len(notes["agent_sig"]) == 89


@pytest.mark.parametrize(
    "other",
    [{"amount_paise": 250_001}, {"currency": "USD"}, {"fund_account": "fa_2"}, {"reference_id": "inv-8"}],
    ids=lambda other: next(iter(other)),
)
def test_a_signature_is_worth_nothing_on_another_payout(other: dict[str, Any]) -> None:
    assert identity(paid(BOT["agent_notes"](**FACTS), **other), BOT["public_key"]) == "claimed"


def test_a_signature_says_nothing_for_another_agent_nor_by_another_key() -> None:
    notes = BOT["agent_notes"](**FACTS)
    assert identity(paid(notes | {"agent_id": "rich"}), BOT["public_key"], agent="rich") == "claimed"
    assert identity(paid(notes), OTHER["public_key"]) == "claimed"
    assert identity(paid(notes)) == "claimed"
    assert identity(paid(notes), BOT["public_key"], agent="rich") == "claimed"


@pytest.mark.parametrize("nothing", ["fund_account", "reference_id"])
def test_what_names_no_fund_account_or_no_reference_cannot_be_signed(nothing: str) -> None:
    facts = FACTS | {nothing: ""}
    assert identity(paid(BOT["agent_notes"](**facts), **facts), BOT["public_key"]) == "claimed"


@pytest.mark.parametrize(
    "signature", ["", "v1.", "v1.x", "v2." + "A" * 86, "v1." + "A" * 86, "v1." + "é" * 86]
)
def test_what_is_no_signature_is_only_a_claim(signature: str) -> None:
    notes = BOT["agent_notes"](**FACTS) | {"agent_sig": signature}
    assert identity(paid(notes), BOT["public_key"]) == "claimed"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("public_keys", "ed25519:abc", "32 bytes in 43 characters"),
        ("public_keys", "A" * 43, "32 bytes in 43 characters"),
        ("api_keys", "rzp_live_1", "the bank does not show which API key made a payout"),
    ],
)
def test_a_binding_that_cannot_be_checked_is_refused_with_its_place(
    field: str, value: str, problem: str
) -> None:
    with pytest.raises(InputError) as refused:
        parse_policy_file(f'agents:\n  bot: {{{field}: ["{value}"]}}', name="test.yaml")
    assert f"line 2, agents.bot.{field}:" in str(refused.value)
    assert problem in str(refused.value)

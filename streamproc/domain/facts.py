"""The building blocks of events: what every event has, and the parts that several share."""

from typing import Literal, TypeAlias

from msgspec import Struct, field

Decision: TypeAlias = Literal["APPROVED", "REJECTED", "HELD"]
Source: TypeAlias = Literal["webhook", "poll", "fetch"]
Identity: TypeAlias = Literal["claimed", "verified", "unknown"]
BankCommand: TypeAlias = Literal["create", "approve", "reject", "cancel"]
CommandOutcome: TypeAlias = Literal["done", "already", "refused", "not_needed"]
"""What came of a command to the bank: see BankCommandAnswered."""
TokenScope: TypeAlias = Literal["agent", "viewer", "approver", "admin"]
RefusalKind: TypeAlias = Literal["", "unknown", "forbidden", "over", "again", "unavailable"]
"""Why a reviewer's answer did not count: the payout is not known, they may not answer, there is no hold (any more),
they have approved already, or the approval's own look-up could not be made."""
EntityVerdict: TypeAlias = Literal[
    "verified",
    "not_found",
    "several",
    "name_differs",
    "not_active",
    "not_issued",
    "malformed_lei",
    "unavailable",
]
"""Whether a payout's contact is a legal entity in good standing, and if not, why not (domain/legal_entities.py)."""
MismatchKind: TypeAlias = Literal["unknown_here", "unknown_at_bank", "amount", "behind", "ahead", "budget"]
Evidence: TypeAlias = dict[str, str | int | bool | list[str] | None]


# Events, their parts and records are made by the ten thousand and come from JSON, so nothing that they hold can point
# back at them: the collector need not know them. That was a sixth of what a fold cost.
class Fact(Struct, frozen=True, kw_only=True, gc=False, tag_field="type"):
    """What every event has. `at` is µs since 1970 by the clock of Redis."""

    v: int = 1
    at: int


class StageFact(Fact, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What a governance stage found about a payout.

    Both fields are always set. They have defaults because on the wire they are left out if the entry's first event has
    the same (`wire.py`).
    """

    at: int = 0
    payout: str = ""


def version(number: int) -> int:
    """The default of field `v` in an event with `omit_defaults`: a plain default would be omitted on the wire."""
    return field(default_factory=lambda: number)


class BankPayout(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A payout as the bank showed it, without bank account details. Times are Unix seconds."""

    id: str = ""
    """Always set. It has a default because on the wire it is left out if it is the event's payout (`wire.py`)."""
    amount: int
    currency: str
    status: str
    created_at: int = 0
    fund_account_id: str = ""
    mode: str = ""
    purpose: str = ""
    reference_id: str = ""
    narration: str = ""
    utr: str = ""
    fees: int = 0
    tax: int = 0
    reason: str = ""
    """`status_details.reason`, for example `low_balance`."""
    notes: dict[str, str] = {}
    """Keys and values as text, cut to the bank's own limits."""


class Finding(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A rule that fired, and its evidence. `outcome` NOTED never changes a decision."""

    stage: str
    code: str
    outcome: Literal["REJECTED", "HELD", "NOTED"]
    evidence: Evidence = {}


class BeneficiarySeen(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What the registry knew of a payout's fund account and vendor on its account, before the payout was decided."""

    known: bool = False
    """A payout to this fund account was approved before."""
    noted: bool = False
    """The pair was noted lately, so an approval need not note it."""
    other_vendors: list[str] = []
    """The last two hosts that the fund account was approved for, if the payout's own is not one of them."""
    other_accounts: list[str] = []
    """The last two fund accounts that the vendor was approved with, if the payout's own is not one of them."""


class EntitySeen(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What the register of legal entities said of a payout's contact. Texts are the register's, cut; times in µs."""

    verdict: EntityVerdict
    lei: str = ""
    """That of the entity found, or the one that was asked for."""
    name: str = ""
    """The entity's legal name as it is registered."""
    status: str = ""
    """The entity's: `ACTIVE` or not."""
    registration: str = ""
    """That of its LEI: `ISSUED`, `LAPSED`, ..."""
    problem: str = ""
    """Why the register could not be asked, or the bank for the contact."""
    checked_at: int = 0
    fresh_until: int = 0
    contact: str = ""
    """The name of the fund account's contact, as the bank told it; empty where the payout itself names its contact."""


class WindowUse(Struct, frozen=True, kw_only=True, gc=False):
    """One budget window before a payout was charged to it. Paise; `limit` None is no limit."""

    scope: str
    window: str
    limit: int | None
    reserved: int
    committed: int

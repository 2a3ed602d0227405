"""An attempt to carry out a decision at the bank: what it works with, and how what came of it is recorded."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from streamproc.domain.events import (
    BankCommand,
    BankCommandAnswered,
    BankPayout,
    CommandOutcome,
    PayoutObserved,
)
from streamproc.errors import TryAgain
from streamproc.log.cursor import Requested
from streamproc.log.work import BatchContext, Work

Unasked: TypeAlias = Callable[[str, Requested], Awaitable[bool]]
"""Whether the bank may have made a payout that the record in hand does not know, before an intent of this account was
requested. Raises LogUnavailable."""


async def nothing_unasked(account: str, requested: Requested) -> bool:
    """`Unasked` of a log that has forgotten nothing."""
    return False


class Debit(Struct, frozen=True):
    """The account that pays: its number at the bank, and the id that the bank's webhooks carry for it."""

    number: str = ""
    account: str = ""


class CommandAnswer(Protocol):
    """The client's answer to a command, `create` among them (streamproc/clients/razorpay.py)."""

    @property
    def http_status(self) -> int: ...
    @property
    def outcome(self) -> Literal["done", "refused"]: ...
    @property
    def payout(self) -> BankPayout | None: ...
    @property
    def code(self) -> str: ...
    @property
    def problem(self) -> str: ...


class Said(Struct, frozen=True):
    """What the bank answered to a command, as it is recorded: a refusal's code and problem, without personal data."""

    http_status: int = 0
    code: str = ""
    problem: str = ""


NOTHING_SAID = Said()


class Found(Protocol):
    """What the bank has under a reference, and its clock then (Unix s); None if it did not say."""

    @property
    def payouts(self) -> Sequence[BankPayout]: ...
    @property
    def at_s(self) -> int | None: ...


class Creator(Protocol):
    """The bank calls that creation makes. They raise TryAgain where the bank is away or the outcome unknown."""

    async def create(self, order: bytes, key: str) -> CommandAnswer: ...
    async def find(self, account_number: str, reference: str) -> Found: ...


class Attempt(Struct, frozen=True):
    """One try to carry out a decision, or the ending of a copy, at the bank."""

    work: Work
    ctx: BatchContext
    bank: Creator
    debit: Debit
    decided_at: int
    """When that was recorded (µs)."""
    caused_by: str
    """Its event id."""
    began_s: float
    """Our monotonic clock at the time of `ctx`."""
    unasked: Unasked = nothing_unasked


@contextmanager
def sending(work: Work) -> Iterator[None]:
    """For a call that tells the bank to do something: from here on it may have been sent, unless its error says that it
    was not."""
    before, work.sent = work.sent, True
    try:
        yield
    except TryAgain as problem:
        work.sent = before or problem.may_be_done
        raise


def record_answer(
    attempt: Attempt,
    command: BankCommand,
    outcome: CommandOutcome,
    bank_status: str,
    *,
    said: Said = NOTHING_SAID,
    caused_by: str = "",
    bank_payout: str = "",
) -> None:
    """Record what became of a command. `said`: the answer to it; NOTHING_SAID where the bank's state alone shows it.
    `caused_by`: the decision that it was sent for; empty where none was sent in this attempt."""
    attempt.work.emit(
        BankCommandAnswered(
            at=attempt.ctx.now_us,
            payout=attempt.work.payout,
            command=command,
            outcome=outcome,
            http_status=said.http_status,
            bank_status=bank_status,
            code=said.code,
            problem=said.problem,
            caused_by=caused_by,
            bank_payout=bank_payout,
        )
    )


def record_sighting(attempt: Attempt, facts: BankPayout) -> None:
    """Record that execution asked the bank about the attempt's payout, and how the bank shows it."""
    work, at = attempt.work, attempt.ctx.now_us
    account = work.known().account
    work.emit(PayoutObserved(at=at, payout=work.payout, account=account, source="fetch", facts=facts))

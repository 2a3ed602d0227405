"""Execution: tells the bank what was decided. The only place that acts on the bank.

The bank has no idempotency for approve, reject and cancel, but its states only move one way: a command that already
took effect is refused, and the payout's status tells so (except in a workflow of several levels: docs/governance.md).
So the bank is asked for the status before an entry is tried again, and after every refusal. Nothing that moves money is
sent before its decision is archived, nor while its agent, account or team is frozen. An intent is first created at the
bank (consumers/create.py).
"""

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Protocol

from msgspec import Struct

from consumers.attempt import (
    Attempt,
    CommandAnswer,
    Creator,
    Debit,
    Said,
    Unasked,
    nothing_unasked,
    record_answer,
    record_sighting,
    sending,
)
from consumers.concurrency import run_bounded
from consumers.create import LOOK_AGAIN_S, create, look_for_lost, take_for_ours
from consumers.recall import Archived, forgotten
from consumers.verdicts import stopped
from streamproc.domain.commands import MOVES_MONEY, REACHED, Cause, asked_for, command_for
from streamproc.domain.events import (
    BankCommand,
    BankPayout,
    CancelRequested,
    CommandOutcome,
    PayoutDecided,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.states import OPEN_STATUSES
from streamproc.errors import TryAgain, Unprocessable
from streamproc.log.work import BatchContext, Group, Item, Stage, Work
from streamproc.telemetry.watch import Called, collecting_calls

CONCURRENT_MAX = 16
"""Bank calls of one worker at once; the client's limit per second applies besides."""
READ_MAX = 32
"""Entries read at once. Few, since what is read waits in this worker's hands, and all workers together make 8 calls
a second."""
WORKS_MAX = 32
"""Payouts in one pass: with two calls each, 8 s at the bank's limit if this worker has it alone."""
PASS_S = 18.0
"""A pass ends with what it has done by then, well within a batch's time. Where many processes share the bank's limit, a
batch that is cut off as a whole would never end."""

NO_DEBIT = Debit()


class Bank(Creator, Protocol):
    """The calls that execution makes. They raise TryAgain where the bank is away or the outcome unknown."""

    async def fetch(self, payout_id: str) -> BankPayout: ...
    async def approve(self, payout_id: str, remarks: str) -> CommandAnswer: ...
    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer: ...
    async def cancel(self, payout_id: str) -> CommandAnswer: ...


class Barrier(Protocol):
    """Returns when the entry, with the events `e`, is as durable as the operator requires before money moves; else
    raises TryAgain."""

    async def __call__(self, partition: int, entry: str, e: bytes) -> None: ...


class _Order(Struct, frozen=True):
    command: BankCommand
    cause: Cause


def execution(
    bank: Bank,
    barrier: Barrier,
    debit: Debit = NO_DEBIT,
    archived: Archived | None = None,
    unasked: Unasked = nothing_unasked,
) -> Group:
    """The group that calls the bank. `debit` pays what is created; `archived` knows payouts that Redis forgot."""

    async def enact(items: Sequence[Item], ctx: BatchContext) -> None:
        began_s = monotonic()

        async def one(work: Work, event: Cause) -> None:
            with collecting_calls(work.calls):
                if work.record is None and archived is not None:
                    record = await forgotten(work, archived)
                    if record is None or not (isinstance(event, CancelRequested) and event.bank_payout):
                        return  # it is over: there is nothing left to tell the bank of it
                    work.recall(record)
                attempt = Attempt(
                    work, ctx, bank, debit, event.at, _event_id(work, event, ctx), began_s, unasked
                )
                await _enact_one(attempt, event, bank, barrier)

        jobs = [
            (work, partial(one, work, event))
            for work, event in items
            if isinstance(event, PayoutDecided | CancelRequested)
        ]
        await run_bounded(
            jobs, at_once=CONCURRENT_MAX, start_s=PASS_S, pass_s=PASS_S, waits_for="its turn at the bank"
        )

    stage = Stage(name="enact", consumes=frozenset({PayoutDecided, CancelRequested}), handle=enact)
    return Group(
        name="execution",
        stages=(stage,),
        outputs_are_facts=True,
        notes_sending=True,
        read_max=READ_MAX,
        works_max=WORKS_MAX,
    )


async def _enact_one(attempt: Attempt, cause: Cause, bank: Bank, barrier: Barrier) -> None:
    """Do what must be done before the bank is told: look for a lost attempt, and wait for the barrier."""
    work, ctx = attempt.work, attempt.ctx
    record = work.known()
    if isinstance(cause, CancelRequested) and cause.bank_payout:
        await _end_copy(attempt, cause, bank)
        return
    if _is_superseded(cause, record):
        return
    if record.intent is not None and record.maybe_sent and not record.created_as:
        if not record.bank_payout:
            await look_for_lost(attempt)
            return
        take_for_ours(attempt, record.bank_payout, record.bank_status)
        record = work.known()
    wanted = asked_for(cause)
    if wanted is None and command_for(cause, record.bank_status) is None:
        return
    if wanted in MOVES_MONEY:
        # Before any call: while Postgres is away, retries must not use up the bank's calls.
        with Called("barrier"):
            await barrier(ctx.partition, work.entry.decode(), work.e)
    await _tell_bank(attempt, cause, bank, creates=wanted == "create" and not record.created_as)


async def _tell_bank(attempt: Attempt, cause: Cause, bank: Bank, *, creates: bool) -> None:
    """Create the payout, if that is wanted, and send what the cause calls for at the status that the bank shows."""
    work, ctx = attempt.work, attempt.ctx
    record = work.known()
    status = record.bank_status
    if creates:
        made = await create(attempt)
        if made is None:
            return
        status = made.status
    elif work.maybe_sent and status in OPEN_STATUSES:
        # An earlier attempt may have called the bank: its status now counts.
        status = _observe(attempt, await bank.fetch(record.at_bank))
    command = command_for(cause, status)
    if command is None:
        if not creates:
            _moved_on(attempt, cause, status)
        return
    if command in MOVES_MONEY and await stopped(work, command, attempt.caused_by, ctx):
        return
    await _send(attempt, _Order(command, cause), bank)


async def _end_copy(attempt: Attempt, cause: CancelRequested, bank: Bank) -> None:
    """Reject or cancel a payout that bears the reference of another one. It may have ended, or moved, by itself.

    Raises TryAgain where the bank took the command without effect yet, Unprocessable where it refused.
    """
    work, payout, sent = attempt.work, cause.bank_payout, False
    facts = await bank.fetch(payout)
    command = command_for(cause, facts.status)
    if command is not None:
        answer = await _command(attempt, payout, _Order(command, cause), bank)
        sent = answer.outcome == "done"
        facts = (answer.payout if sent else None) or await bank.fetch(payout)
        if sent and command_for(cause, facts.status) is not None:
            # If this status were recorded, governance would ask for the same at once, and so on in a circle.
            raise TryAgain(
                f"the bank took {command} of {payout}, and it is still {facts.status}", after_s=LOOK_AGAIN_S
            )
        if not sent and command_for(cause, facts.status) is not None:
            raise Unprocessable(
                f"the bank refused to {command} {payout} with {answer.http_status} {answer.code} ({answer.problem}),"
                f" which bears the reference {work.payout}, and it is still {facts.status}: end it in the dashboard"
            )
    record_sighting(attempt, facts)
    outcome: CommandOutcome = (
        "done" if sent else "already" if facts.status in REACHED["cancel"] else "not_needed"
    )
    caused_by = attempt.caused_by
    record_answer(
        attempt, command or "cancel", outcome, facts.status, caused_by=caused_by, bank_payout=payout
    )


def _event_id(work: Work, event: Cause, ctx: BatchContext) -> str:
    return f"{ctx.partition}:{work.entry.decode()}:{work.events.index(event)}"


def _is_superseded(cause: Cause, record: PayoutRecord) -> bool:
    """Whether a later decision has replaced the cause."""
    if isinstance(cause, CancelRequested):
        return record.decision == "APPROVED"
    return (record.decided_at, record.decision) != (cause.at, cause.decision)


def _observe(attempt: Attempt, facts: BankPayout) -> str:
    """Record the status that the bank shows, if it is new; returns it."""
    if facts.status != attempt.work.known().bank_status:
        record_sighting(attempt, facts)
    return facts.status


def _moved_on(attempt: Attempt, cause: Cause, status: str) -> None:
    """Record that no command is needed any more: an earlier call of ours had effect, or the bank moved on by itself."""
    command = asked_for(cause)
    if command is not None:
        outcome: CommandOutcome = "already" if status in REACHED[command] else "not_needed"
        record_answer(attempt, command, outcome, status)


def _remarks(cause: Cause, caused_by: str) -> str:
    if isinstance(cause, CancelRequested):
        return f"streamproc: cancelled [{caused_by}]"
    by = f" by {cause.by}" if cause.by else ""
    return f"streamproc: {cause.decision} {cause.reason}{by} [{caused_by}]"


async def _command(attempt: Attempt, payout: str, order: _Order, bank: Bank) -> CommandAnswer:
    remarks = _remarks(order.cause, attempt.caused_by)
    with sending(attempt.work):
        match order.command:
            case "approve":
                return await bank.approve(payout, remarks)
            case "reject":
                return await bank.reject(payout, remarks)
            case "cancel":
                return await bank.cancel(payout)
            case "create":
                raise AssertionError("an intent is created before anything else is sent of it")


async def _send(attempt: Attempt, order: _Order, bank: Bank) -> None:
    """Send a command and record its outcome by the status that the bank shows after it.

    Raises Unprocessable if the bank refuses and the payout still waits.
    """
    payout = attempt.work.known().at_bank
    answer = await _command(attempt, payout, order, bank)
    if answer.outcome == "done":
        # An answer that could not be read still means that the command was taken: ask for the result.
        facts = answer.payout or await bank.fetch(payout)
        status = _observe(attempt, facts)
        outcome: CommandOutcome = "done"
    else:
        status = _observe(attempt, await bank.fetch(payout))
        then = command_for(order.cause, status)
        if then is not None and then != order.command and then not in MOVES_MONEY:
            # It moved between two of our calls, as from pending to queued, where the command is cancel, not reject.
            await _send(attempt, _Order(then, order.cause), bank)
            return
        if status in OPEN_STATUSES and then is not None:
            raise Unprocessable(
                f"the bank refused to {order.command} {payout} with {answer.http_status} {answer.code}"
                f" ({answer.problem}) and it is still {status}; when that is mended, redrive this dead letter"
            )
        outcome = "already" if status in REACHED[order.command] else "refused"
    said = Said(answer.http_status, answer.code, answer.problem)
    record_answer(attempt, order.command, outcome, status, said=said, caused_by=attempt.caused_by)

"""`reconcile`: compares bank, log and budgets over a period, and records each difference as an event.

A difference counts only if it is still there after a grace, since webhooks are under way while the list is read. What
only the bank knows (a payout, its status, UTR, fees or tax) is appended as a webhook would have been: it is governed,
or found to have moved without us, and its fees are charged. Counters are never corrected: that they differ from their
fold is an alarm for people.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias

from streamproc.archive.pool import opened_pool
from streamproc.archive.read import payout_known
from streamproc.archive.store import errors_as_job_failed
from streamproc.clients.razorpay import Razorpay
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.copies import name_here
from streamproc.domain.events import BankPayout, ReconcileDone, ReconcileMismatch
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.reconciliation import Mismatch, compared
from streamproc.domain.states import MOVING_STATUSES, OPEN_STATUSES
from streamproc.errors import ConfigError, InputError, JobFailed, TryAgain, Unprocessable
from streamproc.ingress.razorpay_list import read_list
from streamproc.ingress.translate import append_of, append_of_look
from streamproc.log.connection import connected
from streamproc.log.inspect import known_records, records_where
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Append, Producer
from streamproc.operate.bank import opened_bank
from streamproc.operate.reconcile_budgets import windows_that_differ
from streamproc.settings import Settings

SINCE_S_MIN, SINCE_S_MAX = 60, 90 * 86_400
"""Longest period: as long as a payout may wait for approval at the bank."""
PAYOUTS_MAX = 1_000_000
"""Payouts of one run, whose ids take some 100 MB of memory. For more, choose a shorter period."""
GRACE_S = 15.0
"""A younger difference may be a webhook under way, or be found by the poller's next pass."""
VIEWS_S = 10.0
"""How long an answer of the archive is waited for. What was archived a moment ago its views show within a second."""
VIEWS_AGAIN_S = 0.2
FETCHES_AT_ONCE = 16
TRIES_MAX = 5
"""Tries of one call to the bank; after these the rest of the run is left, and reported as left."""
TRY_WAIT_S_MAX = 30.0

log = logging.getLogger(__name__)


@dataclass
class Reconciled:
    """What was compared and found. `left`: what was not compared."""

    account: str
    since: int
    until: int
    listed: int = 0
    fetched: int = 0
    windows: int = 0
    appended: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass
class _Run:
    """What a run works with."""

    settings: Settings
    bank: Razorpay
    producer: Producer
    client: Any
    pool: Any
    names: Names
    done: Reconciled
    on_seen: Callable[[int], None]


async def reconcile(
    settings: Settings,
    *,
    since_s: float,
    grace_s: float = GRACE_S,
    on_seen: Callable[[int], None] = lambda _: None,
) -> Reconciled:
    """Compare the payouts that the bank made in the last `since_s` seconds, and the budgets, and record what differs.

    Raises InputError for a wrong period, ConfigError if a setting is missing, JobFailed if the bank's list could not be
    read to its end: then nothing was compared, which must not look like nothing found.
    """
    _check(settings, since_s)
    with errors_as_job_failed():
        return await _reconcile(settings, since_s, grace_s, on_seen)


async def _reconcile(
    settings: Settings, since_s: float, grace_s: float, on_seen: Callable[[int], None]
) -> Reconciled:
    async with _running(settings, since_s, on_seen) as run:
        suspects, listed = await _suspects_of_list(run)
        suspects |= await _suspects_of_ours(run, listed)
        if suspects and grace_s > 0:
            await asyncio.sleep(grace_s)
        await _confirm(run, suspects)
        await _budgets(run)
        await _record_done(run)
        return run.done


def _check(settings: Settings, since_s: float) -> None:
    if not SINCE_S_MIN <= since_s <= SINCE_S_MAX:
        raise InputError(f"a period of {since_s:g} s: it is {SINCE_S_MIN} s to {SINCE_S_MAX // 86_400} days")
    needed = ("razorpay_key_id", "razorpay_key_secret", "razorpay_account_number", "razorpay_account_id")
    missing = [f"STREAMPROC_{name.upper()}" for name in needed if not getattr(settings, name)]
    if missing:
        raise ConfigError(f"reconcile needs {', '.join(missing)}; .env.example says what each one is")


@asynccontextmanager
async def _running(settings: Settings, since_s: float, on_seen: Callable[[int], None]) -> AsyncIterator[_Run]:
    account = settings.razorpay_account_id
    async with AsyncExitStack() as stack:
        bank = await stack.enter_async_context(opened_bank(settings))
        producer = await stack.enter_async_context(
            Producer(settings.redis_url, partitions=settings.partitions, name="reconcile")
        )
        client = await stack.enter_async_context(connected(settings.redis_url))
        dsn = settings.postgres_dsn.reveal()
        pool = await stack.enter_async_context(opened_pool(dsn)) if dsn else None
        until = producer.now_us() // 1_000_000
        done = Reconciled(account, until - int(since_s), until)
        names = Names(partition_of(account, settings.partitions))
        yield _Run(settings, bank, producer, client, pool, names, done, on_seen)


# ---- first look: what does not agree at this moment -------------------------------------

Suspects: TypeAlias = dict[str, str]
"""The bank's id of a payout, and what it is called here."""


async def _suspects_of_list(run: _Run) -> tuple[Suspects, set[str]]:
    """The payouts that the list shows otherwise than we have them, and the bank's ids of all that it shows."""
    suspects, listed, done = Suspects(), set[str](), run.done
    number = run.settings.razorpay_account_number
    try:
        async for part in read_list(run.bank, number, from_s=done.since, to_s=done.until):
            fresh = {i.id: i for i in part.items if isinstance(i, BankPayout) and i.id not in listed}
            listed |= fresh.keys()
            await _append_malformed(run, part.items)
            records = await _records(run, [name_here(facts) for facts in fresh.values()])
            suspects |= {
                facts.id: name_here(facts)
                for facts in fresh.values()
                if compared(records[name_here(facts)], facts) is not None
            }
            done.listed = len(listed)
            run.on_seen(done.listed)
            if len(listed) > PAYOUTS_MAX:
                raise InputError(f"the period has more than {PAYOUTS_MAX} payouts: choose a shorter one")
    except (TryAgain, Unprocessable) as problem:
        raise JobFailed(f"the bank's list could not be read to its end: {problem}") from problem
    return suspects, listed


async def _append_malformed(run: _Run, items: Sequence[BankPayout | MalformedPayout]) -> None:
    for item in items:
        if isinstance(item, MalformedPayout):
            now_us = run.producer.now_us()
            append = append_of(item, account=run.done.account, source="fetch", now_us=now_us)
            await run.producer.append(append)


async def _records(run: _Run, payouts: Sequence[str]) -> dict[str, PayoutRecord | None]:
    """What we have of payouts: in Redis, else in the archive."""
    found = await known_records(run.client, run.names, payouts)
    for payout, record in found.items():
        if record is None and run.pool is not None:
            found[payout] = await _in_archive(run.pool, payout)
    return found


async def _in_archive(pool: Any, payout: str) -> PayoutRecord | None:
    give_up_s = monotonic() + VIEWS_S
    while True:
        try:
            return await payout_known(pool, payout)
        except TryAgain as problem:
            if monotonic() >= give_up_s:
                raise JobFailed(
                    f"payout {payout} is not in Redis, and the archive does not tell: {problem}"
                ) from None
            await asyncio.sleep(VIEWS_AGAIN_S)


async def _suspects_of_ours(run: _Run, listed: set[str]) -> Suspects:
    """The payouts of this account that are open or moved here, came in the period, and are not on the list.

    Those of another account in the same partition are on that account's list, and its own run compares them.
    """
    wanted = OPEN_STATUSES | MOVING_STATUSES
    since_us, until_us = run.done.since * 1_000_000, (run.done.until + 1) * 1_000_000
    found = Suspects()

    def is_ours(record: PayoutRecord) -> bool:
        is_here = record.account == run.done.account and record.bank_status in wanted
        return is_here and since_us <= record.received_at <= until_us

    async for records in records_where(run.client, run.names, is_ours, at_once=FETCHES_AT_ONCE):
        found |= {record.at_bank: record.payout for record in records if record.at_bank not in listed}
    return found


# ---- second look: what still does not -----------------------------------------------------


async def _confirm(run: _Run, suspects: Suspects) -> None:
    waiting = sorted(suspects)
    for start in range(0, len(waiting), FETCHES_AT_ONCE):
        some = waiting[start : start + FETCHES_AT_ONCE]
        answers = await asyncio.gather(*(_fetch(run, payout) for payout in some))
        records = await _records(run, [suspects[at_bank] for at_bank in some])
        for at_bank, answer in zip(some, answers, strict=True):
            run.done.fetched += 1
            await _judge(run, suspects[at_bank], records[suspects[at_bank]], answer)
        run.on_seen(run.done.listed + run.done.fetched)
        rest = len(waiting) - start - len(some)
        if rest and all(isinstance(answer, TryAgain) for answer in answers):  # the bank is away
            run.done.left.append(f"{rest} more payouts were not fetched")
            return


async def _judge(
    run: _Run, payout: str, record: PayoutRecord | None, answer: BankPayout | TryAgain | Unprocessable
) -> None:
    match answer:
        case TryAgain():
            run.done.left.append(f"payout {payout} could not be fetched: {answer}")
            return
        case Unprocessable():
            ours = record.bank_status if record is not None else ""
            await _record(run, Mismatch(payout, "unknown_at_bank", ours, str(answer)[:200]))
            return
    found = compared(record, answer)
    if found is None:
        return
    if found.kind in ("unknown_here", "behind"):
        now_us = run.producer.now_us()
        append = append_of_look(answer, record, account=run.done.account, now_us=now_us)
        if append is None or not (await run.producer.append(append)).new:
            run.done.left.append(
                f"payout {payout}: the log has that the bank shows it {answer.status}, and no worker has handled that"
            )
            return
        run.done.appended += 1
    await _record(run, found)


async def _fetch(run: _Run, payout: str) -> BankPayout | TryAgain | Unprocessable:
    for attempt in range(1, TRIES_MAX + 1):
        try:
            return await run.bank.fetch(payout)
        except Unprocessable as problem:
            return problem
        except TryAgain as problem:
            if attempt == TRIES_MAX:
                return problem
            await asyncio.sleep(min(problem.after_s, TRY_WAIT_S_MAX))
    raise AssertionError("the last try returns")


# ---- budgets ----------------------------------------------------------------------------------


async def _budgets(run: _Run) -> None:
    if run.pool is None:
        run.done.left.append("budgets were not compared: STREAMPROC_POSTGRES_DSN is not set")
        return
    try:
        seen = await windows_that_differ(
            run.client,
            run.pool,
            run.names,
            claim_idle_s=run.settings.claim_idle_s,
            retention_s=run.settings.retention_s,
        )
    except TryAgain as problem:
        run.done.left.append(f"budgets were not compared: {problem}")
        return
    run.done.windows = seen.windows
    for mismatch in seen.apart:
        await _record(run, mismatch)


# ---- what is recorded -----------------------------------------------------------------------


async def _record(run: _Run, found: Mismatch) -> None:
    """One event for each distinct mismatch, however often it is found while deliveries are remembered (16 days)."""
    run.done.mismatches.append(found)
    log.error(
        "mismatch %s %s%s: ours %s, theirs %s",
        found.kind,
        found.payout,
        found.subject,
        found.ours,
        found.theirs,
    )
    event = ReconcileMismatch(
        at=run.producer.now_us(),
        payout=found.payout,
        account=run.done.account,
        kind=found.kind,
        ours=found.ours,
        theirs=found.theirs,
        subject=found.subject,
    )
    digest = hashlib.sha256(f"{found.ours}\0{found.theirs}".encode()).hexdigest()[:16]
    key = f"rec:{found.kind}:{found.payout or found.subject}:{digest}"
    await run.producer.append(Append(run.done.account, (key,), (event,)))


async def _record_done(run: _Run) -> None:
    done = run.done
    event = ReconcileDone(
        at=run.producer.now_us(),
        account=done.account,
        since=done.since,
        until=done.until,
        listed=done.listed,
        fetched=done.fetched,
        windows=done.windows,
        mismatches=len(done.mismatches),
        left=done.left[:10],
    )
    await run.producer.append(Append(done.account, (), (event,)))

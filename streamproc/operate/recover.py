"""`streamproc recover`: rebuilds from the archive what Redis must hold, after it lost its data or the log's tail.

look -> lock the archive -> mark -> each broken partition: set aside, rebuild, put in place -> unmark -> ask the bank

The source is the archive alone, not the live views. Of what is left in Redis only what came from outside is used, and
the counter of admissions. A run may be killed anywhere; roles do not open the log until another run has finished.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
from msgspec import Struct

import consumers
from projections.loop import months_of
from projections.rebuild import Target
from projections.views import FOR_RECOVERY
from streamproc.archive.disowned import disowned_in
from streamproc.archive.load import archive, drop_redelivered, entries_by_id, make_ranges
from streamproc.archive.rows import Row
from streamproc.archive.store import (
    Head,
    archived_heads,
    connection,
    errors_as_job_failed,
    partitions_opened,
    take_lock,
)
from streamproc.domain.entry_ids import id_key
from streamproc.errors import InputError, JobFailed, TryAgain
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.cursor import poll_cursor_name
from streamproc.log.inspect import entry_at
from streamproc.log.names import Names, partition_of
from streamproc.log.restore import (
    Restorer,
    mark_recovered,
    mark_recovering,
    read_marks,
    rescued_entry,
)
from streamproc.log.stream import Entry, LogView, other_count
from streamproc.operate.builders import JobProgress, OnProgress, built_as_of
from streamproc.operate.condition import Condition, conditions
from streamproc.operate.disown import Statement, disowning, recorded
from streamproc.operate.recover_fork import InForce, carry_over
from streamproc.operate.recover_log import restore_letters, restore_log
from streamproc.operate.recover_recent import restore_recent
from streamproc.operate.recover_state import (
    SQL,
    Counts,
    Sources,
    accounts_of,
    policies_of,
    proposals_of,
    restore_beneficiaries,
    restore_budgets,
    restore_payouts,
    tokens_of,
)
from streamproc.settings import Settings

LOCK_WAIT_S = 15.0
"""How long to wait for a projector that is just ending: it takes a second to notice that its log is broken."""
ONE_JOB_MAX = 20_000
"""Entries that one builder folds in a second; below this starting another builder takes longer."""
ARCHIVE_AT_ONCE = 2_000
"""Entries archived in one transaction, as a projector does."""
UNTOUCHED = "nothing was changed"
STAYS_CLOSED = "the log stays closed until `streamproc recover` has come to its end; run it again"


class RecoveryPlan(Struct, frozen=True):
    """What there is to do. `broken`: partitions to rebuild; `bank_only`: all are rebuilt, only the bank was not
    asked yet."""

    partitions: int
    broken: list[Condition]
    entries: int
    interrupted: bool
    bank_only: bool

    @property
    def gone_after(self) -> str:
        """What the archive cannot give back, and from when on; '' if nothing of the log is lost."""
        ends = [one for one in self.broken if not one.anchored]
        if not ends:
            return ""
        at = "; ".join(f"partition {one.partition} at {_moment(one.head)}" for one in ends)
        return (
            f"the archive ends in {at}: what people decided and wrote after that (reviews, policies, freezes) is gone"
            " where the old log does not hold it; look what it was, and do it again. The bank tells its payouts anew"
        )


def _moment(head: Head) -> str:
    at = datetime.fromtimestamp(id_key(head.entry)[0] / 1000, UTC)
    return f"{at.isoformat(timespec='milliseconds').replace('+00:00', 'Z')} (entry {head.entry})"


@dataclass
class Recovered:
    """What was done. `left`: what a person must still do."""

    partitions: list[Counts] = field(default_factory=list)
    entries: int = 0
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)
    gone_after: str = ""
    """What the archive could not give back."""


async def look(settings: Settings) -> RecoveryPlan:
    """Find what has to be recovered. Raises JobFailed if there is nothing to recover from, nothing to do, or
    Postgres is away."""
    heads = await _heads(settings)
    if not heads:
        raise JobFailed("there is nothing to recover from: the archive is empty")
    async with connected(settings.redis_url) as client:
        marks = await read_marks(client)
        known = marks.partitions or await partitions_opened(settings.postgres_dsn.reveal())
        if known != settings.partitions:
            raise JobFailed(f"{other_count(settings.partitions, known)}; {UNTOUCHED}")
        broken = await _broken(settings, client, range(settings.partitions))
    finished = not broken and not marks.recovering and marks.partitions is not None
    if finished and not marks.unreconciled:
        raise JobFailed("there is nothing to recover: the log is well, and has what the archive has")
    entries = sum(one.head.seq for one in broken)
    return RecoveryPlan(
        settings.partitions, broken, entries, interrupted=marks.recovering, bank_only=finished
    )


async def refuse_unneeded(settings: Settings, plan: RecoveryPlan, disowned: Sequence[Statement]) -> None:
    """Raise InputError for a statement about a partition that is not rebuilt: once it is open `log disown` records
    that.

    Not for one that the archive already has: a run that was killed rebuilt that partition, and this is the same
    command.
    """
    closed = [] if plan.bank_only else [one.partition for one in plan.broken]
    dsn = settings.postgres_dsn.reveal()
    for said in disowned:
        partition, entry = said.entry.partition, said.entry.entry
        if partition in closed:
            continue
        with errors_as_job_failed(UNTOUCHED):
            stated = await disowned_in(dsn, partition).names(entry)
        if not stated:
            raise InputError(
                f"--disown {said.entry}: partition {partition} is not to be rebuilt; leave it out, and once the log is"
                f" open again say `streamproc log disown {said.entry}`"
            )


async def _broken(settings: Settings, client: Any, partitions: Iterable[int]) -> list[Condition]:
    return [one for one in await conditions(settings, client, partitions) if one.problem]


async def _heads(settings: Settings) -> dict[int, Head]:
    try:
        return await archived_heads(settings.postgres_dsn.reveal())
    except TryAgain as problem:
        raise JobFailed(f"{problem}; {UNTOUCHED}") from problem


async def rebuild(
    settings: Settings,
    plan: RecoveryPlan,
    *,
    disowned: Sequence[Statement] = (),
    on_progress: OnProgress = lambda _: None,
) -> Recovered:
    """Rebuild the broken partitions and let roles in again. Raises JobFailed if a projector is still at work.

    `disowned`: statements about entries that cannot be read; they are archived first.
    """
    began, done = time.monotonic(), Recovered(entries=plan.entries, gone_after=plan.gone_after)
    dsn = settings.postgres_dsn.reveal()
    with errors_as_job_failed(STAYS_CLOSED):
        async with _locked(dsn, plan), connected(settings.redis_url) as client:
            run = await clock_us(client)
            await mark_recovering(client, plan.partitions, run)
            # Looked at again, since a projector that was just ending may have archived more.
            found = await _broken(settings, client, [one.partition for one in plan.broken])
            broken = [await _archive_rest(settings, condition) for condition in found]
            broken = [await _archive_statements(settings, client, one, disowned, run) for one in broken]
            if broken:
                await _rebuild_all(settings, client, run, broken, done, on_progress)
            await mark_recovered(client, range(plan.partitions), run)
    done.seconds = time.monotonic() - began
    return done


async def _rebuild_all(
    settings: Settings,
    client: Any,
    run: int,
    broken: Sequence[Condition],
    done: Recovered,
    on_progress: OnProgress,
) -> None:
    dsn = settings.postgres_dsn.reveal()
    targets = [Target(one.partition, one.head.seq, one.head.entry) for one in broken]
    async with (
        built_as_of(
            dsn,
            targets,
            jobs=1 if sum(target.seq for target in targets) < ONE_JOB_MAX else 0,
            on_progress=on_progress,
            views=FOR_RECOVERY,
            purpose="recover",
            untouched=STAYS_CLOSED,
        ) as place,
        connection(dsn, name="streamproc recover") as source,
    ):
        await source.execute(SQL["wanted_table"])
        for one in broken:
            disowned = disowned_in(dsn, one.partition)
            sources = Sources(place, source, one.partition, one.head, run, settings.retention_s, disowned)
            to = Restorer(client, Names(one.partition), run)
            done.partitions.append(await _rebuild_one(settings, sources, to, done, on_progress))


@asynccontextmanager
async def _locked(dsn: str, plan: RecoveryPlan) -> AsyncIterator[None]:
    """Lock the archive of the broken partitions against other writers, so that it does not change."""
    async with connection(dsn, name="streamproc recover locks") as db:
        for condition in plan.broken:
            stopping = asyncio.Event()
            try:
                async with asyncio.timeout(LOCK_WAIT_S):
                    await take_lock(db, condition.partition, stopping)
            except TimeoutError:
                raise JobFailed(
                    f"a projector, or another recovery, is at work on partition {condition.partition}; stop it first,"
                    f" under `streamproc up` that as a whole. {UNTOUCHED.capitalize()}"
                ) from None
        yield


async def _archive_rest(settings: Settings, condition: Condition) -> Condition:
    """Archive what the log has after the archive's end, if it is anchored there: then only groups are gone."""
    if not condition.anchored:
        return condition
    partition, head, ranges = condition.partition, condition.head, set[int]()
    async with (
        connection(settings.postgres_dsn.reveal(), name="streamproc recover") as db,
        LogView(settings.redis_url, partition) as view,
    ):
        while entries := await view.read(head.entry, ARCHIVE_AT_ONCE, 0):
            new = await drop_redelivered(db, partition, head, entries)
            missing = [at_ms for at_ms in months_of(new) if at_ms not in ranges]
            await make_ranges(db, missing)
            ranges.update(missing)
            _, head = await archive(db, partition, head, new)
    return Condition(partition, head, condition.problem, anchored=True)


async def _archive_statements(
    settings: Settings, client: Any, condition: Condition, disowned: Sequence[Statement], now_us: int
) -> Condition:
    """Archive statements about entries of this partition: its log is closed, and is rebuilt from the archive."""
    partition, head = condition.partition, condition.head
    here = [said for said in disowned if said.entry.partition == partition]
    if not here:
        return condition
    dsn = settings.postgres_dsn.reveal()
    stated = disowned_in(dsn, partition)
    async with connection(dsn, name="streamproc recover") as db:
        for said in here:
            row = await _row_of(db, client, said)
            if await stated.looked_for(row):
                continue  # archived by a run that was killed
            e, m = recorded(disowning(said, row, now_us))
            # Right after the archive's last id, so before anything that is still missing.
            ms, n = id_key(head.entry)
            entry = Entry(f"{ms}-{n + 1}", e, m)
            await make_ranges(db, months_of([entry]))
            _, head = await archive(db, partition, head, [entry])
    return Condition(partition, head, condition.problem, anchored=condition.anchored)


async def _row_of(db: asyncpg.Connection, client: Any, said: Statement) -> Row:
    """The entry, from the archive or from what is left of the log, which has it if it came after the lost tail."""
    where, names = said.entry, Names(said.entry.partition)
    if found := await entries_by_id(db, where.partition, [where.entry]):
        return found[0]
    entry = await entry_at(client, names, where.entry) or await rescued_entry(client, names, where.entry)
    if entry is None:
        raise JobFailed(
            f"there is no entry {where} in the archive or in what is left of the log; {STAYS_CLOSED}"
        )
    return Row(0, entry.id, entry.e, entry.m)


async def _rebuild_one(
    settings: Settings, sources: Sources, to: Restorer, done: Recovered, on_progress: OnProgress
) -> Counts:
    counts, partition = Counts(sources.partition, archived=sources.head.seq), sources.partition

    def say(stage: str, at: int, total: int) -> None:
        on_progress(JobProgress(f"partition {partition}: {stage}", total, at))

    def note(text: str) -> None:
        done.left.append(f"partition {partition}: {text}")

    aside = await to.set_aside()
    say("wiping what is left", 0, 0)
    await to.wipe()
    await sources.archive.execute(SQL["empty_wanted"])
    await sources.want([sources.head.entry] if sources.head.seq else [])
    await restore_budgets(sources, to, counts)
    await restore_beneficiaries(sources, to, counts)
    await restore_payouts(sources, to, counts, say)
    await restore_recent(sources, to, counts, say)
    await restore_letters(sources, to, counts)
    await restore_log(sources, to, consumers.GROUPS, counts, say)
    in_force = InForce(await policies_of(sources), await tokens_of(sources), await proposals_of(sources))
    if aside:
        say("what came in on the old log", 0, 0)
        in_force = await carry_over(sources, to, in_force, counts, note)
    await to.policies(in_force.scopes)
    await to.tokens(list(in_force.tokens.values()))
    await to.proposals(list(in_force.proposals.values()))
    counts.policies = len(in_force.scopes)
    await _poll_from_the_archives_end(settings, sources, to)
    await to.put_in_place(keep_rescued_s=settings.retention_s)
    return counts


async def _poll_from_the_archives_end(settings: Settings, sources: Sources, to: Restorer) -> None:
    """Have the poller of each account list what the bank made since the archive's end: what it listed after that may be
    lost."""
    if not sources.head.seq:
        return
    own, accounts = settings.razorpay_account_id, await accounts_of(sources)
    if own and partition_of(own, settings.partitions) == sources.partition:
        accounts.add(own)
    # Its id may be of a time that is still to come, from when Redis's clock was ahead.
    archived_s = await sources.archive.fetchval(SQL["archived_s"], sources.partition, sources.head.seq)
    since_s = min(id_key(sources.head.entry)[0] // 1000, archived_s)
    for account in sorted(accounts):
        await to.cursor(poll_cursor_name(account), since_s)

"""Restores one partition's state from the archive: budgets, beneficiaries, policies, payouts and timers.

Records, budgets and policies are read from views built only for this. For a payout that is over, its record is enough;
every other one is rebuilt from its own entries, which also tell what each group may not have handled.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from msgspec import Struct

from consumers.inputs import GOVERNANCE, INPUTS, comes_again
from streamproc.archive.disowned import Disowned
from streamproc.archive.rows import Row
from streamproc.archive.sql import statements
from streamproc.archive.store import Entry as StoredEntry
from streamproc.archive.store import Head, transaction
from streamproc.archive.text import text_key
from streamproc.domain.budget import Admission, window_end_s
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import Event, PolicyChanged
from streamproc.domain.payouts import PayoutRecord, decode_record, is_terminal
from streamproc.domain.policy import ScopeState
from streamproc.domain.proposals import Proposal, proposals_after
from streamproc.domain.recovery import Stored, budget_answer, is_over, rebuild
from streamproc.domain.states import RELEASING_STATUSES, TERMINAL_STATES
from streamproc.domain.tokens import Token, tokens_after
from streamproc.log.names import SHARED_PARTITION
from streamproc.log.restore import Restorer
from streamproc.log.stream import Entry

ROWS_AT_ONCE = 2_000
"""Rows of the archive fetched at once, some 2 kB each."""
PAYOUTS_AT_ONCE = 200
"""Payouts whose histories are fetched together: some ten entries of 2 kB each."""
SCAN_TIMEOUT_S = 600.0
"""Limit for the next rows of a query that may have to skip millions."""
MS = 1_000

SQL = statements("streamproc.operate", "recover.sql")

OnStage = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: not known)."""


@dataclass
class Counts:
    """What was written for one partition. `rescued`, `dropped`: entries of the log that was set aside."""

    partition: int
    archived: int = 0
    payouts: int = 0
    budgets: int = 0
    beneficiaries: int = 0
    policies: int = 0
    rates: int = 0
    seen: int = 0
    timers: int = 0
    letters: int = 0
    entries: int = 0
    pending: dict[str, int] = field(default_factory=dict)
    rescued: int = 0
    dropped: int = 0
    number: int = 0


class Sources(Struct, frozen=True):
    """What a partition is rebuilt from: the built views, and the archive up to `head`. `now_us`: Redis's clock."""

    place: asyncpg.Connection
    archive: asyncpg.Connection
    partition: int
    head: Head
    now_us: int
    retention_s: float
    disowned: Disowned

    async def events_of(self, entry: StoredEntry) -> list[Event]:
        """The events of an archived entry; none if it cannot be read and a person disowned it."""
        _, events = await self.disowned.read(entry)
        return events

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return self.now_us // 1000

    async def want(self, entries: Iterable[str], group: str = "") -> None:
        """Have the new log hold these entries, for a group that may not have handled them, or for none."""
        keys = [id_key(entry) for entry in entries]
        if keys:
            await self.archive.execute(SQL["want"], [ms for ms, _ in keys], [n for _, n in keys], group)


async def rows_in_parts(
    db: asyncpg.Connection, sql: str, *arguments: Any, at_once: int = ROWS_AT_ONCE
) -> AsyncIterator[list[Any]]:
    """A query's rows in lists of `at_once`. Neither the query nor the reader has a time limit."""
    async with transaction(db):
        await db.execute("SET LOCAL statement_timeout = 0")
        await db.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor = await db.cursor(sql, *arguments)
        while rows := await cursor.fetch(at_once, timeout=SCAN_TIMEOUT_S):
            yield rows


async def restore_budgets(sources: Sources, to: Restorer, counts: Counts) -> None:
    """Restore each window that is still kept: for the retention time after it ended, or was last charged."""
    async for rows in rows_in_parts(sources.place, SQL["budgets"], sources.partition):
        seqs = [row["limit_seq"] for row in rows]
        times = dict(await sources.archive.fetch(SQL["times_of_seqs"], sources.partition, seqs))
        for row in rows:
            ended_s = max(window_end_s(row["window_name"]), times[row["limit_seq"]] // MS)
            expires_s = ended_s + int(sources.retention_s)
            if expires_s * MS > sources.now_ms:
                counts.budgets += 1
                await to.budget(
                    row["scope"], row["window_name"], row["reserved"], row["committed"], expires_s
                )


async def restore_beneficiaries(sources: Sources, to: Restorer, counts: Counts) -> None:
    """Restore the registry of beneficiaries, as far as it is still kept."""
    for sql, write in (("beneficiaries", to.beneficiary), ("vendors_paid", to.vendor)):
        owner, names = ("", ""), dict[str, int]()
        async for rows in rows_in_parts(sources.place, SQL[sql], sources.partition):
            for row in rows:
                if owner != (row["account"], row["name"]):
                    if names:
                        await write(*owner, names, sources.now_us)
                    owner, names = (row["account"], row["name"]), {}
                names[row["other"]] = row["at_us"]
                counts.beneficiaries += sql == "beneficiaries"
        if names:
            await write(*owner, names, sources.now_us)


async def policies_of(sources: Sources) -> dict[str, ScopeState]:
    """The policies in force, by the archive. Read from the events, since the view has them as other JSON."""
    newest = await sources.place.fetch(SQL["policies"], sources.partition)
    versions = {(row["scope"], row["version"]) for row in newest}
    seqs = sorted({row["seq"] for row in newest})
    scopes: dict[str, ScopeState] = {}
    for start in range(0, len(seqs), ROWS_AT_ONCE):
        for row in await entries_of(sources, seqs[start : start + ROWS_AT_ONCE]):
            for change in await sources.events_of(row):
                if type(change) is PolicyChanged and (change.scope, change.version) in versions:
                    scopes[change.scope] = ScopeState(
                        version=change.version, own=change.after, effective=change.effective
                    )
    return scopes


async def tokens_of(sources: Sources) -> dict[str, Token]:
    """The tokens, by the archive; all of their events are in one partition."""
    tokens: dict[str, Token] = {}
    if sources.partition == SHARED_PARTITION:
        asked = (SQL["token_entries"], sources.partition, sources.head.seq)
        async for rows in rows_in_parts(sources.archive, *asked):
            for row in rows:
                tokens = tokens_after(tokens, await sources.events_of(Entry(*row)))
    return tokens


async def proposals_of(sources: Sources) -> dict[str, Proposal]:
    """Policy changes that wait for a second person, by the archive; all of their events are in one partition."""
    proposals: dict[str, Proposal] = {}
    if sources.partition == SHARED_PARTITION:
        asked = (SQL["proposal_entries"], sources.partition, sources.head.seq)
        async for rows in rows_in_parts(sources.archive, *asked):
            for row in rows:
                proposals = proposals_after(proposals, await sources.events_of(Entry(*row)))
                proposals = {name: one for name, one in proposals.items() if one.is_kept(sources.now_us)}
    return proposals


async def accounts_of(sources: Sources) -> set[str]:
    """The accounts that the archive has payouts of."""
    accounts = set[str]()
    async for rows in rows_in_parts(sources.place, SQL["accounts"], sources.partition):
        accounts |= {row["account"] for row in rows}
    return accounts


async def entries_of(sources: Sources, seqs: Sequence[int]) -> list[Row]:
    """Entries by seq, in order."""
    rows = await sources.archive.fetch(SQL["entries_of_seqs"], sources.partition, list(seqs))
    return [Row(*row) for row in rows]


async def restore_payouts(sources: Sources, to: Restorer, counts: Counts, say: OnStage) -> None:
    """Restore every payout that is not over, and those that ended within the retention time."""
    terminal, releasing = sorted(TERMINAL_STATES), ["", *sorted(RELEASING_STATUSES)]
    since_ms = sources.now_ms - int(sources.retention_s * MS)
    arguments = (sources.partition, terminal, releasing, since_ms)
    async for rows in rows_in_parts(sources.place, SQL["payouts"], *arguments, at_once=PAYOUTS_AT_ONCE):
        not_over: dict[str, int] = {}
        for row in rows:
            record = decode_record(row["record"])
            if is_over(record):
                held = budget_answer(record.reservation) if record.reservation is not None else None
                await _payout(sources, to, counts, record, Admission(None, held), row["last_ms"])
            else:
                not_over[text_key(record.payout)] = row["last_ms"]
        await _from_histories(sources, to, counts, not_over)
        say("payouts", counts.payouts, 0)


async def _payout(
    sources: Sources, to: Restorer, counts: Counts, record: PayoutRecord, admission: Admission, last_ms: int
) -> None:
    expires_s = last_ms // MS + int(sources.retention_s) if is_terminal(record) else None
    await to.payout(record, admission, expires_at_s=expires_s)
    counts.payouts += 1


async def _from_histories(sources: Sources, to: Restorer, counts: Counts, last_ms: dict[str, int]) -> None:
    pending: dict[str, list[str]] = {}
    async for payout, history in _histories(sources, list(last_ms)):
        built = rebuild(history, INPUTS, GOVERNANCE, comes_again)
        if built.record is not None:
            await _payout(sources, to, counts, built.record, built.admission, last_ms[payout])
        for timer in built.timers:
            await to.timer(timer)
            counts.timers += 1
        for group, entries in built.pending.items():
            pending.setdefault(group, []).extend(entries)
    for group, entries in pending.items():
        await sources.want(entries, group)


async def _histories(sources: Sources, payouts: Sequence[str]) -> AsyncIterator[tuple[str, list[Stored]]]:
    """All entries of each payout, in order."""
    owner, history = "", list[Stored]()
    if not payouts:
        return
    async for rows in rows_in_parts(sources.archive, SQL["histories"], sources.partition, payouts):
        for row in rows:
            if row["payout"] != owner:
                if history:
                    yield owner, history
                owner, history = row["payout"], []
            entry = Entry(row["id"], row["e"], row["m"])
            history.append(Stored(entry.id, *await sources.disowned.read(entry)))
    if history:
        yield owner, history

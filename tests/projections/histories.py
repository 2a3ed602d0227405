"""Histories for the projector's tests: a log in a list, entries, and random lives of payouts that could have been."""

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from projections.loop import Duties, OnBatch, project
from projections.notary import CheckpointTerms
from projections.views import NAMES
from streamproc.archive.load import chained
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import Head
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord, fold, settlement_due
from streamproc.domain.wire import encode_events
from tests.words import ACCOUNT, NOW, observed

START_MS = 1_796_083_199_000
"""Less than a second before the end of November 2026 (UTC), so that a log of some length enters December."""
DEADLINE_S = 60.0


class Stored(NamedTuple):
    """A log entry."""

    id: str
    e: bytes
    m: bytes = b'{"by":"governance"}'


class ListedLog:
    """A log that is a list. What a test does to `entries` is what happened to the log."""

    def __init__(self, entries: Sequence[Stored] = ()) -> None:
        self.entries = list(entries)
        self.closed = 0

    async def read(self, after: str, count: int, block_ms: int) -> list[Stored]:
        """As XREAD answers, but waiting is one turn of the loop."""
        first = bisect_right(self.entries, key(after), key=lambda entry: key(entry.id))
        found = self.entries[first : first + count]
        if not found and block_ms:
            await asyncio.sleep(0.005)
        return found

    async def logged(self, _partition: int, entry: str) -> Stored | None:
        """An entry by its id."""
        return next((each for each in self.entries if each.id == entry), None)

    async def last_id(self) -> str:
        """0-0 when it is empty."""
        return self.entries[-1].id if self.entries else "0-0"

    async def aclose(self) -> None:
        """Counts."""
        self.closed += 1


def rows_of(entries: Sequence[Stored], partition: int = 0) -> list[ArchivedEntry]:
    """The entries as the archive has them, from its beginning."""
    return chained(partition, Head(), entries)[0]


def key(entry: str) -> tuple[int, int]:
    """Order of entry ids."""
    ms, n = entry.split("-")
    return int(ms), int(n)


def log_of(*batches: Sequence[e.Event], m: bytes = b'{"by":"governance"}') -> list[Stored]:
    """One entry for each list of events, some of them in the same millisecond."""
    return [
        Stored(f"{START_MS + 400 * (n // 2)}-{n % 2}", encode_events(events), m)
        for n, events in enumerate(batches)
    ]


def reserved(
    payout: str, amount: int, *windows: str, agent: str = "bot", limit: int | None = 10**9
) -> e.BudgetReserved:
    """Rule 16 found room."""
    uses = [
        e.WindowUse(scope=f"agent:{agent}", window=window, limit=limit, reserved=0, committed=0)
        for window in windows or ("2026-11-30",)
    ]
    return e.BudgetReserved(at=NOW + 1, payout=payout, amount=amount, number=1, windows=uses, findings=[])


def decided(
    payout: str, amount: int, decision: e.Decision = "APPROVED", reason: str = "POLICY_OK"
) -> e.PayoutDecided:
    """The decision."""
    return e.PayoutDecided(
        at=NOW + 2,
        payout=payout,
        account=ACCOUNT,
        agent="bot",
        amount=amount,
        decision=decision,
        reason=reason,
        reasons=[reason],
        findings=[],
        policy_version=1,
        bank_status="pending",
    )


def noted(payout: str) -> e.BeneficiaryNoted:
    """One of a few fund accounts, for one of a few vendors, is known from then on."""
    n = len(payout) + ord(payout[-1])
    return e.BeneficiaryNoted(
        at=NOW + 2 + n,
        payout=payout,
        account=ACCOUNT,
        fund_account=f"fa_{n % 3}",
        vendor=f"shop{n % 2}.example" if n % 5 else "",
    )


def settled(reservation: e.BudgetReserved, settlement: str) -> e.PayoutSettled:
    """The reservation is committed or released."""
    return e.PayoutSettled(
        at=NOW + 3,
        payout=reservation.payout,
        settlement=settlement,  # type: ignore[arg-type]
        amount=reservation.amount,
        why="test",
        windows=[[use.scope, use.window] for use in reservation.windows],
    )


def life(payout: str, chance: random.Random) -> list[list[e.Event]]:
    """One payout's entries, from the first time it is seen to wherever chance lets it end."""
    amount = chance.randint(100, 10**6)
    agent = chance.choice(["bot", "scout"])
    windows = chance.choice([("2026-11-30",), ("2026-11-30", "2026-W49"), ("2026-12-01", "2026-12")])
    entries: list[list[e.Event]] = [[observed(payout, amount, agent=agent)]]
    commit: list[e.Event] = []
    decision = chance.choice(["APPROVED", "REJECTED", "HELD"])
    reservation = reserved(
        payout, amount, *windows, agent=agent, limit=chance.choice([None, 10**9, 2 * 10**9])
    )
    if decision != "REJECTED" or chance.random() < 0.5:
        commit.append(reservation)
    commit.append(decided(payout, amount, decision))  # type: ignore[arg-type]
    if decision == "HELD":
        entries.append(commit)
        review = e.ReviewCounted(
            at=NOW + 2, payout=payout, by="asha", action="approve", why="known", channel="cli", needed=0
        )
        commit = [review, decided(payout, amount)]
    if decision != "REJECTED":
        commit.append(noted(payout))
    entries.append(commit)
    for status in sorted(
        chance.sample(["processing", "processed", "failed", "reversed"], k=chance.randint(0, 3))
    ):
        seen: list[e.Event] = [observed(payout, amount, agent=agent, status=status, at=NOW + 9)]
        record = fold([event for entry in entries for event in entry] + seen)
        assert record is not None
        due = settlement_due(record)
        entries.append(seen)
        if due:
            entries.append([settled(reservation, due)])
    return entries


def history(seed: int, payouts: int) -> list[Stored]:
    """The lives of some payouts, interleaved as workers would."""
    chance = random.Random(seed)
    lives = [life(f"pout_{n}", chance) for n in range(payouts)]
    batches: list[list[e.Event]] = []
    while lives:
        one = chance.choice(lives)
        batches.append(one.pop(0))
        if not one:
            lives.remove(one)
    return log_of(*batches)


def budgets_by_state(records: Sequence[PayoutRecord]) -> dict[tuple[str, str], tuple[int, int]]:
    """Reserved and committed per window, counted from what the payouts hold in the end, not from changes."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for record in records:
        if record.reservation is None:
            continue
        held, amount = record.reservation.state, record.reservation.amount
        for use in record.reservation.windows:
            kept, spent = found.get((use.scope, use.window), (0, 0))
            found[use.scope, use.window] = (
                kept + (amount if held == "reserved" else 0),
                spent + (amount if held == "committed" else 0),
            )
    return found


@asynccontextmanager
async def projecting(
    dsn: str,
    view: ListedLog,
    *,
    batch_max: int = 2_000,
    on_batch: OnBatch | None = None,
    terms: CheckpointTerms | None = None,
) -> AsyncIterator["asyncio.Task[None]"]:
    """A projector of partition 0 at work; stopped at the end."""
    stopping = asyncio.Event()
    task = asyncio.create_task(
        project(0, view, dsn, Duties(batch_max=batch_max, on_batch=on_batch, terms=terms), stopping=stopping)
    )
    try:
        yield task
        stopping.set()
        await asyncio.wait_for(task, DEADLINE_S)
    finally:
        task.cancel()


async def project_all(
    dsn: str, view: ListedLog, *, batch_max: int = 2_000, terms: CheckpointTerms | None = None
) -> None:
    """Project until the last entry of the log is archived."""
    async with projecting(dsn, view, batch_max=batch_max, terms=terms) as task:
        await archived(dsn, view.entries[-1].id, task)


async def archived(dsn: str, entry: str, task: "asyncio.Task[None] | None" = None) -> None:
    """Wait until the archive and all views are at `entry`; a projector that fails meanwhile fails the test.

    So does one that comes no further for DEADLINE_S. How long it may take in all depends on the history's length.
    """
    loop, before = asyncio.get_running_loop(), list[tuple[object, ...]]()
    async with asyncio.timeout(DEADLINE_S) as no_further:
        while True:
            if task is not None and task.done():
                await task
            heads = await fetch(dsn, _HEADS)
            if sum(head[1] == entry for head in heads) == 1 + len(NAMES):
                return
            if heads != before:
                before = heads
                no_further.reschedule(loop.time() + DEADLINE_S)
            await asyncio.sleep(0.02)


_HEADS = """
    SELECT '', entry_id FROM heads WHERE partition = 0
    UNION ALL SELECT view, entry_id FROM view_heads WHERE partition = 0 ORDER BY 1
"""


async def fetch(dsn: str, query: str, *args: object) -> list[tuple[object, ...]]:
    """Rows of a query on a connection of its own."""
    db = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await db.fetch(query, *args)]
    finally:
        await db.close()


async def archived_earlier(dsn: str, interval: str) -> None:
    """As if all had been archived so much earlier."""
    await fetch(dsn, "ALTER TABLE events DISABLE TRIGGER events_rows_stay")
    await fetch(dsn, f"UPDATE events SET archived_at = archived_at - interval '{interval}'")


VIEWS = {
    "events": "SELECT partition, seq, entry_id, payout, e, m, hash FROM events ORDER BY partition, seq",
    "heads": "SELECT partition, seq, entry_id, hash FROM heads ORDER BY partition",
    "payouts": "SELECT * FROM payouts ORDER BY payout",
    "audit": "SELECT * FROM audit ORDER BY id",
    "budgets": "SELECT * FROM budgets ORDER BY partition, scope, window_name",
    "holds": "SELECT * FROM holds ORDER BY payout",
    "policies": "SELECT * FROM policies ORDER BY partition, scope, version",
    "agents": "SELECT * FROM agents ORDER BY agent",
    "vendors": "SELECT * FROM vendors ORDER BY vendor",
    "beneficiaries": "SELECT * FROM beneficiaries ORDER BY account, fund_account, vendor",
    "view_heads": "SELECT view, partition, seq, entry_id, version FROM view_heads ORDER BY view, partition",
}


async def everything(dsn: str) -> dict[str, list[tuple[object, ...]]]:
    """All that the projector writes, without when it wrote it."""
    assert set(NAMES) <= VIEWS.keys(), (
        f"give each of {set(NAMES) - VIEWS.keys()} a query in VIEWS of {__name__}"
    )
    db = await asyncpg.connect(dsn)
    try:
        return {view: [tuple(row) for row in await db.fetch(query)] for view, query in VIEWS.items()}
    finally:
        await db.close()

"""A long history made by the real engine from a seed: every rule, hold, review, expiry, release, day and policy change.

The requests, their times, the reviewers' answers and the bank's outcomes come from the seed. Which worker is faster
does not, so two runs have the same payouts but different logs. That is intended: whatever the workers wrote, a replay
must give the same.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import asyncpg
from msgspec.structs import replace

from projections.schema import prepare
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import decode_events, payout_of
from streamproc.log.connection import connected
from streamproc.log.stream import LogView
from tests.engine import Engine
from tests.profiles import policy_fields
from tests.projections.histories import ListedLog, Stored, project_all
from tests.words import ACCOUNT, Vendors, observed, reviewed

TEST_MAX_S = 900
"""Limit for a test. The first one also waits until the history is made, which takes half a minute, and on a very
busy machine minutes."""
SEED = 20_350_101
PAYOUTS, PAYOUTS_LATER = 10_000, 500
CRASHES = 0.1
CLAIM_IDLE_S = 0.5
DAY_US = 86_400_000_000
START = 2_051_222_400_000_000
"""µs; Mon 1 Jan 2035, 05:30 in Asia/Kolkata: windows must not have ended by the clock of Redis."""
READ_AT_ONCE = 500
"""Entries. A read must be answered within 3 s, which on a busy machine 5,000 entries were not."""
PAYOUTS_PER_DAY = 300
CHUNK = 400
"""Payouts between two rounds of reviews, and at least between two changes of policies."""

VENDORS = {"malware": "threat", "unreachable": "unavailable"}
URLS = (
    *("https://vendor.example.net/invoice/7", "https://paper.example.org/", "https://xn--bcher-kva.example/"),
    *("https://malware.example.net/", "https://unreachable.example.net/", "https://bad.example.com/x"),
    *("https://shop.evil.xyz/", "https://pаypal.example/", "http://127.0.0.1/", "not a url"),
)
OUTCOMES: tuple[tuple[str, ...], ...] = (
    *(("processing", "processed"),) * 6,
    *(("processed", "processing"), ("processing", "failed"), ("failed",), ("reversed",), ("cancelled",), ()),
)
"""What the bank shows of an approved payout, one status after the other."""
REVIEWERS = ("asha", "ravi", "meena")

POLICIES = """
defaults: {blocked_domains: [bad.example.com, '*.xyz'], rate_limit: {count: 40, window: 60}}
policies:
  plain: {daily_limit: 900000}
  small: {daily_limit: 300000, per_txn_limit: 40000, weekly_limit: 1200000, monthly_limit: 4000000}
  held: {daily_limit: 2000000, require_approval_above: 20000, hold_ttl: 1h,
         dual_approval_above: 80000, new_beneficiary: hold}
  night: {hours: '09:00-18:00', days: [mon, tue, wed, thu, fri], timezone: Europe/Berlin}
  bursty: {rate_limit: {count: 3, window: 3600}}
  patient: {rate_limit: {count: 3, window: 3600}, on_rate_limit: hold, daily_limit: 500000}
  listed: {allowed_domains: [vendor.example.net, 127.0.0.1, malware.example.net], daily_limit: 700000,
           count_fees: true}
  strict: {on_reputation_unavailable: reject, require_vendor_url: true, vendor_daily_limit: 250000}
  known: {require_verified_identity: true, daily_limit: 400000}
  foreign: {currencies: [INR, USD], count_fees: true}
  one: {team: desk, daily_limit: 500000}
  two: {team: desk, daily_limit: 500000, changed_beneficiary: hold}
  steady: {OF_HABIT}
accounts:
  acc_Test0000000001: {daily_limit: 6000000, monthly_limit: 90000000}
teams:
  desk: {daily_limit: 600000, weekly_limit: 2500000}
reviewers: [asha, ravi]
agents:
  known: {fund_accounts: [fa_known]}
""".replace("OF_HABIT", policy_fields(amounts=(20_000,) * 20, threshold=450))
CHANGES = (
    "policies: {plain: {daily_limit: 500000, frozen: true}}",
    "policies: {plain: {daily_limit: 700000}}",
    "defaults: {blocked_domains: [bad.example.com], rate_limit: {count: 25, window: 60}}",
    "policies: {held: {daily_limit: 900000, require_approval_above: 60000, hold_ttl: 2h, blocked_domains: [a.b]}}",
    "policies: {held: {require_approval_above: 20000, blocked_domains: [vendor.example.net]}}",
    "teams: {desk: {daily_limit: 400000}}",
    "reviewers: [asha, ravi, meena]",
    "policies: {bursty: {rate_limit: {count: 1, window: 7200}}, patient: {rate_limit: {count: 0}}}",
    "accounts: {acc_Test0000000001: {daily_limit: 3000000}}",
    "policies: {held: {daily_limit: 2000000, require_approval_above: 20000, dual_approval_above: 80000, hold_ttl: 1h}}",
    "accounts: {acc_Test0000000001: {daily_limit: 6000000, frozen: true}}",
    "accounts: {acc_Test0000000001: {daily_limit: 6000000}}",
    "policies: {one: {daily_limit: 100000}, two: {team: desk, daily_limit: 500000, per_txn_limit: 30000}}",
    "policies: {stranger: {per_txn_limit: 10000}, steady: {anomaly: true, daily_limit: 800000}}",
    "agents: {known: {fund_accounts: [fa_1]}}",
    ("agent:one", True),
    (f"account:{ACCOUNT}", True),
    (f"account:{ACCOUNT}", False),
    ("agent:one", False),
    "policies: {small: {daily_limit: 300000, new_beneficiary: hold, changed_beneficiary: hold}}",
    ("team:desk", True),
    ("team:desk", False),
)
"""Policy files that are applied, and scopes that are frozen (True) or unfrozen (False) by command."""
AGENTS = (
    *("plain", "small", "held", "held", "night", "bursty", "patient", "listed", "strict", "known"),
    *("foreign", "one", "two", "steady", "stranger", None),
)


@dataclass
class Seeded:
    """Makes the history."""

    engine: Engine
    seed: int
    crashes: float = 0.0
    """Probability that a worker dies while a chunk is decided."""
    asked: int = 0
    now: int = START
    records: dict[str, PayoutRecord] = field(default_factory=dict)
    open: dict[str, None] = field(default_factory=dict)
    """Payouts to which something can still happen, in the order in which they became so."""
    rng: random.Random = field(init=False)
    _read_upto: str = "0-0"
    _changed: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    async def run(self, payouts: int) -> None:
        """Add `payouts` more payouts, with everything that happens meanwhile."""
        if not self.asked:
            await self.engine.apply(POLICIES)
        until = self.asked + payouts
        while self.asked < until:
            asks = [self._ask() for _ in range(min(CHUNK, until - self.asked))]
            arriving = asyncio.gather(*(self._append(event) for event in self._delivered(asks)))
            if self.rng.random() < self.crashes:
                await asyncio.sleep(self.rng.random() * 0.1)  # somewhere in a batch
                await self.engine.crash()
            if self.rng.random() < 0.5:
                await self._change()  # while they are being decided
            await arriving
            await self.engine.settled()
            await self._read()
            happens = [*self._people(), *self._bank()]
            await asyncio.gather(*(self._append(event) for event in happens))
            await self.engine.settled()

    async def _change(self) -> None:
        change = CHANGES[self._changed % len(CHANGES)]
        self._changed += 1
        if isinstance(change, str):
            await self.engine.apply(change)
        else:
            await self.engine.freeze(change[0], frozen=change[1])

    def _ask(self) -> e.PayoutObserved:
        rng = self.rng
        self.asked += 1
        gap = DAY_US // PAYOUTS_PER_DAY
        self.now += rng.choice((0, 1_000_000, gap, 2 * gap))
        return observed(
            f"pout_{self.seed}_{self.asked}",
            rng.choice((100, 5_000, 9_999, 20_000, 20_001, 40_000, 40_001, 60_000, 80_001, 150_000)),
            agent=rng.choice(AGENTS),
            url=rng.choice(URLS) if rng.random() < 0.7 else rng.choice((None, URLS[0])),
            status=rng.choices(("pending", "queued", "processing"), (88, 10, 2))[0],
            currency="USD" if rng.random() < 0.05 else "INR",
            fund_account=rng.choice(("fa_1", "fa_2", "fa_known", f"fa_{rng.randrange(300)}")),
            at=self.now,
        )

    def _delivered(self, asks: list[e.PayoutObserved]) -> Iterator[e.PayoutObserved]:
        for event in asks:
            yield event
            if self.rng.random() < 0.05:  # seen once more, by the poller
                yield replace(event, source="poll", at=event.at + 1_000)

    async def _append(self, event: e.Event) -> None:
        await self.engine.append(ACCOUNT, event)

    async def _read(self) -> None:
        """Read what the engine has written so far."""
        async with LogView(self.engine.url, 0) as view:
            while rows := await view.read(self._read_upto, READ_AT_ONCE, 0):
                self._read_upto = rows[-1].id
                for event in (event for row in rows for event in decode_events(row.e)):
                    if payout := payout_of(event):
                        record = evolve(self.records.get(payout), event)
                        assert record is not None
                        self.records[payout] = record
                        self.open[payout] = None
        self.open = {p: None for p in self.open if self.records[p].state in ("held", "approved", "processed")}

    def _people(self) -> Iterator[e.Event]:
        rng = self.rng
        for record in self._in_state("held"):
            answer = rng.choices(("approve", "reject", "expire", "nothing"), (40, 15, 15, 30))[0]
            if answer == "expire":
                at = record.hold_expires_at
                yield e.TimerFired(at=at, payout=record.payout, timer="hold_expiry")
            elif answer != "nothing":
                yield reviewed(
                    record.payout,
                    rng.choice(REVIEWERS),
                    answer,
                    at=self.engine.producer.now_us(),
                    why="seeded",
                )

    def _bank(self) -> Iterator[e.Event]:
        rng = self.rng
        for record in self._in_state("processed"):
            del self.open[record.payout]  # most stay processed
            if rng.random() < 0.05:
                yield self._seen(record, "reversed")
            elif rng.random() < 0.1:
                yield self._seen(record, "processed", fees=708)
        for record in self._in_state("approved"):
            if record.bank_status == "pending" and rng.random() < 0.01:
                yield self._stopped(record)
                continue
            for status in rng.choice(OUTCOMES):
                yield self._seen(record, status)

    def _in_state(self, state: str) -> list[PayoutRecord]:
        return [self.records[payout] for payout in self.open if self.records[payout].state == state]

    def _stopped(self, record: PayoutRecord) -> e.PayoutStopped:
        """The event of execution for a payout that it finds frozen right before the call."""
        evidence: e.Evidence = {"scope": f"agent:{record.agent}", "by": "seed", "why": "seeded"}
        return e.PayoutStopped(
            at=self.engine.producer.now_us(),
            payout=record.payout,
            command="approve",
            finding=e.Finding(stage="screening", code="FROZEN", outcome="REJECTED", evidence=evidence),
            maybe_sent=self.rng.random() < 0.3,
            caused_by="",
        )

    def _seen(self, record: PayoutRecord, status: str, fees: int | None = None) -> e.PayoutObserved:
        event = observed(record.payout, record.amount, agent=record.agent, status=status, at=self.now)
        shown_fees = self.rng.choice((0, 590)) if fees is None else fees
        return replace(event, facts=replace(event.facts, fees=shown_fees))


# ---- once for the session -----------------------------------------------------------------


@dataclass(frozen=True)
class SeededHistory:
    """`entries` is the whole log. The database holds the archive of the first `archived` entries, with all views."""

    database: str
    entries: list[Stored]
    archived: int


async def make_history(valkey: str, postgres_server: str) -> SeededHistory:
    """Make the history on an empty Valkey, and archive it in a new database."""
    async with connected(valkey) as client:
        await client.flushall()
    async with Engine(valkey, vendors=Vendors(VENDORS), workers=3, claim_idle_s=CLAIM_IDLE_S) as engine:
        author = Seeded(engine, SEED, crashes=CRASHES)
        await author.run(PAYOUTS)
        archived = len(await _entries(valkey))
        await author.run(PAYOUTS_LATER)
        entries = await _entries(valkey)
    database = f"seeded_{os.getpid()}"
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"CREATE DATABASE {database} TEMPLATE template0")
    finally:
        await admin.close()
    dsn = f"{postgres_server.rpartition('/')[0]}/{database}"
    await prepare(dsn)
    await project_all(dsn, ListedLog(entries[:archived]))
    return SeededHistory(database, entries, archived)


async def drop_history(postgres_server: str, history: SeededHistory) -> None:
    """Remove the database of the history."""
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"DROP DATABASE {history.database} WITH (FORCE)")
    finally:
        await admin.close()


async def _entries(valkey: str) -> list[Stored]:
    entries: list[Stored] = []
    async with LogView(valkey, 0) as view:
        while rows := await view.read(entries[-1].id if entries else "0-0", READ_AT_ONCE, 0):
            entries += [Stored(row.id, row.e, row.m) for row in rows]
    return entries

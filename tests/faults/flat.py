"""Does anything grow? Every process and store is measured at intervals, and a rule says what counts as growth.

The rule: the second half of the run, when everything was done many times before, is cut into six parts. A series'
growth is the median of the five steps from one part's median to the next. Since three steps must go up, a buffer
allocated once or twice is no growth, but a slow leak is. The growth must not exceed the bound of its kind.
"""

import asyncio
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
from msgspec import Struct

from streamproc.archive.store import AWAY
from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected, named_errors

if TYPE_CHECKING:
    from tests.faults.stand import Stand

LOOK_S = 2.0
WARM_S = 60.0
"""A younger process still loads modules and fills its pools and caches."""
SAMPLES_MIN = 18
"""Least number of samples in the second half, three for each part; fewer say nothing."""
PARTS = 6
KEY_BYTES = 200
"""Redis's memory for the key of a known delivery; such keys stay for 16 days, whatever RETENTION is."""


class Kind(Struct, frozen=True):
    """A kind of measurement: its unit, and how much it may grow in a minute. Up to `least` in all is no growth."""

    name: str
    unit: str
    bound: float
    least: float


MEMORY = Kind("memory", "kB", 400.0, 1_000.0)
"""24 MB an hour. A process that leaks 2 kB a payout at 3 payouts a second is over it."""
DESCRIPTORS = Kind("descriptors", "", 0.5, 3.0)
POOLED_S = 330
"""A pool closes a connection that was not used for 300 s. The number in use varies by ten with bursts and killed
servers; a leaked connection is never used again."""
CONNECTIONS = Kind(f"connections idle for {POOLED_S} s", "", 0.5, 3.0)
"""Connections of Postgres. A leak of one a minute would reach the server's limit within a day."""
IDLE_S = 30
IDLE = Kind(f"connections idle for {IDLE_S} s", "", 0.5, 3.0)
"""Idle connections to Redis. The number in use varies by ten and more with restarts and bursts, and each is used
several times a minute; only a leaked one is never used again."""
REDIS_MEMORY = Kind("memory without what knows deliveries", "kB", 400.0, 1_000.0)
ENTRIES = Kind("entries of the log", "", 60.0, 300.0)
"""With 3 payouts a second, which make 18 entries, 1,080 entries a minute come in."""


class Series(Struct):
    """One measurement of one process or store over time. `at` is in seconds."""

    of: str
    kind: Kind
    at: list[float] = []
    values: list[float] = []

    def add(self, at: float, value: float) -> None:
        """One more sample."""
        self.at.append(at)
        self.values.append(value)


class Grown(NamedTuple):
    """A judged series: its value at half time and at the end (medians of ten samples), and its growth."""

    of: str
    kind: Kind
    half: float
    end: float
    most: float
    per_min: float

    @property
    def is_growth(self) -> bool:
        """Whether it is over its bound."""
        return self.per_min > self.kind.bound and self.end - self.half > self.kind.least

    def __str__(self) -> str:
        word = "GROWS" if self.is_growth else "flat"
        return (
            f"| {self.of} | {self.kind.name} | {self.half:,.0f} | {self.end:,.0f} | {self.most:,.0f}"
            f" | {self.kind.unit} | {self.per_min:+,.1f} | {self.kind.bound:,.1f} | {word} |"
        )


HEAD = (
    "| of | what | at the half | at the end | most | unit | a minute | bound | |",
    "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | --- |",
)


def growth_per_min(at: Sequence[float], values: Sequence[float]) -> float:
    """The median step from one part to the next, per minute."""
    ends = [round(len(values) * part / PARTS) for part in range(PARTS + 1)]
    levels = [statistics.median(values[begin:end]) for begin, end in pairwise(ends)]
    return statistics.median(b - a for a, b in pairwise(levels)) * PARTS * 60.0 / (at[-1] - at[0])


def judged(series: Iterable[Series], half_s: float) -> Iterator[Grown]:
    """Judge every series that was WARM_S old at `half_s` and has enough samples since."""
    for each in series:
        since = next((n for n, at in enumerate(each.at) if at >= half_s), len(each.at))
        at, values = each.at[since:], each.values[since:]
        if len(at) < SAMPLES_MIN or each.at[0] > half_s - WARM_S:
            continue
        first, last = statistics.median(values[:10]), statistics.median(values[-10:])
        yield Grown(each.of, each.kind, first, last, max(each.values), growth_per_min(at, values))


class Watch:
    """Measures the processes of every role, and the stores by their own figures.

    The bank's sandbox is not measured: it keeps everything that it was told, for the invariants.
    """

    def __init__(self, stand: "Stand") -> None:
        self._stand = stand
        self._began = time.monotonic()
        self._series: dict[tuple[str, str, int], Series] = {}

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._look_at_processes()
            await self._look_at_redis()
            await self._look_at_postgres()

    def verdict(self) -> list[Grown]:
        """The growth of each series that can be judged."""
        results = judged(self._series.values(), (time.monotonic() - self._began) / 2)
        return sorted(results, key=lambda grown: (grown.of, grown.kind.name))

    def _note(self, of: str, kind: Kind, value: float, pid: int = 0) -> None:
        series = self._series.setdefault((of, kind.name, pid), Series(of, kind))
        series.add(time.monotonic() - self._began, value)

    def _look_at_processes(self) -> None:
        for slot in self._stand.slots.values():
            process = slot.process
            if process is not None and process.returncode is None and (seen := used(process.pid)):
                memory_kb, descriptors = seen
                self._note(slot.name, MEMORY, memory_kb, process.pid)
                self._note(slot.name, DESCRIPTORS, descriptors, process.pid)

    async def _look_at_redis(self) -> None:
        try:
            async with connected(self._stand.system.redis_url) as client:
                with named_errors():
                    memory = await client.info("memory")
                    clients = await client.client_list()
                    keys = await client.dbsize()
                    length = await client.xlen(self._stand.system.names.log)
        except LogUnavailable:
            return  # away, or restarted just now
        self._note("redis", REDIS_MEMORY, (memory["used_memory"] - KEY_BYTES * keys) / 1024)
        self._note("redis", IDLE, sum(int(row["idle"]) >= IDLE_S for row in clients))
        self._note("redis", ENTRIES, length)

    async def _look_at_postgres(self) -> None:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND state_change < now() - $1 * interval '1 second'"
        )
        try:
            async with asyncio.timeout(LOOK_S):
                count = await self._stand.system.pool.fetchval(sql, POOLED_S)
        except (*AWAY, asyncpg.PostgresError):
            return
        self._note("postgres", CONNECTIONS, count)


def used(pid: int) -> tuple[float, int] | None:
    """Resident memory (kB) and open descriptors of a process; None if it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * 4, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None


def growing(verdict: Sequence[Grown], of: Iterable[str] = ()) -> list[str]:
    """What grew, and which roles and stores in `of` were not measured long enough to say."""
    measured = {each.of.partition("-")[0] for each in verdict if each.kind in (MEMORY, IDLE, CONNECTIONS)}
    return [
        *(
            f"{each.of}: {each.kind.name} grew by {each.per_min:,.1f} {each.kind.unit} a minute,"
            f" from {each.half:,.0f} to {each.end:,.0f}; the bound is {each.kind.bound:,.1f}"
            for each in verdict
            if each.is_growth
        ),
        *(
            f"{name} was not measured long enough in the run's second half"
            for name in sorted({*of} - measured)
        ),
    ]

"""The engine's side: the real governance group, and with audit the real projector, each in its own process.

The vendors' reputations are in the worker's memory before the start, since the floor looks up none and no lookup may be
measured. A lookup during the contest is an error.

Run as a process, with the arguments (`arguments.py`) `worker REDIS_URL CONSUMERS` or
`projector REDIS_URL POSTGRES_DSN`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import uvloop
from redis.asyncio import Redis

import consumers
from consumers.vet import Reputations
from projections.loop import run_projector
from streamproc.bench import job
from streamproc.bench.arguments import given
from streamproc.bench.contestant import compete
from streamproc.domain.case import Reputation
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import PayoutDecided
from streamproc.domain.policy import parse_policy_file, plan_changes
from streamproc.domain.wire import decode_events
from streamproc.gc_tuning import tune_for_batches
from streamproc.log import scripts
from streamproc.log.batch import Limits
from streamproc.log.cache import Cache
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.policies import put_in_force, read_scopes
from streamproc.log.stream import LogView, open_log

NAMES = Names(0)
FRESH_US = 86_400 * 1_000_000
READ_BATCH = 5_000
AUDIT_COUNTS = "SELECT reason, count(*) FROM audit WHERE kind = 'decision' GROUP BY reason"


async def load(client: Redis, payouts: int, payees: int, at_us: int) -> None:
    """Open the log, put the policies in force, and append the payouts as the webhook does."""
    await open_log(client, partitions=1, groups=[consumers.GOVERNANCE])
    rev, scopes = await read_scopes(client, NAMES)
    file = parse_policy_file(json.dumps(job.policy_file()), name="bench.json")
    changes = plan_changes(scopes, file, prune=False, at=at_us, by="bench", why="bench")
    await put_in_force(client, NAMES, rev, changes, actor="bench")
    for start in range(0, payouts, scripts.BATCH_MAX):
        numbers = range(start, min(payouts, start + scripts.BATCH_MAX))
        events = [job.observed(i, at_us + i, payees) for i in numbers]
        deliveries = [job.appended(event).delivery(b'{"by":"webhook"}') for event in events]
        await scripts.append_once(client, NAMES, deliveries)


async def outcomes(url: str, partition: int = 0, after: str = ZERO) -> Counter[str]:
    """Number of decisions in the log after this entry, by reason."""
    counts = Counter[str]()
    async with LogView(url, partition) as view:
        while entries := await view.read(after, READ_BATCH, 0):
            after = entries[-1].id
            for entry in entries:
                counts.update(e.reason for e in decode_events(entry.e) if isinstance(e, PayoutDecided))
    return counts


class _Lookup:
    """Safe Browsing that finds nothing; from the start of the contest on (`closed`) it raises."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self.closed = False

    async def __call__(self, urls: Sequence[str]) -> Mapping[str, Reputation]:
        if self.closed:
            raise RuntimeError(f"{len(urls)} vendors were looked up; all must be in memory")
        fresh_until = self._now_us + FRESH_US
        return {url: Reputation("clean", checked_at=self._now_us, fresh_until=fresh_until) for url in urls}


async def worker(url: str, consumers_count: int) -> None:
    """Compete with so many consumers of the governance group in this process, as `worker --concurrency` does."""
    async with connected(url) as client:
        now_us, *_ = await scripts.load(client, NAMES, [])
        lookup = _Lookup(now_us)
        reputations = Reputations(lookup)
        await reputations.of(job.vendor_urls(), Cache(client, NAMES), now_us)
    lookup.closed = True
    group = consumers.governance(reputations, zone=job.ZONE)
    workers = [Consumer(url, 0, group, name=f"bench-{n}", limits=Limits()) for n in range(consumers_count)]
    stopping = asyncio.Event()
    tune_for_batches()  # as `app.run_worker` does

    async def work() -> None:  # `gather` alone would start its tasks before `go`
        await asyncio.gather(*(consumer.run(stopping) for consumer in workers))

    await compete(work())


async def projector(url: str, dsn: str) -> None:
    """Compete: archive the partition and fold it into the views."""
    await compete(run_projector(dsn, 1, lambda partition: LogView(url, partition), asyncio.Event()))


if __name__ == "__main__":
    role, url, last = given()
    uvloop.run(projector(url, last) if role == "projector" else worker(url, int(last)))

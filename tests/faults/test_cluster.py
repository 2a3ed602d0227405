"""The core over a Redis Cluster: partitions on three nodes, one of which is killed and failed over under load.

Appends, the governance chain, settlements and the projector run as they do over one server. The invariants are checked
for each partition.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

import consumers
from consumers.vet import Reputations
from projections.loop import run_projector
from projections.schema import prepare
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import connection
from streamproc.domain import events as e
from streamproc.errors import LogUnavailable
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.inspect import counted_budgets, known_records
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import LogView, Producer, open_log
from tests.faults.invariants import Evidence, payouts_in, violations
from tests.valkey_cluster import valkey_cluster
from tests.words import Vendors, apply_policies, delivery, observed

PARTITIONS = 4
PAYOUTS = 40
"""Payouts of each account."""
AMOUNT, ROOM = 10_000, 25
TOGETHER = 5
"""Payouts of an account that are under way at once."""
AT_REST_S = 90.0
AGAIN_S = 0.1
CLAIM_IDLE_S = 2.0
POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60}}}}
policies:
  bot: {{daily_limit: {AMOUNT * ROOM}}}
"""
STATUSES = ("processed", "processed", "failed")

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def accounts() -> list[str]:
    """One account for each partition."""
    found: dict[int, str] = {}
    for n in range(1000):
        account = f"acc_Test{n:010d}"
        found.setdefault(partition_of(account, PARTITIONS), account)
    return [found[partition] for partition in range(PARTITIONS)]


def batched(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """In parts of `size`."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


class Load:
    """What the bank shows of the payouts of each account. It is delivered until it was accepted, as the bank does."""

    def __init__(self, url: str) -> None:
        self.producer = Producer(url, partitions=PARTITIONS, name="webhook")
        self.url = url
        self.refused = 0
        self.bank: dict[int, dict[str, str]] = {partition: {} for partition in range(PARTITIONS)}

    async def pay(self, partition: int, numbers: Sequence[int]) -> None:
        """New payouts, and after its decision the outcome of each, since the bank would not move it before."""
        account = accounts()[partition]
        for some in batched(numbers, TOGETHER):
            made = [
                observed(f"pout_{partition}x{n}", AMOUNT, account=account, at=self.producer.now_us())
                for n in some
            ]
            await asyncio.gather(*(self._deliver(event) for event in made))
            await self._decided(partition, [event.payout for event in made])
            for number, event in zip(some, made, strict=True):
                status = STATUSES[number % len(STATUSES)]
                facts = replace(event.facts, status=status)
                await self._deliver(replace(event, facts=facts, at=self.producer.now_us()))
                self.bank[partition][event.payout] = status

    async def _decided(self, partition: int, payouts: Sequence[str]) -> None:
        while True:
            with suppress(LogUnavailable):
                async with connected(self.url) as client:
                    found = await known_records(client, Names(partition), payouts)
                if all(record is not None and record.decision for record in found.values()):
                    return
            await asyncio.sleep(AGAIN_S)

    async def _deliver(self, event: e.PayoutObserved) -> None:
        while True:
            try:
                await self.producer.append(delivery(event))
                return
            except LogUnavailable:
                self.refused += 1
                await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def core(url: str, dsn: str) -> AsyncIterator[Load]:
    """Two workers of every partition, a projector of all, and producers."""
    async with connected(url) as client:
        await open_log(client, partitions=PARTITIONS, groups=[consumers.GOVERNANCE])
        for partition in range(PARTITIONS):
            await apply_policies(client, POLICIES, partition=partition)
    stopping, load = asyncio.Event(), Load(url)
    group = consumers.governance(Reputations(Vendors()), zone="Asia/Kolkata")
    limits = Limits(claim_idle_s=CLAIM_IDLE_S)
    async with load.producer, asyncio.TaskGroup() as tasks:
        for partition in range(PARTITIONS):
            for n in range(2):
                consumer = Consumer(url, partition, group, name=f"worker-{n}", limits=limits)
                tasks.create_task(consumer.run(stopping))
        tasks.create_task(run_projector(dsn, PARTITIONS, lambda p: LogView(url, p), stopping))
        try:
            yield load
        finally:
            stopping.set()


async def waiting(url: str, dsn: str, partition: int) -> dict[str, int]:
    """The number of entries that are unread, pending, deferred or not archived, by kind."""
    names = Names(partition)
    async with connected(url) as client, connection(dsn, name="test") as db:
        (row,) = await client.xinfo_groups(names.log)
        last = (await client.xinfo_stream(names.log))["last-generated-id"].decode()
        heads = await db.fetch("SELECT entry_id FROM view_heads WHERE partition = $1", partition)
        return {
            "unread": int(row["lag"] or 0),
            "in hand": row["pending"],
            "put off": await client.zcard(names.retries(consumers.GOVERNANCE)),
            "behind": int(not heads) + sum(head["entry_id"] != last for head in heads),
        }


async def rest(url: str, dsn: str, partitions: Sequence[int]) -> dict[int, dict[str, int]]:
    """Wait until nothing waits. Returns what still does after AT_REST_S."""
    end, found = asyncio.get_running_loop().time() + AT_REST_S, dict[int, dict[str, int]]()
    while asyncio.get_running_loop().time() < end:
        with suppress(LogUnavailable):
            found = {partition: await waiting(url, dsn, partition) for partition in partitions}
            if not any(count for one in found.values() for count in one.values()):
                break
        await asyncio.sleep(AGAIN_S)
    return found


async def evidence(load: Load, url: str, dsn: str, partition: int, waits: dict[str, int]) -> Evidence:
    async with connected(url) as client, LogView(url, partition) as view, connection(dsn, name="test") as db:
        rows = await db.fetch(
            "SELECT partition, seq, entry_id AS id, payout, e, m, hash, archived_at FROM events"
            " WHERE partition = $1 ORDER BY seq",
            partition,
        )
        return Evidence(
            log=await view.read("0-0", 100_000, 0),
            archive=[ArchivedEntry(**dict(row)) for row in rows],
            bank=load.bank[partition],
            counters=await counted_budgets(client, Names(partition)),
            waiting=waits,
        )


async def test_a_node_that_is_killed_is_failed_over_and_every_partition_has_one_story(
    public_dir: Path, postgres: str
) -> None:
    await prepare(postgres)
    async with valkey_cluster(public_dir / "cluster") as cluster, core(cluster.url, postgres) as load:
        homes = {partition: cluster.home_of(Names(partition).log) for partition in range(PARTITIONS)}
        assert {id(home) for home in homes.values()} == {id(node) for node in cluster.primaries}
        struck = [partition for partition, home in homes.items() if home is cluster.primaries[1]]
        others = [partition for partition in range(PARTITIONS) if partition not in struck]
        half = PAYOUTS // 2

        await _pay_all(load, struck, range(half))
        await rest(cluster.url, postgres, struck)
        # What a replica does not have is lost, which tests/faults/test_failover.py tests.
        await cluster.in_step()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pay_all(load, others, range(PAYOUTS)))
            await cluster.primaries[1].store.kill()
            tasks.create_task(_pay_all(load, struck, range(half, PAYOUTS)))
            await cluster.took_over()

        waits = await rest(cluster.url, postgres, range(PARTITIONS))
        assert load.refused > 0, "nobody noticed that a node was away"
        for partition in range(PARTITIONS):
            seen = await evidence(load, cluster.url, postgres, partition, waits[partition])
            assert violations(seen) == [], f"partition {partition}"
            assert len(payouts_in(seen.log)) == PAYOUTS


async def _pay_all(load: Load, partitions: Sequence[int], numbers: Sequence[int]) -> None:
    await asyncio.gather(*(load.pay(partition, numbers) for partition in partitions))

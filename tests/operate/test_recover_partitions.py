"""Several partitions: one that is lost is rebuilt and the others are left alone; all that are lost are rebuilt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

import consumers
from consumers.enact import execution
from consumers.vet import Reputations
from projections.loop import run_projector
from projections.schema import prepare
from streamproc.archive.pool import opened_pool
from streamproc.archive.read import archived_upto
from streamproc.errors import LogBroken
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import LogView, Producer, open_log
from tests.consumers.test_refuted import Bank, at_once
from tests.engine import ZONE
from tests.operate.recovering import dump, recovered
from tests.words import NOW, Vendors, apply_policies, delivery, observed

PARTITIONS = 3
ACCOUNTS = {partition_of(f"acc_{n}", PARTITIONS): f"acc_{n}" for n in range(20)}
"""An account in each partition."""
POLICIES = "policies: {bot: {daily_limit: 300, rate_limit: {count: 0, window: 60}}}"
DEADLINE_S = 60.0


@asynccontextmanager
async def at_work(url: str, bank: Bank) -> AsyncIterator[Producer]:
    """A worker of both groups on every partition, and a producer."""
    stopping = asyncio.Event()
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), execution(bank, at_once)]
    workers = [
        asyncio.create_task(Consumer(url, p, group, name=f"{group.name}-{p}", limits=Limits()).run(stopping))
        for p in range(PARTITIONS)
        for group in groups
    ]
    try:
        async with Producer(url, partitions=PARTITIONS, name="webhook") as producer:
            yield producer
    finally:
        stopping.set()
        await asyncio.gather(*workers)


async def settled(client: Redis) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not all([await _is_settled(client, Names(p)) for p in range(PARTITIONS)]):
            await asyncio.sleep(0.01)


async def _is_settled(client: Redis, names: Names) -> bool:
    rows = await client.xinfo_groups(names.log)
    at_work = [row for row in rows if row["name"] != b"notification"]
    return all(row["lag"] == 0 and row["pending"] == 0 for row in at_work)


async def pay(client: Redis, producer: Producer, *payouts: str) -> None:
    """The same payouts from every account."""
    events = [
        observed(f"{payout}_{p}", 100, account=ACCOUNTS[p], at=NOW)
        for payout in payouts
        for p in range(PARTITIONS)
    ]
    await asyncio.gather(*(producer.append(delivery(event)) for event in events))
    await settled(client)


async def archive(client: Redis, url: str, dsn: str) -> None:
    await prepare(dsn)
    stopping = asyncio.Event()
    projector = asyncio.create_task(run_projector(dsn, PARTITIONS, lambda p: LogView(url, p), stopping))
    async with asyncio.timeout(DEADLINE_S), opened_pool(dsn) as pool:
        for partition in range(PARTITIONS):
            last = (await client.xinfo_stream(Names(partition).log))["last-generated-id"].decode()
            while await archived_upto(pool, partition) != last:
                assert not projector.done(), projector.result()
                await asyncio.sleep(0.02)
    stopping.set()
    await projector


@pytest.mark.parametrize("lost", [(1,), (0, 1, 2)])
async def test_lost_partitions_are_rebuilt_and_the_others_left_as_they_are(
    redis_url: str, postgres: str, lost: tuple[int, ...]
) -> None:
    async with connected(redis_url) as client:
        await _lost_and_rebuilt(client, redis_url, postgres, lost)


async def _lost_and_rebuilt(client: Redis, redis_url: str, postgres: str, lost: tuple[int, ...]) -> None:
    bank = Bank()
    await open_log(client, partitions=PARTITIONS, groups=consumers.GROUPS)
    for partition in range(PARTITIONS):
        await apply_policies(client, POLICIES, partition=partition)
    async with at_work(redis_url, bank) as producer:
        await pay(client, producer, "one", "two")
    before = [await dump(client, partition) for partition in range(PARTITIONS)]
    await archive(client, redis_url, postgres)

    for partition in lost:
        await client.delete(*await client.keys(f"{Names(partition).base}:*"))
    if len(lost) == PARTITIONS:
        await client.flushdb()
    else:
        with pytest.raises(LogBroken, match=f"partition {lost[0]} is gone"):
            await open_log(client, partitions=PARTITIONS, groups=consumers.GROUPS)
    done = await recovered(redis_url, postgres, partitions=str(PARTITIONS))

    assert [one.partition for one in done.partitions] == list(lost)
    assert [await dump(client, partition) for partition in range(PARTITIONS)] == before
    await open_log(client, partitions=PARTITIONS, groups=consumers.GROUPS)
    async with at_work(redis_url, bank) as producer:
        await pay(client, producer, "three", "four", "one")
    for partition in range(PARTITIONS):
        records = (await dump(client, partition))["payouts"]
        said = {payout: row["record"].reason for payout, row in records.items()}
        assert sorted(said.values()) == ["LIMIT_EXCEEDED", "POLICY_OK", "POLICY_OK", "POLICY_OK"]
    told = [payout for payout, _ in bank.told]
    assert len(told) == len(set(told)) == 4 * PARTITIONS
    await archive(client, redis_url, postgres)

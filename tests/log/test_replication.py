"""The barrier `replicated`: money waits until a replica has the decision."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from streamproc.errors import TryAgain
from streamproc.log import replication
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.replication import ReplicaBarrier
from tests.faults.replica import replica_of

LOG = Names(0).log
DECISION = b'[{"type":"payout.decided"}]'


async def decided(client: Redis) -> str:
    """The entry of a decision."""
    made: bytes = await client.xadd(LOG, {"e": DECISION, "m": "{}"})
    return made.decode()


async def test_a_decision_that_a_replica_has_may_be_carried_out(
    client: Redis, redis_url: str, tmp_path: Path
) -> None:
    async with replica_of(redis_url, tmp_path) as replica:
        entry = await decided(client)
        await ReplicaBarrier(redis_url)(0, entry, DECISION)
        assert await replica.last(LOG) == entry


async def test_without_a_replica_it_waits(
    client: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "WAIT_MS", 1)
    with pytest.raises(TryAgain, match="no replica has decision 0:"):
        await ReplicaBarrier(redis_url)(0, await decided(client), DECISION)


async def test_a_decision_that_the_server_lost_waits_however_many_replicas_it_has(
    client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """A worker has a decision in hand, and the replica that takes over has never seen it."""
    places = tmp_path / "first", tmp_path / "second"
    for place in places:
        place.mkdir()
    async with replica_of(redis_url, places[0]) as first:
        first.wire.stall()
        entry = await decided(client)
        await first.promote()
        async with replica_of(first.url, places[1]):
            with pytest.raises(TryAgain, match=f"decision 0:{entry} is not in this Redis"):
                await ReplicaBarrier(first.url)(0, entry, DECISION)
            async with connected(first.url) as taken_over:
                await ReplicaBarrier(first.url)(0, await decided(taken_over), DECISION)


async def test_a_decision_under_whose_id_the_server_has_another_entry_waits(
    client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """The clock of the replica that took over is behind: its ids may be those that were lost."""
    async with replica_of(redis_url, tmp_path):
        other = await decided(client)
        with pytest.raises(TryAgain, match=f"decision 0:{other} is not in this Redis"):
            await ReplicaBarrier(redis_url)(0, other, b'[{"type":"payout.settled"}]')

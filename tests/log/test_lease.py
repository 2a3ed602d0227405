import asyncio

from streamproc.log import scripts
from streamproc.log.connection import connected
from streamproc.log.lease import LEASE_S, Lease
from streamproc.log.names import Names
from tests.deadline import DEADLINE_S

NAMES = Names(0)
NOBODY = "redis://127.0.0.1:1/0"


async def test_one_has_it_until_it_gives_it_back_or_its_time_is_over(redis_url: str) -> None:
    async with connected(redis_url) as client:

        async def ask(owner: str, lasts_s: float = LEASE_S) -> tuple[int, str]:
            return await scripts.lease(client, NAMES, "job", owner, lasts_s=lasts_s)

        assert await ask("a") == (1, "a")
        assert await ask("b") == (0, "a")
        assert await ask("a") == (1, "a")  # renewed, the same term
        assert await ask("b", 0) == (0, "a")  # who has none gives nothing back
        assert await ask("a", 0) == (0, "")
        assert await ask("b") == (2, "b")
        assert 0 < await client.pttl(NAMES.lease("job")) <= LEASE_S * 1000
        await client.delete(NAMES.lease("job"))  # its time is over
        assert await ask("a") == (3, "a")


async def test_a_holder_that_stops_leaves_it_to_the_next_at_once(redis_url: str) -> None:
    first, second = (Lease(redis_url, NAMES, "job", owner) for owner in ("first", "second"))
    stopping = asyncio.Event()
    keeping = asyncio.create_task(first.keep(stopping))
    await asyncio.wait_for(first.asked(), DEADLINE_S)
    assert (first.held, first.term) == (True, 1)
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)

    stopping = asyncio.Event()
    keeping = asyncio.create_task(second.keep(stopping))
    await asyncio.wait_for(second.asked(), DEADLINE_S)
    assert (second.held, second.term) == (True, 2)
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)


async def test_while_redis_is_away_nobody_has_it() -> None:
    lease, stopping = Lease(NOBODY, NAMES, "job", "me"), asyncio.Event()
    keeping = asyncio.create_task(lease.keep(stopping))
    await asyncio.wait_for(lease.asked(), DEADLINE_S)
    assert not lease.held
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)


async def test_who_is_stopped_before_the_first_answer_waits_for_none() -> None:
    """A poller that heard SIGTERM while it was starting waited for ever: found by `tests/faults/test_failover.py`."""
    lease, stopping = Lease(NOBODY, NAMES, "job", "me"), asyncio.Event()
    stopping.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(lease.keep(stopping), lease.asked())
    assert not lease.held

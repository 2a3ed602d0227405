"""An entry that kills its workers, wherever it does, is set aside, and no other one is; each worker is a process."""

import asyncio
import sys

import pytest
from redis.asyncio import Redis

from streamproc.domain.wire import encode_events
from streamproc.log.connection import connected
from streamproc.log.inspect import letter_of
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.log.upkeep import DELIVERIES_MAX
from tests.bank import until
from tests.faults.poisoned import DIED, GROUP, HOLD, SLOW
from tests.log.test_left import pay
from tests.words import observed

NAMES = Names(0)
INNOCENT = [f"{HOLD}_{n}" for n in range(12)]
POISON = f"{HOLD}_poison"
ALERT = "pout_alert"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def live(client: Redis, url: str, name: str, where: str, lanes: str = "y") -> tuple[bool, list[str]]:
    """A worker's life, until nothing is left or it dies of the poison: whether it died, and whom it told of."""
    partitions = len(lanes)
    command = (
        sys.executable,
        "-m",
        "tests.faults.poisoned",
        url,
        name,
        POISON,
        where,
        str(partitions),
        lanes,
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)

    async def is_over() -> bool:
        rows = [row for n in range(partitions) for row in await client.xinfo_groups(Names(n).log)]
        return process.returncode is not None or not any(row["lag"] or row["pending"] for row in rows)

    try:
        await until(is_over, what="it died, or nothing is left")
    finally:
        if process.returncode is None:
            process.kill()
        told, _ = await process.communicate()
    return process.returncode == DIED, told.decode().split()


async def lives(client: Redis, url: str, where: str, lanes: str = "y") -> tuple[list[str], int]:
    """Workers, one after another, until nothing is left: whom they told of, and how many died."""
    told, deaths = list[str](), 0
    while True:
        has_died, of = await live(client, url, f"worker-{deaths}", where, lanes)
        told += of
        if not has_died:
            return told, deaths
        deaths += 1
        assert deaths <= 2 * DELIVERIES_MAX, f"it kills for ever; told of {told}"


@pytest.mark.parametrize(
    ("where", "at"), [("waiting,turn", 0), ("waiting,turn", 5), ("pass,waiting,turn", len(INNOCENT))]
)
async def test_what_kills_its_workers_is_set_aside_wherever_it_does_and_no_other_entry_is(
    redis_url: str, where: str, at: int
) -> None:
    """What killed them while it waited and in its turn did so for ever, and the others were counted instead."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=[GROUP])
        ids = await pay(client, *INNOCENT[:at], POISON, *INNOCENT[at:], ALERT)
        told, deaths = await lives(client, redis_url, where)
        letters = [letter_of(row).entry for row in await client.xrange(NAMES.dead)]
        assert letters == [ids[at].decode()]
    assert deaths <= DELIVERIES_MAX + 1  # once before it was known to wait
    assert {*told} == {*INNOCENT, ALERT}  # some perhaps twice: told, and its worker died


async def test_what_killed_a_worker_while_it_waited_kills_no_other_before_its_turn(redis_url: str) -> None:
    """Each worker opened it anew, long before its turn, and died: of 13 entries nine died, or more of more."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=[GROUP])
        await pay(client, *INNOCENT[:5], POISON, *INNOCENT[5:], ALERT)
        told, deaths = await lives(client, redis_url, "waiting")
        assert await client.xlen(NAMES.dead) == 0
    assert deaths == 1
    assert {*told} == {*INNOCENT, POISON, ALERT}


@pytest.mark.parametrize("lanes", ["yy", "nn", "yn", "ny"])
async def test_what_has_its_turn_in_another_partition_is_not_held_to_be_the_killer(
    redis_url: str, lanes: str
) -> None:
    """Both had their turns at once in every life, and both were dead letters in the end, with and without slow lanes
    (`y` and `n`, of the killer's partition and the other)."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=[GROUP])
        [poison] = await pay(client, POISON)
        await client.xadd(Names(1).log, {"e": encode_events([observed(SLOW, 100)]), "m": b'{"by":"webhook"}'})
        told, deaths = await lives(client, redis_url, "turn", lanes)
        assert [letter_of(row).entry for row in await client.xrange(NAMES.dead)] == [poison.decode()]
        assert await client.xlen(Names(1).dead) == 0
    assert (SLOW in told, deaths) == (True, DELIVERIES_MAX)

"""An entry that kills its workers, wherever it does, is set aside, and no other one is; each worker is a process."""

import asyncio
import sys

import pytest
from redis.asyncio import Redis

from streamproc.log.connection import connected
from streamproc.log.inspect import letter_of
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.log.upkeep import DELIVERIES_MAX
from tests.bank import until
from tests.faults.poisoned import DIED, GROUP, HOLD
from tests.log.test_left import pay

NAMES = Names(0)
INNOCENT = [f"{HOLD}_{n}" for n in range(12)]
POISON = f"{HOLD}_poison"
ALERT = "pout_alert"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def live(client: Redis, url: str, name: str, where: str) -> tuple[bool, list[str]]:
    """A worker's life, until nothing is left or it dies of the poison: whether it died, and whom it told of."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.poisoned",
        url,
        name,
        POISON,
        where,
        stdout=asyncio.subprocess.PIPE,
    )

    async def is_over() -> bool:
        (row,) = await client.xinfo_groups(NAMES.log)
        return process.returncode is not None or (row["lag"] == 0 and row["pending"] == 0)

    try:
        await until(is_over, what="it died, or nothing is left")
    finally:
        if process.returncode is None:
            process.kill()
        told, _ = await process.communicate()
    return process.returncode == DIED, told.decode().split()


async def lives(client: Redis, url: str, where: str) -> tuple[list[str], int]:
    """Workers, one after another, until nothing is left: whom they told of, and how many died."""
    told, deaths = list[str](), 0
    while True:
        has_died, of = await live(client, url, f"worker-{deaths}", where)
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

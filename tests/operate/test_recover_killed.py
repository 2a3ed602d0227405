"""A recovery that is killed, wherever it is, and run again comes to the same end; and nobody works in between."""

import asyncio
import random
import sys
from typing import Any

import pytest

import consumers
from streamproc.errors import LogBroken
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from tests.deadline import DEADLINE_S
from tests.operate.recovering import dump, recovered
from tests.operate.test_recover_fork import failed_over, grew_on, lost_its_tail, snapshot
from tests.operate.twins import handled, twins

KILLED = """
import asyncio, os, signal, sys
from streamproc.log import restore
from streamproc.operate import builders, recover
from tests.operate.recovering import settings_of

where, at = sys.argv[3], int(sys.argv[4])
restore.COMMANDS_MAX = 3  # many steps, so that there are many places to be killed at
steps = 0

def die_at(owner, name, after=False):
    real = getattr(owner, name)
    async def step(*arguments, **named):
        global steps
        steps += 1
        if steps > at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(*arguments, **named)
        if steps > at:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(owner, name, step)

if where == "write":
    die_at(restore.Restorer, "flush")
elif where == "build":
    die_at(builders, "_run_builder", after=True)
elif where == "aside":
    die_at(restore.Restorer, "set_aside", after=True)
elif where == "place":
    die_at(restore.Restorer, "put_in_place", after=True)

async def main():
    settings = settings_of(sys.argv[1], sys.argv[2])
    await recover.rebuild(settings, await recover.look(settings))

asyncio.run(main())
print(steps)
"""


async def run(redis_url: str, dsn: str, where: str, at: int) -> tuple[int | None, int]:
    """Recover in a process of its own, which kills itself; its exit status, and how many steps it made if it lived."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, redis_url, dsn, where, str(at), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return process.returncode, int(out or 0)


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without what a second run cannot repeat: ids of entries that were appended anew, and when policies changed."""
    return found | {"seen": set(found["seen"])}


async def test_a_recovery_killed_anywhere_and_run_again_comes_to_the_same_end(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _), connected(redis_url) as client:
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        broken = await snapshot(client)
        status, steps = await run(redis_url, postgres, "write", 10_000)
        assert (status, steps > 20) == (0, True)
        expected = comparable(await dump(client))
        length = await client.xlen(mine.engine.names.log)

        await failed_over(client, broken)
        chance = random.Random(steps)
        points = [
            ("build", 0),
            ("aside", 0),
            *(("write", chance.randrange(steps)) for _ in range(3)),
            ("place", 0),
        ]
        for where, at in points:
            status, _ = await run(redis_url, postgres, where, at)
            assert status == -9, (where, at)
            with pytest.raises(LogBroken, match="run it again"):
                await open_log(client, partitions=1, groups=consumers.GROUPS)
        await recovered(redis_url, postgres)

        assert comparable(await dump(client)) == expected
        assert await client.xlen(mine.engine.names.log) == length
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        await handled(mine)

"""A projector process that is killed at random moments, again and again, ends with what one that was not has."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from projections.schema import prepare
from streamproc.log.connection import connected
from streamproc.log.names import Names
from tests.operate.test_replay_seeded import checksums
from tests.projections.histories import Stored, archived, fetch
from tests.seeded import TEST_MAX_S, SeededHistory
from tests.signals import killed

pytestmark = pytest.mark.timeout(TEST_MAX_S)

KILLS = 10
AT_ONCE = 1_000
WHOLE = "SELECT seq, entry_id, hash FROM heads"
"""The last hash is over every byte before it."""


async def put_back(redis_url: str, entries: list[Stored]) -> None:
    """The log as it was, under its own ids."""
    async with connected(redis_url) as client:
        for start in range(0, len(entries), AT_ONCE):
            async with client.pipeline(transaction=False) as pipe:
                for entry in entries[start : start + AT_ONCE]:
                    pipe.xadd(Names(0).log, {"e": entry.e, "m": entry.m}, id=entry.id)
                await pipe.execute()


async def test_a_projector_that_is_killed_again_and_again_loses_and_doubles_nothing(
    seeded: SeededHistory, seeded_archive: str, redis_url: str, postgres: str, tmp_path: Path
) -> None:
    entries = seeded.entries[: seeded.archived]
    await prepare(postgres)
    await put_back(redis_url, entries)
    stores = {"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_POSTGRES_DSN": postgres}
    environment = {**os.environ, **stores, "STREAMPROC_DATA_DIR": str(tmp_path)}
    chance, reached = random.Random(11), []
    for turn in range(KILLS + 1):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", "projector", env=environment, stderr=asyncio.subprocess.DEVNULL
        )  # fmt: skip
        try:
            if turn < KILLS:
                await asyncio.sleep(chance.uniform(0.7, 1.7))  # any moment will do
                reached.append((await fetch(postgres, "SELECT coalesce(max(seq), 0) FROM heads"))[0][0])
            else:
                await archived(postgres, entries[-1].id)
        finally:
            await killed(process)
    assert reached == sorted(reached)
    assert await fetch(postgres, WHOLE) == await fetch(seeded_archive, WHOLE)
    assert await fetch(postgres, "SELECT count(*), max(seq) FROM events") == [(len(entries), len(entries))]
    assert await checksums(postgres) == await checksums(seeded_archive)

"""A projector process that is killed at random moments, again and again, ends with what one that was not has."""

import asyncio
import os
import random
import subprocess
from pathlib import Path

import pytest

from streamproc.log.connection import connected
from streamproc.log.names import Names
from tests.forks import fork
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
    seeded: SeededHistory, seeded_archive: str, redis_url: str, prepared: str, tmp_path: Path
) -> None:
    entries = seeded.entries[: seeded.archived]
    await put_back(redis_url, entries)
    stores = {"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_POSTGRES_DSN": prepared}
    environment = {**os.environ, **stores, "STREAMPROC_DATA_DIR": str(tmp_path)}
    chance, reached = random.Random(11), []
    for turn in range(KILLS + 1):
        process = fork(["projector"], environment, stderr=subprocess.DEVNULL)
        try:
            if turn < KILLS:
                await asyncio.sleep(chance.uniform(0.1, 0.7))  # any moment will do
                reached.append((await fetch(prepared, "SELECT coalesce(max(seq), 0) FROM heads"))[0][0])
            else:
                await archived(prepared, entries[-1].id)
        finally:
            await killed(process)
    assert reached == sorted(reached)
    assert await fetch(prepared, WHOLE) == await fetch(seeded_archive, WHOLE)
    assert await fetch(prepared, "SELECT count(*), max(seq) FROM events") == [(len(entries), len(entries))]
    assert await checksums(prepared) == await checksums(seeded_archive)

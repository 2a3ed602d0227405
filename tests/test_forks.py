"""A fork of the loaded process is as a process that was just started (tests/forks.py)."""

import asyncio
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import forks
from tests.bank import until
from tests.deadline import DEADLINE_S
from tests.forks import fork
from tests.ports import free_port
from tests.signals import killed

ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "STREAMPROC_DATA_DIR": "/nonexistent"}


async def started(*arguments: str, env: dict[str, str] = ENV) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of a fork."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = fork(arguments, env, stdout=out, stderr=err)
        status = await asyncio.wait_for(process.wait(), DEADLINE_S)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("pay", "--help"), ("hold", "list", "--limit", "0"), ("groups",), ("none",)],
    ids=" ".join,
)
async def test_a_fork_says_and_ends_as_a_new_process_does(arguments: tuple[str, ...]) -> None:
    new = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamproc", *arguments,
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(new.communicate(), DEADLINE_S)
    assert await started(*arguments) == (new.returncode, out, err)


async def test_a_fork_has_the_environment_that_it_is_given_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAMPROC_PORT", "none")
    forks._loaded.cache_clear()  # one that is started with this
    status, _, said = await started("groups")
    assert (status, b"STREAMPROC_PORT" in said) == (2, False), said
    status, _, said = await started("groups", env={**ENV, "STREAMPROC_PORT": "no port"})
    assert (status, b"STREAMPROC_PORT" in said) == (2, True), said


async def test_the_status_of_one_that_was_killed_is_the_signal() -> None:
    process = fork(["sandbox"], sandbox_env(), stderr=subprocess.DEVNULL)
    assert process.returncode is None
    process.kill()
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        process.kill()


async def test_a_fork_hears_ctrl_c_which_the_loaded_process_does_not() -> None:
    process = fork(["sandbox"], sandbox_env(), stderr=subprocess.DEVNULL)
    process.send_signal(signal.SIGINT)
    try:
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) in (0, 130, -signal.SIGINT)
    finally:
        await killed(process)
    assert (await started("--version"))[0] == 0


async def test_forks_share_no_files_but_those_that_they_are_given() -> None:
    first, second = (fork(["sandbox"], sandbox_env(), stderr=subprocess.DEVNULL) for _ in range(2))

    async def apart() -> bool:
        return not (files("self") | files(first.pid)) & files(second.pid)

    try:
        await until(apart, what="the second has its own files alone")
        assert (first.returncode, second.returncode) == (None, None)
    finally:
        await killed(first)
        await killed(second)


def sandbox_env() -> dict[str, str]:
    return {**ENV, "SANDBOX_PORT": str(free_port())}


def files(pid: int | str) -> set[str]:
    """Pipes and sockets of a process, by number, without its stdin, stdout and stderr."""
    opened = [file for file in Path(f"/proc/{pid}/fd").iterdir() if int(file.name) > 2]
    names = {str(file.readlink()) for file in opened if file.is_symlink()}
    return {name for name in names if name.startswith(("pipe:", "socket:"))}

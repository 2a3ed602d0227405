"""A role that is told to stop ends within STREAMPROC_DRAIN, whatever hangs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamproc.drain import CLOSE_S_MAX, SAY_S, requests_s
from tests.deadline import DEADLINE_S
from tests.signals import heard

ROLE = """
import asyncio, logging, os, signal, sys, threading
from streamproc import drain
from streamproc.cli.roles import run_until_stopped
from streamproc.settings import Settings

drain._close_s, drain.SAY_S = (lambda drain_s: 2 * drain_s), {say_s}
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")

async def role(settings, stopping):
    print("runs", flush=True)
    try:
        await {work}
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        {cancelled}

async def in_a_thread():
    await asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)

run_until_stopped(role, Settings(drain_s={drain_s}))
{after}
print("ended", flush=True)
"""
"""Its time is nearly over at once, and over only later: else on a busy machine the end comes before the warning."""
FOREVER, AT_ONCE = "asyncio.Event().wait()", "stopping.wait()"
NEARLY = "STREAMPROC_DRAIN, 2 s, is nearly over: what is still in hand is left to others"
LEFT = "STREAMPROC_DRAIN, 2 s, is over, and something here hangs: leaving it"


@contextmanager
def running(
    *, work: str, cancelled: str = "raise", drain_s: str = "2.0", say_s: float = DEADLINE_S, after: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """`say_s`: how long the last line may take, which on a busy machine is no sign of a reader that hangs."""
    code = ROLE.format(work=work, cancelled=cancelled, drain_s=drain_s, say_s=say_s, after=after)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str], signum: signal.Signals = signal.SIGTERM) -> tuple[list[str], int]:
    process.send_signal(signum)
    said, _ = process.communicate(timeout=DEADLINE_S)
    return said.splitlines(), process.returncode


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_role_that_ends_when_it_is_told_says_nothing(signum: signal.Signals) -> None:
    with running(work=AT_ONCE, drain_s="3600.0") as process:
        assert stopped(process, signum) == (["ended"], 0)


@pytest.mark.parametrize("signum", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_one_more_signal_in_its_last_moments_does_not_change_how_a_role_ends(signum: str) -> None:
    with running(work=AT_ONCE, drain_s="3600.0", after=f"signal.raise_signal(signal.{signum})") as process:
        assert stopped(process) == (["ended"], 0)


def test_what_is_not_finished_when_the_time_is_nearly_over_is_cancelled() -> None:
    with running(work=FOREVER) as process:
        assert stopped(process) == ([NEARLY, "cancelled", "ended"], 0)


def test_a_role_that_does_not_end_when_it_is_cancelled_is_left_at_the_end_of_the_time() -> None:
    with running(work=FOREVER, cancelled=f"await {FOREVER}") as process:
        assert stopped(process) == ([NEARLY, "cancelled", LEFT], 1)


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    with running(work="in_a_thread()") as process:
        assert stopped(process) == ([NEARLY, "cancelled", LEFT], 1)


def test_a_reader_of_the_last_line_that_hangs_does_not_keep_the_process() -> None:
    hold_the_log = "logging.getLogger().handlers[0].acquire(); " + f"await {FOREVER}"
    with running(work=FOREVER, cancelled=hold_the_log, say_s=SAY_S) as process:
        assert stopped(process) == ([NEARLY, "cancelled"], 1)


@pytest.mark.parametrize(("drain_s", "for_requests_s"), [(20.0, 20.0 - CLOSE_S_MAX), (2.0, 1.5)])
def test_requests_have_what_leaves_time_for_closing(drain_s: float, for_requests_s: float) -> None:
    assert requests_s(drain_s) == for_requests_s

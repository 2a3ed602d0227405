"""Ctrl-C before a command has begun ends it in silence, however it was started."""

import os
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deadline import DEADLINE_S

ROOT = Path(__file__).parents[2]
INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("it went on")
"""


def as_module() -> list[str]:
    return ["-m", "streamproc"]


def as_installed() -> list[str]:
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
        "streamproc"
    ].partition(":")
    return ["-c", f"import sys; from {module} import {name}; sys.exit({name}())"]


def interrupted_while_importing(tmp_path: Path, how: list[str]) -> subprocess.CompletedProcess[str]:
    """The command, with a library in whose import Ctrl-C is pressed."""
    (tmp_path / "click.py").write_text(INTERRUPTED)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, *how, "doctor"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(autouse=True)
def heard() -> object:
    """Children inherit an ignored signal, as of a shell that runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", [as_module, as_installed])
def test_ctrl_c_while_the_command_line_is_imported_ends_it_without_a_traceback(tmp_path: Path, how):
    done = interrupted_while_importing(tmp_path, how())
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path: Path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = interrupted_while_importing(tmp_path, as_module())
    assert (done.returncode, done.stderr) == (1, "it went on\n")


HANGS = """
import os, sys
from pathlib import Path
import click
from streamproc.cli.output import run_or_undo
from streamproc.operate.export import written_whole

async def export():
    with written_whole(Path(sys.argv[1])):
        print("hangs", flush=True)
        os.read(os.pipe()[0], 1)

try:
    run_or_undo(export())
except click.Abort:
    print("ended", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_signals_end_an_export_to_a_disk_that_hangs_and_leave_nothing(tmp_path: Path, how: signal.Signals):
    command = [sys.executable, "-c", HANGS, str(tmp_path / "out.csv")]
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731  # nohup has it ignored
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heard) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            for _ in range(int(DEADLINE_S / 0.1)):  # of two that come together one is heard
                process.send_signal(how)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    break
            assert process.stdout.read() == "ended\n"
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []

"""Ctrl-C before a command has begun ends it in silence, however it was started."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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

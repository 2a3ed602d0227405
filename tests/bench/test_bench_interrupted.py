"""Whoever stops a benchmark by Ctrl-C, by closing its terminal or by a kill has no server, worker or file left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.signals import heard

DEADLINE_S = 60.0
SERVER_WORKER_DRIVER = 3


def children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.embedded
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name
)
def test_nothing_of_a_benchmark_that_was_stopped_is_left(number: signal.Signals, tmp_path: Path) -> None:
    bench = subprocess.Popen(
        [sys.executable, "-m", "streamproc", "bench", "latency", "--rate", "50", "--seconds", "600"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=heard,
    )
    try:
        started, until = set[int](), time.monotonic() + DEADLINE_S
        while len(started) < SERVER_WORKER_DRIVER:
            assert bench.poll() is None, bench.communicate()[0]
            assert time.monotonic() < until, "server, worker and driver are not there"
            started = children(bench.pid)
            time.sleep(0.05)  # between two looks; nothing depends on it
        bench.send_signal(number)
        said, _ = bench.communicate(timeout=DEADLINE_S)
    finally:
        bench.kill()
        bench.wait()
    while not all(is_gone(pid) for pid in started):
        assert time.monotonic() < until + DEADLINE_S, "a process of the benchmark still runs"
        time.sleep(0.05)
    if number is not signal.SIGKILL:
        assert bench.returncode == 1
        assert said.decode().strip() == "streamproc: stopped by the user"
        assert list(tmp_path.iterdir()) == []

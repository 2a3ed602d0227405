"""Test processes that run at once never get the same port (tests/ports.py)."""

import os
import subprocess
import sys
from pathlib import Path

from tests.ports import BLOCK, FIRST, free_port

ASK = "from tests.ports import free_port; print(free_port(), flush=True); input()"
"""Says a port, and lives until somebody writes to it."""


def block_of(port: int) -> int:
    return (port - FIRST) // BLOCK


def test_processes_have_different_ports_wherever_their_temporary_files_are(tmp_path: Path) -> None:
    running, blocks = [], [block_of(free_port())]
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        env = {**os.environ, "TMPDIR": str(tmp_path / name)}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", ASK], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        assert running[-1].stdout is not None
        blocks.append(block_of(int(running[-1].stdout.readline())))
    for process in running:
        process.communicate("end\n")
    assert len(set(blocks)) == 3, blocks


def test_a_process_takes_its_ports_in_turn() -> None:
    ports = [free_port() for _ in range(10)]
    assert len(set(ports)) == len(ports)
    assert {block_of(port) for port in ports} == {block_of(free_port())}

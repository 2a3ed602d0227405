"""Colours are for terminals that have them, and for people who want them (no-color.org)."""

import asyncio
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

DEADLINE_S = 60.0


async def shown_by_doctor(directory: Path, **settings: str) -> str:
    """What `doctor` writes on a terminal where nothing runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")}
    clean.pop("NO_COLOR", None)
    env = {**clean, "TERM": "xterm-256color", "STREAMPROC_DATA_DIR": str(directory), **settings}
    ours, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamproc", "doctor", env=env, stdout=its, stderr=its
    )
    os.close(its)
    shown = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            with suppress(OSError):  # a terminal that nobody holds any more
                while piece := await asyncio.to_thread(os.read, ours, 4096):
                    shown += piece
            assert await process.wait() == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    return shown.decode()


async def test_on_a_terminal_what_is_bad_is_red(tmp_path: Path) -> None:
    assert "\x1b[31mbad " in await shown_by_doctor(tmp_path)


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
async def test_nothing_is_coloured_for_who_wants_none_or_has_none(
    tmp_path: Path, plain: dict[str, str]
) -> None:
    shown = await shown_by_doctor(tmp_path, **plain)
    assert "bad   redis" in shown
    assert "\x1b" not in shown

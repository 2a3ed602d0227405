"""What `up` prints where nobody reads it, or where there is no room for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from streamproc import printer
from streamproc.printer import Printer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printer, "WAIT_S", 0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe's end for a reader, and the other as stdout would be."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout:
        yield reader, stdout
    os.close(reader)


def test_a_reader_that_stands_still_stops_nobody_and_hears_how_many_lines_it_missed(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, stdout = pipe
    monkeypatch.setattr("sys.stdout", stdout)
    out = Printer()
    out.say("first")
    out.say("x" * 1_000_000)  # more than a pipe holds
    out.say("missed too")
    read = b""
    while len(piece := os.read(reader, 65_536)) == 65_536:
        read += piece
    assert (read + piece).startswith(b"first\nx")
    out.say("again")
    assert os.read(reader, 65_536).endswith(b"\n[up] 2 lines could not be written here\nagain\n")
    out.say("as before")
    assert os.read(reader, 65_536) == b"as before\n"


def test_a_full_disk_is_written_to_again_once_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Printer()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        out.say("lost")
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("sys.stdout", log)
        out.say("kept")
    assert (tmp_path / "log").read_text() == "\n[up] 1 lines could not be written here\nkept\n"


def test_a_reader_that_has_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        Printer().say("for nobody")


def test_nothing_is_written_where_stdout_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    Printer().say("for nobody")


def test_what_is_no_text_is_printed_escaped(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", pipe[1])
    Printer().say("\ud800")
    assert os.read(pipe[0], 100) == b"\\ud800\n"

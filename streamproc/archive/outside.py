"""Where checkpoints go outside the database: a file of signed notes, each followed by a blank line.

It is only ever added to. A write that a crash cut off leaves the beginning of a note; the next write starts on a line
of its own, and the note is written again, whole. So a reader takes a broken note for a cut-off write where a later
whole one begins with it, or where it is the last thing in the file, and for damage anywhere else.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from msgspec import Struct

from streamproc.archive import checkpoint
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.note import NOTE_CHARS_MAX, BadNote, Trusted
from streamproc.archive.signing_key import sync_directory
from streamproc.errors import TryAgain

NOTES_FILE = "checkpoints.txt"
"""In DATA_DIR, where STREAMPROC_CHECKPOINT_TO is not set."""
GAP = b"\n\n"
RECORD_LINES_MAX = 64
"""Lines of one note: ours have 8, and a note may have 16 signatures."""
SUSPECTS_MAX = 1_000
"""Broken notes that are kept for comparison; a crash leaves one."""

_DASH = "—".encode()[:1]


def notes_path(to: str, data_dir: Path) -> Path:
    """The file that STREAMPROC_CHECKPOINT_TO names; where it names none, the one in DATA_DIR."""
    return Path(to) if to and "://" not in to else data_dir / NOTES_FILE


class Outside(Protocol):
    """A place that whoever can write to the database should not be able to write to."""

    @property
    def where(self) -> str:
        """Its name, for people."""
        ...

    async def put(self, note: str) -> None:
        """Keep a note. Safe to repeat. Raises TryAgain where that cannot be said to have happened."""
        ...


class NotesFile:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    async def put(self, note: str) -> None:
        """Append a note, synced to disk."""
        try:
            await asyncio.to_thread(_append, self.path, note.encode() + b"\n")
        except OSError as problem:
            raise TryAgain(f"{self.path} cannot be written: {problem.strerror}") from problem


def _append(path: Path, data: bytes) -> None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        sync_directory(path.parent)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, len(GAP), max(0, size - len(GAP))) != GAP:
            data = GAP + data
        written = os.write(handle, data)  # one call: other partitions' notes fall before or after it
        if written != len(data):
            raise OSError(0, f"only {written} of {len(data)} bytes fit")
        os.fsync(handle)
    finally:
        os.close(handle)


class Stated(Struct, frozen=True):
    """A checkpoint in the file, from its `line` on, and its note as it is there."""

    line: int
    checkpoint: Checkpoint
    note: str


class Damaged(Struct, frozen=True):
    """A place in the file that is no note of a trusted key, and what is wrong there."""

    line: int
    problem: str


def stated_in(file: BinaryIO, trusted: Trusted | None) -> Iterator[Stated | Damaged]:
    """The checkpoints of a file in its order, then what is damaged. `trusted` None: signatures are not looked at."""
    suspects: dict[bytes, Damaged] = {}
    for line, raw, ended in _records(file):
        try:
            note = raw.decode()
            text = note.rpartition("\n\n")[0] + "\n" if trusted is None else trusted.open(note)[0]
            yield Stated(line, checkpoint.read(text), note)
        except (UnicodeDecodeError, BadNote) as problem:
            what = str(problem) if isinstance(problem, BadNote) else "it is not UTF-8 text"
            if ended and len(suspects) < SUSPECTS_MAX:
                suspects[raw.rstrip(b"\n")] = Damaged(line, what)
            continue
        for beginning in [begun for begun in suspects if raw.startswith(begun)]:
            del suspects[beginning]
    yield from suspects.values()


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Line number, bytes, and whether something follows: text, a blank line, signatures, up to the next blank line."""
    begun, parts, signing, signed = 0, list[bytes](), False, False
    for number, line in enumerate(iter(lambda: file.readline(NOTE_CHARS_MAX), b""), 1):
        blank = line == b"\n"
        if not parts and blank:
            continue
        signature = signing and line.startswith(_DASH)
        if parts and ((signing and not signature) or len(parts) > RECORD_LINES_MAX):
            yield begun, b"".join(parts), True
            parts, signing, signed = [], False, False
            if blank:
                continue
        if not parts:
            begun = number
        parts.append(line)
        signing, signed = signing or blank, signed or signature
    if parts:
        yield begun, b"".join(parts), signed and parts[-1].endswith(b"\n")

"""Where checkpoints go outside the database: a file of signed notes, each followed by a blank line.

It is append-only. A write that a crash cuts off leaves the beginning of a note; the next write starts on a new line,
and that note is written again. So a reader takes a broken note for a cut-off write if a later whole note begins with
it, or if it is last in the file, and for damage otherwise.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from msgspec import Struct

from streamproc.archive import checkpoint
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.note import NOTE_CHARS_MAX, BadNote, Trusted, unchecked
from streamproc.archive.signing_key import sync_directory
from streamproc.errors import TryAgain

NOTES_FILE = "checkpoints.txt"
"""In DATA_DIR, if STREAMPROC_CHECKPOINT_TO is not set."""
GAP = b"\n\n"
RECORD_LINES_MAX = 64
"""Lines of one note: ours have 8, and a note may have 16 signatures."""
SUSPECTS_MAX = 1_000
"""Broken notes that are kept for comparison; a crash leaves one."""

_DASH = "—".encode()[:1]


def notes_path(to: str, data_dir: Path) -> Path:
    """The file that STREAMPROC_CHECKPOINT_TO names; if it names none, the one in DATA_DIR."""
    return Path(to) if to and "://" not in to else data_dir / NOTES_FILE


class Outside(Protocol):
    """A place to which whoever can write to the database should not be able to write."""

    @property
    def where(self) -> str:
        """Its name, for people."""
        ...

    async def put(self, note: str) -> None:
        """Keep a note. Safe to repeat. Raises TryAgain unless it is surely kept."""
        ...


class NotesFile:
    """A file outside the database."""

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
    """A checkpoint that starts at `line` of the file, and its note as it is there."""

    line: int
    checkpoint: Checkpoint
    note: str


class Damaged(Struct, frozen=True):
    """A place in the file that has no note of a trusted key, and what is wrong there."""

    line: int
    problem: str


def stated_in(file: BinaryIO, trusted: Trusted | None) -> Iterator[Stated | Damaged]:
    """The checkpoints of a file in order, then what is damaged. `trusted` None: signatures are not checked."""
    suspects: dict[bytes, Damaged] = {}
    for line, raw, ended in _records(file):
        try:
            note = raw.decode()
            text = unchecked(note) if trusted is None else trusted.open(note)[0]
            yield Stated(line, checkpoint.read(text), note)
        except (UnicodeDecodeError, BadNote) as problem:
            what = str(problem) if isinstance(problem, BadNote) else "it is not UTF-8 text"
            if ended and len(suspects) < SUSPECTS_MAX:
                suspects[raw.rstrip(b"\n")] = Damaged(line, what)
            continue
        for beginning in [start for start in suspects if raw.startswith(start)]:
            del suspects[beginning]
    yield from suspects.values()


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Each record: text, a blank line and signatures, up to the next blank line. Its line number, its bytes, and
    whether it is complete or followed by something."""
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

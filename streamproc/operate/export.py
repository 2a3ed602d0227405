"""Exports: the audit's lines that match as CSV, JSON lines or Parquet, streamed from one snapshot into a file.

A file is written under a temporary name beside its place and named when it is whole, so there is never half of one.
"""

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

from msgspec import Struct

from streamproc.archive.evidence import lines
from streamproc.archive.gauges import unshown
from streamproc.archive.read import AuditFilter, AuditRow
from streamproc.archive.signing_key import sync_directory
from streamproc.archive.store import errors_as_job_failed, snapshot
from streamproc.domain.shown import iso
from streamproc.errors import NO_LINKS, NO_ROOM, InputError, JobFailed
from streamproc.operate.audit_list import lacking, line_json
from streamproc.operate.moments import us_of

Format: TypeAlias = Literal["csv", "jsonl", "parquet", "bundle"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".zip": "bundle"}
COLUMNS = (
    *("id", "at", "kind", "decision", "reason", "agent", "vendor", "payout"),
    *("amount_paise", "actor", "partition", "seq", "place", "trace_id"),
)
ROW_GROUP = 20_000
"""Lines of one row group of Parquet, some 5 MB, which a reader loads at once and the writer holds in memory."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters that make a spreadsheet take a cell for a formula. Agents and vendors choose some of these texts."""

OnLines = Callable[[int], None]


class Exported(Struct, frozen=True):
    """What an export of lines wrote."""

    file: str
    format: Format
    lines: int
    notes: list[str] = []
    """What may be missing."""


def format_of(path: Path, named: str | None) -> Format:
    """The named format, or that of the file's suffix. Raises InputError if neither tells."""
    if named is not None:
        return next(known for known in SUFFIXES.values() if known == named)
    known = SUFFIXES.get(path.suffix.lower())
    if known is None:
        raise InputError(
            f"{path}: the suffix says no format; it is {', '.join(SUFFIXES)}, or name one by --format"
        )
    return known


async def export_lines(
    dsn: str, wanted: AuditFilter, path: Path, form: Format, on_lines: OnLines = lambda _: None
) -> Exported:
    """Write the lines that match, the oldest first. Raises as `written_whole`, and JobFailed if Postgres is away."""
    make = _WRITERS[form]()
    count = 0
    with errors_as_job_failed(f"{path} was not written"):
        async with snapshot(dsn, name="streamproc audit export") as db:
            notes = lacking(await unshown(db))
            with written_whole(path) as file:
                writer = make(file)
                async for rows in lines(db, wanted):
                    writer.add([AuditRow(**dict(row)) for row in rows])
                    count += len(rows)
                    on_lines(count)
                writer.close()
    return Exported(str(path), form, count, notes)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is complete and on disk, readable by this user only. What is there already, or
    comes meanwhile, is kept. Raises InputError if it cannot be made, JobFailed if the disk has no room for it."""
    try:
        if _is_there(path):
            raise InputError(f"{path} is there already; name another file")
        # Not made of the file's own name: one as long as may be leaves no room for more.
        fresh = path.with_name(f".export-{secrets.token_hex(4)}")
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from problem
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            _finish(file, fresh, path)
    except OSError as problem:
        if problem.errno not in NO_ROOM:  # it is the connection's
            raise
        raise JobFailed(f"{path} was not written: {problem.strerror}") from problem
    finally:
        fresh.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    """Whether something has this name, if only a link that leads nowhere. Raises OSError if nothing can have it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _finish(file: BinaryIO, fresh: Path, path: Path) -> None:
    """Have it all on disk, and named. Raises InputError if another one has the name, JobFailed if it does not work."""
    try:
        file.flush()
        os.fsync(file.fileno())
        _name(fresh, path)
        sync_directory(path.parent)
    except OSError as problem:
        raise JobFailed(f"{path} was not written: {problem.strerror}") from problem


def _name(fresh: Path, path: Path) -> None:
    """Give a file its name, which nothing else may have: renaming it would replace what has it."""
    try:
        os.link(fresh, path)
    except OSError as problem:
        if problem.errno not in NO_LINKS and not isinstance(problem, FileExistsError):
            raise
        if _is_there(path):
            raise InputError(
                f"{path} came while it was being written, and is kept; name another file"
            ) from problem
        fresh.rename(path)


# ---- formats ----------------------------------------------------------------------------


class Writer(Protocol):
    """Writes lines in one format."""

    def add(self, rows: Sequence[AuditRow]) -> None:
        """Add lines."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


class _Csv:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._put([COLUMNS])

    def add(self, rows: Sequence[AuditRow]) -> None:
        self._put(
            [[cell if isinstance(cell, int) else safe_cell(cell) for cell in _cells(row)] for row in rows]
        )

    def _put(self, rows: Sequence[Sequence[object]]) -> None:
        text = _Lines()
        csv.writer(text, lineterminator="\r\n").writerows(rows)
        self._file.write("".join(text.parts).encode())

    def close(self) -> None:
        pass


class _Lines:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)


def safe_cell(text: str | None) -> str:
    """Text that no spreadsheet takes for a formula."""
    if text is None:
        return ""
    return f"'{text}" if text.startswith(FORMULA) else text


def _cells(row: AuditRow) -> tuple[str | int | None, ...]:
    """A line in the order of COLUMNS."""
    about = (row.kind, row.decision, row.reason, row.agent, row.vendor, row.payout)
    place = (row.partition, row.seq, row.place)
    return (row.id, iso(us_of(row.at)), *about, row.amount, row.actor, *place, row.trace_id)


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, rows: Sequence[AuditRow]) -> None:
        for row in rows:
            self._file.write(json.dumps(line_json(row), ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: BinaryIO, arrow: Any, parquet: Any) -> None:
        self._arrow = arrow
        kinds = {"at": arrow.timestamp("us", tz="UTC"), "partition": arrow.int32(), "place": arrow.int32()}
        kinds |= {"amount_paise": arrow.int64(), "seq": arrow.int64()}
        self._schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[AuditRow] = []

    def add(self, rows: Sequence[AuditRow]) -> None:
        self._rows += rows
        if len(self._rows) >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        cells = [(row.id, row.at, *_cells(row)[2:]) for row in self._rows]
        columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in COLUMNS]
        arrays = [
            self._arrow.array(values, type=field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        if self._rows:
            self._write()
        self._writer.close()


def _parquet() -> Callable[[BinaryIO], Writer]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise InputError(
            "Parquet needs the extra `parquet`: in a checkout, pip install '.[parquet]'"
        ) from problem
    return lambda file: _Parquet(file, pyarrow, pyarrow.parquet)


_WRITERS: dict[Format, Callable[[], Callable[[BinaryIO], Writer]]] = {
    "csv": lambda: _Csv,
    "jsonl": lambda: _JsonLines,
    "parquet": _parquet,
}

"""Keeps the state across restarts in one SQLite table of JSON rows, or not at all."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kept (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id)) WITHOUT ROWID"
)
BUSY_TIMEOUT_S = 5.0


class Store:
    """Rows by kind and id. With an empty file name nothing is stored."""

    def __init__(self, data_file: str) -> None:
        self._db: sqlite3.Connection | None = None
        if data_file:
            Path(data_file).parent.mkdir(parents=True, exist_ok=True)
            # It has the accounts that were to be paid. SQLite gives its other files the same mode.
            Path(data_file).touch(mode=0o600)
            self._db = sqlite3.connect(data_file, timeout=BUSY_TIMEOUT_S)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A crash of the process loses nothing; a power cut may, which does not matter for a simulator.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(SCHEMA)

    def save(self, rows: Iterable[tuple[str, str, object]]) -> None:
        """Write (kind, id, struct) rows in one transaction."""
        if self._db is None:
            return
        encoded = [(kind, key, msgspec.json.encode(body)) for kind, key, body in rows]
        if not encoded:
            return
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", encoded)

    def load(self, kind: str, of: type[T]) -> list[T]:
        """Every row of a kind. Raises msgspec.ValidationError if the file is from another version."""
        if self._db is None:
            return []
        rows = self._db.execute("SELECT body FROM kept WHERE kind = ?", (kind,))
        return [msgspec.json.decode(body, type=of) for (body,) in rows]

    def clear(self) -> None:
        """Forget everything."""
        if self._db is not None:
            with self._db:
                self._db.execute("DELETE FROM kept")

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()

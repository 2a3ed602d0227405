"""Compares two schemas of views at one position: counts, checksums, differing rows, and what must always hold."""

import json
from collections.abc import AsyncIterator, Sequence

import asyncpg
from msgspec import Struct

from projections.schema import quote_ident, shown_columns
from streamproc.archive.sql import statements

DIFFERENCES_MAX = 10
"""Differing rows shown of each view; all are counted."""
ROWS_AT_ONCE = 5_000
"""Keys and digests fetched at once of each side, some 100 bytes each."""

_SQL = statements("projections", "compare.sql")
_INVARIANTS = {name: sql for name, sql in _SQL.items() if name.startswith("invariant_")}


class Checksum(Struct, frozen=True):
    """What a view holds: the number of rows, and a checksum that does not depend on their order."""

    rows: int
    checksum: str


class Difference(Struct, frozen=True):
    """A row that differs. None: it is missing in that schema. Only differing columns are shown."""

    key: str
    live: dict[str, object] | None
    rebuilt: dict[str, object] | None


class Shapes(Struct, frozen=True):
    """A view's versions, and the columns that both schemas have, in the rebuilt one's order. Version 0: unknown."""

    live_version: int
    version: int
    both: list[str]
    only_live: list[str]
    only_rebuilt: list[str]

    @property
    def changed(self) -> str:
        """What changed with the version, in words; '' if nothing did."""
        if (self.live_version, self.only_live, self.only_rebuilt) == (self.version, [], []):
            return ""
        said = [f"the live one is of version {self.live_version}, by its log it is of {self.version}"]
        said += [f"new: {', '.join(self.only_rebuilt)}"] if self.only_rebuilt else []
        said += [f"gone: {', '.join(self.only_live)}"] if self.only_live else []
        return f"{'; '.join(said)}; compared in what both have"


async def shapes(live: asyncpg.Connection, rebuilt: asyncpg.Connection, view: str) -> Shapes:
    """The versions and the columns that a view has live and rebuilt."""
    before, after = [await _columns(db, view) for db in (live, rebuilt)]
    live_version, version = [await db.fetchval(_SQL["version"], view) or 0 for db in (live, rebuilt)]
    return Shapes(
        live_version=live_version,
        version=version,
        both=[name for name in after if name in before],
        only_live=[name for name in before if name not in after],
        only_rebuilt=[name for name in after if name not in before],
    )


async def _columns(db: asyncpg.Connection, view: str) -> list[str]:
    return [row["attname"] for row in await db.fetch(_SQL["columns"], view)]


def _rows_of(view: str, columns: Sequence[str]) -> str:
    """The view, or some of its columns, as a table expression."""
    if not columns:
        return view
    return _SQL["only"].format(view=view, columns=", ".join(map(quote_ident, columns)))


async def checksum(db: asyncpg.Connection, view: str, columns: Sequence[str] = ()) -> Checksum:
    """The checksum of a view in the schema that `db` is in; of `columns` only, if any are named."""
    row = await db.fetchrow(_SQL["checksum"].format(view=_rows_of(view, columns)))
    return Checksum(row["rows"], row["checksum"])


async def positions(db: asyncpg.Connection, views: Sequence[str]) -> dict[int, int]:
    """The position of these views by partition, without partitions in which they are not all at one entry."""
    return {row["partition"]: row["seq"] for row in await db.fetch(_SQL["positions"], list(views))}


async def violations(db: asyncpg.Connection) -> list[str]:
    """What does not hold in the schema that `db` is in, each in words with the number of cases."""
    found = []
    for name, sql in _INVARIANTS.items():
        count = await db.fetchval(sql)
        if count:
            found.append(f"{name.removeprefix('invariant_').replace('_', ' ')}: not so in {count} cases")
    return found


async def differences(
    live: asyncpg.Connection, rebuilt: asyncpg.Connection, view: str, columns: Sequence[str] = ()
) -> tuple[int, list[Difference]]:
    """How many rows differ, and the first DIFFERENCES_MAX of them. Both connections must be in a transaction.

    `columns`: those to compare, which must include the key's; all, if none are named.
    """
    key = " || '|' || ".join(f"{name}::text" for name in await key_of(live, view))
    rows = _rows_of(view, columns)
    sql = _SQL["rows"].format(view=rows, key=key)
    count, keys = 0, list[str]()
    async for found in _unequal(_rows(live, sql), _rows(rebuilt, sql)):
        count += 1
        if len(keys) < DIFFERENCES_MAX:
            keys.append(found)
    shown = await shown_columns(live, view, with_bytes=True)
    some = ", ".join(shown[name] for name in columns or shown)
    row_query = _SQL["row"].format(shown=some, view=rows, key=key)
    found_rows = [
        _difference(k, await live.fetchval(row_query, k), await rebuilt.fetchval(row_query, k)) for k in keys
    ]
    return count, found_rows


async def key_of(db: asyncpg.Connection, view: str) -> list[str]:
    """The columns of a view's primary key."""
    return [row["attname"] for row in await db.fetch(_SQL["primary_key"], view)]


async def _rows(db: asyncpg.Connection, sql: str) -> AsyncIterator[tuple[str, int]]:
    async for row in db.cursor(sql, prefetch=ROWS_AT_ONCE):
        yield row["key"], row["digest"]


async def _unequal(
    one: AsyncIterator[tuple[str, int]], other: AsyncIterator[tuple[str, int]]
) -> AsyncIterator[str]:
    """Keys of two ordered sequences that are in one of them only, or have different digests."""
    left, right = await anext(one, None), await anext(other, None)
    while left is not None or right is not None:
        if left is not None and right is not None and left[0] == right[0]:
            if left[1] != right[1]:
                yield left[0]
            left, right = await anext(one, None), await anext(other, None)
        elif right is None or (left is not None and left[0].encode() < right[0].encode()):
            assert left is not None
            yield left[0]
            left = await anext(one, None)
        else:
            yield right[0]
            right = await anext(other, None)


def _difference(key: str, live: str | None, rebuilt: str | None) -> Difference:
    mine = json.loads(live) if live is not None else None
    other = json.loads(rebuilt) if rebuilt is not None else None
    if mine is not None and other is not None:
        unequal = [name for name in mine if mine[name] != other.get(name)]
        mine, other = {n: mine[n] for n in unequal}, {n: other.get(n) for n in unequal}
    return Difference(key, mine, other)

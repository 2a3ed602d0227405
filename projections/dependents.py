"""What operators hung on the views' tables, and a swap must not take with it: their own SQL views, and grants.

Postgres follows a table, not its name: after a swap such a view would read the table that was replaced, and go with it
at the next one. So the swap replaces each by its own definition, which then means the new tables. It stays the same
object, with its owner, its grants and what is built on it.
"""

from collections.abc import Sequence

import asyncpg
from msgspec import Struct

from projections.schema import quote_ident
from projections.views import NAMES
from streamproc.archive.sql import statements
from streamproc.archive.store import transaction
from streamproc.errors import JobFailed

_SQL = statements("projections", "dependents.sql")


class Dependents(Struct):
    """What to do again on the new tables, as statements: `views` by their names."""

    views: dict[str, str]
    grants: list[str]


async def dependents_of(db: asyncpg.Connection, schema: str, views: Sequence[str]) -> Dependents:
    """What hangs on these tables of a schema. In a transaction, whose search path is as before afterwards."""
    tables = await _tables(db, schema, views)
    path = await db.fetchval("SELECT current_setting('search_path')")
    await db.execute("SET LOCAL search_path = pg_catalog")  # so that every other schema is named
    found = await db.fetch(_SQL["views_on"], tables)
    grants = [*await db.fetch(_SQL["grants_on"], tables), *await db.fetch(_SQL["column_grants_on"], tables)]
    await db.execute("SELECT set_config('search_path', $1, true)", path)
    return Dependents({row["name"]: _replacing(row) for row in found}, [text for (text,) in grants])


def _replacing(row: asyncpg.Record) -> str:
    options = f" WITH ({row['options']})" if row["options"] else ""
    return f"CREATE OR REPLACE VIEW {row['name']}{options} AS {row['definition']}"


async def revoke_all(db: asyncpg.Connection, schema: str, views: Sequence[str]) -> None:
    """Take from all but their owner what they were granted on these tables of a schema."""
    for (text,) in await db.fetch(_SQL["revokes_on"], await _tables(db, schema, views)):
        await db.execute(text)


async def hang_on_anew(db: asyncpg.Connection, dependents: Dependents) -> None:
    """Grant again, and lead the operator's views to the tables that have the old names now.

    Raises JobFailed, naming the view, where its definition does not fit them, or it is not ours to replace.
    """
    for grant in dependents.grants:
        try:
            async with transaction(db):
                await db.execute(grant)
        except asyncpg.UndefinedColumnError:
            continue  # a grant on a column that a new version of the view does not have
    for name, statement in dependents.views.items():
        try:
            await db.execute(statement)
        except _UNFIT as problem:
            raise JobFailed(
                f"your view {name} cannot be led to the rebuilt tables: {problem}; drop it, replay, and make it anew;"
                " nothing was swapped"
            ) from problem


_UNFIT = (asyncpg.SyntaxOrAccessError,)
"""A column that is gone or has another type, or a view of another owner."""


async def refuse_what_would_be_lost(db: asyncpg.Connection, home: str, views: Sequence[str]) -> None:
    """Raise JobFailed, naming it, if anything depends on the live tables, or on those of the last swap, that a swap
    cannot lead to new ones."""
    lost = list[str]()
    live, previous = (home, views, True), (f"{home}_previous", [*NAMES, "view_heads"], False)
    for schema, names, keeps_views in (live, previous):
        tables = await _tables(db, schema, names)
        lost += [row["what"] for row in await db.fetch(_SQL["others_on"], tables, keeps_views)]
    if lost:
        raise JobFailed(
            f"a swap of the views would drop what somebody made on their tables, or on those of {home}_previous:"
            f" {', '.join(lost)}; drop it first, and build it on a plain view of yours, which a swap keeps; nothing was"
            " swapped"
        )


async def _tables(db: asyncpg.Connection, schema: str, views: Sequence[str]) -> list[int]:
    names = [f"{quote_ident(schema)}.{quote_ident(view)}" for view in views]
    return [oid for (oid,) in await db.fetch(_SQL["oids"], names)]

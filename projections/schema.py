"""The schemas of views, live or rebuilt: making their tables, and `prepare`, which brings a whole database up to date.

Such a schema holds all views and `view_heads` (view_heads.sql). The archive's tables are made by Alembic. A
view's tables are not: they hold only what a rebuild gives back, so their shape is stated once, in the view's .sql file,
for the live views and for every rebuild.
"""

from collections.abc import Iterable, Sequence

import asyncpg

from projections.views import NAMES, VIEWS, View
from streamproc.archive.sql import statements
from streamproc.archive.store import AWAY, connection, transaction
from streamproc.errors import JobFailed, named

READER, PROJECTOR = "streamproc_reader", "streamproc_projector"

_SQL = statements("projections", "view_heads.sql")


async def prepare(dsn: str) -> list[str]:
    """Bring the whole schema up to date: the archive's revisions, then missing views. What was applied and made.

    Safe to repeat and to run twice at once. Raises JobFailed as `upgrade` does.
    """
    # Alembic: half a second that builders do without.
    from streamproc.archive.migrate import MIGRATE_LOCK, upgrade

    applied = await upgrade(dsn)
    try:
        async with connection(dsn, name="streamproc migrate") as db, transaction(db):
            await db.execute("SELECT pg_advisory_xact_lock($1)", MIGRATE_LOCK)
            return [*applied, *(f"view {name}" for name in await make_missing(db))]
    except (*AWAY, asyncpg.PostgresError) as problem:
        raise JobFailed(f"Postgres: {named(problem)}") from problem


async def missing_in(db: asyncpg.Connection) -> list[str]:
    """The tables of views that the connection's schema lacks."""
    wanted = ["view_heads", *NAMES]
    missing = {row["name"] for row in await db.fetch(_SQL["missing"], wanted)}
    return [name for name in wanted if name in missing]


async def make_missing(db: asyncpg.Connection) -> list[str]:
    """Make the views that the connection's schema lacks; the names of the views made, which are empty."""
    missing = await missing_in(db)
    if "view_heads" in missing:
        await _make_heads(db)
    made = [view for view in VIEWS if view.name in missing]
    await make_tables(db, made)
    for view in made:
        await make_indexes(db, view)
    if made:
        # A view that was dropped by hand begins anew, and so must its position.
        await db.execute("DELETE FROM view_heads WHERE view = ANY($1::text[])", [view.name for view in made])
    return [view.name for view in made]


async def make_schema(db: asyncpg.Connection, schema: str, views: Sequence[View]) -> None:
    """Make a schema with these views, empty and without indexes, and make it the connection's only search path."""
    await db.execute(f"CREATE SCHEMA {quote_ident(schema)}")
    await enter_schema(db, schema)
    await _make_heads(db)
    await make_tables(db, views)


async def _make_heads(db: asyncpg.Connection) -> None:
    await db.execute(_SQL["table"])
    await db.execute(_SQL["comment"])
    await _grant(db, ["view_heads"])


async def enter_schema(db: asyncpg.Connection, schema: str) -> None:
    """Make a schema the connection's only search path, so that nothing is ever taken from elsewhere."""
    await db.execute("SELECT set_config('search_path', $1, false)", quote_ident(schema))


async def make_tables(db: asyncpg.Connection, views: Iterable[View]) -> None:
    """Make the views' tables with their grants, without `make_indexes`."""
    for view in views:
        for statement in (*view.statements("table"), *view.statements("comment")):
            await db.execute(statement)
        await _grant(db, [view.name])


async def make_indexes(db: asyncpg.Connection, view: View) -> None:
    """Make a view's indexes and, where its table was made without one, the primary key."""
    for statement in indexes_of(view).values():
        await db.execute(statement)
    await make_key(db, view)


def indexes_of(view: View) -> dict[str, str]:
    """A view's indexes besides those made with its table: name -> statement, each of which may run at any time."""
    return {
        f"{view.name}_{name.removeprefix('index_')}": statement
        for name, statement in view.named("index_").items()
    }


async def make_key(db: asyncpg.Connection, view: View) -> None:
    """Make an index the primary key, if the table was made without one."""
    for statement in view.statements("key"):
        await db.execute(statement)


async def _grant(db: asyncpg.Connection, tables: Sequence[str]) -> None:
    known = {row["rolname"] for row in await db.fetch(_SQL["known_roles"], [READER, PROJECTOR])}
    names = ", ".join(quote_ident(table) for table in tables)
    if READER in known:
        await db.execute(f"GRANT SELECT ON {names} TO {READER}")
    if PROJECTOR in known:
        await db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {PROJECTOR}")


async def shown_columns(db: asyncpg.Connection, view: str, *, with_bytes: bool) -> dict[str, str]:
    """A view's columns in their order: name -> the SQL expression that shows it in JSON, of that name."""
    rows = await db.fetch(_SQL["shown_columns"], quote_ident(view), with_bytes)
    return {row["name"]: row["shown"] for row in rows}


def quote_ident(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'

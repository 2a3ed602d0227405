"""Who holds the lock that something waits for, in words: a transaction that somebody left open blocks for ever."""

from collections.abc import Sequence

import asyncpg

from streamproc.archive.sql import statements

HELD_S_MIN = 1.0
"""Younger transactions come and go; they are not what was waited for."""

_SQL = statements("streamproc.archive", "blockers.sql")


async def holders(db: asyncpg.Connection, schemas: Sequence[str]) -> str:
    """The sessions that have held locks on tables of these schemas for HELD_S_MIN; '' if there are none now."""
    return "; ".join(map(_in_words, await db.fetch(_SQL["holders"], list(schemas), HELD_S_MIN)))


async def blocking(db: asyncpg.Connection) -> str:
    """The sessions for which one of ours waits now, and which; '' if there are none."""
    rows = await db.fetch(_SQL["blocking"])
    return "; ".join(f"`{row['waits']}` waits for {_in_words(row)}" for row in rows)


def _in_words(row: asyncpg.Record) -> str:
    who = f"session {row['pid']} of {row['usename']}"
    if row["application_name"]:
        who += f" ({row['application_name']})"
    since = "" if row["age_s"] is None else f" for {row['age_s']:.0f} s"
    return f"{who}, {row['state'] or 'in a transaction'}{since}"

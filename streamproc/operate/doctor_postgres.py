"""`doctor` on Postgres: whether it can be written, has room for us, and shows what is archived; and what to do where it
does not answer."""

from collections.abc import Iterator
from typing import Any

from projections.heads import outdated_views
from projections.schema import missing_in
from streamproc.archive.blockers import blocking
from streamproc.archive.gauges import VIEWS_LATE_S, views_behind
from streamproc.archive.hosts import primaries
from streamproc.archive.lookup import connection_slots, refuses_writes
from streamproc.archive.migrate import SCHEMA_HIDDEN, SCHEMA_TODO, current, is_later, newest
from streamproc.archive.pool import acquired, opened_pool
from streamproc.archive.store import refusals_as_job_failed
from streamproc.operate.connections import need_of, too_few
from streamproc.operate.connections import todo as connections_todo
from streamproc.operate.doctor_check import Check, missing
from streamproc.operate.doctor_checkpoints import checkpoint_checks
from streamproc.settings import Settings

HOST_S_MAX = 3.0
"""For each host of the DSN, all asked at once."""
CAUSES_MAX = 8
"""Errors behind an error that are looked at: ours, the driver's, the system's."""
NONE_LEFT = (
    "raise max_connections, or end what holds connections without need: SELECT application_name, count(*) FROM"
    " pg_stat_activity GROUP BY 1"
)
_DSN = "STREAMPROC_POSTGRES_DSN"
_TODO = {
    "TooManyConnectionsError": NONE_LEFT,
    "InvalidPasswordError": f"correct the password in {_DSN}",
    "InvalidAuthorizationSpecificationError": f"correct the user in {_DSN}, or let it in by pg_hba.conf",
    "InvalidCatalogNameError": f"make the database, or correct its name in {_DSN}",
    "InsufficientPrivilegeError": f"grant the user of {_DSN} what the message names",
    "DiskFullError": "make room on Postgres's disk",
    "PostgresSystemError": "look at Postgres's own log and its disk",
    "InternalServerError": "mend Postgres, whose own log names what is damaged: docs/runbook.md, StreamprocArchiveLate",
    "CannotConnectNowError": "wait until it has started; its own log says what it does",
    "TargetServerAttributeNotMatched": f"promote a host, or correct target_session_attrs in {_DSN}",
    "gaierror": f"correct the host's name in {_DSN}: nobody knows it",
    "ConnectionRefusedError": f"start Postgres, or correct host and port in {_DSN}: nothing listens there",
    "TimeoutError": f"is the host of {_DSN} up, and does a firewall let us through? nothing answers there",
    "SSLError": f"correct sslmode and certificates in {_DSN}",
}
"""What to do, by the kind of error; what is none of these is a Postgres that is away."""
AWAY_TODO = f"start Postgres, or correct {_DSN}"


def postgres_todo(problem: BaseException) -> str:
    """What to do about a Postgres that does not answer, or refuses us, by the error behind ours."""
    for cause in _causes(problem):
        for kind in type(cause).__mro__:
            if kind.__name__ in _TODO:
                return _TODO[kind.__name__]
    return AWAY_TODO


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from; SQLAlchemy has the driver's as `orig`."""
    for _ in range(CAUSES_MAX):
        if problem is None:
            return
        yield problem
        problem = getattr(problem, "orig", None) or problem.__cause__


async def examine_postgres(settings: Settings) -> list[Check]:
    """Whether Postgres can be written, has room for our connections, and has our tables and views."""
    dsn = settings.postgres_dsn.reveal()
    if not dsn:
        return missing("postgres", "STREAMPROC_POSTGRES_DSN")
    at, wanted = await current(dsn), newest()
    async with opened_pool(dsn) as pool:
        checks = [await _writable(pool), *await _primaries(dsn)]
        checks += [await _connections(settings, pool), *await _blocked(pool)]
        if at is None and await _sees_no_schema(pool):
            return [*checks, Check("schema", "bad", SCHEMA_HIDDEN, SCHEMA_TODO)]
        if at is not None and is_later(at):
            detail = f"at {at}, of a later version: this one knows {wanted}, and works with it"
            schema = Check(
                "schema", "note", detail, "what the later version wrote waits until it is started again"
            )
        elif at != wanted:
            detail = f"at {at or 'nothing'}, the newest is {wanted}"
            return [*checks, Check("schema", "bad", detail, "run `streamproc migrate`")]
        else:
            schema = Check("schema", "ok", f"at {at}, the newest")
        return [*checks, schema, await _views(pool), *await checkpoint_checks(settings)]


async def _sees_no_schema(pool: Any) -> bool:
    async with acquired(pool) as db:
        return await db.fetchval("SELECT current_schema()") is None


async def _writable(pool: Any) -> Check:
    why = await refuses_writes(pool)
    if not why:
        return Check("postgres", "ok", "reachable, and can be written")
    todo = (
        "STREAMPROC_POSTGRES_DSN must lead to the primary: promote it, or name both hosts with"
        " ?target_session_attrs=read-write"
    )
    return Check("postgres", "bad", f"it can only be read: {why}; nothing is archived, and money waits", todo)


async def _primaries(dsn: str) -> list[Check]:
    """Whether several hosts of the DSN accept writes; no line where one does."""
    found = await primaries(dsn, timeout=HOST_S_MAX)
    if len(found) < 2:
        return []
    detail = f"{' and '.join(found)} all accept writes: each session reaches one of them, and the others fall behind"
    todo = "stop all but the one that was promoted last, before they are used (docs/reliability.md)"
    return [Check("postgres hosts", "bad", detail, todo)]


async def _connections(settings: Settings, pool: Any) -> Check:
    """Whether Postgres allows as many connections as the settings take, and has some left."""
    name, found = "postgres connections", await connection_slots(pool)
    detail = f"{found.open} are open, {found.allowed} are allowed, we take {need_of(settings).all} at most"
    if problem := too_few(settings, found):
        return Check(name, "bad", f"{problem}; {found.open} are open", connections_todo(settings))
    if found.open >= found.allowed:
        return Check(name, "bad", detail, NONE_LEFT)
    return Check(name, "ok", detail)


async def _blocked(pool: Any) -> list[Check]:
    """Whether somebody's lock keeps one of ours waiting at this moment."""
    async with acquired(pool) as db:
        found = await blocking(db)
    todo = "end what that session does, or the session: SELECT pg_terminate_backend(pid)"
    return [Check("postgres locks", "bad", found, todo)] if found else []


async def _views(pool: Any) -> Check:
    async with acquired(pool) as db:
        gone = await missing_in(db)
        outdated = [] if gone else await outdated_views(db)
    if gone:
        todo = "run `streamproc migrate`, which makes them, and `streamproc replay`, which fills them"
        return Check("views", "bad", f"their tables are gone: {', '.join(gone)}", todo)
    if outdated:
        todo = f"run `streamproc replay {' '.join(outdated)}`: the projector of this version stops at them"
        return Check("views", "bad", f"they are another version's: {', '.join(outdated)}", todo)
    with refusals_as_job_failed():
        behind = await views_behind(pool)
    late = [
        f"partition {partition}: {one.entries} archived entries are not shown"
        for partition, one in behind.items()
        if one.oldest_s > VIEWS_LATE_S
    ]
    if not late:
        missing = sum(one.entries for one in behind.values())
        detail = f"{missing} archived entries are not shown yet" if missing else "they show what is archived"
        return Check("views", "ok", detail)
    todo = (
        "the projector's log says why they stand still, and docs/runbook.md, StreamprocViewsStandStill, what to do;"
        " `streamproc replay` builds them anew"
    )
    return Check("views", "bad", "; ".join(late), todo)

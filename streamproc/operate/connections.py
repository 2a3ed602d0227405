"""How many connections to Postgres an installation takes, and whether its Postgres allows as many.

Each is a process there. Once none is left, whatever needs one waits, and approved payouts with it. So it is counted
before.
"""

import logging

from msgspec import Struct

from projections.loop import connections_needed
from streamproc.archive.lookup import ConnectionSlots, connection_slots
from streamproc.archive.pool import POOL_MAX, opened_pool
from streamproc.errors import ConfigError, StreamprocError
from streamproc.settings import Settings

WORKER_MAX = 3 * POOL_MAX
"""Of a worker: pools for the barrier, and for payouts that Redis forgot, of governance and of execution."""
SERVE_MAX = 2 * POOL_MAX
"""Of `serve`: for requests, and for metrics where they are pushed."""
POLLER_MAX = POOL_MAX
"""Of the poller: while it compares bank, log and budgets."""
COMMANDS_MAX = 20
"""For people: a replay with a builder for each of 8 cores takes ten, `psql`, a backup and other commands the rest."""
RESERVED_MAX = 3
"""That Postgres keeps for superusers by default."""

log = logging.getLogger(__name__)


class Need(Struct, frozen=True):
    """Connections of one projector, and of the whole installation with one `serve`, one poller and its workers."""

    projector: int
    all: int


def need_of(settings: Settings) -> Need:
    """What the settings take at most. Another `serve`, worker, or projector that stands by is not in it."""
    projector = connections_needed(settings.partitions)
    roles = projector + settings.workers * WORKER_MAX + SERVE_MAX + POLLER_MAX
    return Need(projector, roles + COMMANDS_MAX)


def max_connections(settings: Settings) -> int:
    """The `max_connections` of a Postgres that has the installation to itself."""
    return need_of(settings).all + RESERVED_MAX


def too_few(settings: Settings, found: ConnectionSlots) -> str:
    """That Postgres allows fewer connections than are needed, and how many; empty if it does not."""
    need = need_of(settings)
    if found.allowed >= need.all:
        return ""
    return (
        f"Postgres allows us {found.allowed} connections; STREAMPROC_PARTITIONS={settings.partitions} and"
        f" STREAMPROC_WORKERS={settings.workers} take {need.all} at most, of which the projector takes {need.projector}"
    )


def todo(settings: Settings) -> str:
    """What to do about too few connections."""
    return (
        f"set max_connections to {max_connections(settings)} or more in postgresql.conf, and restart Postgres"
    )


async def refuse_too_few(settings: Settings) -> None:
    """For a projector, before it starts. Warns of a Postgres that allows too few connections for all of us.

    Raises ConfigError if not even the projector can have all it needs: some partitions would never be archived. While
    Postgres is away nothing is said.
    """
    try:
        async with opened_pool(settings.postgres_dsn.reveal()) as pool:
            found = await connection_slots(pool)
    except StreamprocError:
        return
    problem = too_few(settings, found)
    if problem and found.allowed < need_of(settings).projector:
        raise ConfigError(f"{problem}: {todo(settings)}")
    if problem:
        log.warning("%s: what comes last may wait, and approved payouts with it; %s", problem, todo(settings))

"""A failover to a replica that lags, and what an operator does about it.

    ahead    the archive has more than the replica, and the lost log had even more: the projector must stop with an
             alarm, and `streamproc recover` is run as the runbook says
    behind   the archive has less than the replica: nothing has to be done

To know what the lost log had, its server is started once more where only the witness can reach it.
"""

from collections.abc import Callable

from streamproc.archive.store import archived_heads
from streamproc.domain.entry_ids import id_key
from streamproc.log.connection import connect, connected
from tests.bank import until
from tests.faults.replica import Replica
from tests.faults.stand import Stand, ready

MORE = 8
"""Least number of entries by which one store is ahead of another."""
STEP_MAX_S = 60.0
RECOVER_MAX_S = 120.0
STOPPED = ("worker-1", "worker-2", "poller", "projector")
"""Roles that the operator stops. `serve` goes on and answers 503."""


async def fail_over(stand: Stand, how: str, say: Callable[[str], None]) -> None:
    """Kill Redis while its replica lags, let the replica take over, and recover if the archive is ahead of it."""
    async with stand.redis_busy, stand.postgres_busy:
        await (_archive_ahead if how == "ahead" else _archive_behind)(stand)
        shared = await _take_over(stand, how)
    lost = len(stand.witness.lost)
    say(f"a failover took {lost} entries after {shared}; the archive ends at {await _head(stand)}")
    if how == "ahead":
        await _recover(stand, say)


async def _archive_ahead(stand: Stand) -> None:
    """Stop the replica's feed and let the archive go on, then only the log."""
    replica = _replica(stand)
    replica.wire.stall()
    last = await replica.last(stand.system.names.log)
    await until(lambda: _archived(stand, last, MORE), what="the archive is ahead", deadline_s=STEP_MAX_S)
    stand.slots["projector"].wires["postgres"].stall()
    head = await _head(stand)
    await until(lambda: _logged(stand, head, MORE), what="the log is ahead", deadline_s=STEP_MAX_S)


async def _archive_behind(stand: Stand) -> None:
    """Stop the archive and let the replica go on, then only the log."""
    replica = _replica(stand)
    stand.slots["projector"].wires["postgres"].stall()

    async def ahead() -> bool:
        return id_key(await replica.last(stand.system.names.log)) > id_key(await _head(stand))

    await until(ahead, what="the replica is ahead of the archive", deadline_s=STEP_MAX_S)
    replica.wire.stall()
    last = await replica.last(stand.system.names.log)
    await until(lambda: _logged(stand, last, MORE), what="the log is ahead", deadline_s=STEP_MAX_S)
    assert id_key(last) >= id_key(await _head(stand)), "the archive must be behind"


async def _take_over(stand: Stand, how: str) -> str:
    """Kill the primary, promote the replica and lead every role to it. Returns the last entry that both had."""
    replica, system, dead = _replica(stand), stand.system, stand.redis
    async with stand.witness.turn:
        await dead.kill()
        for slot in stand.slots.values():
            if "redis" in slot.wires:
                slot.wires["redis"].lead_to(replica.port)
        shared = await replica.last(system.names.log)
        await dead.up()  # no role is led to it any more
        await stand.witness.catch_up()
        await dead.down()
        stand.regressed = how == "ahead"
        await replica.promote()
        stand.witness.follow(replica.url, shared)
    stand.redis = replica.store
    await system.redis.aclose()
    system.redis_url, system.redis = replica.url, connect(replica.url)
    system.env["STREAMPROC_REDIS_URL"] = replica.url
    stand.slots["projector"].wires["postgres"].flow()
    return shared


async def _recover(stand: Stand, say: Callable[[str], None]) -> None:
    """Do as docs/runbook.md says: see the alarm, stop the workers, run `streamproc recover`, start everything again."""

    async def alarmed() -> bool:
        return any(alarm.startswith("projector") for alarm in stand.alarms)

    await until(alarmed, what="the projector stops with an alarm", deadline_s=STEP_MAX_S)
    say(stand.alarms[0])
    seen = len(stand.witness.entries)

    async def grown() -> bool:
        return len(stand.witness.entries) >= seen + MORE

    await until(grown, what="the log goes on growing until the operator comes", deadline_s=STEP_MAX_S)
    for name in STOPPED:
        await stand.halt(name)
    head = await _head(stand)
    async with stand.witness.turn:
        await stand.witness.catch_up()
        code, out, err = await stand.system.cli("recover", "--yes", "--json", within_s=RECOVER_MAX_S)
        assert code == 0, f"recover ended with {code}: {err[-1000:]} {out[-1000:]}"
        stand.witness.recovered(head)
    for name in reversed(STOPPED):
        stand.keep(name)
    await ready(stand)
    stand.regressed = False
    say(f"recovered; {len(stand.witness.dropped)} entries of the fork are dropped: {out.strip()}")


async def _head(stand: Stand) -> str:
    """The archive's last entry."""
    return (await archived_heads(stand.system.dsn))[0].entry


async def _archived(stand: Stand, after: str, more: int) -> bool:
    rows = await stand.system.pool.fetch("SELECT entry_id FROM events ORDER BY seq DESC LIMIT $1", more)
    return len(rows) == more and all(id_key(row["entry_id"]) > id_key(after) for row in rows)


async def _logged(stand: Stand, after: str, more: int) -> bool:
    async with connected(stand.system.redis_url) as client:
        rows = await client.execute_command("XRANGE", stand.system.names.log, f"({after}", "+", "COUNT", more)
    return len(rows) == more


def _replica(stand: Stand) -> Replica:
    assert stand.replica is not None, "this stand has no replica"
    return stand.replica

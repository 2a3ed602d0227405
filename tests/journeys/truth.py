"""What must hold of the whole system whenever it has come to rest, whatever was killed on the way."""

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import ParamSpec

from streamproc.archive.rows import ArchivedEntry
from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record
from streamproc.domain.states import RELEASING_STATUSES
from streamproc.domain.wire import decode_events
from streamproc.log.names import Names
from tests.chained import Position, verify
from tests.journeys.system import System

AT_REST_S = 45.0
"""A delivery that comes late, or a projector that is a moment behind, is not what these look for."""
P = ParamSpec("P")


def at_rest(check: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Look again while it does not hold: something may come between two reads. What stays so for AT_REST_S is wrong."""

    @functools.wraps(check)
    async def looked_again(*args: P.args, **kwargs: P.kwargs) -> None:
        end = asyncio.get_running_loop().time() + AT_REST_S
        while True:
            try:
                return await check(*args, **kwargs)
            except AssertionError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.5)

    return looked_again


@at_rest
async def assert_one_story(system: System) -> None:
    """The archive is the log, entry for entry; its seq is dense and its chain holds."""
    log = [(entry.id, entry.e, entry.m) for entry in await system.entries()]
    rows = await system.pool.fetch(
        "SELECT partition, seq, entry_id AS id, payout, e, m, hash, archived_at FROM events ORDER BY seq"
    )
    archived = [ArchivedEntry(**dict(row)) for row in rows]
    assert [(row.id, row.e, row.m) for row in archived] == log
    assert [row.seq for row in archived] == list(range(1, len(log) + 1))
    end = verify(archived)
    assert isinstance(end, Position), end


@at_rest
async def assert_decided_once(system: System, payouts: set[str]) -> None:
    """Each of these payouts was observed, decided once, reserved and settled at most once, and audited once."""
    decided: Counter[str] = Counter()
    reserved: Counter[str] = Counter()
    settled: Counter[str] = Counter()
    observed: set[str] = set()
    for event in await system.events():
        match event:
            case e.PayoutDecided():
                decided[event.payout] += 1
            case e.BudgetReserved():
                reserved[event.payout] += 1
            case e.PayoutSettled():
                settled[event.payout] += 1
            case e.PayoutObserved():
                observed.add(event.payout)
    assert observed == payouts
    assert decided == dict.fromkeys(payouts, 1)
    assert set(reserved.values()) <= {1}
    assert settled == reserved, "a reservation that is not settled, or settled twice"
    rows = await system.pool.fetch(
        "SELECT payout, count(*) AS n FROM audit WHERE kind = 'decision' GROUP BY payout"
    )
    assert {row["payout"]: row["n"] for row in rows} == dict.fromkeys(payouts, 1)


async def assert_told_once(system: System, expected: dict[str, str]) -> None:
    """At the bank exactly this command took effect for each payout, and nothing for any other."""
    effects: dict[str, list[str]] = {}
    for line in await system.bank.record(effect="true"):
        effects.setdefault(line["payout"], []).append(line["command"])
    assert effects == {payout: [command] for payout, command in expected.items()}


@at_rest
async def assert_budgets_agree(system: System) -> None:
    """Redis, Postgres and the fold of the log hold the same reserved and committed paise in every window."""
    folded = await _budgets_of_log(system)
    assert await budgets_of_redis(system) == folded
    rows = await system.pool.fetch("SELECT scope, window_name, reserved, committed FROM budgets")
    assert {(r["scope"], r["window_name"]): (r["reserved"], r["committed"]) for r in rows} == folded


@at_rest
async def assert_records_agree(system: System) -> None:
    """Redis's record of each payout and the view's are the fold of the log."""
    folds = await system.folds()
    rows = await system.pool.fetch("SELECT payout, record FROM payouts")
    assert {row["payout"]: decode_record(row["record"]) for row in rows} == folds
    for payout, record in folds.items():
        kept = await system.redis.hget(system.names.payout(payout), "s")
        assert kept is not None
        assert decode_record(kept) == record


async def budgets_of_redis(
    system: System, names: Names | None = None
) -> dict[tuple[str, str], tuple[int, int]]:
    found = {}
    prefix = f"{(names or system.names).base}:budget:"
    async for key in system.redis.scan_iter(match=f"{prefix}*", count=1000):
        scope, _, window = key.decode().removeprefix(prefix).rpartition(":")
        reserved, committed = await system.redis.hmget(key, "r", "c")
        found[scope, window] = (int(reserved or 0), int(committed or 0))
    return found


async def _budgets_of_log(system: System) -> dict[tuple[str, str], tuple[int, int]]:
    """By each payout's own reservation, not by the projection's fold: that is what is checked."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for record in (await system.folds()).values():
        held = record.reservation
        if held is None:
            continue
        assert (held.state == "released") == (
            record.bank_status in RELEASING_STATUSES or record.decision == "REJECTED"
        )
        for window in held.windows:
            reserved, committed = found.get((window.scope, window.window), (0, 0))
            reserved += held.amount if held.state == "reserved" else 0
            committed += held.amount if held.state == "committed" else 0
            found[window.scope, window.window] = (reserved, committed)
    return found


async def overspent(system: System) -> list[str]:
    """Events after which a window held more than the limit that stood when the reservation was made."""
    found: list[str] = []
    for entry in await system.entries():
        for place, event in enumerate(decode_events(entry.e)):
            if isinstance(event, e.BudgetReserved):
                found += [
                    f"{entry.id}:{place}"
                    for window in event.windows
                    if window.limit is not None
                    and window.reserved + window.committed + event.amount > window.limit
                ]
    return found

"""What the archive and its views answer, and that they find it by index."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from streamproc.archive.read import (
    _SQL,
    KINDS_SELDOM,
    REASONS_OF_ALL,
    AuditFilter,
    AuditPosition,
    archived_upto,
    audit_query,
    audit_rows,
    entry_archived,
    payout_history,
    payout_known,
    payout_view,
)
from streamproc.domain.payouts import fold
from streamproc.domain.wire import decode_events
from streamproc.errors import TryAgain
from tests.projections.histories import ListedLog, decided, history, log_of, project_all
from tests.words import NOW, observed


@pytest.fixture
async def dsn(prepared: str) -> str:
    return prepared


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        yield pool


async def test_an_empty_archive_answers_that_it_is_empty(pool: asyncpg.Pool):
    assert await archived_upto(pool, 0) == "0-0"
    assert not await entry_archived(pool, 0, "1-0", b"[]")
    assert await payout_history(pool, "pout_1", 100) == []
    assert await payout_view(pool, "pout_1") is None
    assert await audit_rows(pool, AuditFilter()) == []


async def test_the_archive_says_how_far_it_is_and_what_it_has(dsn: str, pool: asyncpg.Pool):
    log = ListedLog(history(seed=1, payouts=3))
    await project_all(dsn, log)
    last = log.entries[-1].id
    assert await archived_upto(pool, 0) == last
    assert await archived_upto(pool, 1) == "0-0"
    e = log.entries[-1].e
    assert await entry_archived(pool, 0, last, e)
    assert not await entry_archived(pool, 0, last, e + b" ")
    assert not await entry_archived(pool, 1, last, e)
    assert not await entry_archived(pool, 0, last + "9", e)


async def test_a_payouts_history_is_its_entries_in_log_order_and_folds_to_its_view(
    dsn: str, pool: asyncpg.Pool
):
    log = ListedLog(history(seed=2, payouts=5))
    await project_all(dsn, log)
    entries = await payout_history(pool, "pout_3", 100)
    expected = [entry for entry in log.entries if b'"pout_3"' in entry.e]
    assert [(entry.id, entry.e, entry.m) for entry in entries] == [tuple(entry) for entry in expected]
    assert {entry.payout for entry in entries} == {"pout_3"}
    folded = fold(event for entry in entries for event in decode_events(entry.e))
    assert await payout_view(pool, "pout_3") == folded


async def test_who_acts_on_a_payout_is_told_to_wait_where_the_view_does_not_show_all_that_is_archived_of_it(
    dsn: str, pool: asyncpg.Pool
):
    """Views may stand still for longer than Redis remembers: the payout would be taken for new, and decided again."""
    log = ListedLog(history(seed=2, payouts=5))
    await project_all(dsn, log)
    last = [n for n, entry in enumerate(log.entries, 1) if b'"pout_3"' in entry.e][-1]
    assert await payout_known(pool, "pout_3") == await payout_view(pool, "pout_3")
    assert await payout_known(pool, "pout_never") is None
    await pool.execute("UPDATE view_heads SET seq = $1 WHERE view = 'payouts'", last - 1)
    with pytest.raises(TryAgain, match="does not show all that is archived of payout pout_3"):
        await payout_known(pool, "pout_3")
    await pool.execute("UPDATE view_heads SET seq = $1 WHERE view = 'payouts'", last)
    assert await payout_known(pool, "pout_3") is not None
    # Another account's row is not its own.
    for lost in (
        "UPDATE payouts SET partition = 1",
        "DELETE FROM payouts",
    ):
        await pool.execute(f"{lost} WHERE payout = 'pout_3'")
        with pytest.raises(TryAgain, match="pout_3"):
            await payout_known(pool, "pout_3")
    await pool.execute("DELETE FROM view_heads")
    with pytest.raises(TryAgain, match="pout_2"):
        await payout_known(pool, "pout_2")
    await pool.execute("DROP TABLE payouts")
    with pytest.raises(TryAgain, match="the view payouts cannot be asked: UndefinedTableError"):
        await payout_known(pool, "pout_2")


async def test_the_audit_is_filtered_by_each_field_newest_first(dsn: str, pool: asyncpg.Pool):
    await project_all(
        dsn,
        ListedLog(
            log_of(
                [observed("pout_1")],
                [decided("pout_1", 5)],
                [observed("pout_2")],
                [decided("pout_2", 5, "REJECTED", "NO_POLICY")],
                [observed("pout_1", status="processed", at=NOW + 10)],
            )
        ),
    )

    async def found(**wanted: object) -> list[tuple[str | None, str]]:
        return [(row.payout, row.kind) for row in await audit_rows(pool, AuditFilter(**wanted))]  # type: ignore[arg-type]

    first, second, confirmed = ("pout_1", "decision"), ("pout_2", "decision"), ("pout_1", "confirmation")
    after = datetime.fromtimestamp(NOW // 1_000_000, UTC).replace(microsecond=10)
    assert await found() == [confirmed, second, first]
    assert await found(payout="pout_1") == [confirmed, first]
    assert await found(agent="bot") == [confirmed, second, first]
    assert await found(agent="nobody") == []
    assert await found(kind="decision") == [second, first]
    assert await found(decision="REJECTED") == [second]
    assert await found(reason="POLICY_OK") == [first]
    assert await found(since=after) == [confirmed]
    assert await found(until=after) == [second, first]
    assert len(await audit_rows(pool, AuditFilter(), limit=2)) == 2


async def test_a_payouts_history_is_found_by_its_index(dsn: str, pool: asyncpg.Pool):
    await project_all(dsn, ListedLog(history(seed=4, payouts=400)))
    await pool.execute("ANALYZE events")
    plan = await pool.fetch("EXPLAIN " + _SQL["payout_history"], "pout_7", 100)
    text = "\n".join(line[0] for line in plan)
    assert "Index Cond: (payout = 'pout_7'::text)" in text
    assert "Seq Scan on events_y2026m12" not in text, "November holds a handful of rows, December the rest"


async def many_lines(pool: asyncpg.Pool) -> None:
    """Enough lines of many agents, vendors and payouts that a plan shows what the index of each filter is for."""
    await pool.execute(
        "INSERT INTO audit SELECT '0:' || n, 0, n, 0, 'pout_' || n / 5, 'agent ' || n % 97, n % 89 || '.example',"
        " to_timestamp(1796083200 + n), CASE WHEN n % 500 = 0 THEN 'policy' ELSE 'decision' END,"
        " CASE WHEN n % 50 = 0 THEN 'HELD' WHEN n % 500 = 0 THEN NULL ELSE 'APPROVED' END,"
        " CASE WHEN n % 5 = 0 THEN 'R' || n % 83 ELSE 'POLICY_OK' END, '', 1"
        " FROM generate_series(1, 20000) n"
    )
    await pool.execute("ANALYZE audit")


INDEXES: list[tuple[dict[str, object], str]] = [
    ({}, "audit_at"),
    ({"payout": "pout_7"}, "audit_payout"),
    ({"agent": "agent 7"}, "audit_agent"),
    ({"vendor": "7.example"}, "audit_vendor"),
    ({"reason": "R7"}, "audit_reason"),
    ({"reason": "R" * 80}, "audit_reason"),
    ({"reason": "POLICY_OK"}, "audit_at"),
    ({"decision": "HELD"}, "audit_decision"),
    ({"decision": "APPROVED"}, "audit_at"),
    ({"kind": "policy"}, "audit_seldom"),
    ({"since": datetime(2026, 12, 1, 2, tzinfo=UTC)}, "audit_at"),
]


async def test_a_page_of_the_audit_is_found_by_the_index_of_its_filter(pool: asyncpg.Pool):
    await many_lines(pool)
    place = AuditPosition(datetime.fromtimestamp(1_796_083_200 + 15_000, UTC), 0, 15_000, 0)
    for wanted, index in INDEXES:
        for after in (None, place):
            query, values = audit_query(AuditFilter(**wanted), after=after)  # type: ignore[arg-type]
            plan = "\n".join(row[0] for row in await pool.fetch(f"EXPLAIN {query} LIMIT 50", *values))
            assert f" {index} " in plan, plan
            assert "Seq Scan" not in plan


async def test_what_is_seldom_is_found_by_its_index_also_by_a_plan_that_is_kept(dsn: str, pool: asyncpg.Pool):
    await many_lines(pool)
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("SET plan_cache_mode = force_generic_plan")
        for wanted, index in INDEXES[4:10]:
            query, values = audit_query(AuditFilter(**wanted))  # type: ignore[arg-type]
            await db.execute(f"PREPARE page AS {query} LIMIT 50")
            plan = "\n".join(row[0] for row in await db.fetch(f"EXPLAIN EXECUTE page('{values[0]}')"))
            await db.execute("DEALLOCATE page")
            assert f" {index} " in plan, plan
    finally:
        await db.close()


async def test_the_index_of_reasons_leaves_out_what_queries_do_not_ask_it_for(pool: asyncpg.Pool):
    """Else a page of such lines would be looked for where they are not."""
    made = await pool.fetchval("SELECT pg_get_indexdef('audit_reason'::regclass)")
    assert set(re.findall(r"'([^']+)'::text", made)) == REASONS_OF_ALL
    made = await pool.fetchval("SELECT pg_get_indexdef('audit_seldom'::regclass)")
    assert set(re.findall(r"'([^']+)'::text", made)) == KINDS_SELDOM


async def test_a_long_reason_is_found_by_all_of_it(pool: asyncpg.Pool):
    for n in range(2):
        await pool.execute(
            "INSERT INTO audit VALUES ($1, 0, 1, $2, NULL, '', '', now(), 'alert', NULL, $3, '', NULL)",
            f"0:1-1:{n}", n, f"{'x' * 100}{n}",
        )  # fmt: skip
    assert [row.place for row in await audit_rows(pool, AuditFilter(reason=f"{'x' * 100}1"))] == [1]
    assert await audit_rows(pool, AuditFilter(reason="x" * 64)) == []
    assert await audit_rows(pool, AuditFilter(reason="x" * 63)) == []


async def test_postgres_being_away_is_to_be_tried_again():
    async with asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0) as pool:
        with pytest.raises(TryAgain, match="Postgres is away"):
            await archived_upto(pool, 0)

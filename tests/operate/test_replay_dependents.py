"""What operators hung on the views' tables outlives a replay, or is named before anything is touched."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest

from projections import swap
from streamproc.errors import JobFailed
from streamproc.operate import replay as replaying
from streamproc.operate.replay import go_back
from tests.deadline import DEADLINE_S
from tests.projections.histories import ListedLog, everything, fetch, history, project_all

MADE = """
CREATE SCHEMA bi;
CREATE VIEW bi."Per agent" (who, much) WITH (security_barrier = true) AS
    SELECT a.agent, count(*) FROM payouts p JOIN agents a USING (agent) GROUP BY 1;
CREATE VIEW bi.busiest AS SELECT * FROM bi."Per agent" ORDER BY much DESC LIMIT 1;
CREATE MATERIALIZED VIEW bi.kept AS SELECT * FROM bi.busiest;
GRANT SELECT ON bi."Per agent", payouts TO ROLE;
GRANT SELECT (agent, held) ON agents TO ROLE WITH GRANT OPTION;
"""
OBJECT = "SELECT oid, pg_get_viewdef(oid), reloptions, relacl::text FROM pg_class WHERE relname = 'Per agent'"
MAY = """
SELECT has_table_privilege($1, 'payouts', 'SELECT'), has_table_privilege($1, 'audit', 'SELECT'),
       has_column_privilege($1, 'agents', 'held', 'SELECT WITH GRANT OPTION'),
       has_column_privilege($1, 'agents', 'rejected', 'SELECT')
"""

replay = partial(replaying.replay, jobs=1)
"""How many processes build the views changes nothing here."""


@pytest.fixture
async def dsn(prepared: str) -> str:
    """A database whose views have something in them."""
    await project_all(prepared, ListedLog(history(seed=51, payouts=40)))
    return prepared


@pytest.fixture
async def role(dsn: str) -> AsyncIterator[str]:
    """A role of the operator's; roles outlive a database."""
    name = f"grafana_{os.getpid()}"
    await fetch(dsn, f"CREATE ROLE {name}")
    yield name
    await fetch(dsn, f"DROP OWNED BY {name}")
    await fetch(dsn, f"DROP ROLE {name}")


async def test_an_operators_view_and_grants_go_over_to_the_rebuilt_tables_as_the_same_objects(
    dsn: str, role: str
):
    """It went on reading the table that was replaced, and was dropped without a word by the next replay."""
    db = await asyncpg.connect(dsn)
    try:
        await db.execute(MADE.replace("ROLE", role))
        before, rows = await db.fetch(OBJECT), await db.fetch('SELECT * FROM bi."Per agent" ORDER BY 1')
        assert rows
        for _ in range(2):
            await fetch(dsn, "DELETE FROM payouts WHERE agent = 'bot'")
            assert (await replay(dsn)).swapped
            assert await db.fetch(OBJECT) == before
            assert await db.fetch('SELECT * FROM bi."Per agent" ORDER BY 1') == rows
        await go_back(dsn)
        assert await db.fetch(OBJECT) == before
        await db.execute("REFRESH MATERIALIZED VIEW bi.kept")
        assert tuple(await db.fetchrow(MAY, role)) == (True, False, True, False)
    finally:
        await db.close()


async def test_a_grant_that_was_revoked_since_does_not_come_back_with_the_tables_of_before(
    dsn: str, role: str
):
    for grant in ("SELECT ON payouts", "SELECT (agent, held) ON agents", "INSERT ON payouts"):
        await fetch(dsn, f"GRANT {grant} TO {role}")
    await replay(dsn)
    await fetch(dsn, f"REVOKE SELECT ON payouts FROM {role}")
    await fetch(dsn, f"REVOKE SELECT (held) ON agents FROM {role}")
    await go_back(dsn)
    asked = (
        f"SELECT has_table_privilege('{role}', 'payouts', 'SELECT'),"
        f" has_table_privilege('{role}', 'payouts', 'INSERT'),"
        f" has_column_privilege('{role}', 'agents', 'held', 'SELECT'),"
        f" has_column_privilege('{role}', 'agents', 'agent', 'SELECT')"
    )
    assert await fetch(dsn, asked) == [(False, True, False, True)]


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("CREATE MATERIALIZED VIEW kept AS SELECT * FROM audit", "materialized view kept"),
        ("CREATE TABLE notes (payout text, part int, FOREIGN KEY (payout, part) REFERENCES payouts)",
         "constraint notes_payout_part_fkey on table notes"),
        ("CREATE FUNCTION all_of() RETURNS SETOF agents LANGUAGE sql AS 'SELECT * FROM agents'", "function all_of()"),
        ("CREATE VIEW old AS SELECT * FROM public_previous.payouts", "view old"),
        ("CREATE TABLE kept (found agents[])", "column found of table kept"),
        ("CREATE VIEW edited AS SELECT agent FROM agents;"
         "CREATE RULE edits AS ON DELETE TO edited DO INSTEAD DELETE FROM agents WHERE agent = OLD.agent",
         "rule edits on view edited"),
        # The grants would be made again, and without it let everybody read every row.
        ("ALTER TABLE payouts ENABLE ROW LEVEL SECURITY; CREATE POLICY nobody ON payouts USING (false)",
         "row security of table payouts"),
    ],
)  # fmt: skip
async def test_what_a_swap_cannot_keep_is_named_before_anything_is_built(dsn: str, made: str, named: str):
    await replay(dsn)
    before = await everything(dsn)
    for statement in made.split(";"):
        await fetch(dsn, statement)
    stages: list[str] = []
    with pytest.raises(JobFailed, match=f"would drop .*: {re.escape(named)}; .*nothing was swapped"):
        await replay(dsn, on_progress=lambda progress: stages.append(progress.stage))
    assert stages == []
    assert await everything(dsn) == before
    assert (await replay(dsn, verify=True)).views


async def test_an_operators_view_that_does_not_fit_the_rebuilt_table_is_named_and_nothing_is_swapped(
    dsn: str,
):
    await fetch(dsn, "ALTER TABLE agents ADD COLUMN mood text")
    await fetch(dsn, "CREATE VIEW moods AS SELECT agent, mood FROM agents")
    before = await everything(dsn)
    with pytest.raises(JobFailed, match=r"your view public\.moods cannot be led .*mood.*nothing was swapped"):
        await replay(dsn)
    assert await everything(dsn) == before


@pytest.mark.parametrize("where", ["public", "public_previous"])
async def test_a_session_that_keeps_the_swap_waiting_for_too_long_is_named_and_readers_do_not_wait_with_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch, where: str
):
    await replay(dsn)
    monkeypatch.setattr(swap, "TRIES_MAX", 3)
    idle = await asyncpg.connect(dsn, server_settings={"application_name": "psql of bob"})
    reader = await asyncpg.connect(dsn, command_timeout=DEADLINE_S)
    left_open = idle.transaction()
    await left_open.start()
    await idle.execute(f"SELECT count(*) FROM {where}.payouts")
    try:
        replaying = asyncio.create_task(replay(dsn))
        while not replaying.done():
            await reader.fetchval("SELECT count(*) FROM payouts")
        pid = idle.get_server_pid()
        with pytest.raises(
            JobFailed, match=rf"held them: session {pid} of streamproc \(psql of bob\), idle in trans"
        ):
            await replaying
    finally:
        await left_open.rollback()
        await idle.close()
        await reader.close()
    assert (await replay(dsn)).swapped

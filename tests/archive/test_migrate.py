"""The schema comes up from nothing, again, and from two sides at once."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from projections.loop import months_of
from projections.schema import prepare
from projections.views import NAMES
from streamproc.archive import migrate
from streamproc.archive.attest import Maker
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.migrate import current, newest, upgrade
from streamproc.archive.sql import statements
from streamproc.archive.store import open_head
from streamproc.errors import JobFailed
from streamproc.operate.replay import replay
from tests.projections.histories import START_MS, ListedLog, fetch, history, log_of, project_all
from tests.projections.seals import SIGNER, TRUSTED
from tests.words import observed


async def test_the_first_upgrade_applies_every_revision_and_the_second_none(postgres: str):
    assert await current(postgres) is None
    assert (await upgrade(postgres))[-1] == newest()
    assert await current(postgres) == newest()
    assert await upgrade(postgres) == []


async def test_of_two_upgrades_at_once_one_does_the_work(postgres: str):
    first, second = await asyncio.gather(upgrade(postgres), upgrade(postgres))
    assert sorted([len(first), len(second)])[0] == 0
    assert first or second
    assert await current(postgres) == newest()


async def test_a_version_that_is_taken_back_leaves_the_schema_of_the_later_one_as_it_is(postgres: str):
    """Its `up` and the job before its roles run `migrate`: were that refused, nothing could be taken back."""
    await prepare(postgres)
    await set_revision(postgres, "9999")
    assert await prepare(postgres) == []
    assert await current(postgres) == "9999"


async def test_the_tables_of_another_program_are_one_clear_error(postgres: str):
    await upgrade(postgres)
    await set_revision(postgres, "ae1027a6acf")
    with pytest.raises(JobFailed, match="ae1027a6acf, which is no revision of ours"):
        await upgrade(postgres)
    assert await current(postgres) == "ae1027a6acf"


async def set_revision(dsn: str, revision: str) -> None:
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("UPDATE alembic_version SET version_num = $1", revision)
    finally:
        await db.close()


async def test_an_upgrade_needs_no_file_of_the_working_directory(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    await upgrade(postgres)
    assert not list(tmp_path.iterdir())


async def test_a_postgres_that_is_not_there_is_one_clear_error():
    with pytest.raises(JobFailed, match="Postgres"):
        await upgrade("postgresql://nobody@127.0.0.1:1/none")


async def test_a_user_who_may_use_no_schema_is_told_which_grant_it_lacks(postgres: str):
    await upgrade(postgres)
    hidden = f"{postgres}{'&' if '?' in postgres else '?'}search_path=nowhere"
    with pytest.raises(
        JobFailed, match="may not use the schema of our tables; GRANT USAGE, CREATE ON SCHEMA"
    ):
        await upgrade(hidden)


async def test_who_keeps_an_upgrade_waiting_for_a_lock_is_named(
    postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(migrate, "LOCK_WAIT_S", 1)
    await upgrade(postgres)
    await fetch(postgres, "UPDATE alembic_version SET version_num = '0001'")
    idle = await asyncpg.connect(postgres, server_settings={"application_name": "psql of bob"})
    left_open = idle.transaction()
    await left_open.start()
    await idle.execute("SELECT count(*) FROM alembic_version; LOCK TABLE alembic_version")
    with pytest.raises(JobFailed) as refused:
        await upgrade(postgres)
    await left_open.rollback()
    await idle.close()
    who = f"session {idle.get_server_pid()} of streamproc (psql of bob), idle in transaction for"
    assert f"after 1 s; what holds locks: {who}" in str(refused.value)


async def test_every_month_has_its_range_and_making_it_twice_is_harmless(postgres: str):
    await upgrade(postgres)
    db = await asyncpg.connect(postgres)
    try:
        last_ms_of_november = 1_796_083_199_999
        names = [
            await db.fetchval("SELECT events_month($1)", ms)
            for ms in (last_ms_of_november, last_ms_of_november + 1, last_ms_of_november + 1)
        ]
        assert names == ["events_y2026m11", "events_y2026m12", "events_y2026m12"]
    finally:
        await db.close()


async def test_a_reader_may_read_every_month_and_write_nothing(postgres: str):
    await prepare(postgres)
    db = await asyncpg.connect(postgres)
    try:
        await db.execute("SELECT events_month(1796083200000)")
        await db.execute("SET ROLE streamproc_reader")
        for table in ("events", "heads", "checkpoints", *NAMES, "view_heads"):
            assert await db.fetch(f"SELECT * FROM {table}") == []
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(f"DELETE FROM {table}")
    finally:
        await db.close()


AS_IF_IT_WERE_TEXT = """
    CREATE TEMP TABLE ran_as (who pg_catalog.text);
    GRANT INSERT ON ran_as TO PUBLIC;
    CREATE FUNCTION pg_temp.noted(value pg_catalog.text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO pg_temp.ran_as VALUES (current_user); RETURN true; END $$;
    CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.noted(value));
"""
"""A type that `events_month` would take for its own `text`, and that runs its maker's code."""


async def test_who_calls_what_runs_with_the_owners_rights_cannot_have_code_run_as_the_owner(postgres: str):
    await prepare(postgres)
    db = await asyncpg.connect(postgres)
    try:
        await db.execute("SET ROLE streamproc_projector")
        await db.execute(AS_IF_IT_WERE_TEXT)
        assert await db.fetchval("SELECT events_month(1796083200000)") == "events_y2026m12"
        assert await db.fetch("SELECT who FROM ran_as") == []
    finally:
        await db.close()


async def test_nothing_that_runs_with_the_owners_rights_is_for_everybody(postgres: str):
    await prepare(postgres)
    found = await fetch(
        postgres,
        "SELECT p.proname, p.proconfig::text, has_function_privilege('streamproc_reader', p.oid, 'EXECUTE')"
        " FROM pg_proc p WHERE p.prosecdef AND p.pronamespace = 'public'::regnamespace",
    )
    assert found == [("events_month", '{"search_path=public, pg_temp"}', False)]


async def test_an_archive_of_the_first_schema_keeps_its_entries_and_its_views_are_filled_anew(postgres: str):
    log = ListedLog(history(seed=3, payouts=40))
    half = len(log.entries) // 2
    await make_first_schema(postgres)
    db = await asyncpg.connect(postgres)
    try:
        head = await open_head(db, 0)
        await make_ranges(db, months_of(log.entries))
        _, head = await archive(db, 0, head, log.entries[:half])
        before = await db.fetch("SELECT partition, seq, entry_id, e, m, hash FROM events ORDER BY seq")
        applied = await prepare(postgres)
        assert applied[: -len(NAMES)] == [f"{n:04}" for n in range(2, int(newest()) + 1)]
        assert (
            await db.fetch("SELECT partition, seq, entry_id, e, m, hash FROM events ORDER BY seq") == before
        )
    finally:
        await db.close()
    await project_all(postgres, log)
    assert (await replay(postgres, verify=True)).positions == {0: len(log.entries)}
    rows = await fetch(postgres, "SELECT count(*) FROM payouts")
    assert rows == [(40,)]


async def make_first_schema(dsn: str) -> None:
    """The schema as its first revision left it."""
    db = await asyncpg.connect(dsn)
    try:
        for statement in statements("streamproc.archive.migrations", "v0001_archive_and_views.sql").values():
            await db.execute(statement)
        await db.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        await db.execute("INSERT INTO alembic_version VALUES ('0001')")
    finally:
        await db.close()
    assert await current(dsn) == "0001"


async def test_a_projector_with_its_grants_alone_can_add_to_the_archive_and_change_nothing(postgres: str):
    await prepare(postgres)
    db = await asyncpg.connect(postgres)
    try:
        await db.execute("SET ROLE streamproc_projector")
        await make_ranges(db, [START_MS])
        rows, _ = await archive(
            db, 0, await open_head(db, 0), log_of([observed("pout_1")], [observed("pout_2")])
        )
        maker = await Maker.open(db, 0, SIGNER, TRUSTED)
        await maker.make(len(rows))
        found = await maker.unpublished()
        assert found is not None
        await maker.published(found[0])
        month = await db.fetchval("SELECT events_month($1)", START_MS)
        for table in ("events", month, "checkpoints"):
            for attempt in (f"UPDATE {table} SET hash = hash", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await db.execute(attempt)
        for attempt in ("ALTER TABLE events DISABLE TRIGGER ALL", "SET session_replication_role = replica"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(attempt)
    finally:
        await db.close()


async def test_the_archive_and_its_checkpoints_are_append_only_for_their_owner_too(postgres: str):
    await prepare(postgres)
    db = await asyncpg.connect(postgres)
    try:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), log_of([observed("pout_1")]))
        await (await Maker.open(db, 0, SIGNER, TRUSTED)).make(1)
        for table in ("events", await db.fetchval("SELECT events_month($1)", START_MS), "checkpoints"):
            for attempt in (f"UPDATE {table} SET hash = hash", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.RestrictViolationError, match="append only"):
                    await db.execute(attempt)
    finally:
        await db.close()

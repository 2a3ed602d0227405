"""`doctor` finds what is wrong, says what to do, and is quiet where all is well."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

import consumers
from projections.schema import prepare
from streamproc.app import run_projection
from streamproc.archive import migrate
from streamproc.archive.signing_key import make_key
from streamproc.archive.store import connection
from streamproc.errors import WHEN_LOST, ConfigError, named
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.health import Deferred
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.operate import doctor, doctor_log
from streamproc.operate.connections import Need, need_of, refuse_too_few
from streamproc.operate.doctor import examine
from streamproc.operate.doctor_check import Check
from streamproc.operate.readiness import readiness
from streamproc.settings import load
from tests.bank import Sandbox, running_sandbox
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.recovering import archive
from tests.operate.test_dead import malformed
from tests.operate.words import NOBODY_THERE, POLICIES
from tests.projections.histories import ListedLog, archived_earlier, fetch, history, project_all
from tests.projections.seals import terms
from tests.standby import pair


@pytest.fixture
async def bank() -> AsyncIterator[Sandbox]:
    async with running_sandbox(safebrowsing_key="the-key") as sandbox:
        yield sandbox


def environment(redis_url: str, dsn: str, bank: Sandbox) -> dict[str, str]:
    return {
        "STREAMPROC_REDIS_URL": redis_url,
        "STREAMPROC_POSTGRES_DSN": dsn,
        "STREAMPROC_RAZORPAY_KEY_ID": bank.config.key_id,
        "STREAMPROC_RAZORPAY_KEY_SECRET": bank.config.key_secret,
        "STREAMPROC_RAZORPAY_OAUTH_TOKEN": bank.config.oauth_token,
        "STREAMPROC_RAZORPAY_ACCOUNT_NUMBER": bank.config.account_number,
        "STREAMPROC_RAZORPAY_BASE_URL": bank.url,
        "STREAMPROC_RAZORPAY_WEBHOOK_SECRETS": "one,two",
        "STREAMPROC_SAFE_BROWSING_KEY": "the-key",
        "STREAMPROC_SAFE_BROWSING_URL": f"{bank.url}/safebrowsing/v4/threatMatches:find",
    }


async def examined(env: dict[str, str]) -> dict[str, Check]:
    """Every check by name; of several of one name the worst."""
    worst: dict[str, Check] = {}
    for check in await examine(load(env)):
        if check.name not in worst or check.status == "bad":
            worst[check.name] = check
    return worst


def bad(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.status == "bad"}


async def test_a_system_that_is_right_has_nothing_bad(redis_url: str, prepared: str, bank: Sandbox):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
    checks = await examined(environment(redis_url, prepared, bank))
    assert bad(checks) == set()
    assert {
        "redis",
        "clock",
        "postgres",
        "schema",
        "views",
        "bank",
        "safe browsing",
        "webhook secrets",
    } <= checks.keys()
    assert checks["log 0"].status == "note"  # no worker runs
    assert "streamproc worker" in checks["log 0"].todo


async def test_everything_away_is_a_bad_line_for_each_with_what_to_do(bank: Sandbox):
    env = environment("redis://127.0.0.1:1/0", NOBODY_THERE, bank)
    env |= {
        "STREAMPROC_RAZORPAY_BASE_URL": "http://127.0.0.1:1/v1",
        "STREAMPROC_SAFE_BROWSING_URL": "http://127.0.0.1:1/v4/threatMatches:find",
    }
    checks = await examined(env)
    assert bad(checks) == {"redis", "postgres", "bank", "safe browsing"}
    assert all(checks[name].todo for name in bad(checks))


async def test_a_redis_that_refuses_its_user_a_command_is_a_bad_line_that_names_it(
    redis_url: str, prepared: str, bank: Sandbox
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        await client.execute_command("ACL", "SETUSER", "small", "on", "nopass", "~*", "+@all", "-info")
        try:
            url = redis_url.replace(f":{urlsplit(redis_url).password}@", "small:x@")
            checks = await examined(environment(url, prepared, bank))
        finally:
            await client.execute_command("ACL", "DELUSER", "small")
    assert bad(checks) == {"redis"}
    assert "the 'info' command" in checks["redis"].detail


@pytest.mark.parametrize(
    ("dsn", "detail", "todo"),
    [
        ("postgresql://{user}:wrong@{place}/{name}", "password", "correct the password in"),
        (
            "postgresql://{user}:{password}@{place}/nowhere",
            "nowhere",
            "make the database, or correct its name in",
        ),
        ("postgresql://{user}:{password}@127.0.0.1:1/{name}", "Connect call failed", "nothing listens there"),
        ("postgresql://{user}:{password}@nowhere.invalid:5432/{name}", "", "nobody knows it"),
        ("postgresql://crowd:crowd@{place}/{name}", "too many connections", "raise max_connections"),
    ],
    ids=["password", "database", "refused", "host", "no connection left"],
)
async def test_what_to_do_about_postgres_depends_on_what_is_wrong_with_it(
    postgres: str, bank: Sandbox, dsn: str, detail: str, todo: str
):
    parts = urlsplit(postgres)
    async with connection(postgres, name="test") as db, db.transaction():
        # As where max_connections is reached, which only the role's limit can be without disturbing other tests.
        await db.execute("DROP ROLE IF EXISTS crowd")
        await db.execute("CREATE ROLE crowd LOGIN PASSWORD 'crowd' CONNECTION LIMIT 0")
    place, name = f"127.0.0.1:{parts.port}", parts.path[1:]
    given = dsn.format(user=parts.username, password=parts.password, place=place, name=name)
    check = (await examined(environment("redis://127.0.0.1:1/0", given, bank)))["postgres"]
    assert check.status == "bad"
    assert detail in check.detail
    assert todo in check.todo


async def test_a_postgres_that_allows_too_few_connections_is_told_the_number_needed(
    redis_url: str, prepared: str, bank: Sandbox
):
    env = environment(redis_url, prepared, bank) | {
        "STREAMPROC_PARTITIONS": "8",
        "STREAMPROC_WORKERS": "1",
    }
    need = need_of(load(env))
    db = urlsplit(prepared).path[1:]
    for allowed, status in ((need.all, "ok"), (need.all - 1, "bad")):
        await fetch(prepared, f"ALTER DATABASE {db} CONNECTION LIMIT {allowed}")
        check = (await examined(env))["postgres connections"]
        assert check.status == status
    assert f"allows us {need.all - 1} connections" in check.detail
    assert "STREAMPROC_PARTITIONS=8 and STREAMPROC_WORKERS=1 take " + str(need.all) in check.detail
    assert f"set max_connections to {need.all + 3} or more" in check.todo


async def test_a_projector_does_not_start_where_it_could_not_open_all_partitions(
    redis_url: str, prepared: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    env = {"REDIS_URL": redis_url, "POSTGRES_DSN": prepared, "PARTITIONS": "8", "DATA_DIR": str(tmp_path)}
    settings = load({f"STREAMPROC_{name}": value for name, value in env.items()})
    db, need = urlsplit(prepared).path[1:], need_of(settings)
    await fetch(prepared, f"ALTER DATABASE {db} CONNECTION LIMIT {need.projector}")
    await refuse_too_few(settings)
    assert f"set max_connections to {need.all + 3}" in caplog.text
    await fetch(prepared, f"ALTER DATABASE {db} CONNECTION LIMIT {need.projector - 1}")
    with pytest.raises(ConfigError, match=f"the projector takes {need.projector}: set max_connections to"):
        async with asyncio.timeout(DEADLINE_S):  # one that starts runs until it is stopped
            await run_projection(settings, asyncio.Event())


def test_the_connections_of_an_installation_are_the_sum_of_its_roles_and_room_for_people():
    """docs/reliability.md has the same formula."""
    for partitions, workers, projector, all_ in (
        (1, 2, 4, 60),
        (4, 2, 10, 66),
        (32, 2, 38, 94),
        (64, 4, 70, 150),
    ):
        settings = load({"STREAMPROC_PARTITIONS": str(partitions), "STREAMPROC_WORKERS": str(workers)})
        assert need_of(settings) == Need(projector, all_)


async def test_decisions_that_were_put_off_for_long_are_bad(
    redis_url: str, bank: Sandbox, prepared: str, monkeypatch: pytest.MonkeyPatch
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
    env = environment(redis_url, prepared, bank)
    assert (await examined(env))["payouts"].status == "ok"
    for oldest_ms, status in ((30_000, "note"), (30_001, "bad")):

        async def found(*_: object, oldest_ms: int = oldest_ms) -> Deferred:
            return Deferred(1, oldest_ms)

        monkeypatch.setattr(doctor, "deferred", found)
        check = (await examined(env))["payouts"]
        assert (check.status, check.detail) == (
            status,
            "1 decision waits to be told to the bank, the oldest for 30 s",
        )
        assert "workers' log" in check.todo


async def test_an_entry_that_waits_in_a_group_is_bad_whether_or_not_workers_are_there(
    redis_url: str, bank: Sandbox, prepared: str
):
    env, log = environment(redis_url, prepared, bank), Names(0).log
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        assert (await examined(env))["log 0"].status == "note"  # nobody works, and nothing waits
        long_ago = f"{await clock_us(client) // 1000 - 201_000}-0"
        await client.xadd(log, {"e": "[]", "m": "{}"}, id=long_ago)
        late = (await examined(env))["log 0"]
        for group in consumers.GROUPS:
            await client.xreadgroup(group, "hanging", {log: ">"})
        hanging = (await examined(env))["log 0"]
    assert (late.status, late.todo) == ("bad", "start `streamproc worker`")
    assert re.match(r"an entry waits in governance for 2.. s \(pending 0, deferred 0\); ", late.detail)
    assert (hanging.status, "end a worker that hangs" in hanging.todo) == ("bad", True)
    assert re.search(r"in notification for 2.. s \(pending 1, deferred 0\)", hanging.detail)


async def test_nothing_configured_names_each_missing_variable():
    checks = await examined({})
    assert bad(checks) == {"redis", "postgres", "bank", "safe browsing", "webhook secrets"}
    for name in bad(checks):
        assert checks[name].detail.startswith("STREAMPROC_")
        assert checks[name].detail.endswith("is not set")


async def test_wrong_keys_of_the_bank_and_of_safe_browsing_are_bad(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank)
    env |= {"STREAMPROC_RAZORPAY_KEY_SECRET": "wrong-secret", "STREAMPROC_SAFE_BROWSING_KEY": "wrong-key"}
    checks = await examined(env)
    assert {"bank", "safe browsing"} <= bad(checks)
    assert "STREAMPROC_RAZORPAY_KEY_ID" in checks["bank"].todo
    assert not any("wrong-" in check.detail + check.todo for check in checks.values())


async def test_a_bank_and_a_slack_that_nobody_reaches_are_not_blamed_on_our_keys(
    redis_url: str, postgres: str, bank: Sandbox
):
    nowhere = {
        "STREAMPROC_SLACK_BASE_URL": "http://127.0.0.1:1",
        "STREAMPROC_RAZORPAY_BASE_URL": "http://127.0.0.1:1",
    }
    slack = {"STREAMPROC_SLACK_BOT_TOKEN": "xoxb-test", "STREAMPROC_SLACK_CHANNEL_ID": "C0TEST"}
    checks = await examined(environment(redis_url, postgres, bank) | nowhere | slack)
    for name in ("bank", "slack"):
        assert (checks[name].status, "ConnectError" in checks[name].detail) == ("bad", True)
        assert "STREAMPROC" not in checks[name].todo


async def test_a_bank_and_a_slack_in_trouble_are_not_blamed_on_our_keys(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank) | {
        "STREAMPROC_SLACK_BASE_URL": f"{bank.url}/slack/api",
        "STREAMPROC_SLACK_BOT_TOKEN": "xoxb-test",
        "STREAMPROC_SLACK_CHANNEL_ID": "C0TEST",
    }
    await bank.faults(api=[{"kind": "500", "path": "/v1/*"}])
    await bank.control("messaging", slack="500")
    checks = await examined(env)
    for name in ("bank", "slack"):
        assert (checks[name].status, "answered 500" in checks[name].detail) == ("bad", True)
        assert "status page" in checks[name].todo
        assert "STREAMPROC" not in checks[name].todo


async def test_dead_letters_are_bad_with_their_number_and_what_is_wrong_with_the_newest(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        assert "dead letters 0" not in await examined(env)
        await malformed(engine, problem="amount is 98")
        await malformed(engine)
        check = (await examined(env))["dead letters 0"]
    assert check.status == "bad"
    assert check.detail.startswith("2 entries could not be handled; the newest, by governance: ")
    assert "amount is 99" in check.detail
    assert "streamproc dead redrive" in check.todo


async def test_redis_set_otherwise_than_the_log_needs_is_bad_by_name(
    redis_url: str, postgres: str, bank: Sandbox
):
    async with Redis.from_url(redis_url) as client:
        await client.config_set("appendfsync", "everysec")
        try:
            checks = await examined(environment(redis_url, postgres, bank))
        finally:
            await client.config_set("appendfsync", "always")
    assert checks["redis settings"].status == "bad"
    assert "appendfsync is everysec, it must be always" in checks["redis settings"].detail


async def test_a_redis_without_a_limit_of_memory_is_noted(redis_url: str, postgres: str, bank: Sandbox):
    env = environment(redis_url, postgres, bank)
    check = (await examined(env))["redis memory"]
    assert (check.status, "StreamprocRedisFull cannot warn" in check.detail) == ("note", True)
    assert "maxmemory" in check.todo
    async with Redis.from_url(redis_url) as client:
        await client.config_set("maxmemory", "1gb")
        try:
            check = (await examined(env))["redis memory"]
        finally:
            await client.config_set("maxmemory", "0")
    assert (check.status, check.detail) == ("ok", "maxmemory is set")


async def test_a_redis_that_is_full_and_refuses_writes_is_bad_and_not_ready(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank)
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        await client.config_set("maxmemory", "1000000")
        try:
            check = (await examined(env))["redis memory"]
            [redis] = [one for one in await readiness(load(env), None)() if one.name == "redis"]
        finally:
            await client.config_set("maxmemory", "0")
        [after] = [one for one in await readiness(load(env), None)() if one.name == "redis"]
    assert (check.status, "maxmemory is 1,000,000: writes are refused" in check.detail) == ("bad", True)
    assert (redis.ok, "writes are refused" in redis.detail) == (False, True)
    assert "writes are refused" not in after.detail


async def test_a_postgres_that_takes_no_writes_is_bad_though_it_answers(
    redis_url: str, prepared: str, bank: Sandbox
):
    name = prepared.rpartition("/")[2]
    await fetch(prepared, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    found = (await examined(environment(redis_url, prepared, bank)))["postgres"]
    assert (found.status, found.detail) == (
        "bad",
        "it can only be read: its transactions are read-only by default; nothing is archived, and money waits",
    )
    assert "target_session_attrs=read-write" in found.todo


async def test_views_whose_tables_somebody_dropped_are_bad_by_name_at_once(
    redis_url: str, postgres: str, bank: Sandbox
):
    await prepare(postgres)
    await fetch(postgres, "DROP TABLE audit, holds")
    found = (await examined(environment(redis_url, postgres, bank)))["views"]
    assert (found.status, found.detail) == ("bad", "their tables are gone: audit, holds")
    await prepare(postgres)
    assert (await examined(environment(redis_url, postgres, bank)))["views"].status == "ok"


async def test_views_of_another_version_are_bad_before_anything_is_late(
    redis_url: str, prepared: str, bank: Sandbox
):
    """After an upgrade the projector stops at them, and what asks for a column of this version fails."""
    await project_all(prepared, ListedLog(history(seed=1, payouts=3)))
    await fetch(prepared, "UPDATE view_heads SET version = version - 1 WHERE view IN ('audit', 'policies')")
    found = (await examined(environment(redis_url, prepared, bank)))["views"]
    assert (found.status, found.detail) == ("bad", "they are another version's: audit, policies")
    assert "`streamproc replay audit policies`" in found.todo


async def test_a_session_whose_lock_keeps_the_projector_waiting_is_named(
    redis_url: str, prepared: str, bank: Sandbox
):
    async with (
        connection(prepared, name="psql of bob") as idle,
        connection(prepared, name="streamproc projector 0", job=True) as ours,
    ):
        await ours.execute("SET lock_timeout = 0")
        left_open = idle.transaction()
        await left_open.start()
        await idle.execute("LOCK TABLE heads IN SHARE MODE")
        waiting = asyncio.create_task(ours.execute("INSERT INTO heads (partition) VALUES (9)"))
        while not await fetch(prepared, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        found = (await examined(environment(redis_url, prepared, bank)))["postgres locks"]
        await left_open.rollback()
        await waiting
    assert found.status == "bad"
    assert (
        f"`streamproc projector 0` waits for session {idle.get_server_pid()} of streamproc (psql of bob)"
        in found.detail
    )


async def test_views_that_stand_still_behind_the_archive_are_bad(
    redis_url: str, prepared: str, bank: Sandbox
):
    log = ListedLog(history(seed=1, payouts=3))
    log.entries = [entry._replace(id=f"{n}-0") for n, entry in enumerate(log.entries, 1)]
    await project_all(prepared, log)
    env = environment(redis_url, prepared, bank)
    found = (await examined(env))["views"]
    assert (found.status, found.detail) == ("ok", "they show what is archived")
    await fetch(prepared, "UPDATE view_heads SET seq = seq - 2")
    found = (await examined(env))["views"]  # old entries that were archived a moment ago
    assert (found.status, found.detail) == ("ok", "2 archived entries are not shown yet")
    await archived_earlier(prepared, "1 hour")
    checks = await examined(env)
    assert checks["views"].status == "bad"
    assert checks["views"].detail == "partition 0: 2 archived entries are not shown"
    assert "streamproc replay" in checks["views"].todo
    await fetch(prepared, "DELETE FROM view_heads")
    found = (await examined(env))["views"]
    assert (found.status, found.detail) == (
        "bad",
        f"partition 0: {len(log.entries)} archived entries are not shown",
    )


async def test_what_the_scheduled_comparison_found_or_that_it_does_not_end_is_bad(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank) | {"STREAMPROC_RAZORPAY_ACCOUNT_ID": "acc_1"}
    cursor = PollCursor(redis_url, account="acc_1", partitions=1)
    assert "reconciliation" not in await examined(env)
    now_s = int(time.time())
    await cursor.save_reconciled(tried_at=now_s - 60, done_at=now_s, mismatches=0)
    assert (await examined(env))["reconciliation"].status == "ok"
    await cursor.save_reconciled(mismatches=2)
    assert "found 2 mismatches" in (await examined(env))["reconciliation"].detail
    await cursor.save_reconciled(tried_at=now_s - 7200, done_at=now_s - 90_000, mismatches=0)
    check = (await examined(env))["reconciliation"]
    assert (check.status, "has not finished" in check.detail) == ("bad", True)


async def test_an_archive_that_does_not_keep_up_with_the_log_is_bad(
    redis_url: str, postgres: str, bank: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        await client.xadd(Names(0).log, {"e": "[]", "m": "{}"})
        await archive(redis_url, postgres)
        env = environment(redis_url, postgres, bank)
        assert (await examined(env))["archive 0"].status == "ok"
        await client.xadd(Names(0).log, {"e": "[]", "m": "{}"})
    assert (await examined(env))["archive 0"].status == "ok", "a projector gets some seconds"
    monkeypatch.setattr(doctor_log, "ARCHIVE_LATE_S", 0.0)
    check = (await examined(env))["archive 0"]
    assert (check.status, "no approval is sent" in check.detail) == ("bad", True)
    assert "projector" in check.todo


async def test_an_archive_that_is_not_signed_or_not_handed_outside_is_bad(
    redis_url: str, prepared: str, bank: Sandbox, tmp_path: Path
):
    log = ListedLog(history(seed=1, payouts=3))
    log.entries = [entry._replace(id=f"{n}-0") for n, entry in enumerate(log.entries, 1)]
    env = environment(redis_url, prepared, bank) | {"STREAMPROC_DATA_DIR": str(tmp_path)}
    await project_all(prepared, log)
    checks = await examined(env)
    assert checks["checkpoints"].status == "bad"
    assert checks["checkpoints"].detail == f"partition 0: {len(log.entries)} archived entries are not signed"
    assert "audit verify" in checks["checkpoints"].todo
    assert checks["signing key"].status == "note"
    await project_all(prepared, log, terms=terms(tmp_path / "checkpoints.txt"))
    assert (await examined(env))["checkpoints"].status == "ok"
    await fetch(prepared, "DELETE FROM checkpoints_published")
    assert (await examined(env))["checkpoints"].status == "ok", "it was made a moment ago"
    await fetch(prepared, "ALTER TABLE checkpoints DISABLE TRIGGER ALL")
    await fetch(prepared, "UPDATE checkpoints SET made_at = made_at - interval '1 hour'")
    checks = await examined(env)
    assert checks["checkpoints"].status == "bad"
    assert "handed outside up to 0" in checks["checkpoints"].detail


async def test_a_file_outside_that_states_more_than_the_archive_has_is_bad(
    redis_url: str, prepared: str, bank: Sandbox, tmp_path: Path
):
    """Both stores were set back to one moment: nothing in them says so, and freezes since then are lost."""
    log = ListedLog(history(seed=1, payouts=3))
    env = environment(redis_url, prepared, bank) | {"STREAMPROC_DATA_DIR": str(tmp_path)}
    notes = tmp_path / "checkpoints.txt"
    assert (await examined(env))["checkpoints outside"].status == "note"
    await project_all(prepared, log, terms=terms(notes))
    notes.write_bytes(b"the end of a note that is cut off\n\n" + notes.read_bytes())
    assert (await examined(env))["checkpoints outside"].status == "note"
    (archived,) = (await fetch(prepared, "SELECT seq FROM heads WHERE partition = 0"))[0]
    await fetch(prepared, "UPDATE heads SET seq = seq - 2 WHERE partition = 0")
    for place in ({}, {"STREAMPROC_CHECKPOINT_TO": str(notes)}):
        check = (await examined(env | place))["checkpoints outside"]
        assert (check.status, "Both stores set back together" in check.todo) == ("bad", True)
        lost = f"partition 0: {archived} signed entries, and {archived - 2} archived"
        assert check.detail == f"{notes} states more than the archive has: {lost}"


async def test_where_the_signing_key_is_and_who_may_read_it_is_said(
    redis_url: str, prepared: str, bank: Sandbox, tmp_path: Path
):
    env = environment(redis_url, prepared, bank) | {"STREAMPROC_DATA_DIR": str(tmp_path)}
    key = tmp_path / "checkpoint.key"
    make_key(key)
    check = (await examined(env))["signing key"]
    assert (check.status, "is on this machine" in check.detail) == ("note", True)
    key.chmod(0o644)
    assert (await examined(env))["signing key"].todo == f"chmod 600 {key}"
    secret = key.read_text().strip()
    checks = await examined(
        env | {"STREAMPROC_SIGNING_KEY": secret, "STREAMPROC_CHECKPOINT_TO": "https://x.example/n"}
    )
    assert checks["signing key"].status == checks["checkpoints outside"].status == "ok"
    assert not any(secret in check.detail + check.todo for check in checks.values())
    key.write_text("nonsense")
    assert (await examined(env))["signing key"].status == "bad"


async def test_a_schema_that_the_user_may_not_use_is_not_taken_for_none(
    redis_url: str, prepared: str, bank: Sandbox
):
    hidden = f"{prepared}{'&' if '?' in prepared else '?'}search_path=nowhere"
    schema = (await examined(environment(redis_url, hidden, bank)))["schema"]
    assert (schema.status, "may not use the schema of our tables" in schema.detail) == ("bad", True)
    assert schema.todo.startswith("GRANT USAGE")


async def test_a_schema_of_a_later_version_is_a_note_since_this_one_works_with_it(
    redis_url: str, prepared: str, bank: Sandbox
):
    db = await asyncpg.connect(prepared)
    await db.execute("UPDATE alembic_version SET version_num = '9999'")
    await db.close()
    schema = (await examined(environment(redis_url, prepared, bank)))["schema"]
    assert (schema.status, "9999, of a later version" in schema.detail) == ("note", True)


async def test_a_schema_that_was_never_made_a_missing_group_and_another_partition_count_are_bad(
    redis_url: str, postgres: str, bank: Sandbox
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=consumers.GROUPS)
        await client.xgroup_destroy(Names(0).log, "execution")
        await client.delete(Names(1).log)
    checks = await examined(environment(redis_url, postgres, bank))
    assert checks["schema"].todo == "run `streamproc migrate`"
    assert checks["partitions"].todo == "set STREAMPROC_PARTITIONS=2"
    assert "execution" in checks["log 0"].detail
    assert "gone" in checks["log 1"].detail
    assert {"schema", "partitions", "log 0", "log 1"} <= bad(checks)


async def test_a_redis_whose_clock_went_back_is_bad_until_it_is_there_again(
    redis_url: str, postgres: str, bank: Sandbox
):
    env = environment(redis_url, postgres, bank)
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=consumers.GROUPS)
        assert "clock of the log" not in await examined(env), "there is no entry"
        now_ms = await clock_us(client) // 1000
        await client.xadd(Names(0).log, {"e": "[]", "m": "{}"}, id=f"{now_ms}-0")
        assert "clock of the log" not in await examined(env)
        await client.xadd(Names(1).log, {"e": "[]", "m": "{}"}, id=f"{now_ms + 7_200_000}-0")
        check = (await examined(env))["clock of the log"]
    assert check.status == "bad"
    assert re.match(r"Redis's clock is 7,[12].. s behind the log's newest entry", check.detail)
    assert "`rate_limit`" in check.todo


async def test_two_primaries_are_bad_and_a_primary_with_its_standby_is_not(public_dir: Path):
    home = public_dir / "two-primaries"
    home.mkdir()
    home.chmod(0o711)
    async with pair(home) as both:
        env = {"STREAMPROC_POSTGRES_DSN": both.dsn}
        assert "postgres hosts" not in await examined(env)
        await both.take_over()
        check = (await examined(env))["postgres hosts"]
        await both.primary.kill()
        assert "postgres hosts" not in await examined(env)
    first, second = (urlsplit(dsn).netloc.rpartition("@")[2] for dsn in (both.primary_dsn, both.standby_dsn))
    assert check.status == "bad"
    assert check.detail.startswith(f"{first} and {second} all accept writes: ")


async def test_a_group_that_was_made_and_is_gone_is_bad_and_one_that_no_worker_has_made_yet_is_noted(
    redis_url: str, postgres: str, bank: Sandbox
):
    """No worker makes the first again: it would begin at the end of the log."""
    env = environment(redis_url, postgres, bank)
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
        await client.xgroup_destroy(Names(0).log, consumers.NOTIFICATION)
        gone = (await examined(env))["log 0"]
        await client.hdel(Names(0).groups, consumers.NOTIFICATION)
        new = (await examined(env))["log 0"]
    assert (gone.status, gone.detail) == ("bad", "consumer groups are missing: notification")
    assert gone.todo == WHEN_LOST
    assert (new.status, new.detail) == ("note", "not made yet: notification")


@pytest.mark.parametrize("choice", ["replicated", "synced"])
async def test_a_weaker_execute_after_is_named_and_not_bad(choice: str):
    check = (await examined({"STREAMPROC_EXECUTE_AFTER": choice}))["execute after"]
    assert check.status == "note"
    assert choice in check.detail


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """The port of one that accepts and says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_dependency_that_accepts_and_says_nothing_does_not_hold_the_others_up(
    redis_url: str, postgres: str, bank: Sandbox
):
    async with silent_server() as port:
        env = environment(f"redis://127.0.0.1:{port}/0", postgres, bank)
        checks = await examined(env)
    assert checks["redis"].status == "bad"
    assert checks["bank"].status == "ok"


async def test_a_postgres_that_says_nothing_is_told_of_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrate, "CONNECT_TIMEOUT_S", 0.2)
    async with silent_server() as port:
        checks = await examined({"STREAMPROC_POSTGRES_DSN": f"postgresql://x@127.0.0.1:{port}/x"})
    assert (checks["postgres"].status, checks["postgres"].detail) == ("bad", "Postgres: no answer in time")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (TimeoutError(), "no answer in time"),
        (TimeoutError("reading"), "TimeoutError: reading"),
        (ConnectionResetError(), "ConnectionResetError"),
        (OSError(" "), "OSError"),
        (ValueError("two words"), "ValueError: two words"),
    ],
)
def test_an_error_without_words_leaves_no_colon_behind(problem: Exception, said: str):
    assert named(problem) == said


def of_entities(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.status, check.detail) for check in checks if check.name == "legal entities"]


async def test_a_policy_that_requires_an_entity_without_a_register_is_bad_and_the_agents_are_named(
    redis_url: str,
):
    settings = load({"STREAMPROC_REDIS_URL": redis_url})
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {strict: {require_entity: true}, lax: {}}")
        checks = of_entities(await examine(settings))
        await engine.apply("policies: {strict: {require_entity: false}}")
        quiet = of_entities(await examine(settings))
    detail = "STREAMPROC_GLEIF_URL is not set, and require_entity holds every payout of strict"
    assert (checks, quiet) == ([("bad", detail)], [])


async def test_a_register_that_answers_is_well_and_one_that_does_not_is_bad(bank: Sandbox):
    settings = load({"STREAMPROC_GLEIF_URL": f"{bank.url.removesuffix('/v1')}/gleif/api/v1"})
    well = of_entities(await examine(settings))
    await bank.control("gleif", down="500")
    away = of_entities(await examine(settings))
    assert (well[0][0], away[0][0]) == ("ok", "bad")
    assert "answered 500" in away[0][1]

"""`log trim`, the janitor, and `log stats`: what goes, what stays, and who holds it."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

import consumers
from projections import janitor as janitors
from projections.janitor import Janitor, Round, keep_trimmed
from streamproc.cli import run as cli
from streamproc.domain.wire import encode_events
from streamproc.errors import JobFailed, LogBroken, LogUnavailable
from streamproc.log import trim as trimming
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.operate import trim as operated
from streamproc.operate.doctor_log import examine_log
from streamproc.operate.logview import stats
from streamproc.operate.trim import held_text, trim_log
from streamproc.settings import load
from streamproc.waiting import set_within
from tests.operate.words import DEADLINE_S, NOBODY_THERE, archive, site_of
from tests.words import observed

NAMES = Names(0)
ENTRIES = 250
OLD = "1700000000000"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """A log of ENTRIES old entries that both groups have acknowledged."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        await fill(client, NAMES)
        yield client


async def fill(client: Redis, names: Names) -> None:
    for n in range(ENTRIES):
        e = encode_events([observed(f"pout_{n}")])
        await client.execute_command("XADD", names.log, f"{OLD}-{n}", "e", e, "m", '{"by":"webhook"}')
    for group in consumers.GROUPS:
        reply = await client.execute_command(
            "XREADGROUP", "GROUP", group, "a", "COUNT", ENTRIES, "STREAMS", names.log, ">"
        )
        await client.execute_command("XACK", names.log, group, *(row[0] for row in reply[0][1]))


@pytest.fixture
async def dsn(client: Redis, redis_url: str, postgres: str) -> str:
    """Where all of that is archived."""
    await archive(redis_url, postgres)
    return postgres


async def test_a_dry_run_says_what_would_go_and_the_run_removes_it(redis_url: str, client: Redis, dsn: str):
    async with site_of(redis_url, dsn) as site:
        [would] = await trim_log(site, retention_s=60, dry_run=True)
        assert (would.removed, would.to_go, would.held_by) == (0, ENTRIES - 1, "archive")
        assert await client.xlen(NAMES.log) == ENTRIES
        [done] = await trim_log(site, retention_s=60)
        assert done.removed + done.to_go == ENTRIES - 1
        assert done.removed == ENTRIES - await client.xlen(NAMES.log) > 0
        assert "archive" in held_text(done.held_by, done.held_at)


async def test_what_is_told_meanwhile_is_what_all_rounds_and_partitions_removed_so_far(
    redis_url: str, prepared: str, monkeypatch: pytest.MonkeyPatch
):
    async def all_of_it(_: object, partition: int) -> str:
        return f"{OLD}-{ENTRIES - 1}"

    monkeypatch.setattr(trimming, "ENTRIES_MAX", 100)
    monkeypatch.setattr(operated, "trim_round", partial(trimming.trim_round, calls_max=1))
    monkeypatch.setattr(operated, "archived_upto", all_of_it)
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=consumers.GROUPS)
        for number in range(2):
            await fill(client, Names(number))
    heard: list[int] = []
    async with site_of(redis_url, prepared) as site:
        done = await trim_log(site, retention_s=60, on_removed=heard.append)
    assert len(heard) > len(done) == 2
    assert heard == sorted(set(heard))
    assert heard[-1] == sum(one.removed for one in done)


async def test_while_postgres_is_away_nothing_is_trimmed_and_the_job_fails(redis_url: str, client: Redis):
    async with site_of(redis_url, NOBODY_THERE) as site:
        with pytest.raises(JobFailed, match=r"Postgres is away.*nothing is trimmed"):
            await trim_log(site, retention_s=60)
        [row] = await stats(site, retention_s=60)
        assert row.beginning is None
    assert await client.xlen(NAMES.log) == ENTRIES


async def test_without_an_archive_nothing_is_trimmed(redis_url: str, client: Redis):
    async with site_of(redis_url) as site:
        with pytest.raises(JobFailed, match="STREAMPROC_POSTGRES_DSN is not set"):
            await trim_log(site, retention_s=60)


async def test_a_log_that_lost_the_archives_last_entry_is_not_trimmed(
    redis_url: str, client: Redis, dsn: str
):
    await client.execute_command("XDEL", NAMES.log, f"{OLD}-{ENTRIES - 1}")
    async with site_of(redis_url, dsn) as site:
        with pytest.raises(LogBroken, match="streamproc recover"):
            await trim_log(site, retention_s=60)
    assert await client.xlen(NAMES.log) == ENTRIES - 1


async def test_the_commands_say_it_to_people_and_to_machines(
    redis_url: str,
    client: Redis,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    await client.xgroup_create(NAMES.log, "somebody", id=f"{OLD}-{ENTRIES - 100}")

    assert await asyncio.to_thread(cli, ["log", "trim", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{ENTRIES - 100} entries would go" in said
    assert "held by group somebody, which was given nothing after" in said

    assert await asyncio.to_thread(cli, ["log", "trim", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["removed"] > 0
    assert row["held_by"] == "read somebody"

    assert await asyncio.to_thread(cli, ["log", "stats", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["held_by"], row["oldest_ms"] > 0) == ("read somebody", True)
    assert await asyncio.to_thread(cli, ["log", "stats"]) == 0
    assert "group somebody" in capsys.readouterr().out


async def test_doctor_names_who_holds_a_log_that_should_have_been_trimmed_and_never_tells_to_destroy_ours(
    redis_url: str, client: Redis, dsn: str
):
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_POSTGRES_DSN": dsn})
    await client.execute_command("XGROUP", "SETID", NAMES.log, "execution", f"{OLD}-9")
    ours = {check.name: check for check in await examine_log(settings)}["trimming 0"]
    assert (ours.status, "Redis grows" in ours.detail) == ("bad", True)
    assert ours.todo == "start `streamproc worker --groups execution`"
    await client.xgroup_create(NAMES.log, "somebody", id="0")
    other = {check.name: check for check in await examine_log(settings)}["trimming 0"]
    assert "somebody is no group of streamproc" in other.todo


# ---- the janitor ----


class Rounds:
    """A janitor's rounds: what each does is listed, an error is raised."""

    def __init__(self, *rounds: Round | Exception) -> None:
        self.rounds = list(rounds)
        self.anchors: list[str] = []
        self.over = asyncio.Event()

    async def __call__(self, partition: int, anchor: str) -> Round:
        self.anchors.append(anchor)
        if not self.rounds:
            self.over.set()
            return Round(0, False)
        found = self.rounds.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


async def kept(rounds: Rounds, interval_s: float) -> None:
    """Run a janitor until it has done all of the rounds and one more."""
    stopping = asyncio.Event()
    task = asyncio.create_task(keep_trimmed(0, Janitor(interval_s, rounds), lambda: "1-1", stopping))
    async with asyncio.timeout(DEADLINE_S):
        await rounds.over.wait()
        stopping.set()
        await task


async def test_a_janitor_outlives_outages_and_a_broken_log_and_says_each_once(
    caplog: pytest.LogCaptureFixture,
):
    broken = LogBroken("the group is gone")
    await kept(Rounds(LogUnavailable("Redis is away"), broken, broken, Round(5, False)), 0.001)
    assert caplog.text.count("Redis is away") == 1
    assert caplog.text.count("the group is gone") == 1


async def test_a_janitor_that_did_not_come_to_the_end_goes_on_soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(janitors, "AGAIN_S", 0.001)
    rounds = Rounds(Round(10, True), Round(3, True))
    hour_s = 3600.0
    stopping = asyncio.Event()
    waits: list[float] = []

    async def counted(event: asyncio.Event, within_s: float) -> bool:
        waits.append(within_s)
        return len(waits) > 3 or await set_within(event, 0)

    monkeypatch.setattr(janitors, "set_within", counted)
    await keep_trimmed(0, Janitor(hour_s, rounds), lambda: "1-1", stopping)
    assert waits == [hour_s, 0.001, 0.001, hour_s]


async def test_a_projector_trims_what_it_has_archived_and_nothing_else(
    redis_url: str, client: Redis, prepared: str, tmp_path: Path
):
    """With a real log: the anchor that the janitor is given is the head of the archive beside it."""
    from streamproc.app import run_projection

    settings = load(
        {
            "STREAMPROC_REDIS_URL": redis_url,
            "STREAMPROC_POSTGRES_DSN": prepared,
            "STREAMPROC_TRIM_INTERVAL": "100ms",
            "STREAMPROC_DATA_DIR": str(tmp_path),
        }
    )
    stopping = asyncio.Event()
    task = asyncio.create_task(run_projection(settings, stopping))
    async with asyncio.timeout(DEADLINE_S):
        while await client.xlen(NAMES.log) == ENTRIES:
            assert not task.done()
            await asyncio.sleep(0.02)
        stopping.set()
        await task
    left = {row[0].decode() for row in await client.execute_command("XRANGE", NAMES.log, "-", "+")}
    db = await asyncpg.connect(prepared)
    try:
        archived = {row["entry_id"] for row in await db.fetch("SELECT entry_id FROM events")}
    finally:
        await db.close()
    assert len(archived) == ENTRIES
    assert f"{OLD}-{ENTRIES - 1}" in left

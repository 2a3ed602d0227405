"""Views are rebuilt from the archive beside the live ones, and are the same, row for row."""

import asyncio
import errno
import fcntl
import io
import json
import os
import random
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from projections.rebuild import Target
from projections.views import NAMES, VERSIONS
from streamproc.cli import run as cli
from streamproc.errors import InputError, JobFailed
from streamproc.operate import replay as module
from streamproc.operate.builders import JobProgress, built_as_of
from streamproc.operate.past import rows_of, targets_of
from streamproc.operate.replay import go_back, replay
from tests.projections.histories import (
    START_MS,
    ListedLog,
    Stored,
    archived,
    everything,
    fetch,
    history,
    key,
    log_of,
    project_all,
    projecting,
)
from tests.signals import heard, killed
from tests.words import observed, policies

PAYOUTS = 150
DEADLINE_S = 60.0


def a_history(seed: int = 31) -> list[Stored]:
    """Policies, then lives of payouts."""
    first = Stored(f"{START_MS - 1}-0", *log_of(list(policies("policies: {bot: {daily_limit: 5}}")))[0][1:])
    return [first, *history(seed, PAYOUTS)]


@pytest.fixture
async def dsn(prepared: str) -> str:
    return prepared


@pytest.fixture
async def log(dsn: str) -> ListedLog:
    log = ListedLog(a_history())
    await project_all(dsn, log)
    return log


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[str]:
    """The DSN of a user who may read all of the archive and its views."""
    name, at = f"sp_reader_{os.getpid()}", urlsplit(dsn)
    await fetch(dsn, f"CREATE USER {name} PASSWORD 'pw' IN ROLE streamproc_reader")
    try:
        yield at._replace(netloc=f"{name}:pw@{at.hostname}:{at.port}").geturl()
    finally:
        await fetch(dsn, f"DROP OWNED BY {name} CASCADE")
        await fetch(dsn, f"DROP USER {name}")


@pytest.mark.parametrize("asked", [("--verify",), ("audit", "--as-of", "1"), ()], ids=" ".join)
async def test_a_user_without_the_right_to_make_a_schema_is_told_which_right_it_lacks(
    dsn: str, log: ListedLog, reader: str, asked: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", reader)
    user, database = urlsplit(reader).username, urlsplit(dsn).path[1:]
    assert await asyncio.to_thread(cli, ["replay", *asked]) == 1
    said = capsys.readouterr().err
    assert f"GRANT CREATE ON DATABASE {database} TO {user}" in said
    assert len(said.splitlines()) == 1


async def test_with_that_right_one_who_reads_can_verify(dsn: str, log: ListedLog, reader: str):
    await fetch(dsn, f"GRANT CREATE ON DATABASE {urlsplit(dsn).path[1:]} TO {urlsplit(reader).username}")
    found = await replay(reader, verify=True, jobs=1)
    assert [(view.view, view.equal) for view in found.views] == [(view, True) for view in NAMES]
    assert await fetch(dsn, "SELECT to_regnamespace('public_shadow')") == [(None,)]


async def test_every_view_rebuilt_is_the_live_one_row_for_row(dsn: str, log: ListedLog):
    before = await everything(dsn)
    empty = [view for view in NAMES if not before[view]]
    assert not empty, f"no event of tests/projections/histories.py is in {empty}: nothing would be compared"
    result = await replay(dsn, jobs=3)
    assert [(view.view, view.equal, view.rows) for view in result.views] == [
        (view, True, len(before[view])) for view in NAMES
    ]
    assert result.swapped
    assert result.positions == {0: len(log.entries)}
    assert await everything(dsn) == before
    assert await fetch(dsn, "SELECT to_regnamespace('public_shadow')") == [(None,)]


async def test_a_record_with_a_byte_that_postgres_refuses_fails_no_replay(dsn: str):
    """The views take it; what the rebuilt ones were asked after did not."""
    odd = observed("pout_odd", agent="a\0b", url="https://x/\\u0000\0")
    await project_all(dsn, ListedLog([*a_history(), Stored(f"{START_MS + 10**8}-0", log_of([odd])[0].e)]))
    assert {view.equal for view in (await replay(dsn, verify=True)).views} == {True}


async def test_verify_leaves_everything_as_it_was(dsn: str, log: ListedLog):
    generations = await fetch(dsn, "SELECT view, generation FROM view_heads ORDER BY view")
    result = await replay(dsn, verify=True)
    assert {view.equal for view in result.views} == {True}
    assert await fetch(dsn, "SELECT view, generation FROM view_heads ORDER BY view") == generations
    assert await fetch(dsn, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'public_%'") == []


async def test_a_live_row_that_somebody_changed_is_named_and_then_put_right(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = await everything(dsn)
    await fetch(dsn, "UPDATE budgets SET committed = committed + 1 WHERE window_name = '2026-W49'")
    await fetch(dsn, "DELETE FROM payouts WHERE payout = 'pout_7'")
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    assert await asyncio.to_thread(cli, ["replay", "--verify"]) == 1
    said = capsys.readouterr()
    assert "the live payouts, budgets differ from their log" in said.err
    assert "payouts pout_7|0: live has no such row" in said.out
    assert '"committed"' in said.out
    assert await asyncio.to_thread(cli, ["replay"]) == 0
    assert "DIFFERENT" in capsys.readouterr().out
    assert await everything(dsn) == before


async def test_of_a_view_whose_version_was_raised_it_says_what_changed_and_compares_what_both_have(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Every row was said to differ, each with nothing that did."""
    before = await everything(dsn)
    await fetch(dsn, "ALTER TABLE agents DROP COLUMN threats, ADD COLUMN mood text NOT NULL DEFAULT 'good'")
    await fetch(dsn, "UPDATE view_heads SET version = version - 1 WHERE view = 'agents'")
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    assert await asyncio.to_thread(cli, ["replay", "--verify"]) == 0
    now = VERSIONS["agents"]
    changed = (
        f"agents: the live one is of version {now - 1}, by its log it is of {now}; new: threats; gone: mood;"
        " compared in what both have"
    )
    said = capsys.readouterr().out
    assert changed in said
    assert "DIFFERENT" not in said

    await fetch(dsn, "UPDATE agents SET held = held + 1 WHERE agent = 'bot'")
    assert await asyncio.to_thread(cli, ["replay", "--verify"]) == 1
    said = capsys.readouterr().out
    assert changed in said
    [line] = [line for line in said.splitlines() if line.startswith("agents bot|0: ")]
    assert re.fullmatch(r'.*: live \{"held": \d+\}, by its log \{"held": \d+\}', line)
    assert await asyncio.to_thread(cli, ["replay"]) == 0
    assert await everything(dsn) == before


async def test_views_that_an_upgrade_has_stopped_are_not_waited_for_as_those_that_go_on_are(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch
):
    """The replay that the upgrade asks for waited a minute for them each time."""
    before = await everything(dsn)
    monkeypatch.setattr(module, "COMPARE_WAIT_S", 3_600.0)
    monkeypatch.setattr(module, "COMPARE_OUTDATED_WAIT_S", 0.0)
    outdated = "version - (view IN ('audit', 'policies'))::int"
    await fetch(dsn, f"UPDATE view_heads SET seq = seq - 1, version = {outdated}")
    async with asyncio.timeout(DEADLINE_S):
        result = await replay(dsn, ["audit", "policies"])
    assert "the live views stand still behind the archive for 0 s: not compared" in result.notes
    assert {view.equal for view in result.views} == {None}
    assert await everything(dsn) == before


async def test_views_are_rebuilt_while_payouts_keep_arriving_and_readers_never_see_half_of_one(dsn: str):
    entries = a_history(seed=77)
    half = len(entries) // 2
    log = ListedLog(entries[:half])
    await project_all(dsn, log)
    stop = asyncio.Event()
    counts: list[int] = []

    async def arrive() -> None:
        for entry in entries[half:]:
            log.entries.append(entry)
            await asyncio.sleep(0.002)

    async def read(pool: asyncpg.Pool) -> None:
        seen = 0
        while not stop.is_set():
            payouts, audit = await pool.fetchrow(
                "SELECT (SELECT count(*) FROM payouts), (SELECT count(*) FROM audit)"
            )
            assert payouts >= seen
            assert audit > 0
            seen = payouts
            counts.append(seen)

    async with (
        asyncpg.create_pool(dsn, min_size=2, max_size=2) as pool,
        projecting(dsn, log, batch_max=20) as task,
    ):
        readers = [asyncio.create_task(read(pool)) for _ in range(2)]
        arriving = asyncio.create_task(arrive())
        for _ in range(3):
            result = await replay(dsn)
            assert {view.equal for view in result.views} == {True}
            assert result.swapped
        await arriving
        await archived(dsn, entries[-1].id, task)
        stop.set()
        await asyncio.gather(*readers)
    assert len(counts) > 10
    swapped = await everything(dsn)
    assert (await replay(dsn, verify=True)).positions == {0: len(entries)}
    assert swapped["heads"][0][1] == len(entries)


async def test_a_reader_that_meets_a_swap_between_two_views_is_neither_ended_nor_waited_for_too_long(
    dsn: str, log: ListedLog
):
    """It has `payouts` and asks for `agents` while the swap has `agents` and asks for `payouts`."""
    reader, watch = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    reading = reader.transaction()
    await reading.start()
    await reader.execute("SELECT count(*) FROM payouts")  # fetchval would keep the snapshot too
    replaying = asyncio.create_task(replay(dsn))
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    while not await watch.fetchval(waits):
        assert not replaying.done()
        await asyncio.sleep(0)
    for view in NAMES:
        await reader.execute(f"SELECT count(*) FROM {view}")
    assert await watch.fetchval("SELECT count(*) FROM payouts") > 0, "others pass meanwhile"
    await reading.commit()
    assert (await replaying).swapped
    await reader.close()
    await watch.close()


async def test_a_reader_with_an_old_snapshot_never_finds_the_new_views_empty(dsn: str, log: ListedLog):
    reader = await asyncpg.connect(dsn)
    reading = reader.transaction(isolation="repeatable_read")
    await reading.start()
    await reader.fetchval("SELECT 1")
    replaying = asyncio.create_task(replay(dsn))
    watch = await asyncpg.connect(dsn)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'streamproc replay'"
        " AND query LIKE '%backend_xmin%' AND pid <> pg_backend_pid()"
    )
    while not await watch.fetchval(waiting):
        assert not replaying.done(), "the swap did not wait"
        await asyncio.sleep(0.01)
    assert await reader.fetchval("SELECT count(*) FROM audit") > 0
    await reading.commit()
    assert (await replaying).swapped
    await reader.close()
    await watch.close()


async def test_a_view_that_somebody_dropped_is_back_after_a_replay(dsn: str, log: ListedLog):
    before = await everything(dsn)
    await fetch(dsn, "DROP TABLE audit")
    result = await replay(dsn)
    assert {view.view: view.equal for view in result.views}["audit"] is None
    assert "there is no live audit: not compared" in result.notes
    assert await everything(dsn) == before


async def test_without_any_live_view_nothing_is_compared_and_that_is_no_failure(
    dsn: str, log: ListedLog
) -> None:
    for table in (*NAMES, "view_heads"):
        await fetch(dsn, f"DROP TABLE {table}")
    result = await replay(dsn, verify=True, jobs=1)
    assert any(note.startswith("there is no live") for note in result.notes)


async def test_one_view_is_swapped_alone_and_the_projector_goes_on_with_it(dsn: str):
    entries = a_history(seed=5)
    log = ListedLog(entries[:40])
    async with projecting(dsn, log) as task:
        await archived(dsn, log.entries[-1].id, task)
        assert [view.view for view in (await replay(dsn, ["budgets"])).views] == ["budgets"]
        log.entries += entries[40:]
        await archived(dsn, entries[-1].id, task)
    assert {view.equal for view in (await replay(dsn, verify=True)).views} == {True}


async def test_the_views_that_were_replaced_come_back_up_to_date(dsn: str):
    entries = a_history(seed=6)
    log = ListedLog(entries[:40])
    await project_all(dsn, log)
    await replay(dsn)
    log.entries += entries[40:]
    await project_all(dsn, log)
    expected = await everything(dsn)
    assert sorted(await go_back(dsn)) == sorted(NAMES)
    assert await everything(dsn) == expected
    assert sorted(await go_back(dsn)) == sorted(NAMES)


async def test_going_back_from_a_view_that_somebody_dropped_says_so(dsn: str, log: ListedLog):
    await replay(dsn)
    await fetch(dsn, "DROP TABLE audit")
    with pytest.raises(JobFailed, match="there is no live audit to go back from"):
        await go_back(dsn)


async def test_without_a_replay_there_is_nothing_to_go_back_to(dsn: str):
    with pytest.raises(JobFailed, match="nothing to go back to"):
        await go_back(dsn)


async def test_an_event_that_cannot_be_folded_fails_the_replay_by_name_and_touches_nothing(
    dsn: str, log: ListedLog
):
    before = await everything(dsn)
    bad = Stored(f"{START_MS + 10**6}-0", b'[{"type":"payout.teleported","v":1,"at":1}]')
    log.entries.append(bad)
    async with projecting(dsn, log):
        async with asyncio.timeout(DEADLINE_S):
            while not await fetch(dsn, "SELECT 1 FROM heads WHERE entry_id = $1", bad.id):
                await asyncio.sleep(0.01)
    with pytest.raises(JobFailed, match=rf"entry 0:{bad.id}: .*payout\.teleported.*nothing was swapped"):
        await replay(dsn)
    after = await everything(dsn)
    assert {view: after[view] for view in NAMES} == {view: before[view] for view in NAMES}


async def test_of_two_replays_at_once_the_second_is_refused(dsn: str, log: ListedLog):
    holder = await asyncpg.connect(dsn)
    try:
        await holder.execute("SELECT pg_advisory_lock($1, hashtext('public'))", 0x53505F52)
        with pytest.raises(JobFailed, match="another replay of public is running"):
            await replay(dsn)
    finally:
        await holder.close()


async def test_a_replay_that_is_killed_again_and_again_ends_with_the_same_rows(
    dsn: str, monkeypatch: pytest.MonkeyPatch
):
    chance = random.Random(8)
    log = ListedLog(a_history(seed=8))
    await project_all(dsn, log)
    before = await everything(dsn)
    environment = {**os.environ, "STREAMPROC_POSTGRES_DSN": dsn}
    for _ in range(8):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", "replay", env=environment, stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            # Any moment will do, the later ones in the comparison and the swap.
            await asyncio.wait_for(process.wait(), chance.uniform(0.3, 2.5))
        except TimeoutError:
            await killed(process)
        assert {v: rows for v, rows in (await everything(dsn)).items() if v in NAMES} == {
            v: before[v] for v in NAMES
        }
    async with asyncio.timeout(DEADLINE_S):
        while await fetch(
            dsn, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = $1", 0x53505F52
        ):
            await asyncio.sleep(0.05)
    assert {view.equal for view in (await replay(dsn)).views} == {True}
    assert await everything(dsn) == before


def builders() -> list[int]:
    """The builders that this process started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"projections.build_worker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return found


async def test_a_builder_that_is_killed_fails_the_replay_and_the_next_goes_on(dsn: str, log: ListedLog):
    before = await everything(dsn)
    seen: list[str] = []

    def kill_builders(progress: JobProgress) -> None:
        if progress.events and not seen:
            seen.append(progress.stage)
            for pid in builders():
                with suppress(ProcessLookupError):  # it may just have come to its end
                    os.kill(pid, signal.SIGKILL)

    killed = False
    try:
        await replay(dsn, jobs=2, on_progress=kill_builders)
    except JobFailed as problem:
        killed = "ended early" in str(problem)
    assert seen == ["building"]
    result = await replay(dsn, jobs=2)
    assert {view.equal for view in result.views} == {True}
    assert killed or result.swapped
    assert await everything(dsn) == before


async def test_a_replay_that_goes_on_meets_what_came_since(dsn: str, log: ListedLog):
    """An entry that cannot be folded and that was not there yet when the first one was killed."""

    def give_up(progress: JobProgress) -> None:
        if progress.events:
            raise JobFailed("enough")

    with pytest.raises(JobFailed, match="enough"):
        await replay(dsn, jobs=2, on_progress=give_up)
    assert await fetch(dsn, "SELECT to_regnamespace('public_shadow') IS NOT NULL") == [(True,)]
    bad = Stored(f"{START_MS + 10**6}-0", b'[{"type":"payout.teleported","v":1,"at":1}]')
    log.entries.append(bad)
    async with projecting(dsn, log):
        async with asyncio.timeout(DEADLINE_S):
            while not await fetch(dsn, "SELECT 1 FROM heads WHERE entry_id = $1", bad.id):
                await asyncio.sleep(0.01)
    with pytest.raises(JobFailed, match=rf"entry 0:{bad.id}: .*payout\.teleported"):
        await replay(dsn)


# ---- as of ----


STOPS = (1, 17, 160)


async def test_every_view_as_of_a_position_is_what_the_live_one_was_there(dsn: str):
    entries = a_history(seed=9)
    log = ListedLog([])
    was: dict[int, dict[str, list[object]]] = {}
    for stop in STOPS:
        log.entries = entries[:stop]
        await project_all(dsn, log)
        was[stop] = await _shown(dsn)
    log.entries = entries
    await project_all(dsn, log)
    for stop in STOPS:
        for when in (f"0:{stop}", f"0:{entries[stop - 1].id}"):
            targets = await targets_of(dsn, when)
            assert targets == [Target(0, stop, entries[stop - 1].id)]
        async with built_as_of(dsn, targets, jobs=2) as place:
            for view in NAMES:
                assert [row async for row in rows_of(place, view)] == was[stop][view], (stop, view)
    assert await fetch(dsn, "SELECT to_regnamespace('public_as_of')") == [(None,)]


async def _shown(dsn: str) -> dict[str, list[object]]:
    db = await asyncpg.connect(dsn)
    try:
        return {view: [row async for row in rows_of(db, view)] for view in NAMES}
    finally:
        await db.close()


async def test_a_time_means_the_last_entry_until_then(dsn: str, log: ListedLog):
    ids = [entry.id for entry in log.entries]
    at_ms = key(ids[9])[0]
    last = max(n for n, entry in enumerate(ids, 1) if key(entry)[0] <= at_ms)
    when = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    assert await targets_of(dsn, when) == [Target(0, last, ids[last - 1])]
    assert await targets_of(dsn, "2001-01-01") == [Target(0, 0, "0-0")]


async def test_what_is_no_position_or_is_not_there_is_said(dsn: str, log: ListedLog):
    with pytest.raises(InputError, match="'yesterday' is no time"):
        await targets_of(dsn, "yesterday")
    with pytest.raises(InputError, match="--as-of 2099-01-01 is in the future"):
        await targets_of(dsn, "2099-01-01")
    tonight = (datetime.now(UTC) + timedelta(hours=23)).isoformat()
    assert await targets_of(dsn, tonight) == await targets_of(dsn, datetime.now(UTC).isoformat())
    with pytest.raises(JobFailed, match="no entry 999999"):
        await targets_of(dsn, "999999")
    with pytest.raises(JobFailed, match="no entry 0:5-5"):
        await targets_of(dsn, "0:5-5")


async def test_as_of_prints_the_first_rows_of_a_long_view_and_leaves_nothing_behind(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    monkeypatch.setattr(sys.modules["streamproc.cli.replay"], "ROWS_SHOWN_MAX", 5)
    assert await asyncio.to_thread(cli, ["replay", "payouts", "--as-of", str(len(log.entries))]) == 0
    said = capsys.readouterr()
    assert "the first 5 rows; --json prints all" in said.err
    assert len(re.findall(r"^pout_", said.out, re.MULTILINE)) == 5
    assert await fetch(dsn, "SELECT to_regnamespace('public_as_of')") == [(None,)]


async def test_as_of_ends_without_a_word_where_its_reader_had_enough(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`replay payouts --as-of … --json | head`; what is written fails among Postgres's own errors."""
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    asked = ["replay", "payouts", "--as-of", str(len(log.entries)), "--json"]
    assert await asyncio.to_thread(cli, asked) == 0
    assert "Broken pipe" not in capsys.readouterr().err
    assert await fetch(dsn, "SELECT to_regnamespace('public_as_of')") == [(None,)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
async def test_as_of_that_is_stopped_leaves_nothing_behind(dsn: str, log: ListedLog, how: signal.Signals):
    """It would be as large as the view."""

    there = "SELECT to_regnamespace('public_as_of')"
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)  # less than there is to print
    asked = ("replay", "audit", "--as-of", str(len(log.entries)), "--json", "--jobs", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamproc", *asked),
        env={**os.environ, "STREAMPROC_POSTGRES_DSN": dsn},
        stdout=writes,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=heard,
    )
    os.close(writes)
    try:
        assert await asyncio.to_thread(os.read, reads, 1) == b"{"
        assert await fetch(dsn, there) != [(None,)]
        process.send_signal(how)
        while await asyncio.to_thread(os.read, reads, 1 << 16):
            pass
        _, said = await process.communicate()
    finally:
        os.close(reads)
        with suppress(ProcessLookupError):
            process.kill()
    assert (process.returncode, said.decode()) == (1, "streamproc: stopped by the user\n")
    assert await fetch(dsn, there) == [(None,)]


@pytest.mark.parametrize("how", ["failed", "cut off"])
async def test_as_of_that_is_stopped_amid_a_transaction_leaves_nothing_behind(
    dsn: str, log: ListedLog, how: str
):
    async def stopped() -> None:
        async with built_as_of(dsn, await targets_of(dsn, "1"), jobs=1) as place:
            await place.execute("BEGIN")
            if how == "failed":
                with suppress(asyncpg.DivisionByZeroError):
                    await place.execute("SELECT 1 / 0")
            else:
                place.terminate()
            raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        await stopped()
    assert await fetch(dsn, "SELECT to_regnamespace('public_as_of')") == [(None,)]


async def test_as_of_prints_the_rows_of_a_view(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    assert await asyncio.to_thread(cli, ["replay", "policies", "--as-of", "1", "--json"]) == 0
    assert '"scope": "agent:bot"' in capsys.readouterr().out
    assert await asyncio.to_thread(cli, ["replay", "payouts", "--as-of", "1"]) == 0
    assert "payouts was empty then" in capsys.readouterr().out
    assert await asyncio.to_thread(cli, ["replay", "--verify", "--back"]) == 2
    assert await asyncio.to_thread(cli, ["replay", "nothing"]) == 2


async def test_as_of_without_a_view_prints_all_of_them_each_row_with_its_view(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    last = str(len(log.entries))
    assert await asyncio.to_thread(cli, ["replay", "--as-of", last, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = {view: [line["row"] for line in lines if line["view"] == view] for view in NAMES}
    for view in NAMES:
        assert await asyncio.to_thread(cli, ["replay", view, "--as-of", last, "--json"]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == shown[view]
    assert all(shown[view] for view in ("payouts", "budgets", "policies"))
    key = ("partition", "account", "fund_account", "vendor")
    pairs = [tuple(row[column] for column in key) for row in shown["beneficiaries"]]
    assert pairs == sorted(pairs)

    assert await asyncio.to_thread(cli, ["replay", "payouts", "policies", "--as-of", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("payouts:\npayouts was empty then\npolicies:\n")
    assert "agent:bot" in said


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


async def test_a_row_has_its_times_as_all_our_json_has_them_whatever_zone_postgres_has(
    dsn: str, log: ListedLog
):
    db = await asyncpg.connect(dsn, server_settings={"timezone": "Asia/Kolkata"})
    try:
        for view, times in (
            ("payouts", {"received_at", "updated_at"}),
            ("audit", {"at"}),
            ("policies", {"at"}),
        ):
            rows = [row async for row in rows_of(db, view)]
            assert rows
            assert all(TIME.fullmatch(row[name]) for row in rows for name in times), rows[0]
    finally:
        await db.close()


async def test_a_row_that_differs_is_shown_with_times_as_all_our_json_has_them(dsn: str, log: ListedLog):
    await fetch(dsn, "UPDATE payouts SET received_at = '2001-01-01T00:00:00Z'")
    done = await replay(dsn, views=["payouts"], jobs=1, verify=True)
    first = done.views[0].differences[0]
    assert first.live == {"received_at": "2001-01-01T00:00:00.000000Z"}
    assert first.rebuilt
    assert TIME.fullmatch(str(first.rebuilt["received_at"]))


def test_a_name_of_no_view_is_answered_with_those_of_all(capsys: pytest.CaptureFixture[str]):
    assert cli(["replay", "nothing"]) == 2
    assert f"'nothing' is not one of {', '.join(map(repr, NAMES))}" in capsys.readouterr().err

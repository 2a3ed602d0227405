"""The projector against a real Postgres: exactly once, in order, or not at all and loudly."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import asyncpg
import pytest

from projections import loop
from projections.loop import Duties, Progress, connections_needed, months_of, project, run_projector
from projections.outage import Outage
from projections.payouts import COLUMNS
from projections.schema import prepare
from projections.views import NAMES
from streamproc import embedded
from streamproc.archive import store
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import open_head
from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record
from streamproc.errors import ConfigError, LogBroken, LogUnavailable
from tests.chained import Position, verify
from tests.projections.histories import (
    DEADLINE_S,
    START_MS,
    ListedLog,
    Stored,
    archived,
    budgets_by_state,
    everything,
    fetch,
    history,
    key,
    log_of,
    project_all,
    projecting,
    rows_of,
)
from tests.projections.seals import terms
from tests.words import NOW, observed


@pytest.fixture
async def dsn(prepared: str) -> str:
    return prepared


@pytest.fixture
def log() -> ListedLog:
    return ListedLog(history(seed=3, payouts=12))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def broken(dsn: str, log: ListedLog, match: str) -> None:
    """A projector of this log stops, saying so."""
    with pytest.raises(LogBroken, match=match):
        async with projecting(dsn, log) as task:
            await asyncio.wait_for(task, DEADLINE_S)


# ---- exactly once ----


async def test_each_entry_is_archived_once_with_dense_seq_and_a_chain_that_verifies(dsn: str, log: ListedLog):
    await project_all(dsn, log, batch_max=7)
    rows = (await everything(dsn))["events"]
    assert [(row[1], row[2], row[4], row[5]) for row in rows] == [
        (n, entry.id, entry.e, entry.m) for n, entry in enumerate(log.entries, 1)
    ]
    end = verify(
        ArchivedEntry(seq, id, e, m, payout, link, partition)  # type: ignore[arg-type]
        for partition, seq, id, payout, e, m, link in rows
    )
    assert end == Position(len(log.entries), bytes(rows[-1][6]))  # type: ignore[arg-type]
    assert (await fetch(dsn, "SELECT seq, hash FROM heads")) == [(end.seq, end.hash)]


@pytest.mark.parametrize("batch_max", [1, 3, 1000])
async def test_archive_and_views_are_the_same_whatever_the_batch_size(
    dsn: str, log: ListedLog, batch_max: int
):
    await project_all(dsn, log, batch_max=batch_max)
    seen = await everything(dsn)
    record = COLUMNS.index("record")
    records = [decode_record(row[record]) for row in seen["payouts"]]  # type: ignore[arg-type]
    assert {(row[1], row[2]): (row[5], row[6]) for row in seen["budgets"]} == budgets_by_state(records)
    assert len(seen["payouts"]) == 12
    assert [row[:3] for row in seen["heads"]] == [(0, len(log.entries), log.entries[-1].id)]
    assert [row[6] for row in seen["events"]] == [link.hash for link in rows_of(log.entries)]


async def test_a_history_in_parts_gives_the_same_views_as_at_once(dsn: str, log: ListedLog):
    await project_all(dsn, ListedLog(log.entries[:10]))
    await project_all(dsn, log, batch_max=3)
    in_parts = await everything(dsn)
    await wipe(dsn)
    await project_all(dsn, log)
    assert await everything(dsn) == in_parts


async def wipe(dsn: str) -> None:
    """What no user may do: forget the archive, to build it once more in the same database."""
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    finally:
        await db.close()
    await prepare(dsn)


class CrashingAt:
    """A connection that is lost just before its nth call."""

    def __init__(self, db: asyncpg.Connection, nth: int) -> None:
        self._db, self._left = db, nth

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._db, name)
        if name not in ("execute", "fetch", "fetchval", "copy_records_to_table"):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise ConnectionResetError("crash")
            return await method(*args, **kwargs)

        return call

    @property
    def unused(self) -> bool:
        """The crash came too late to happen."""
        return self._left >= 0


async def test_a_crash_before_any_statement_of_the_batch_leaves_nothing_and_the_next_try_everything(
    dsn: str, log: ListedLog
):
    db = await asyncpg.connect(dsn)
    try:
        head = await open_head(db, 0)
        await make_ranges(db, months_of(log.entries))
        before = await everything(dsn)
        for nth in range(100):
            crashing = CrashingAt(db, nth)
            try:
                rows, _ = await archive(crashing, 0, head, log.entries)  # type: ignore[arg-type]
            except ConnectionResetError:
                assert await everything(dsn) == before
            else:
                break
        assert crashing.unused
        assert nth == 2, "head and rows"
        assert (await everything(dsn))["heads"][0][1] == len(log.entries) == len(rows)
    finally:
        await db.close()


async def test_a_projector_whose_connection_is_killed_again_and_again_ends_with_the_same_rows(dsn: str):
    entries = history(seed=5, payouts=60)
    await project_all(dsn, ListedLog(entries))
    expected = await everything(dsn)
    await wipe(dsn)
    seen: list[Progress] = []
    killer = await asyncpg.connect(dsn)
    try:
        async with projecting(dsn, ListedLog(entries), batch_max=5, on_batch=seen.append) as task:
            for _ in range(8):
                passed = len(seen)
                await until(
                    lambda passed=passed: (
                        len(seen) > passed or bool(seen and seen[-1].entry == entries[-1].id)
                    )
                )
                await killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'streamproc %'"
                )
            await archived(dsn, entries[-1].id, task)
    finally:
        await killer.close()
    assert await everything(dsn) == expected


# ---- delivered again, or contradicted ----


async def test_entries_delivered_again_with_the_same_bytes_are_ignored(dsn: str, log: ListedLog):
    class Stuttering(ListedLog):
        async def read(self, after: str, count: int, block_ms: int) -> list[Stored]:
            found = await super().read(after, count, block_ms)
            if not found:
                return []
            earlier = [entry for entry in self.entries if key(entry.id) < key(found[0].id)]
            return [*earlier[-3:], *found] if block_ms else found

    await project_all(dsn, Stuttering(log.entries), batch_max=4)
    assert [row[1] for row in (await everything(dsn))["events"]] == list(range(1, len(log.entries) + 1))


async def test_an_archived_entry_with_other_bytes_halts_the_projector(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    before = await everything(dsn)
    last = log.entries[-1]
    log.entries[-1] = last._replace(m=b'{"by":"mallory"}')
    await broken(dsn, log, match=rf"0:{last.id} has other bytes")
    assert await everything(dsn) == before


async def test_an_entry_before_the_head_that_was_never_archived_halts_the_projector(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    stranger = Stored(f"{START_MS - 1}-0", log.entries[0].e)

    class Smuggling(ListedLog):
        async def read(self, after: str, count: int, block_ms: int) -> list[Stored]:
            return [stranger] if block_ms else await super().read(after, count, block_ms)

    await broken(
        dsn, Smuggling(log.entries), match=rf"{stranger.id} is before the archive's head .* never archived"
    )


@pytest.mark.parametrize("ms", [loop.FAR_MS, 253_402_300_800_000, 2**63 - 1, 2**63, 2**64 - 1])
async def test_an_entry_of_a_time_that_no_calendar_has_halts_the_projector_by_name(
    dsn: str, log: ListedLog, ms: int
):
    log.entries += [Stored(f"{ms}-5", log_of([observed("pout_far")])[0].e)]
    await broken(dsn, log, match=rf"0:{ms}-5 is later than the year 9998")
    log.entries[-1] = log.entries[-1]._replace(id=f"{loop.FAR_MS - 1}-{2**63 - 1}")
    await project_all(dsn, log)


@pytest.mark.parametrize("n", [2**63, 2**64 - 1])
async def test_an_entry_of_a_number_that_postgres_cannot_hold_halts_the_projector_by_name(
    dsn: str, log: ListedLog, n: int
):
    await project_all(dsn, log)
    before = await everything(dsn)
    ms = key(log.entries[-1].id)[0] + 1
    log.entries.append(Stored(f"{ms}-{n}", log_of([observed("pout_far")])[0].e))
    await broken(dsn, log, match=rf"entry 0:{ms}-{n} has a number beyond {2**63 - 1}")
    assert await everything(dsn) == before


async def test_a_log_that_lost_its_tail_halts_the_projector_and_says_recover(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    lost = log.entries.pop()
    await broken(
        dsn, log, match=rf"ends at {log.entries[-1].id}, before the archive's head {lost.id}.*recover"
    )


async def test_an_emptied_log_halts_the_projector(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    await broken(dsn, ListedLog(), match=r"ends at 0-0.*recover")


async def test_a_log_that_lost_its_tail_and_grew_beyond_the_head_halts_the_projector(
    dsn: str, log: ListedLog
):
    await project_all(dsn, log)
    lost = log.entries.pop()
    log.entries.append(Stored(f"{key(lost.id)[0] + 1}-0", lost.e))
    await broken(dsn, log, match=rf"no longer has the archive's last entry {lost.id}")


async def test_a_log_that_was_trimmed_beyond_the_head_halts_the_projector(dsn: str, log: ListedLog):
    await project_all(dsn, ListedLog(log.entries[:5]))
    await broken(dsn, ListedLog(log.entries[7:]), match=rf"no longer has .* {log.entries[4].id}, the next is")


async def test_a_log_that_was_trimmed_up_to_the_head_is_projected_on(dsn: str, log: ListedLog):
    await project_all(dsn, ListedLog(log.entries[:5]))
    await project_all(dsn, ListedLog(log.entries[4:]))
    assert len((await everything(dsn))["events"]) == len(log.entries)


async def test_a_running_projector_notices_an_idle_log_that_lost_its_tail(dsn: str, log: ListedLog):
    task = asyncio.create_task(project(0, log, dsn, stopping=asyncio.Event()))
    await archived(dsn, log.entries[-1].id, task)
    log.entries.pop()
    with pytest.raises(LogBroken, match="recover"):
        await asyncio.wait_for(task, DEADLINE_S)


async def test_a_running_projector_takes_nothing_of_a_log_that_lost_its_tail_and_grew_on_under_its_connection(
    dsn: str, log: ListedLog
):
    task = asyncio.create_task(project(0, log, dsn, stopping=asyncio.Event()))
    await archived(dsn, log.entries[-1].id, task)
    before = await fetch(dsn, "SELECT count(*) FROM events")
    lost = log.entries.pop()
    log.entries.append(Stored(f"{key(lost.id)[0] + 1}-0", lost.e))
    with pytest.raises(LogBroken, match=rf"no longer has the archive's last entry {lost.id}"):
        await asyncio.wait_for(task, DEADLINE_S)
    assert await fetch(dsn, "SELECT count(*) FROM events") == before


async def test_a_head_that_somebody_else_moved_halts_the_projector(dsn: str, log: ListedLog):
    db = await asyncpg.connect(dsn)
    try:
        head = await open_head(db, 0)
        await make_ranges(db, months_of(log.entries))
        await archive(db, 0, head, log.entries[:2])
        with pytest.raises(LogBroken, match="something else writes"):
            await archive(db, 0, head, log.entries[:2])
    finally:
        await db.close()


async def test_the_archive_is_append_only_for_its_owner_too(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    db = await asyncpg.connect(dsn)
    try:
        month = await db.fetchval("SELECT events_month($1)", START_MS)
        for table in ("events", month):
            for attempt in (f"UPDATE {table} SET m = ''", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.RestrictViolationError, match="append only"):
                    await db.execute(attempt)
    finally:
        await db.close()
    assert len((await everything(dsn))["events"]) == len(log.entries)


async def test_text_that_postgres_cannot_hold_does_not_stop_the_projector(dsn: str):
    odd = observed("pout_\0", agent="a\0b", url="https://x/\\u0000\0")
    malformed = e.PayoutMalformed(
        at=NOW, payout="x" * 9000, account="a", source="webhook", problem="\\\0 odd"
    )
    log = ListedLog(log_of([odd], [malformed]))
    await project_all(dsn, log)
    assert await fetch(dsn, "SELECT payout, agent FROM payouts") == [("pout_\ufffd", "a\ufffdb")]
    assert await fetch(dsn, "SELECT reason FROM audit") == [("\\\ufffd odd",)]


# ---- one at a time, and coming back ----


async def test_a_standby_takes_over_when_the_lock_holders_connection_dies(dsn: str, log: ListedLog):
    holder = await asyncpg.connect(dsn)
    assert await holder.fetchval("SELECT pg_try_advisory_lock($1, 0)", 0x53505F50)
    async with projecting(dsn, log) as standby:
        await waiting_for_lock(dsn)
        assert await fetch(dsn, "SELECT * FROM heads") == []
        holder.terminate()
        await archived(dsn, log.entries[-1].id, standby)


async def waiting_for_lock(dsn: str) -> None:
    """A projector has asked for the lock, and did not get it."""
    async with asyncio.timeout(DEADLINE_S):
        while not await fetch(
            dsn,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
            " AND application_name = 'streamproc projector 0' AND query LIKE '%pg_try_advisory_lock%'",
        ):
            await asyncio.sleep(0.01)


async def test_a_projector_that_is_frozen_loses_the_lock_and_writes_nothing_when_it_comes_back(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "FROZEN_MS", 500)
    thawed = asyncio.Event()

    class Freezing(ListedLog):
        async def read(self, after: str, count: int, block_ms: int) -> list[Stored]:
            await thawed.wait()
            return await super().read(after, count, block_ms)

    async with projecting(dsn, Freezing(log.entries)):
        async with asyncio.timeout(DEADLINE_S):
            while not await fetch(dsn, "SELECT 1 FROM pg_locks WHERE classid = $1", store.PROJECTOR_LOCK):
                await asyncio.sleep(0.01)
        async with projecting(dsn, ListedLog(log.entries)) as other:
            await archived(dsn, log.entries[-1].id, other)
            before = await everything(dsn)
            thawed.set()
            await waiting_for_lock(dsn)
            assert await everything(dsn) == before


async def test_a_projector_that_is_frozen_in_the_midst_of_a_copy_is_ended_by_the_one_that_stands_by(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch
):
    """Postgres waits for the rest of a COPY for ever, whatever its timeouts are."""
    monkeypatch.setattr(store, "FROZEN_MS", 500)
    monkeypatch.setattr(store, "HOLDER_LOOK_S", 0.0)
    begun = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        begun.set()
        await asyncio.Event().wait()
        yield b""

    async with store.connection(dsn, name="streamproc projector 0") as holder:
        assert await store.take_lock(holder, 0, asyncio.Event())
        frozen = asyncio.create_task(holder.copy_to_table("events", source=rows()))
        await begun.wait()
        async with projecting(dsn, log) as standby:
            await archived(dsn, log.entries[-1].id, standby)
        frozen.cancel()
        await asyncio.gather(frozen, return_exceptions=True)


@pytest.mark.parametrize("count", [0, 20])
async def test_a_projector_with_nothing_to_do_is_not_taken_for_frozen(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch, count: int
):
    monkeypatch.setattr(store, "FROZEN_MS", 500)
    lives = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'streamproc projector 0' AND clock_timestamp() - backend_start > interval '2 s'"
    )
    async with projecting(dsn, ListedLog(log.entries[:count])), asyncio.timeout(DEADLINE_S):
        while not await fetch(dsn, lives):
            await asyncio.sleep(0.01)


async def test_of_two_projectors_one_works_and_both_stop_when_asked(dsn: str, log: ListedLog):
    async with (
        projecting(dsn, log, batch_max=3) as first,
        projecting(dsn, ListedLog(log.entries), batch_max=3),
    ):
        await archived(dsn, log.entries[-1].id, first)
    assert [row[1] for row in (await everything(dsn))["events"]] == list(range(1, len(log.entries) + 1))


@pytest.mark.parametrize("count", [0, 20])
async def test_a_log_that_is_away_is_waited_for_and_said_once(
    dsn: str, log: ListedLog, caplog: pytest.LogCaptureFixture, count: int
):
    if count:
        await project_all(dsn, ListedLog(log.entries[:count]))
    caplog.set_level(logging.INFO, "projections.outage")

    class Away(ListedLog):
        left = 2

        async def read(self, after: str, count: int, block_ms: int) -> list[Stored]:
            if self.left:
                self.left -= 1
                raise LogUnavailable("Redis is away")
            return await super().read(after, count, block_ms)

    await project_all(dsn, Away(log.entries))
    assert caplog.messages == [
        "projector of partition 0 waits: Redis is away",
        "projector of partition 0: goes on",
    ]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("disk_full", "its disk is full"),
        ("io_error", "its disk fails, and its own log says where"),
        ("undefined_file", "a file of its own is gone, and its own log says which"),
        ("data_corrupted", "its data is damaged, and its own log says where: base/1/2: no HINT: Do it."),
        ("index_corrupted", "an index is damaged, and its own log says which: base/1/2: no HINT: Do it."),
        (
            "internal_error",
            "it has an error of its own, and its own log says which: base/1/2: no HINT: Do it.",
        ),
    ],
)
async def test_a_disk_that_is_full_or_fails_or_damage_of_postgres_is_waited_for_and_said_once(
    dsn: str, log: ListedLog, caplog: pytest.LogCaptureFixture, state: str, said: str
):
    await project_all(dsn, ListedLog(log.entries[:20]))
    caplog.set_level(logging.INFO, "projections.outage")
    await fetch(dsn, "CREATE SEQUENCE tries")
    words = f"RAISE EXCEPTION 'base/1/2: no' USING ERRCODE = '{state}', HINT = 'Do it.'"
    refuse = f"PERFORM nextval('tries'); {words};"
    await fetch(dsn, f"CREATE FUNCTION bad_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {refuse} END$$")
    await fetch(
        dsn, "CREATE TRIGGER bad_disk BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION bad_disk()"
    )
    async with projecting(dsn, log) as task, asyncio.timeout(DEADLINE_S):
        while not await fetch(dsn, "SELECT 1 FROM tries WHERE last_value >= 3"):
            await asyncio.sleep(0.01)
        await fetch(dsn, "DROP TRIGGER bad_disk ON events")
        await archived(dsn, log.entries[-1].id, task)
    assert caplog.messages == [
        f"projector of partition 0 waits: Postgres: {said}",
        "projector of partition 0: goes on",
    ]


def test_that_something_else_is_away_by_now_is_said_and_what_went_on_waiting_is_not(
    caplog: pytest.LogCaptureFixture,
):
    outage = Outage("projector of partition 0")
    for problem in (
        OSError(),
        TimeoutError(),
        LogUnavailable("Redis is away"),
        LogUnavailable("and stays so"),
        asyncpg.DataCorruptedError("invalid page in block 0"),
        asyncpg.IndexCorruptedError("and an index"),
    ):
        outage.failed(problem)
    assert caplog.messages == [
        "projector of partition 0 waits: Postgres: OSError",
        "projector of partition 0 waits: Redis is away",
        "projector of partition 0 waits: Postgres: its data is damaged, and its own log says where: invalid page in"
        " block 0",
    ]


@pytest.mark.embedded
async def test_postgres_may_come_later_and_go_meanwhile(
    public_dir: Path, log: ListedLog, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "projections.outage")
    data_dir = public_dir / "restarted"
    data_dir.mkdir()
    async with embedded.postgres(data_dir, durable=False) as store:
        dsn, port = store.url, int(store.url.rpartition(":")[2].partition("/")[0])
        await prepare(dsn)
    later = log.entries[5:]
    del log.entries[5:]
    async with projecting(dsn, log) as task:
        await until(lambda: "waits" in caplog.text)
        async with embedded.postgres(data_dir, port=port, durable=False):
            await archived(dsn, log.entries[-1].id, task)
        log.entries += later
        async with embedded.postgres(data_dir, port=port, durable=False):
            await archived(dsn, log.entries[-1].id, task)
            assert (await fetch(dsn, "SELECT count(*) FROM events")) == [(len(log.entries),)]
    assert "password" not in caplog.text
    assert store.url not in caplog.text


async def test_a_database_without_the_schema_says_migrate(postgres: str, log: ListedLog):
    with pytest.raises(ConfigError, match="streamproc migrate"):
        await asyncio.wait_for(project(0, log, postgres, stopping=asyncio.Event()), DEADLINE_S)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda dsn: dsn._replace(query="role=streamproc_reader"), "permission denied for table heads"),
        (
            lambda dsn: dsn._replace(netloc=dsn.netloc.replace(dsn.password, "wrong")),
            "password authentication",
        ),
        (lambda dsn: dsn._replace(path="/nowhere"), 'database "nowhere" does not exist'),
    ],
)
async def test_what_postgres_refuses_ends_the_projector_with_its_words_and_what_to_run(
    dsn: str, log: ListedLog, changed: Callable[[SplitResult], SplitResult], said: str
):
    with pytest.raises(ConfigError, match=rf"Postgres refuses the projector: {said}.*streamproc doctor"):
        await project(0, log, changed(urlsplit(dsn)).geturl(), stopping=asyncio.Event())


async def test_all_partitions_are_projected_and_closed_and_progress_is_told(dsn: str, log: ListedLog):
    logs = [log, ListedLog(log_of([observed("pout_other")]))]
    stopping, seen = asyncio.Event(), list[Progress]()
    task = asyncio.create_task(
        run_projector(dsn, 2, logs.__getitem__, stopping, Duties(on_batch=seen.append))
    )
    await until(lambda: task.done() or len({progress.partition for progress in seen}) == 2)
    stopping.set()
    await asyncio.wait_for(task, DEADLINE_S)
    assert sorted((p.partition, p.seq, p.entry, p.lag_ms) for p in seen) == [
        (0, len(log.entries), log.entries[-1].id, 0),
        (1, 1, logs[1].entries[-1].id, 0),
    ]
    assert [view.closed for view in logs] == [1, 1]


async def test_nine_partitions_take_no_more_connections_than_are_counted(
    dsn: str, log: ListedLog, tmp_path: Path
):
    """A connection for each partition's archive; all else is shared. Postgres has a hundred by default."""
    partitions = 9
    others = [ListedLog(log_of([observed(f"pout_other{n}")])) for n in range(1, partitions)]
    logs = [log, *others]
    sealing = terms(tmp_path / "checkpoints.txt", entries=1)
    stopping = asyncio.Event()
    task = asyncio.create_task(
        run_projector(dsn, partitions, logs.__getitem__, stopping, Duties(terms=sealing))
    )
    shown = "SELECT count(DISTINCT (partition, view)) FROM view_heads WHERE seq > 0"
    signed = "SELECT count(DISTINCT partition) FROM checkpoints_published"
    async with asyncio.timeout(DEADLINE_S):
        while (await fetch(dsn, shown), await fetch(dsn, signed)) != (
            [(partitions * len(NAMES),)],
            [(partitions,)],
        ):
            assert not task.done(), task
            await asyncio.sleep(0.02)
    mine = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'streamproc %'"
    [(taken,)] = await fetch(dsn, f"SELECT count(*) {mine}")
    assert taken <= connections_needed(partitions) < 2 * partitions
    stopping.set()
    await asyncio.wait_for(task, DEADLINE_S)
    assert await fetch(dsn, f"SELECT count(*) {mine}") == [(0,)]


async def test_a_partition_that_breaks_stops_all_with_its_own_error(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    log.entries.pop()
    logs = [log, ListedLog(log_of([observed("pout_other")]))]
    with pytest.raises(LogBroken, match="partition 0 ends at"):
        await asyncio.wait_for(run_projector(dsn, 2, logs.__getitem__, asyncio.Event()), DEADLINE_S)


async def test_lag_is_measured_against_the_logs_own_end(dsn: str, log: ListedLog):
    seen: list[Progress] = []
    async with projecting(dsn, log, batch_max=10, on_batch=seen.append) as task:
        await archived(dsn, log.entries[-1].id, task)
    ends = [key(log.entries[min(10 * n, len(log.entries)) - 1].id)[0] for n in range(1, len(seen) + 1)]
    assert [progress.lag_ms for progress in seen] == [key(log.entries[-1].id)[0] - end for end in ends]
    assert seen[0].lag_ms > 0

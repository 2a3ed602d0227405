"""Checkpoints are made and handed outside whatever happens, the archive never waits, and nothing false is signed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from projections import loop, notary
from projections.loop import Duties, project, run_projector
from projections.notary import CheckpointTerms, keep_checkpoints
from projections.schema import prepare
from streamproc import app
from streamproc.archive import checkpoint, store
from streamproc.archive.attest import Maker
from streamproc.archive.chain import link_hash
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.note import Trusted
from streamproc.archive.outside import NotesFile, Stated, stated_in
from streamproc.archive.shared import Shared
from streamproc.archive.store import CHECKPOINT_LOCK, open_head
from streamproc.clients.checkpoint_post import open_checkpoint_post
from streamproc.errors import LogBroken, TryAgain
from streamproc.operate.audit import verify
from streamproc.settings import PREFIX, load
from tests.clients.loopback import always, loopback
from tests.databases import copy_of, template
from tests.projections.histories import (
    DEADLINE_S,
    START_MS,
    ListedLog,
    archived,
    fetch,
    history,
    log_of,
    project_all,
    projecting,
)
from tests.projections.seals import NEVER_S, OTHER_SIGNER, SIGNER, TRUSTED, terms
from tests.words import observed


@pytest.fixture(scope="module")
def original(postgres_server: str) -> Iterator[str]:
    """The schema, empty."""

    async def make(dsn: str) -> None:
        await prepare(dsn)

    with template(postgres_server, make) as name:
        yield name


@pytest.fixture
async def dsn(original: str, postgres_server: str) -> AsyncIterator[str]:
    async with copy_of(postgres_server, original) as dsn:
        yield dsn


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.txt"


@pytest.fixture
def log() -> ListedLog:
    return ListedLog(history(seed=13, payouts=20)[:35])


@pytest.fixture
async def superuser(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that no trigger stops."""
    db = await asyncpg.connect(dsn)
    await db.execute("SET session_replication_role = replica")
    yield db
    await db.close()


async def sizes(dsn: str, partition: int = 0) -> list[object]:
    rows = await fetch(dsn, "SELECT size FROM checkpoints WHERE partition = $1 ORDER BY size", partition)
    return [size for (size,) in rows]


def in_file(file: Path) -> list[tuple[int, int]]:
    """Partition and size of each note in the file, repetitions too; every one is good."""
    with file.open("rb") as opened:
        found = list(stated_in(opened, TRUSTED))
    assert all(isinstance(one, Stated) for one in found), found
    return [(one.checkpoint.partition, one.checkpoint.size) for one in found if isinstance(one, Stated)]


async def has(dsn: str, *wanted: int) -> None:
    """Wait until there are checkpoints of these sizes and no others, all handed outside."""
    async with asyncio.timeout(DEADLINE_S):
        while not (
            await sizes(dsn) == list(wanted)
            and await fetch(dsn, "SELECT size FROM checkpoints_published") == [(wanted[-1],)]
        ):
            await asyncio.sleep(0.02)


async def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def all_is_good(dsn: str, file: Path) -> None:
    """Table and file say the same, and the archive verifies to its last row."""
    found = await verify(dsn, TRUSTED, file)
    assert found.broken == []
    assert all(part.signed == part.rows for part in found.parts)
    assert all(part.not_outside == 0 and part.outside == part.checkpoints for part in found.parts)


# ---- when ----


async def test_a_checkpoint_is_made_after_so_many_entries_and_a_last_one_at_a_stop(
    dsn: str, log: ListedLog, file: Path
):
    late = log.entries[30:]
    del log.entries[30:]
    async with projecting(dsn, log, terms=terms(file, entries=10)):
        await has(dsn, 10, 20, 30)
        log.entries += late
        await archived(dsn, late[-1].id)
    assert await sizes(dsn) == [10, 20, 30, 35]
    assert in_file(file) == [(0, 10), (0, 20), (0, 30), (0, 35)]
    await all_is_good(dsn, file)


async def test_a_checkpoint_is_made_after_a_time_if_there_is_something_new_and_else_none(
    dsn: str, log: ListedLog, file: Path
):
    late = log.entries[30:]
    del log.entries[30:]
    async with projecting(dsn, log, terms=terms(file, entries=1_000, every_s=0.1)):
        await has(dsn, 30)
        log.entries += late
        await has(dsn, 30, 35)
    assert await sizes(dsn) == [30, 35]


async def test_what_was_due_stays_due_when_the_projector_begins_anew(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection
):
    """An outage of the log ends the rounds and begins them anew; the time that an entry has waited is not forgotten."""
    await archive_only(dsn, log)
    await superuser.execute("UPDATE events SET archived_at = archived_at - interval '1 h'")
    async with projecting(dsn, log, terms=terms(file, every_s=NEVER_S)):
        await has(dsn, 10, 20, 30, 35)


async def test_an_archive_far_ahead_is_signed_in_steps_of_a_bounded_size(
    dsn: str, log: ListedLog, file: Path
):
    await archive_only(dsn, log)
    await project_all(dsn, log, terms=terms(file, entries=8))
    assert await sizes(dsn) == [8, 16, 24, 32, 35]
    await all_is_good(dsn, file)


async def test_each_partition_has_its_own_checkpoints_in_one_file(dsn: str, log: ListedLog, file: Path):
    logs = [log, ListedLog(log_of(*([observed(f"pout_other{n}")] for n in range(12))))]
    stopping = asyncio.Event()
    running = asyncio.create_task(
        run_projector(dsn, 2, logs.__getitem__, stopping, Duties(terms=terms(file, entries=10)))
    )
    async with asyncio.timeout(DEADLINE_S):
        while await fetch(dsn, "SELECT partition, seq FROM heads ORDER BY partition") != [(0, 35), (1, 12)]:
            await asyncio.sleep(0.02)
    stopping.set()
    await running
    assert sorted(in_file(file)) == [(0, 10), (0, 20), (0, 30), (0, 35), (1, 10), (1, 12)]
    await all_is_good(dsn, file)


async def test_a_partition_that_ends_leaves_its_checkpoints_to_another_process(
    dsn: str, log: ListedLog, file: Path
):
    """The connection, which others use too, goes on; the partition's lock must not."""
    await archive_only(dsn, log)
    shared, ends = Shared(dsn, name="streamproc checkpoints"), [asyncio.Event(), asyncio.Event()]
    tasks = [
        asyncio.create_task(keep_checkpoints(partition, shared, terms(file), ends[partition]))
        for partition in range(2)
    ]
    held = f"SELECT objid::int FROM pg_locks WHERE locktype = 'advisory' AND classid = {CHECKPOINT_LOCK} ORDER BY 1"
    async with asyncio.timeout(DEADLINE_S):
        while await fetch(dsn, held) != [(0,), (1,)]:
            await asyncio.sleep(0.02)
        ends[0].set()
        await tasks[0]
        assert await fetch(dsn, held) == [(1,)]
        ends[1].set()
        await tasks[1]


async def test_a_new_key_goes_on_where_the_old_one_stopped(dsn: str, log: ListedLog, file: Path):
    both = Trusted([OTHER_SIGNER.public, SIGNER.public])
    await project_all(dsn, ListedLog(log.entries[:10]), terms=terms(file, entries=10))
    await project_all(dsn, log, terms=terms(file, entries=10, signer=OTHER_SIGNER, trusted=both))
    assert (await verify(dsn, both, file)).broken == []
    assert "of 20 entries: it is signed by" in str((await verify(dsn, TRUSTED, file)).parts[0].fault)


# ---- crashes and outages ----


async def test_a_projector_whose_connections_are_killed_again_and_again_signs_each_entry_once(
    dsn: str, file: Path
):
    log = ListedLog(history(seed=5, payouts=60))
    killer = await asyncpg.connect(dsn)
    try:
        async with projecting(dsn, log, batch_max=5, terms=terms(file, entries=7, every_s=0.05)):
            for _ in range(8):
                before = len(await sizes(dsn))
                async with asyncio.timeout(DEADLINE_S):
                    while len(await sizes(dsn)) == before < len(log.entries) // 7:
                        await asyncio.sleep(0.005)
                await killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'streamproc %'"
                )
            async with asyncio.timeout(DEADLINE_S):
                while (await sizes(dsn))[-1] != len(log.entries):
                    await asyncio.sleep(0.02)
    finally:
        await killer.close()
    assert sorted(set(in_file(file))) == [(0, size) for size in await sizes(dsn)]
    await all_is_good(dsn, file)


class Crashing(NotesFile):
    """Keeps the note, and then the answer is lost."""

    crashes = 2

    async def put(self, note: str) -> None:
        await super().put(note)
        if self.crashes:
            self.crashes -= 1
            raise ConnectionResetError("crash")


async def test_a_crash_after_a_publication_repeats_it_and_nothing_else(dsn: str, log: ListedLog, file: Path):
    async with projecting(dsn, log, terms=terms(Crashing(file), entries=10)):
        await has(dsn, 10, 20, 30)
    assert in_file(file) == [(0, 10), (0, 10), (0, 10), (0, 20), (0, 30), (0, 35)]
    await all_is_good(dsn, file)


async def test_a_place_that_is_away_holds_up_neither_archive_nor_signing_and_gets_what_it_missed_in_order(
    dsn: str, log: ListedLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nowhere = tmp_path / "not yet"
    async with projecting(dsn, log, terms=terms(nowhere / "checkpoints.txt", entries=10)) as task:
        await said(caplog, "checkpoints.txt cannot be written: No such file or directory")
        async with asyncio.timeout(DEADLINE_S):
            while await sizes(dsn) != [10, 20, 30]:
                assert not task.done()
                await asyncio.sleep(0.02)
        assert await fetch(dsn, "SELECT * FROM checkpoints_published") == []
        nowhere.mkdir()
        await has(dsn, 10, 20, 30)
    assert in_file(nowhere / "checkpoints.txt") == [(0, 10), (0, 20), (0, 30), (0, 35)]
    assert caplog.text.count("cannot be written") == 1


# ---- never over a contradiction ----


async def refused(
    dsn: str, log: ListedLog, wanted: CheckpointTerms, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    """A projector of this log archives it whole, and signs nothing, with an alarm that has these words."""
    before = await sizes(dsn)
    log.entries.append(log_of([observed("pout_after")])[0]._replace(id=f"{START_MS + 10**7}-0"))
    async with projecting(dsn, log, terms=wanted):
        await said(caplog, "ALARM, nothing more is signed")
        async with asyncio.timeout(DEADLINE_S):
            while await fetch(dsn, "SELECT entry_id FROM heads") != [(log.entries[-1].id,)]:
                await asyncio.sleep(0.02)
    assert await sizes(dsn) == before
    assert words in caplog.text


async def test_a_row_changed_before_it_was_signed_is_not_signed_over(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await archive_only(dsn, log)
    await superuser.execute("UPDATE events SET m = '{}' WHERE seq = 17")
    await refused(dsn, log, terms(file, entries=100, every_s=0.1), caplog, "row 17, entry")


async def test_checkpoints_that_only_the_file_has_are_taken_back_where_the_archive_has_what_they_state(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    """As after a failover of Postgres to a standby that lacked the newest of them."""
    await project_all(dsn, log, terms=terms(file))
    notes = await fetch(dsn, "SELECT size, note, frontier FROM checkpoints ORDER BY size")
    await NotesFile(file).put(str(notes[2][1]))  # as a crash after the first time leaves it
    await superuser.execute(
        "DELETE FROM checkpoints WHERE size > 10; UPDATE checkpoints_published SET size = 10"
    )
    async with projecting(dsn, log, terms=terms(file)):
        await has(dsn, 10, 20, 30, 35)
        await said(caplog, "checkpoints up to 35 entries that only")
    assert await fetch(dsn, "SELECT size, note, frontier FROM checkpoints ORDER BY size") == notes
    await all_is_good(dsn, file)


@pytest.mark.parametrize("kept", [-1, -2, -3, -40, -90, -100])
async def test_a_note_that_a_crash_cut_off_in_its_signature_is_as_if_it_were_not_in_the_file(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, kept: int
):
    """It passed for a forged one, and nothing was signed any more."""
    await project_all(dsn, log, terms=terms(file))
    good, last = file.read_text()[:-1].rsplit("\n\nstreamproc/", 1)
    last = f"streamproc/{last}"
    for lost in (False, True):
        file.write_text(f"{good}\n\n{last[:kept]}")  # at the end, and then with the same note whole after it
        for _ in range(2):
            await superuser.execute("UPDATE checkpoints_published SET size = 30")
            if lost:
                await superuser.execute("DELETE FROM checkpoints WHERE size > 30")
            await project_all(dsn, log, terms=terms(file))
            assert await sizes(dsn) == [10, 20, 30, 35]
            await NotesFile(file).put(last)
        await all_is_good(dsn, file)


async def test_checkpoints_of_another_history_than_the_archives_are_not_taken_back(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log, terms=terms(file))
    await superuser.execute("DELETE FROM checkpoints; DELETE FROM checkpoints_published")
    row = await superuser.fetchrow("SELECT * FROM events WHERE seq = 34")
    link = link_hash(row["hash"], 0, 35, log.entries[-1].id, log.entries[-1].e, b"{}")
    await superuser.execute("UPDATE events SET m = '{}', hash = $1 WHERE seq = 35", link)
    await superuser.execute("UPDATE heads SET hash = $1", link)
    log.entries[-1] = log.entries[-1]._replace(m=b"{}")
    log.entries.append(log_of([observed("pout_after")])[0]._replace(id=f"{START_MS + 10**7}-0"))
    async with projecting(dsn, log, terms=terms(file, entries=1)) as task:
        await said(caplog, "a checkpoint of 35 entries that was handed outside states another history")
        await archived(dsn, log.entries[-1].id, task)
    assert await sizes(dsn) == [10, 20, 30]


async def test_nothing_is_signed_while_the_archive_lacks_what_was_handed_outside(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log, terms=terms(file))
    row = await superuser.fetchrow("SELECT entry_id, hash FROM events WHERE seq = 20")
    await superuser.execute(
        "DELETE FROM checkpoints WHERE size > 10; UPDATE checkpoints_published SET size = 10;"
        "DELETE FROM events WHERE seq > 20"
    )
    await superuser.execute("UPDATE heads SET seq = 20, entry_id = $1, hash = $2", *row)
    lost, log.entries = log.entries[20:], log.entries[:20]
    async with projecting(dsn, log, terms=terms(file, entries=1)):
        await said(caplog, "holds a checkpoint of 30 entries, and the archive has 20")
        assert await sizes(dsn) == [10, 20]
        log.entries += lost
        await has(dsn, 10, 20, 30, 35)
    await all_is_good(dsn, file)


async def test_a_history_that_was_signed_anew_with_the_stolen_key_is_not_built_on_where_the_file_knows_another(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log, terms=terms(file))
    await superuser.execute("DELETE FROM checkpoints; DELETE FROM checkpoints_published")
    row = await superuser.fetchrow("SELECT * FROM events WHERE seq = 34")
    link = link_hash(row["hash"], 0, 35, log.entries[-1].id, log.entries[-1].e, b"{}")
    await superuser.execute("UPDATE events SET m = '{}', hash = $1 WHERE seq = 35", link)
    await superuser.execute("UPDATE heads SET hash = $1", link)
    forger = await Maker.open(superuser, 0, SIGNER, TRUSTED)
    await forger.make(35)
    await forger.published(35)
    log.entries[-1] = log.entries[-1]._replace(m=b"{}")
    await refused(dsn, log, terms(file, entries=1), caplog, "two signed checkpoints of 35 entries")


HARM = {
    "its row": ("UPDATE events SET hash = sha256(hash) WHERE seq = 35", "row 35 is not the one that was signed"),
    "its row's id": ("UPDATE events SET entry_n = 9 WHERE seq = 35", "row 35 is not the one that was signed"),
    "its note": (
        "UPDATE checkpoints SET note = replace(note, 'entry', 'entri')", "cannot be continued: its signature is not",
    ),
    "its root": ("UPDATE checkpoints SET root = sha256(root)", "another content than its signed note"),
    "its frontier's length": ("UPDATE checkpoints SET frontier = sha256(frontier)", "cannot be continued"),
    "its frontier": (
        "UPDATE checkpoints SET frontier = sha256('1') || sha256('2') || sha256('3')", "a frontier that is not",
    ),
    "its place": ("UPDATE checkpoints SET size = 34", "another content than its signed note"),
    "the archive's end": ("UPDATE heads SET seq = 34", "the archive ends at 34, the last checkpoint covers 35"),
    "the archive's name": ("UPDATE archive_identity SET id = gen_random_uuid()", "another content than its signed"),
    "what was published": ("INSERT INTO checkpoints_published VALUES (0, 36)", "of 36 entries was published"),
    "it, and it was published": (
        "DELETE FROM checkpoints; INSERT INTO checkpoints_published VALUES (0, 35)", "of 35 entries was published",
    ),
}  # fmt: skip


async def test_a_last_checkpoint_is_not_built_on_where_anything_about_it_was_changed(
    dsn: str, log: ListedLog, superuser: asyncpg.Connection
):
    await archive_only(dsn, log)
    await (await Maker.open(superuser, 0, SIGNER, TRUSTED)).make(35)
    for harm, words in HARM.values():
        changed = superuser.transaction()
        await changed.start()
        for statement in harm.split("; "):
            await superuser.execute(statement)
        with pytest.raises(LogBroken, match=words):
            await Maker.open(superuser, 0, SIGNER, TRUSTED)
        await changed.rollback()
    assert (await Maker.open(superuser, 0, SIGNER, TRUSTED)).size == 35


async def archive_only(dsn: str, log: ListedLog) -> None:
    """The log's entries, archived by nobody who signs."""
    db = await asyncpg.connect(dsn)
    try:
        await make_ranges(db, [START_MS, START_MS + 10**9])
        await archive(db, 0, await open_head(db, 0), log.entries)
    finally:
        await db.close()


async def test_a_checkpoint_of_an_unknown_key_is_not_built_on(
    dsn: str, log: ListedLog, file: Path, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log, terms=terms(file))
    stranger = terms(file, entries=1, signer=OTHER_SIGNER, trusted=Trusted([OTHER_SIGNER.public]))
    await refused(dsn, log, stranger, caplog, "none of the keys that are trusted")


async def test_a_file_of_another_archive_is_not_added_to(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log, terms=terms(file))
    await superuser.execute("DELETE FROM checkpoints; DELETE FROM checkpoints_published")
    await superuser.execute("UPDATE archive_identity SET id = gen_random_uuid()")
    text = file.read_text()
    await refused(dsn, log, terms(file, entries=1), caplog, "which is not this one")
    assert file.read_text() == text


async def test_a_second_maker_of_a_partition_is_a_contradiction_and_no_second_history(
    dsn: str, log: ListedLog, superuser: asyncpg.Connection
):
    await archive_only(dsn, log)
    first, second = [await Maker.open(superuser, 0, SIGNER, TRUSTED) for _ in range(2)]
    await first.make(10)
    with pytest.raises(LogBroken, match="a checkpoint of 10 entries already that was not made here"):
        await second.make(10)


class SlowFile(NotesFile):
    """A file whose disk answers when it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def put(self, note: str) -> None:
        self.asked.set()
        await self.answers.wait()
        await super().put(note)


async def test_a_notary_that_is_frozen_loses_the_lock_and_another_one_signs(
    dsn: str, log: ListedLog, file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "FROZEN_MS", 500)
    # So the first one asks nothing while it waits, as if it were frozen.
    monkeypatch.setattr(notary, "ALIVE_S", NEVER_S)
    await archive_only(dsn, log)
    frozen, ended = SlowFile(file), asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as notaries:
        notaries.create_task(keep_checkpoints(0, Shared(dsn, name="first"), terms(frozen), ended))
        await frozen.asked.wait()
        notaries.create_task(keep_checkpoints(0, Shared(dsn, name="second"), terms(file), ended))
        await has(dsn, 10, 20, 30)
        frozen.answers.set()
        ended.set()
    await all_is_good(dsn, file)


async def test_a_notary_that_is_busy_for_long_is_not_taken_for_frozen(
    dsn: str, log: ListedLog, file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(notary, "ALIVE_S", 0.05)
    await archive_only(dsn, log)
    slow, ended = SlowFile(file), asyncio.Event()
    asks = (
        "SELECT pid, query_start FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'busy'"
    )
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as notaries:
        notaries.create_task(keep_checkpoints(0, Shared(dsn, name="busy"), terms(slow), ended))
        await slow.asked.wait()
        asked = set[tuple[object, ...]]()
        while len(asked) < 4:  # one session, which is never idle for long
            asked.update(await fetch(dsn, asks))
            await asyncio.sleep(0.01)
        assert len({pid for pid, _ in asked}) == 1
        slow.answers.set()
        await has(dsn, 10, 20, 30)
        ended.set()
    assert in_file(file) == [(0, 10), (0, 20), (0, 30), (0, 35)]


async def test_a_database_without_the_tables_is_said_once_and_the_archive_goes_on(
    dsn: str, log: ListedLog, file: Path, superuser: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await superuser.execute("DROP TABLE checkpoints")
    await project_all(dsn, log, terms=terms(file))
    assert "no checkpoints of partition 0, the archive goes on: UndefinedTableError" in caplog.text


# ---- over HTTP ----


async def test_a_note_is_posted_as_it_was_signed(dsn: str, log: ListedLog):
    async with loopback(always(204)) as place:
        post = open_checkpoint_post(f"{place.url}/notes")
        await project_all(dsn, log, terms=terms(post, entries=20))
        await post.aclose()
    assert [(asked.method, asked.path) for asked in place.asked] == [("POST", "/notes")] * 2
    assert place.asked[0].headers["content-type"].startswith("text/plain")
    posted = [checkpoint.opened(asked.body.decode(), TRUSTED)[0].size for asked in place.asked]
    assert posted == [20, 35]


@pytest.mark.parametrize("token", ["", "hunter2"])
async def test_a_place_that_asks_for_a_token_is_given_the_configured_one(token: str, tmp_path: Path):
    async with loopback(always(204)) as place, AsyncExitStack() as stack:
        named = {"CHECKPOINT_TO": place.url, "CHECKPOINT_TOKEN": token, "DATA_DIR": str(tmp_path)}
        found = app._checkpoint_terms(load({f"{PREFIX}{name}": text for name, text in named.items()}), stack)
        assert found is not None
        await found.outside.put("note")
    assert place.asked[0].headers.get("authorization", "") == (token and f"Bearer {token}")


@pytest.mark.parametrize("status", [301, 400, 429, 500])
async def test_an_answer_that_is_no_yes_is_to_be_tried_again(status: int):
    async with loopback(always(status)) as place:
        post = open_checkpoint_post(place.url)
        with pytest.raises(TryAgain):
            await post.put("note")
        await post.aclose()


async def test_a_stop_does_not_wait_for_a_place_that_hangs(
    dsn: str, log: ListedLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "DRAIN_S", 0.1)

    class Hanging:
        where = "a place that hangs"

        async def put(self, note: str) -> None:
            await asyncio.get_running_loop().create_future()

    stopping = asyncio.Event()
    task = asyncio.create_task(
        project(0, log, dsn, Duties(terms=terms(Hanging(), entries=10, every_s=NEVER_S)), stopping=stopping)
    )
    async with asyncio.timeout(DEADLINE_S):
        while await sizes(dsn) != [10]:
            await asyncio.sleep(0.02)
        stopping.set()
        await task

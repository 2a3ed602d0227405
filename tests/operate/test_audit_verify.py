"""Whoever tampers with the archive is found out and named, by somebody who trusts one key and one file.

The tamperer of these tests is the database's superuser, switches the triggers off and knows our code.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from projections.schema import prepare
from streamproc.archive.attest import Maker, identity
from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.inspection import read_outside
from streamproc.archive.note import Signer, Trusted
from streamproc.archive.signing_key import KEY_FILE
from streamproc.domain.entry_ids import id_key
from streamproc.errors import InputError, JobFailed
from streamproc.operate.audit import Verified, outside_file, verify
from streamproc.settings import Settings
from tests.databases import copy_of, template
from tests.operate.words import TOO_LONG
from tests.projections.histories import ListedLog, history, project_all
from tests.projections.seals import OTHER_SIGNER, SIGNER, TRUSTED, terms

SIGNED = 25
"""Rows that checkpoints of 10, 20 and 25 entries cover."""
ROWS = 30
"""Rows in all: the last five came after the last checkpoint."""


@dataclass
class Sealed:
    """An archive, the file of its checkpoints, and its superuser."""

    dsn: str
    file: Path
    db: asyncpg.Connection

    async def verified(self, trusted: Trusted = TRUSTED, file: Path | None = None) -> Verified:
        return await verify(self.dsn, trusted, file or (self.file if self.file.exists() else None))

    async def faults(self) -> list[str]:
        return [str(fault) for fault in (await self.verified()).broken]

    async def id_of(self, seq: int) -> str:
        return str(await self.db.fetchval("SELECT entry_id FROM events WHERE seq = $1", seq))

    async def rehash(self, from_seq: int) -> None:
        """Chain everything from a row on anew, and move the head: what is left is a perfect chain."""
        link = await self.db.fetchval("SELECT hash FROM events WHERE seq = $1", from_seq - 1) or GENESIS
        seq, entry = 0, ""
        for row in await self.db.fetch("SELECT * FROM events WHERE seq >= $1 ORDER BY seq", from_seq):
            seq, entry = row["seq"], row["entry_id"]
            link = link_hash(link, 0, seq, entry, row["e"], row["m"])
            await self.db.execute("UPDATE events SET hash = $2 WHERE seq = $1", seq, link)
        await self.db.execute("UPDATE heads SET seq = $1, entry_id = $2, hash = $3", seq, entry, link)

    async def cut(self, after: int) -> None:
        """Delete the rows after one, and set the head back: an archive that was never longer."""
        await self.db.execute("DELETE FROM events WHERE seq > $1", after)
        await self.db.execute(
            "UPDATE heads SET (seq, entry_id, hash) = (SELECT seq, entry_id, hash FROM events WHERE seq = $1)",
            after,
        )

    async def forget_checkpoints(self, after: int = 0) -> None:
        """Delete the checkpoints of more than `after` entries, and that they were published."""
        await self.db.execute("DELETE FROM checkpoints WHERE size > $1", after)
        await self.db.execute("DELETE FROM checkpoints_published")
        await self.db.execute(
            "INSERT INTO checkpoints_published SELECT partition, max(size) FROM checkpoints GROUP BY partition"
        )

    async def sign_again(self, signer: Signer) -> None:
        """Checkpoints of the same sizes over what is there now."""
        sizes = [row["size"] for row in await self.db.fetch("SELECT size FROM checkpoints ORDER BY size")]
        await self.forget_checkpoints()
        maker = await Maker.open(self.db, 0, signer, Trusted([signer.public]))
        for size in sizes:
            await maker.make(size)
            await maker.published(size)


@pytest.fixture(scope="module")
def original(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A database with a sealed archive, made once, and its file."""
    file = tmp_path_factory.mktemp("sealed") / "checkpoints.txt"

    async def make(dsn: str) -> None:
        await prepare(dsn)
        entries = history(seed=7, payouts=20)[:ROWS]
        await project_all(dsn, ListedLog(entries[:SIGNED]), terms=terms(file))
        await project_all(dsn, ListedLog(entries))

    with template(postgres_server, make) as name:
        yield name, file


@pytest.fixture
async def sealed(original: tuple[str, Path], postgres_server: str, tmp_path: Path) -> AsyncIterator[Sealed]:
    name, its_file = original
    file = tmp_path / "checkpoints.txt"
    file.write_bytes(its_file.read_bytes())
    async with copy_of(postgres_server, name) as dsn:
        db = await asyncpg.connect(dsn)
        await db.execute("SET session_replication_role = replica")  # no trigger speaks
        yield Sealed(dsn, file, db)
        await db.close()


# ---- nothing was tampered with ----


async def test_an_untouched_archive_is_good_and_what_is_not_signed_yet_is_said(sealed: Sealed):
    found = await sealed.verified()
    assert found.broken == []
    [part] = found.parts
    assert (part.rows, part.checkpoints, part.outside, part.signed, part.not_outside) == (
        ROWS,
        3,
        3,
        SIGNED,
        0,
    )
    assert found.notes == []


async def test_without_a_file_outside_it_says_what_that_leaves_open(sealed: Sealed):
    sealed.file.unlink()
    found = await sealed.verified()
    assert found.broken == []
    assert "nothing outside the database was compared" in found.notes[0]


@pytest.mark.parametrize("sign", ["key", "setting", ""])
async def test_a_file_outside_that_is_gone_is_a_file_that_was_emptied(sealed: Sealed, sign: str):
    settings = Settings(data_dir=sealed.file.parent)
    if sign == "key":
        (sealed.file.parent / KEY_FILE).touch()
    elif sign == "setting":
        settings = Settings(data_dir=sealed.file.parent / "else", checkpoint_to=str(sealed.file))
    sealed.file.unlink()
    found = await verify(sealed.dsn, TRUSTED, outside_file(settings, None))
    said = (
        [f"{sealed.file}: 3 checkpoints of partition 0 that were handed outside are not in it"]
        if sign
        else []
    )
    assert [str(fault).partition(": it was cut")[0] for fault in found.broken] == said


def test_a_file_outside_that_cannot_be_read_is_named_and_not_taken_for_none(tmp_path: Path):
    for looked_for in (
        lambda: outside_file(Settings(data_dir=tmp_path / TOO_LONG), None),
        lambda: read_outside(tmp_path, TRUSTED),
    ):
        with pytest.raises(InputError, match=f"^{tmp_path}.*, the file of checkpoints, cannot be read: "):
            looked_for()


def without_the_first(notes: bytes) -> bytes:
    return notes[notes.index(b"streamproc/", 10) :]


def without_the_last(notes: bytes) -> bytes:
    return notes[: notes.rindex(b"\n\nstreamproc/") + 2]


async def test_a_file_that_begins_later_is_a_note_and_no_fault(sealed: Sealed):
    """As after CHECKPOINT_TO was set to another file."""
    sealed.file.write_bytes(without_the_first(sealed.file.read_bytes()))
    found = await sealed.verified()
    assert found.broken == []
    assert "1 checkpoints that were handed outside are not in" in found.notes[0]


@pytest.mark.parametrize(
    ("missing", "change"),
    [
        (1, without_the_last),
        (1, lambda notes: notes[:-60]),
        (1, lambda notes: notes[: notes.index(b"streamproc/", 10)] + notes[notes.rindex(b"\n\nstreamproc/") + 2 :]),
        (3, lambda notes: b""),
        (3, lambda notes: bytes(len(notes))),
        (3, lambda notes: notes.replace(b"\n", b"\r\n")),
    ],
    ids=["the last cut", "half of the last", "the middle cut out", "empty", "zeros", "other line ends"],
)  # fmt: skip
async def test_a_file_that_lost_checkpoints_is_a_fault(
    sealed: Sealed, missing: int, change: Callable[[bytes], bytes]
):
    sealed.file.write_bytes(change(sealed.file.read_bytes()))
    [fault, *_] = [fault for fault in await sealed.faults() if "handed outside" in fault]
    assert f"{missing} checkpoints of partition 0 that were handed outside are not in it" in fault


async def test_a_copy_may_be_older_but_not_have_holes_or_nothing(sealed: Sealed):
    whole = sealed.file.read_bytes()
    sealed.file.write_bytes(without_the_last(whole))
    older = await verify(sealed.dsn, TRUSTED, sealed.file, is_copy=True)
    assert older.broken == []
    assert "1 checkpoints that were handed outside are not in" in older.notes[0]
    sealed.file.write_bytes(b"")
    assert (await verify(sealed.dsn, TRUSTED, sealed.file, is_copy=True)).broken != []


async def test_a_projector_that_goes_on_leaves_an_archive_that_is_good_to_its_end(sealed: Sealed):
    await project_all(sealed.dsn, ListedLog(history(seed=7, payouts=20)), terms=terms(sealed.file))
    found = await sealed.verified()
    assert found.broken == []
    assert found.parts[0].signed == found.parts[0].rows > ROWS


# ---- tampering with rows ----

Tamper = Callable[[Sealed], Awaitable[object]]


def sql(*statements: str) -> Tamper:
    async def run(sealed: Sealed) -> None:
        for statement in statements:
            await sealed.db.execute(statement)

    return run


async def swap_seqs(sealed: Sealed) -> None:
    await sealed.db.execute("UPDATE events SET seq = 25 - seq WHERE seq IN (12, 13)")


async def swap_bytes(sealed: Sealed) -> None:
    rows = {row["seq"]: row for row in await sealed.db.fetch("SELECT * FROM events WHERE seq IN (12, 13)")}
    for here, there in ((12, 13), (13, 12)):
        other = rows[there]
        await sealed.db.execute(
            "UPDATE events SET e = $2, m = $3, payout = $4 WHERE seq = $1",
            here,
            other["e"],
            other["m"],
            other["payout"],
        )


async def fork(sealed: Sealed) -> None:
    """A second row 12 with its own content, chained as it should be."""
    link = await sealed.db.fetchval("SELECT hash FROM events WHERE seq = 11")
    ms, n = id_key(await sealed.id_of(12))
    link = link_hash(link, 0, 12, f"{ms + 1}-{n}", b"[]", b"{}")
    await sealed.db.execute(
        "INSERT INTO events (partition, seq, entry_ms, entry_n, e, m, hash) VALUES (0, 12, $1, $2, '[]', '{}', $3)",
        ms + 1, n, link,
    )  # fmt: skip


async def rewrite(sealed: Sealed) -> None:
    """Another decision in row 12, and everything after it chained anew."""
    await sealed.db.execute('UPDATE events SET m = \'{"by":"nobody"}\' WHERE seq = 12')
    await sealed.rehash(12)


async def rewrite_first(sealed: Sealed) -> None:
    await sealed.db.execute('UPDATE events SET m = \'{"by":"nobody"}\' WHERE seq = 1')
    await sealed.rehash(1)


async def rewrite_and_sign(sealed: Sealed, signer: Signer) -> None:
    await rewrite(sealed)
    await sealed.sign_again(signer)


async def cut_with_checkpoints(sealed: Sealed, after: int) -> None:
    await sealed.cut(after)
    await sealed.forget_checkpoints(after)


async def erase(sealed: Sealed) -> None:
    """As if the partition had never been."""
    await sealed.db.execute("DELETE FROM events; DELETE FROM heads; DELETE FROM view_heads")
    await sealed.forget_checkpoints()


async def exchange_identity(sealed: Sealed) -> None:
    """Another archive, whose checkpoints those outside are not."""
    await sealed.db.execute("UPDATE archive_identity SET id = gen_random_uuid()")
    await rewrite_and_sign(sealed, SIGNER)


CASES: dict[str, tuple[Tamper, str, str]] = {
    # What was done: how, where the fault is, and words of it.
    "a changed byte": (
        sql("UPDATE events SET e = set_byte(e, 40, get_byte(e, 40) # 1) WHERE seq = 12"),
        "partition 0, seq 12, entry ", "its bytes or its id are not those that were archived",
    ),
    "a changed byte of the metadata": (
        sql("UPDATE events SET m = m || ' '::bytea WHERE seq = 12"),
        "partition 0, seq 12, entry ", "its bytes or its id are not those that were archived",
    ),
    "a changed byte of the last row": (
        sql("UPDATE events SET m = m || ' '::bytea WHERE seq = 30"),
        "partition 0, seq 30, entry ", "it is the last: it was changed",
    ),
    "a changed entry id": (
        sql("UPDATE events SET entry_n = entry_n + 5 WHERE seq = 13"),
        "partition 0, seq 13, entry ", "its bytes or its id are not those that were archived",
    ),
    "a changed hash": (
        sql("UPDATE events SET hash = sha256(hash) WHERE seq = 12"),
        "partition 0, seq 12, entry ", "its hash was changed",
    ),
    "a row put under another payout": (
        sql("UPDATE events SET payout = 'pout_other' WHERE seq = 12"),
        "partition 0, seq 12, entry ", "its column payout says pout_other",
    ),
    "the first row deleted": (
        sql("DELETE FROM events WHERE seq = 1"),
        "partition 0, seq 2, entry ", "it comes after seq 0: row 1 was deleted",
    ),
    "middle rows deleted": (
        sql("DELETE FROM events WHERE seq IN (12, 13)"),
        "partition 0, seq 14, entry ", "it comes after seq 11: rows 12 to 13 were deleted",
    ),
    "the last row deleted": (
        sql("DELETE FROM events WHERE seq = 30"),
        "partition 0, seq 29, entry ", "the head says that 30 is: row 30 was cut off",
    ),
    "two rows swapped": (swap_seqs, "partition 0, seq 12, entry ", "rows changed places"),
    "two rows' bytes swapped": (
        swap_bytes, "partition 0, seq 12, entry ", "it has the bytes of the row after it: they changed places",
    ),
    "a fork": (fork, "partition 0, seq 12, entry ", "this seq is there twice"),
    "a row added beyond the head": (
        sql("INSERT INTO events (partition, seq, entry_ms, entry_n, e, m, hash)"
            " SELECT 0, 31, entry_ms + 1, 0, e, m, sha256(hash) FROM events WHERE seq = 30"),
        "partition 0, seq 31, entry ", "it is the last: it was changed, or put here",
    ),
    "the head moved": (
        sql("UPDATE heads SET seq = 29"), "partition 0, seq 30, entry ", "one of them was changed",
    ),
    "a chain re-hashed forward": (
        rewrite, "partition 0, checkpoint of 20 entries", "rows 11 to 20 were not as they were when it was signed",
    ),
    "a chain re-hashed forward from the first row on": (
        rewrite_first, "partition 0, checkpoint of 10 entries", "rows 1 to 10 were not",
    ),
    "truncation after a checkpoint": (
        lambda sealed: sealed.cut(22),
        "partition 0, seq 22, entry ", "a checkpoint of 25 entries was signed",
    ),
    "truncation after a checkpoint, with its row": (
        lambda sealed: cut_with_checkpoints(sealed, 20),
        "partition 0, seq 20, entry ", "rows 21 to 25 were cut off",
    ),
    "all rows and checkpoints deleted": (erase, "partition 0: it has no rows", "rows 1 to 25 were cut off"),
    "the last checkpoint deleted": (
        sql("DELETE FROM checkpoints WHERE size = 25"), "partition 0, checkpoint of 25 entries", "it was deleted there",
    ),
    "a middle checkpoint deleted": (
        sql("DELETE FROM checkpoints WHERE size = 20"), "partition 0, checkpoint of 20 entries", "it was deleted there",
    ),
    "a rewritten history signed by another key": (
        lambda sealed: rewrite_and_sign(sealed, OTHER_SIGNER),
        "partition 0, checkpoint of 10 entries", "none of the keys that are trusted",
    ),
    "a rewritten history signed by the stolen key": (
        lambda sealed: rewrite_and_sign(sealed, SIGNER),
        "partition 0, checkpoint of 20 entries", "two signed checkpoints of 20 entries that state different histories",
    ),
    "a forged note": (
        sql("UPDATE checkpoints SET note = replace(note, E'\\n20\\n', E'\\n21\\n') WHERE size = 20"),
        "partition 0, checkpoint of 20 entries", "it was forged or changed",
    ),
    "another checkpoint's note": (
        sql("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 10) WHERE size = 20"),
        "partition 0, checkpoint of 20 entries", "do not agree on size, entry_id, hash, root",
    ),
    "a changed root": (
        sql("UPDATE checkpoints SET root = sha256(root) WHERE size = 20"),
        "partition 0, checkpoint of 20 entries", "do not agree on root",
    ),
    "a changed frontier": (
        sql("UPDATE checkpoints SET frontier = sha256(frontier) || sha256(frontier) WHERE size = 20"),
        "partition 0, checkpoint of 20 entries", "do not agree on frontier",
    ),
    "another archive in its place": (exchange_identity, "checkpoints.txt, line 1", "the database was exchanged"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_tampering_is_found_and_named(sealed: Sealed, case: str):
    tamper, where, words = CASES[case]
    await tamper(sealed)
    fault, *_ = await sealed.faults()
    assert where in fault
    assert words in fault


async def test_a_whole_partition_beside_another_is_missed(sealed: Sealed):
    """The second partition's checkpoints outside name it, though no table does."""
    note = sealed.file.read_text().replace("/0\n", "/1\n")
    texts = [part.rpartition("\n\n")[0] + "\n" for part in note.split("\n\nstreamproc")[:1]]
    sealed.file.write_text(sealed.file.read_text() + SIGNER.sign(texts[0]) + "\n")
    faults = await sealed.faults()
    assert len(faults) == 1
    assert faults[0].startswith("partition 1: it has no rows, but a checkpoint of 10 entries was signed")


# ---- tampering with the file ----


async def test_a_checkpoint_changed_in_the_file_is_named_by_its_line(sealed: Sealed):
    text = sealed.file.read_text()
    sealed.file.write_text(text.replace("\n20\n", "\n21\n"))
    [fault] = await sealed.faults()
    assert "checkpoints.txt, line 10: this is no good checkpoint: its signature is not that of key" in fault


async def test_two_signed_checkpoints_of_one_size_in_the_file_are_a_fork(sealed: Sealed):
    await rewrite_and_sign(sealed, SIGNER)
    forged = await sealed.db.fetchval("SELECT note FROM checkpoints WHERE size = 20")
    with sealed.file.open("a") as file:
        file.write(forged + "\n")
    words = "line 28: this one and the one in line 10 are two signed checkpoints of 20 entries"
    assert any(words in fault for fault in await sealed.faults())


# ---- what cannot be found out ----


async def test_a_cut_tail_that_no_checkpoint_covers_is_not_claimed_to_be_protected(sealed: Sealed):
    """Nothing here knows of these rows; the output says up to where the archive is protected."""
    await sealed.cut(27)
    found = await sealed.verified()
    assert found.broken == []
    assert (found.parts[0].signed, found.parts[0].rows) == (SIGNED, 27)


async def test_a_cut_tail_with_its_checkpoints_and_without_a_file_is_not_found_and_that_is_said(
    sealed: Sealed,
):
    await cut_with_checkpoints(sealed, 20)
    sealed.file.unlink()
    found = await sealed.verified()
    assert found.broken == []
    assert "whoever can delete rows can delete checkpoints too" in found.notes[0]


async def test_only_keys_that_are_named_count(sealed: Sealed):
    found = await sealed.verified(Trusted([OTHER_SIGNER.public]))
    assert "none of the keys that are trusted" in str(found.broken[0])


async def test_a_database_that_is_away_is_one_clear_error(sealed: Sealed):
    with pytest.raises(JobFailed, match="Postgres"):
        await verify("postgresql://nobody@127.0.0.1:1/none", TRUSTED, sealed.file)


async def test_it_is_one_snapshot_though_rows_are_added_meanwhile(sealed: Sealed):
    """The archive grows between the first look and the last; what was not there at first is no fault."""
    archive = await identity(sealed.db)
    assert archive
    grown = asyncio.create_task(
        project_all(sealed.dsn, ListedLog(history(seed=7, payouts=20)), terms=terms(sealed.file, entries=2))
    )
    while not grown.done():
        assert await sealed.faults() == []
    await grown
    assert await sealed.faults() == []

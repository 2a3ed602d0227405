"""Links of what a process archived itself are not computed twice, and nothing is signed but what is stored."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec.structs import replace

from streamproc.archive.attest import Lately, Maker
from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import open_head
from streamproc.errors import LogBroken
from streamproc.operate.audit import verify
from tests.projections.histories import START_MS, history, rows_of
from tests.projections.seals import SIGNER, TRUSTED

ROWS = rows_of(history(seed=13, payouts=20))[:35]


def link_of(lately: Lately, row: ArchivedEntry, previous: bytes) -> bytes | None:
    return lately.link_after(previous, row.seq, row.id, row.e, row.m)


def remembered(*rows: ArchivedEntry, rows_max: int = 100) -> Lately:
    lately = Lately(rows_max)
    lately.put(rows)
    return lately


def test_the_link_of_a_row_that_follows_the_one_before_it_is_known():
    first, second, third = ROWS[:3]
    lately = remembered(first, second, third)
    assert link_of(lately, first, GENESIS) is None, "what it follows was archived by others"
    assert link_of(lately, second, first.hash) == second.hash
    assert link_of(lately, third, second.hash) == third.hash
    assert link_of(lately, third, second.hash) is None, "asked for once, it is forgotten"


@pytest.mark.parametrize("changed", [{"e": b"[]"}, {"m": b"{}"}, {"id": "1-1"}], ids=str)
def test_a_row_that_is_not_stored_as_it_was_archived_has_no_known_link(changed: dict[str, object]):
    first, second, third = ROWS[:3]
    lately = remembered(first, second, third)
    link_of(lately, first, GENESIS)
    assert link_of(lately, replace(second, **changed), first.hash) is None
    assert link_of(lately, third, GENESIS) is None, "it follows another row than it did"


def test_a_row_is_not_known_without_the_one_before_it():
    first, second, third = ROWS[:3]
    assert link_of(remembered(second), second, first.hash) is None
    lately = remembered(first, third)
    link_of(lately, first, GENESIS)
    assert link_of(lately, third, first.hash) is None
    lately = remembered(first, second, third, rows_max=2)
    assert link_of(lately, second, first.hash) is None
    assert link_of(lately, third, second.hash) == third.hash


@pytest.fixture
async def db(prepared: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that no trigger stops."""
    db = await asyncpg.connect(prepared)
    await db.execute("SET session_replication_role = replica")
    await make_ranges(db, [START_MS, START_MS + 10**9])
    yield db
    await db.close()


async def maker_of_what_it_archives(db: asyncpg.Connection) -> Maker:
    lately = Lately()
    rows, _ = await archive(db, 0, await open_head(db, 0), ROWS)
    lately.put(rows)
    return await Maker.open(db, 0, SIGNER, TRUSTED, lately)


@pytest.mark.parametrize(
    "change", ["m = '{}'", "e = '[]'", "hash = sha256(hash)", "entry_n = entry_n + 1000"]
)
async def test_a_row_changed_between_archiving_and_signing_is_not_signed_over(
    db: asyncpg.Connection, change: str
):
    maker = await maker_of_what_it_archives(db)
    await db.execute(f"UPDATE events SET {change} WHERE seq = 17")
    with pytest.raises(LogBroken, match="row 17, entry"):
        await maker.make(35)
    assert await db.fetchval("SELECT count(*) FROM checkpoints") == 0


async def test_what_is_stored_is_signed_and_not_what_was_archived(db: asyncpg.Connection, prepared: str):
    maker = await maker_of_what_it_archives(db)
    link = link_hash(ROWS[33].hash, 0, 35, ROWS[34].id, ROWS[34].e, b"{}")
    await db.execute("UPDATE events SET m = '{}', hash = $1 WHERE seq = 35", link)
    await db.execute("UPDATE heads SET hash = $1", link)
    assert (await maker.make(35)).hash == link
    assert (await verify(prepared, TRUSTED, None)).broken == []

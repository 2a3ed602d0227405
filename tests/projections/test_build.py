"""A builder folds many entries at a time and gives views what they read only: it writes what the live ones have."""

import asyncio
import io
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import build, build_worker, rebuild
from projections.fold import decode, steps_of
from projections.heads import Records
from projections.rebuild import archive_ends, build_slice, drop_schema, finish_build, plan_build
from projections.views import NAMES, VERSIONS, VIEWS
from streamproc.domain.payouts import CHANGING, PayoutRecord
from streamproc.errors import LogBroken
from streamproc.operate.replay import replay
from tests.projections.histories import (
    START_MS,
    ListedLog,
    Stored,
    everything,
    fetch,
    history,
    log_of,
    project_all,
    rows_of,
)
from tests.words import policies

PAYOUTS = 60
PLACE = "built_here"


@pytest.fixture
async def dsn(prepared: str) -> str:
    """Of a database whose live views show a history."""
    first = Stored(f"{START_MS - 1}-0", *log_of(list(policies("policies: {bot: {daily_limit: 5}}")))[0][1:])
    await project_all(prepared, ListedLog([first, *history(17, PAYOUTS)]))
    return prepared


@pytest.fixture
async def place(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(dsn)
    yield db
    await drop_schema(db, PLACE)
    await db.close()


async def built(dsn: str, place: asyncpg.Connection, jobs: int, segment_rows: int) -> None:
    """Build the schema as a replay does, but in this process."""
    db = await asyncpg.connect(dsn)
    ends = await archive_ends(db)
    await db.close()
    plan = await plan_build(place, PLACE, ends, jobs)
    shares = [build_slice(dsn, PLACE, share, lambda *_: None, segment_rows=segment_rows) for share in plan]
    ended = await asyncio.gather(*shares, return_exceptions=True)  # what fails in one leaves no other at work
    for problem in filter(None, ended):
        raise problem


async def keys(dsn: str, schema: str) -> list[object]:
    """Constraints and indexes of a schema's views."""
    return await fetch(
        dsn,
        "SELECT c.relname, i.relname, x.indisprimary, pg_get_indexdef(i.oid, 0, true) LIKE '%UNIQUE%'"
        " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid"
        " WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY($2) ORDER BY 1, 2",
        schema,
        list(NAMES),
    )


@pytest.mark.parametrize(("jobs", "segment_rows", "at_once"), [(1, 1_000, 64), (3, 7, 3)])
async def test_what_builders_write_is_what_the_live_views_have(
    dsn: str,
    place: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    segment_rows: int,
    at_once: int,
) -> None:
    """Also where a payout's record is no longer in memory when its next entry comes."""
    monkeypatch.setattr(build, "ENTRIES_AT_ONCE", at_once)
    monkeypatch.setattr(rebuild, "Records", lambda partition: Records(partition, records_max=segment_rows))
    await built(dsn, place, jobs, segment_rows)
    for view in NAMES:
        differing = f"(SELECT * FROM {PLACE}.{view} EXCEPT ALL SELECT * FROM public.{view})"
        missing = f"(SELECT * FROM public.{view} EXCEPT ALL SELECT * FROM {PLACE}.{view})"
        assert await fetch(dsn, f"{differing} UNION ALL {missing}") == [], view
    shown = await everything(dsn)
    assert all(shown[view] for view in NAMES)


async def test_a_finish_that_was_killed_between_two_indexes_goes_on_with_those_that_are_missing(
    dsn: str, place: asyncpg.Connection
) -> None:
    await built(dsn, place, 1, 1_000)
    await place.execute("CREATE UNIQUE INDEX audit_pkey ON audit (partition, seq, place)")
    await place.execute("CREATE INDEX holds_state ON holds (state, held_at)")
    for _ in range(2):
        await finish_build(place, dsn, PLACE, 2)
        assert await keys(dsn, PLACE) == await keys(dsn, "public")


async def test_what_a_version_before_left_half_built_with_other_keys_begins_anew(dsn: str) -> None:
    """Its `audit` has its key from the beginning, and cannot be given it last: every replay failed from then on."""
    before = await everything(dsn)
    db = await asyncpg.connect(dsn)
    [share, *_] = await plan_build(db, "public_shadow", await archive_ends(db), 2)
    await build_slice(dsn, "public_shadow", share, lambda *_: None)
    await db.execute("ALTER TABLE audit ADD PRIMARY KEY (partition, seq, place)")
    versions = " ".join(f"{name}={VERSIONS[name]}" for name in sorted(VERSIONS))
    await db.execute("UPDATE build SET fingerprint = $1", versions)
    await db.close()
    result = await replay(dsn, jobs=1)
    assert (result.swapped, result.notes) == (True, [])
    assert await everything(dsn) == before


async def test_lines_that_are_there_twice_fail_the_finish(dsn: str, place: asyncpg.Connection) -> None:
    """A builder's position keeps them out; the key is what would show that it did not."""
    await built(dsn, place, 1, 1_000)
    await place.execute("INSERT INTO audit SELECT * FROM audit LIMIT 1")
    with pytest.raises(asyncpg.UniqueViolationError, match="audit_pkey"):
        await finish_build(place, dsn, PLACE, 2)
    assert await place.fetchval("SELECT count(*) FROM view_heads") == 0


async def test_an_entry_that_is_archived_under_another_payout_stops_the_build_by_name(
    dsn: str, place: asyncpg.Connection
) -> None:
    """It would be folded as if its payout were new, by a share that does not have that."""
    await fetch(dsn, "ALTER TABLE events DISABLE TRIGGER events_rows_stay")
    await fetch(dsn, "UPDATE events SET payout = 'pout_other' WHERE seq = 30")
    with pytest.raises(
        LogBroken, match=r"entry 0:\S+ is about payout pout_\d+ and archived under pout_other"
    ):
        await built(dsn, place, 2, 1_000)


@given(seed=st.integers(0, 2**32), payouts_n=st.integers(1, 6), at_once=st.integers(1, 5))
def test_folded_a_few_entries_at_a_time_it_is_the_same_but_for_steps_that_nobody_reads(
    seed: int, payouts_n: int, at_once: int
) -> None:
    log = [decode(0, row) for row in rows_of(history(seed, payouts_n))]
    read = frozenset().union(*(view.reads for view in VIEWS if view.reads is not CHANGING))
    now: dict[str, PayoutRecord | None] = {}
    found = [
        step
        for first in range(0, len(log), at_once)
        for step in steps_of(0, log[first : first + at_once], {}, now, read)
    ]
    whole = steps_of(0, log, {})
    assert found == [s for s in whole if s.after is not s.before or type(s.event) in read]
    assert now == {step.payout: step.after for step in whole if step.payout}


def test_an_error_of_postgres_ends_a_builder_with_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise asyncpg.DiskFullError('could not extend file "base/1/2": No space left on device')

    monkeypatch.setattr(build_worker, "build_slice", full)
    share = rebuild.Slice(0, 1, 2, 10, "1-0", 0, rebuild.fingerprint())
    order = msgspec.json.encode(build_worker.Order("postgresql://nobody/x", PLACE, share))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(order + b"\n")))
    assert build_worker.main() == 1
    out, err = capfd.readouterr()
    said = msgspec.json.decode(out, type=build_worker.Report)
    assert (
        said.problem == 'Postgres: DiskFullError: could not extend file "base/1/2": No space left on device'
    )
    assert err == ""

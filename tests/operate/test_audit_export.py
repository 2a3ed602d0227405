"""Listing and exporting the audit: page by page, whole files or none, and nothing a spreadsheet would run."""

import asyncio
import csv
import errno
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from projections.schema import prepare
from streamproc.archive import evidence
from streamproc.archive.read import AuditFilter
from streamproc.errors import InputError, JobFailed
from streamproc.operate.audit_list import line_json, list_lines
from streamproc.operate.export import COLUMNS, export_lines, format_of, safe_cell
from streamproc.operate.moments import moment
from tests.databases import copy_of, template
from tests.operate.words import NOBODY_THERE
from tests.projections.histories import ListedLog, history, project_all


@pytest.fixture(scope="module")
def original(postgres_server: str) -> Iterator[str]:
    """An archive with its views, made once."""

    async def make(dsn: str) -> None:
        await prepare(dsn)
        await project_all(dsn, ListedLog(history(seed=21, payouts=30)))

    with template(postgres_server, make) as name:
        yield name


@pytest.fixture
async def dsn(original: str, postgres_server: str) -> AsyncIterator[str]:
    async with copy_of(postgres_server, original) as dsn:
        yield dsn


async def all_lines(dsn: str, wanted: AuditFilter = AuditFilter()) -> list[dict[str, object]]:  # noqa: B008  # frozen
    """Every line that matches, by one page after the other, the newest first."""
    found, after = list[dict[str, object]](), None
    while True:
        page = await list_lines(dsn, wanted, after=after, limit=7)
        found += [line_json(row) for row in page.items]
        if page.next is None:
            return found
        after = page.next


# ---- list ----


async def test_pages_together_are_all_lines_once_the_newest_first(dsn: str):
    db = await asyncpg.connect(dsn)
    rows = await db.fetch("SELECT id FROM audit ORDER BY at DESC, partition DESC, seq DESC, place DESC")
    await db.close()
    assert [line["id"] for line in await all_lines(dsn)] == [row["id"] for row in rows]
    assert len(rows) > 50


async def test_lines_of_a_view_that_was_not_replayed_since_an_upgrade_are_listed_too(dsn: str):
    db = await asyncpg.connect(dsn)
    rows = await db.fetch("SELECT id, trace_id FROM audit")
    await db.execute("ALTER TABLE audit DROP COLUMN trace_id")  # as version 1 of the view had none
    await db.close()
    assert {line["id"]: line["trace_id"] for line in await all_lines(dsn)} == dict(rows)


async def test_pages_of_a_filter_are_what_matches(dsn: str):
    everything = await all_lines(dsn)
    for wanted in (
        {"decision": "REJECTED"},
        {"agent": "bot", "kind": "settlement"},
        {"vendor": "vendor.example"},
    ):
        expected = [line for line in everything if all(line[name] == value for name, value in wanted.items())]
        assert await all_lines(dsn, AuditFilter(**wanted)) == expected  # type: ignore[arg-type]


async def test_lines_of_views_that_stand_still_are_not_taken_for_all_there_are(dsn: str, tmp_path: Path):
    """Else a person would read `no line matches`, or sum up a table, and not know."""

    async def notes() -> list[list[str]]:
        page = await list_lines(dsn, AuditFilter(), after=None, limit=5)
        return [
            page.notes,
            (await export_lines(dsn, AuditFilter(), tmp_path / f"{uuid4()}.csv", "csv")).notes,
        ]

    assert await notes() == [[], []]
    db = await asyncpg.connect(dsn)
    await db.execute("UPDATE view_heads SET seq = seq - 2 WHERE view = 'audit'")
    assert await notes() == [[], []], "they are behind since a moment ago"
    await db.execute("ALTER TABLE events DISABLE TRIGGER USER")
    await db.execute("UPDATE events SET archived_at = archived_at - interval '61 seconds'")
    await db.close()
    [note] = {note for notes in await notes() for note in notes}
    assert note.startswith("the views lack 2 archived entries of partition 0, so lines may be missing; ")


async def test_going_on_after_what_is_no_line_is_refused(dsn: str):
    with pytest.raises(InputError, match="is not a line's id"):
        await list_lines(dsn, AuditFilter(), after="pout_1", limit=5)
    with pytest.raises(JobFailed, match="the audit has no such line"):
        await list_lines(dsn, AuditFilter(), after="0:1-1:0", limit=5)


async def test_postgres_away_is_one_clear_error(tmp_path: Path):
    with pytest.raises(JobFailed, match="Postgres is away"):
        await list_lines(NOBODY_THERE, AuditFilter(), after=None, limit=5)
    with pytest.raises(JobFailed, match=r"x\.csv was not written"):
        await export_lines(NOBODY_THERE, AuditFilter(), tmp_path / "x.csv", "csv")
    assert list(tmp_path.iterdir()) == []


def test_a_time_is_iso_8601_or_a_time_ago():
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert moment("--since", "30d", now) == now - timedelta(days=30)
    assert moment("--since", "90m", now) == now - timedelta(minutes=90)
    assert moment("--since", "2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert moment("--since", "2026-11-01T00:00:00+05:30") == datetime(2026, 10, 31, 18, 30, tzinfo=UTC)
    for wrong in ("yesterday", "30", "-3d", ""):
        with pytest.raises(InputError, match="--since"):
            moment("--since", wrong)


# ---- export ----


async def test_each_format_has_the_same_lines_the_oldest_first(dsn: str, tmp_path: Path):
    expected = (await all_lines(dsn))[::-1]
    for form in ("csv", "jsonl", "parquet"):
        heard: list[int] = []
        done = await export_lines(dsn, AuditFilter(), tmp_path / f"x.{form}", form, heard.append)  # type: ignore[arg-type]
        assert done.lines == heard[-1] == len(expected)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines == expected
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["amount_paise"], row["decision"]) for row in rows] == [
        (line["id"], str(line["amount"]), line["decision"] or "") for line in expected
    ]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert tuple(table.schema.names) == COLUMNS
    assert [(row["id"], row["amount_paise"]) for row in table.to_pylist()] == [
        (line["id"], line["amount"]) for line in expected
    ]
    assert (tmp_path / "x.csv").stat().st_mode & 0o777 == 0o600


async def test_an_export_of_nothing_is_a_file_without_lines(dsn: str, tmp_path: Path):
    for form in ("csv", "jsonl", "parquet"):
        done = await export_lines(dsn, AuditFilter(agent="nobody"), tmp_path / f"x.{form}", form)  # type: ignore[arg-type]
        assert done.lines == 0
    assert (tmp_path / "x.csv").read_bytes() == ",".join(COLUMNS).encode() + b"\r\n"
    assert (tmp_path / "x.jsonl").read_bytes() == b""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1"])
def test_text_that_a_spreadsheet_would_run_is_made_text(text: str):
    assert safe_cell(text) == "'" + text


async def test_what_an_agent_chose_is_no_formula_in_a_csv(dsn: str, tmp_path: Path):
    db = await asyncpg.connect(dsn)
    await db.execute(
        """UPDATE audit SET agent = '=HYPERLINK("http://evil")', vendor = '@x', actor = '-1,2"', reason = '+1'"""
    )
    await db.close()
    await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text(), newline="")))
    assert {(row["agent"], row["vendor"], row["actor"], row["reason"]) for row in rows} == {
        ('\'=HYPERLINK("http://evil")', "'@x", "'-1,2\"", "'+1")
    }
    assert all(row["amount_paise"].isdigit() for row in rows)


async def test_a_file_that_is_there_and_a_place_that_is_not_are_refused(dsn: str, tmp_path: Path):
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written: No such file"):
        await export_lines(dsn, AuditFilter(), tmp_path / "none" / "x.csv", "csv")


def as_on_fat(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none, as on FAT"])
async def test_a_file_that_comes_while_it_is_written_is_kept(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
):
    if not links:
        monkeypatch.setattr(os, "link", as_on_fat)

    def come(_: int) -> None:
        (tmp_path / "x.csv").write_text("mine")

    with pytest.raises(InputError, match="came while it was being written, and is kept"):
        await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv", come)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


async def test_a_file_is_written_where_there_are_no_hard_links(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "link", as_on_fat)
    await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("step", ["fsync", "link"])
async def test_a_file_system_that_fails_at_the_end_is_no_error_of_postgres(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(JobFailed, match=r"^.*/x\.csv was not written: Read-only file system$"):
        await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv")
    assert list(tmp_path.iterdir()) == []


async def test_a_link_that_leads_nowhere_is_kept_too(dsn: str, tmp_path: Path):
    (tmp_path / "x.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already"):
        await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv").is_symlink()


async def test_the_longest_name_is_taken_and_a_longer_one_is_no_error_of_postgres(dsn: str, tmp_path: Path):
    longest = "n" * 251 + ".csv"
    await export_lines(dsn, AuditFilter(), tmp_path / longest, "csv")
    assert [file.name for file in tmp_path.iterdir()] == [longest]
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        await export_lines(dsn, AuditFilter(), tmp_path / ("n" + longest), "csv")


async def test_an_export_that_breaks_off_leaves_no_file(dsn: str, tmp_path: Path):
    """Postgres goes while lines are on their way."""
    killer = await asyncpg.connect(dsn)
    killed = []

    def kill(_: int) -> None:
        if not killed:
            killed.append(asyncio.ensure_future(killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'streamproc audit export'"
            )))  # fmt: skip

    real, evidence.LINES_AT_ONCE = evidence.LINES_AT_ONCE, 1
    try:
        with pytest.raises(JobFailed, match=r"x\.csv was not written"):
            await export_lines(dsn, AuditFilter(), tmp_path / "x.csv", "csv", kill)
    finally:
        evidence.LINES_AT_ONCE = real
        await killer.close()
    assert list(tmp_path.iterdir()) == []


async def test_parquet_without_its_extra_names_it(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install '\.\[parquet\]'"):
        await export_lines(dsn, AuditFilter(), tmp_path / "x.parquet", "parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_format_is_named_or_by_the_suffix():
    assert format_of(Path("x.CSV"), None) == "csv"
    assert format_of(Path("x.zip"), None) == "bundle"
    assert format_of(Path("x"), "parquet") == "parquet"
    with pytest.raises(InputError, match=r"\.csv, \.jsonl, \.parquet, \.zip"):
        format_of(Path("x.txt"), None)

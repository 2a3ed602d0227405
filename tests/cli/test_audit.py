"""`streamproc audit` as a person at a terminal and a script see it."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path

import asyncpg
import pytest

from projections.schema import prepare
from streamproc.cli import run
from streamproc.domain.events import PolicyChanged
from streamproc.domain.wire import encode_events
from tests.databases import copy_of, template
from tests.deadline import DEADLINE_S
from tests.projections.histories import START_MS, ListedLog, Stored, history, project_all
from tests.projections.seals import OTHER_SIGNER, SIGNER, terms
from tests.signals import heard
from tests.words import NOW

ROWS = 25
FULL_AT_BYTES = 512
"""Less than any of the exports."""


def entries(count: int) -> list[Stored]:
    """A history that begins with the policy by which its payouts were decided."""
    policy = PolicyChanged(
        at=NOW, scope="agent:bot", version=1, before=None, after={}, effective={}, by="asha", why="first"
    )
    return [Stored(f"{START_MS - 1}-0", encode_events([policy])), *history(seed=7, payouts=20)][:count]


@pytest.fixture(scope="module")
def sealed(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The DSN of a sealed archive, and the directory with its checkpoints."""
    data_dir = tmp_path_factory.mktemp("data")

    async def make(dsn: str) -> None:
        await prepare(dsn)
        await project_all(dsn, ListedLog(entries(ROWS)), terms=terms(data_dir / "checkpoints.txt"))

    with template(postgres_server, make) as name:
        yield f"{postgres_server.rpartition('/')[0]}/{name}", data_dir


@pytest.fixture
def data_dir(sealed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of an auditor at this archive: no Redis, and the public key."""
    dsn, directory = sealed
    monkeypatch.delenv("STREAMPROC_REDIS_URL", raising=False)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
    monkeypatch.setenv("STREAMPROC_DATA_DIR", str(directory))
    monkeypatch.setenv("STREAMPROC_CHECKPOINT_KEYS", SIGNER.public.vkey)
    return directory


@pytest.fixture
async def own(
    sealed: tuple[str, Path], data_dir: Path, postgres_server: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """The DSN of a copy, for a test that archives more: the others share one archive. The environment names it."""
    async with copy_of(postgres_server, sealed[0].rpartition("/")[2]) as dsn:
        monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", dsn)
        yield dsn


def superuser(dsn: str, *statements: str) -> None:
    async def body() -> None:
        db = await asyncpg.connect(dsn)
        await db.execute("SET session_replication_role = replica")
        for statement in statements:
            await db.execute(statement)
        await db.close()

    asyncio.run(body())


def test_a_good_archive_is_told_by_partition_and_needs_no_redis(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["audit", "verify"]) == 0
    said = capsys.readouterr()
    assert (
        f"partition 0: {ROWS} rows good, 3 checkpoints among them; 3 in all in {data_dir}/checkpoints.txt"
        in said.out
    )
    assert f"  signed up to seq {ROWS}, " in said.out
    assert said.err == ""
    assert run(["audit", "verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["partitions"][0]["unsigned"], found["faults"]) == (True, 0, [])


def test_of_many_faults_the_rows_and_the_first_of_the_file_are_told_and_the_rest_counted(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As after somebody replaced the key: every checkpoint in the file, one a minute, is signed by an unknown one."""
    monkeypatch.setattr(import_module("streamproc.cli.audit"), "FAULTS_SHOWN", 2)
    assert run(["audit", "verify", "--key", OTHER_SIGNER.public.vkey]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("BROKEN: ")[2][:12] for line in lines[:2]] == ["partition 0,", str(data_dir)[:12]]
    assert lines[2:] == ["BROKEN: 2 more faults; --json lists all"]
    assert run(["audit", "verify", "--key", OTHER_SIGNER.public.vkey, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 4


def test_a_broken_archive_is_exit_1_and_one_line_that_names_the_first_wrong_link(
    sealed: tuple[str, Path], data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    superuser(sealed[0], "UPDATE events SET m = m || ' '::bytea WHERE seq IN (12, 15)")
    try:
        assert run(["audit", "verify"]) == 1
        said = capsys.readouterr()
        [line] = said.err.splitlines()
        assert line.startswith("streamproc: BROKEN: partition 0, seq 12, entry ")
        assert "partition 0: 11 rows good up to there, 1 checkpoints among them; 3 in all in" in said.out
        assert run(["audit", "verify", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["ok"], found["faults"][0]["seq"]) == (False, 12)
    finally:
        superuser(sealed[0], r"UPDATE events SET m = rtrim(m, ' '::bytea) WHERE seq IN (12, 15)")
    assert run(["audit", "verify"]) == 0


def test_without_any_public_key_it_says_how_to_name_one(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("STREAMPROC_CHECKPOINT_KEYS")
    assert run(["audit", "verify"]) == 2
    assert "name a public key by --key" in capsys.readouterr().err
    file = data_dir / "keys"
    file.write_text(f"{SIGNER.public.vkey}\n")
    assert run(["audit", "verify", "--key", str(file)]) == 0


def test_a_key_is_made_printed_and_never_overwritten(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "key"
    assert run(["audit", "key", "--new", str(file)]) == 0
    vkey = capsys.readouterr().out.strip()
    assert run(["audit", "key", "--new", str(file)]) == 2
    monkeypatch.setenv("STREAMPROC_SIGNING_KEY_FILE", str(file))
    capsys.readouterr()
    assert run(["audit", "key", "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["vkey"] == vkey
    assert file.read_text().strip() not in said
    assert run(["audit", "verify", "--key", str(file)]) == 2, "that is the private one"
    assert file.read_text().strip() not in capsys.readouterr().err


def test_a_list_and_exports_take_the_same_filters(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["audit", "list", "--decision", "approved", "--limit", "2", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert len(page["items"]) == 2
    assert {line["decision"] for line in page["items"]} == {"APPROVED"}
    assert run(["audit", "list", "--after", page["next"], "--limit", "2"]) == 0
    assert "decision" in capsys.readouterr().out
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.zip"):
        assert run(["audit", "export", str(tmp_path / name), "--decision", "APPROVED"]) == 0
        assert str(tmp_path / name) in capsys.readouterr().out
    assert run(["audit", "export", str(tmp_path / "a.csv")]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "counted"), [("a.csv", {"lines"}), ("a.zip", {"entries", "payouts"})])
def test_an_export_says_in_json_what_it_wrote(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, counted: set[str]
):
    assert run(["audit", "export", str(tmp_path / name), "--decision", "APPROVED", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(tmp_path / name)
    assert all(said[what] > 0 for what in counted)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.zip"])
def test_a_disk_without_room_is_said_to_be_the_files_and_leaves_nothing(
    data_dir: Path, tmp_path: Path, name: str
):
    file = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-m", "streamproc", "audit", "export", str(file)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT_BYTES, FULL_AT_BYTES)),
    )
    said = f"streamproc: {file} was not written: File too large\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_an_export_that_is_stopped_leaves_nothing(own: str, tmp_path: Path, how: signal.Signals):
    asyncio.run(project_all(own, ListedLog(entries(ROWS + 1))))  # for which no checkpoint will come
    export = subprocess.Popen(
        [sys.executable, "-m", "streamproc", "audit", "export", str(tmp_path / "a.zip"), "--wait", "3600"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    with export:
        until = time.monotonic() + DEADLINE_S
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.02)  # between two looks; nothing depends on it
        export.send_signal(how)
        _, said = export.communicate(timeout=DEADLINE_S)
    assert (export.returncode, said) == (1, "streamproc: stopped by the user\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_not_covered_yet_is_written_and_exit_1(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asyncio.run(project_all(own, ListedLog(entries(ROWS + 5))))
    assert run(["audit", "export", str(tmp_path / "x.zip"), "--wait", "0"]) == 1
    said = capsys.readouterr()
    assert f"{ROWS} entries about" in said.out
    [line] = said.err.splitlines()
    assert "5 entries that match are NOT in" in line
    assert f"the first is partition 0, seq {ROWS + 1}, entry" in line.replace("The", "the")
    assert run(["audit", "verify"]) == 0
    assert f"not protected yet: 5 rows after seq {ROWS}" in capsys.readouterr().out

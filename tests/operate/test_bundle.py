"""A bundle convinces somebody who has a public key and Python, and nobody can change it so that it still does."""

import ast
import asyncio
import base64
import itertools
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from projections.schema import prepare
from streamproc.archive.attest import Maker
from streamproc.archive.chain import link_hash
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.note import Trusted
from streamproc.archive.read import AuditFilter
from streamproc.archive.store import open_head
from streamproc.domain import events as e
from streamproc.errors import InputError, JobFailed
from streamproc.operate.bundle.verify import L, ed25519_verifies
from streamproc.operate.bundle.write import Bundled, write_bundle
from tests.databases import copy_of, template
from tests.projections.histories import START_MS, ListedLog, Stored, decided, log_of, project_all, reserved
from tests.projections.seals import OTHER_SIGNER, SIGNER, TRUSTED, terms
from tests.words import NOW, observed

VERIFY = str(files("streamproc.operate.bundle").joinpath("verify.py"))
KEY = SIGNER.public.vkey
_names = itertools.count(1)


def policy(agent: str, version: int) -> e.PolicyChanged:
    return e.PolicyChanged(
        at=NOW, scope=f"agent:{agent}", version=version, before=None, after={"daily_limit": version * 1_000},
        effective={"daily_limit": version * 1_000}, by="asha", why="test",
    )  # fmt: skip


def story() -> list[Stored]:
    """Two policies, two payouts decided under the first, one that nobody decided, and rows about others between."""
    batches: list[list[e.Event]] = [[policy("bot", 1)], [policy("scout", 1)]]
    for n in range(1, 4):
        batches.append([observed(f"pout_{n}", 500 * n)])
        batches += [[observed(f"pout_between_{n}_{k}")] for k in range(5)]
        if n < 3:
            outcome: tuple[e.Decision, str] = (
                ("APPROVED", "POLICY_OK") if n == 1 else ("REJECTED", "TXN_LIMIT_EXCEEDED")
            )
            batches.append([reserved(f"pout_{n}", 500 * n), decided(f"pout_{n}", 500 * n, *outcome)])
    batches.append([policy("bot", 2)])
    return log_of(*batches)


@pytest.fixture(scope="module")
def original(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An archive that checkpoints cover to its end."""

    async def make(dsn: str) -> None:
        await prepare(dsn)
        file = tmp_path_factory.mktemp("sealed") / "checkpoints.txt"
        await project_all(dsn, ListedLog(story()), terms=terms(file))

    with template(postgres_server, make) as name:
        yield name


@pytest.fixture
async def dsn(original: str, postgres_server: str) -> AsyncIterator[str]:
    async with copy_of(postgres_server, original) as dsn:
        yield dsn


async def exported(dsn: str, tmp_path: Path, **wanted: str) -> tuple[Path, Bundled]:
    path = tmp_path / f"{next(_names)}.zip"
    return path, await write_bundle(dsn, AuditFilter(**wanted), path, TRUSTED, wait_s=0)  # type: ignore[arg-type]


def verified(path: Path, key: str = KEY, *more: str, program: str = VERIFY) -> tuple[int, str]:
    """As an auditor runs it: another process, without site packages, without our environment."""
    command = [sys.executable, "-I", "-S", program, key, str(path), *more]
    done = subprocess.run(command, capture_output=True, text=True, env={}, timeout=60, check=False)
    assert done.stderr == "" or done.returncode == 2, done.stderr
    return done.returncode, done.stdout + done.stderr


def entries_in(path: Path) -> list[dict[str, object]]:
    with zipfile.ZipFile(path) as bundle:
        return [json.loads(line) for line in bundle.read("entries.jsonl").splitlines()]


def rewritten(path: Path, name: str, change: Callable[[bytes], bytes | None]) -> Path:
    """A copy with one file changed; None leaves it out."""
    copy = path.with_name(f"changed-{next(_names)}.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for known in old.namelist():
            data = change(old.read(known)) if known == name else old.read(known)
            if data is not None:
                new.writestr(known, data)
    return copy


def with_entry(path: Path, number: int, change: Callable[[dict[str, object]], None]) -> Path:
    def edit(data: bytes) -> bytes:
        lines = data.splitlines()
        one = json.loads(lines[number])
        change(one)
        lines[number] = json.dumps(one).encode()
        return b"\n".join(lines) + b"\n"

    return rewritten(path, "entries.jsonl", edit)


# ---- what is in it ----


async def test_a_bundle_of_a_payout_has_its_whole_story_and_its_policy_and_proves_them(
    dsn: str, tmp_path: Path
):
    path, bundled = await exported(dsn, tmp_path, payout="pout_2")
    assert (bundled.entries, bundled.payouts, bundled.policies, bundled.not_covered) == (3, 1, 1, 0)
    lines = entries_in(path)
    assert [one["seq"] for one in lines] == [1, 10, 16], "the policy, the payout, its decision"
    assert [str(one["e"]).encode() for one in lines] == [story()[int(str(one["seq"])) - 1].e for one in lines]
    code, said = verified(path)
    assert code == 0
    assert "3 entries about 1 payouts are among them" in said
    assert "decisions REJECTED: 1, 1000 paise" in said
    assert '; the filter was {"payout": "pout_2"}' in said


async def test_a_bundle_of_everything_has_every_entry_and_lists_its_decisions(dsn: str, tmp_path: Path):
    path, bundled = await exported(dsn, tmp_path)
    assert bundled.entries == len(entries_in(path)) == len(story())
    code, said = verified(path, KEY, "--decisions")
    assert code == 0
    assert [line.split("\t")[1:4] for line in said.splitlines() if "\t" in line] == [
        ["pout_1", "APPROVED", "POLICY_OK"],
        ["pout_2", "REJECTED", "TXN_LIMIT_EXCEEDED"],
    ]


async def test_only_a_bundle_of_everything_shows_that_nothing_is_missing(dsn: str, tmp_path: Path):
    count = len(story())
    whole, _ = await exported(dsn, tmp_path)
    said = verified(whole)[1]
    assert f"partition 0 is whole: none of the {count} entries is missing" in said
    # Whoever made the bundle may have taken an older checkpoint, or left a partition out.
    assert "NOT PROVEN" in said
    assert (
        "that nothing else is missing, as another partition, or newer entries than a checkpoint has" in said
    )
    part, _ = await exported(dsn, tmp_path, payout="pout_2")
    assert "is whole" not in verified(part)[1]
    assert ("filter was" in said, "filter was" in verified(part)[1]) == (False, True)
    less = rewritten(
        whole, "manifest.json", lambda data: data.replace(b": %d," % count, b": %d," % (count - 1), 1)
    )
    for number in (2, count // 2, count - 1):
        code, said = verified(rewritten(less, "entries.jsonl", lambda data, at=number: without(data, at)))  # type: ignore[misc]
        assert (code, "is whole" in said) == (0, False), "an entry that nothing else names was taken out"


def without(data: bytes, number: int) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


async def test_an_unpacked_bundle_is_checked_by_the_program_in_it(dsn: str, tmp_path: Path):
    path, _ = await exported(dsn, tmp_path, decision="APPROVED")
    here = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as bundle:
        bundle.extractall(here)
    assert sorted(str(found.relative_to(here)) for found in here.rglob("*.*")) == [
        "README.md", "checkpoints/0.txt", "entries.jsonl", "keys.txt", "manifest.json", "verify.py",
    ]  # fmt: skip
    code, said = verified(here, program=str(here / "verify.py"))
    assert (code, said.startswith("PROVEN")) == (0, True)
    key_file = tmp_path / "key"
    key_file.write_text(f"{OTHER_SIGNER.public.vkey}\n{KEY}\n")
    assert verified(here, str(key_file))[0] == 0


async def test_a_reader_that_had_enough_changes_nothing_of_what_was_found(dsn: str, tmp_path: Path):
    """`verify.py … --decisions | head` with more decisions than a pipe holds."""
    path, _ = await exported(dsn, tmp_path)
    forged = rewritten(path, "entries.jsonl", lambda data: data.replace(b"TXN_LIMIT_EXCEEDED", b"POLICY_OK"))
    for bundle, finding in ((path, 0), (forged, 1)):
        reading, writing = os.pipe()
        os.close(reading)
        assert unread(bundle, writing) == (finding, "")


async def test_an_answer_that_cannot_be_written_is_one_line_and_no_proof(dsn: str, tmp_path: Path):
    path, _ = await exported(dsn, tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    said = "verify.py: the answer cannot be written: No space left on device\n"
    assert unread(path, full) == (1, said)


def unread(bundle: Path, stdout: int) -> tuple[int, str]:
    """The exit code and stderr of a check whose answer goes there; that end is closed then."""
    command = [sys.executable, "-I", "-S", VERIFY, KEY, str(bundle), "--decisions"]
    try:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(stdout)
    return done.returncode, done.stderr


async def test_bytes_that_are_no_text_and_no_events_are_proven_too(dsn: str, tmp_path: Path):
    odd = Stored(f"{START_MS + 10**8}-0", b"\xff\x00 no json", b'{"by":"\xe2\x82\xb9"}')
    await archive_only(dsn, odd)
    await seal(dsn)
    db = await asyncpg.connect(dsn)
    try:  # a line of the audit that leads to it, as an alert would
        await db.execute(
            "INSERT INTO audit SELECT '0:x:0', 0, seq, 0, NULL, '', '', now(), 'alert', NULL, 'odd', '', NULL"
            " FROM events WHERE entry_ms = $1", START_MS + 10**8,
        )  # fmt: skip
    finally:
        await db.close()
    path, _ = await exported(dsn, tmp_path, kind="alert")
    [line] = entries_in(path)
    assert base64.b64decode(str(line["e_base64"])) == odd.e
    assert verified(path)[0] == 0


async def archive_only(dsn: str, *entries: Stored) -> None:
    db = await asyncpg.connect(dsn)
    try:
        await make_ranges(db, [START_MS + 10**8])
        await archive(db, 0, await open_head(db, 0), entries)
    finally:
        await db.close()


async def seal(dsn: str) -> None:
    """A checkpoint over everything."""
    db = await asyncpg.connect(dsn)
    try:
        maker = await Maker.open(db, 0, SIGNER, TRUSTED)
        await maker.make((await maker.head()).seq)
    finally:
        await db.close()


# ---- what no checkpoint covers ----


async def test_entries_after_the_last_checkpoint_are_left_out_and_said(dsn: str, tmp_path: Path):
    late = log_of([observed("pout_1", 500, status="processed", at=NOW + 9)])[0]
    entries = [*story(), late._replace(id=f"{START_MS + 10**8}-0")]
    await project_all(dsn, ListedLog(entries))
    path, bundled = await exported(dsn, tmp_path, payout="pout_1")
    assert bundled.not_covered == 1
    assert bundled.first_left == (0, len(entries), entries[-1].id)
    code, said = verified(path)
    assert code == 0
    assert "1 newer entries that match were left out" in said
    assert f"seq {len(entries)}, entry {entries[-1].id} is the first of them" in said


async def test_a_bundle_waits_for_the_checkpoint_that_covers_it(dsn: str, tmp_path: Path):
    late = log_of([observed("pout_1", 500, status="processed", at=NOW + 9)])[0]
    await project_all(dsn, ListedLog([*story(), late._replace(id=f"{START_MS + 10**8}-0")]))
    stages: list[str] = []
    sealing = []

    def hear(stage: str, _done: int, _total: int) -> None:
        stages.append(stage)
        if stage.startswith("waiting") and not sealing:
            sealing.append(asyncio.ensure_future(seal(dsn)))

    bundled = await write_bundle(
        dsn, AuditFilter(payout="pout_1"), tmp_path / "x.zip", TRUSTED, wait_s=60, on_stage=hear
    )
    assert "waiting for a checkpoint over 1 entries" in stages
    assert bundled.not_covered == 0


async def test_what_is_written_while_a_bundle_of_everything_waits_is_in_it_so_that_it_is_whole(
    dsn: str, tmp_path: Path
):
    """The checkpoint that it waits for covers more than what was there when it began."""
    more = [[policy("bot", 3)], [observed("pout_9", 500)]]
    new = [one._replace(id=f"{START_MS + 10**8 + n}-0") for n, one in enumerate(log_of(*more))]
    await project_all(dsn, ListedLog([*story(), new[0]]))
    going_on = []

    async def go_on() -> None:
        await project_all(dsn, ListedLog([*story(), *new]))
        await seal(dsn)

    def hear(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("waiting") and not going_on:
            going_on.append(asyncio.ensure_future(go_on()))

    path = tmp_path / "x.zip"
    bundled = await write_bundle(dsn, AuditFilter(), path, TRUSTED, wait_s=60, on_stage=hear)
    count = len(story()) + 2
    assert (bundled.entries, bundled.not_covered) == (count, 0)
    code, said = verified(path)
    assert (code, f"partition 0 is whole: none of the {count} entries is missing" in said) == (0, True)


# ---- it cannot be written ----


async def test_an_archive_that_contradicts_its_checkpoint_gives_no_bundle(dsn: str, tmp_path: Path):
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("SET session_replication_role = replica")
        await db.execute("UPDATE events SET m = '{}' WHERE seq = 10")
        with pytest.raises(JobFailed, match=r"seq 10, does not give its hash; `streamproc audit verify`"):
            await exported(dsn, tmp_path, payout="pout_2")
        await db.execute("UPDATE events SET hash = sha256(hash) WHERE seq = 3")
        with pytest.raises(JobFailed, match="do not give the root that was signed"):
            await exported(dsn, tmp_path, payout="pout_between_3_1")
    finally:
        await db.close()
    assert list(tmp_path.glob("*.zip")) == list(tmp_path.glob(".*zip*")) == []


async def test_a_policy_version_that_no_entry_is_found_for_is_said(dsn: str, tmp_path: Path):
    db = await asyncpg.connect(dsn)
    await db.execute("DELETE FROM policies")
    await db.close()
    path, bundled = await exported(dsn, tmp_path, decision="REJECTED")
    assert bundled.unknown == ["agent:bot version 1"]
    assert verified(path)[0] == 1


async def test_a_checkpoint_of_an_unknown_key_gives_no_bundle(dsn: str, tmp_path: Path):
    with pytest.raises(JobFailed, match="none of the keys that are trusted"):
        await write_bundle(dsn, AuditFilter(), tmp_path / "x.zip", Trusted([OTHER_SIGNER.public]), wait_s=0)


async def test_a_filter_that_nothing_matches_and_a_file_that_is_there_are_refused(dsn: str, tmp_path: Path):
    with pytest.raises(JobFailed, match="nothing to prove"):
        await exported(dsn, tmp_path, agent="nobody")
    taken = tmp_path / "taken.zip"
    taken.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        await write_bundle(dsn, AuditFilter(), taken, TRUSTED, wait_s=0)
    assert taken.read_text() == "mine"


# ---- it cannot be changed ----


def edit_decision(one: dict[str, object]) -> None:
    one["e"] = str(one["e"]).replace("REJECTED", "APPROVED")


def edit_and_rehash(one: dict[str, object]) -> None:
    edit_decision(one)
    before, text = bytes.fromhex(str(one["before"])), str(one["e"]).encode()
    link = link_hash(before, 0, int(str(one["seq"])), str(one["entry"]), text, str(one["m"]).encode())
    one["hash"] = link.hex()


def other_proof(one: dict[str, object]) -> None:
    proof = list(one["proof"])  # type: ignore[call-overload]
    one["proof"] = [proof[1], proof[0], *proof[2:]]


CHANGES: dict[str, tuple[int, Callable[[dict[str, object]], None], str]] = {
    "an edited decision": (2, edit_decision, "line 3 (partition 0, seq 16, entry "),
    "an edited decision with its hash": (2, edit_and_rehash, "it is not under the signed root"),
    "a changed byte": (
        1,
        lambda one: one.update(m=str(one["m"]) + " "),
        "line 2 (partition 0, seq 10, entry ",
    ),
    "a removed proof": (1, lambda one: one.pop("proof"), "line 2 (partition 0, seq 10, entry "),
    "another proof": (1, other_proof, "it is not under the signed root"),
    "a shortened proof": (1, lambda one: one.update(proof=one["proof"][:-1]), "not under the signed root"),  # type: ignore[index]
    "another place": (1, lambda one: one.update(seq=11), "its content does not give its hash"),
    "another partition": (0, lambda one: one.update(partition=1), "there is no checkpoint of its partition"),
    "another entry id": (1, lambda one: one.update(entry="1-1"), "its content does not give its hash"),
    "nonsense": (1, lambda one: one.update(hash="zz"), "it cannot be read: ValueError"),
    "a fraction": (1, lambda one: one.update(seq=10.0), "partition and seq are whole numbers"),
    "a truth for a number": (
        1,
        lambda one: one.update(partition=False),
        "partition and seq are whole numbers",
    ),
    "infinity": (1, lambda one: one.update(seq=float("inf")), "partition and seq are whole numbers"),
    "something unproven beside it": (
        1,
        lambda one: one.update(note="paid"),
        "it has note, which nothing proves",
    ),
    "other bytes beside its own": (
        1,
        lambda one: one.update(e_base64="e30="),
        "it has e_base64, which nothing",
    ),
}


@pytest.fixture(scope="module")
def good(original: str, postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the rejected payout, made once."""

    async def make() -> Path:
        async with copy_of(postgres_server, original) as dsn:
            return (await exported(dsn, tmp_path_factory.mktemp("good"), payout="pout_2"))[0]

    return asyncio.run(make())


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_entry_is_named(good: Path, what: str):
    number, change, words = CHANGES[what]
    code, said = verified(with_entry(good, number, change))
    assert code == 1
    assert said.startswith("WRONG: entries.jsonl, line ")
    assert words in said


def test_a_removed_entry_is_missed(good: Path):
    code, said = verified(rewritten(good, "entries.jsonl", lambda data: data.partition(b"\n")[2]))
    assert (code, "2 entries, and the manifest says 3" in said) == (1, True)


def test_the_policy_that_a_decision_names_is_missed_though_the_manifest_is_edited_too(good: Path):
    less = rewritten(good, "entries.jsonl", lambda data: data.partition(b"\n")[2])
    less = rewritten(less, "manifest.json", lambda data: data.replace(b'"entries": 3', b'"entries": 2'))
    code, said = verified(less)
    assert code == 1
    assert "version 1 of agent:bot, by which it was made, is not in it" in said


def test_an_entry_twice_is_named(good: Path):
    code, said = verified(rewritten(good, "entries.jsonl", lambda data: data + data.splitlines()[-1] + b"\n"))
    assert (code, "not in order, or one is there twice" in said) == (1, True)


def note_of(size: int, partition: int = 0, archive: str = "24e51180-6416-47b1-bcdf-ffb323f35a5f") -> bytes:
    """A checkpoint that the right key signed, of something else."""
    one = Checkpoint(archive, partition, size, bytes(32), "1-0", bytes(32), datetime.now(UTC))
    return SIGNER.sign(one.text()).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.replace(b"\n2", b"\n3", 1), "its signature does not fit"),
        (lambda data: note_of(99), "of another one"),
        (
            lambda data: OTHER_SIGNER.sign(data.decode().rpartition("\n\n")[0] + "\n").encode(),
            "it is signed by",
        ),
        (lambda data: b"hello", "this is no signed checkpoint"),
        (lambda data: None, "it is not in the bundle"),
    ],
    ids=["a changed size", "another archive's", "another key's", "no note", "removed"],
)
def test_a_checkpoint_that_was_exchanged_is_named(
    good: Path, change: Callable[[bytes], bytes | None], words: str
):
    code, said = verified(rewritten(good, "checkpoints/0.txt", change))
    assert code == 1
    assert said.startswith("WRONG: checkpoints/0.txt: ")
    assert words in said


def test_a_signed_checkpoint_of_another_root_proves_nothing(good: Path):
    """The right key signed it for the same archive; swapped in, no entry is under its root."""
    with zipfile.ZipFile(good) as bundle:
        archive = json.loads(bundle.read("manifest.json"))["archive"]
    code, said = verified(rewritten(good, "checkpoints/0.txt", lambda _: note_of(24, archive=archive)))
    assert (code, "line 1" in said, "not under the signed root" in said) == (1, True, True)


def test_another_key_than_the_one_that_signed_proves_nothing_whatever_the_bundle_says(good: Path):
    code, said = verified(good, OTHER_SIGNER.public.vkey)
    assert code == 1
    assert "is signed by streamproc+" in said
    assert "not by a key that you named" in said


@pytest.mark.parametrize("key", ["", "nonsense", "streamproc+00000000+AAAA", KEY[:-2] + "AA"])
def test_what_is_no_key_and_no_bundle_is_wrong_use(good: Path, key: str):
    assert verified(good, key)[0] == 2
    assert verified(good.with_name("none.zip"))[0] == 2


def test_a_name_twice_in_an_entry_is_no_way_to_show_readers_another_one(good: Path):
    def again(data: bytes) -> bytes:
        return data.replace(b'{"partition"', b'{"e": "[]", "partition"', 1)

    code, said = verified(rewritten(good, "entries.jsonl", again))
    assert code == 1
    assert "line 1: it cannot be read: ValueError a name is there twice" in said


def test_a_bundle_without_entries_proves_nothing(good: Path):
    without = rewritten(good, "entries.jsonl", lambda _: b"")
    emptied = rewritten(
        without, "manifest.json", lambda data: data.replace(b'"entries": ', b'"entries": 0, "was": ')
    )
    code, said = verified(emptied)
    assert (code, "nothing is proven" in said) == (1, True)


def test_a_bundle_that_is_made_to_break_its_reader_is_no_traceback(good: Path, tmp_path: Path):
    deep = rewritten(good, "entries.jsonl", lambda _: b"[" * 200_000)
    twice = tmp_path / "twice.zip"
    twice.write_bytes(good.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as file:
        file.writestr("entries.jsonl", b"")
    locked = tmp_path / "locked.zip"
    locked.write_bytes(_encrypted(good.read_bytes()))
    for hostile in (deep, locked):
        code, said = verified(hostile)
        assert (code, said.startswith("WRONG: ")) == (1, True), said
    assert verified(twice)[0] == 2


def _encrypted(data: bytes) -> bytes:
    """The .zip with every member marked as encrypted in its directory."""
    marked = bytearray(data)
    at = marked.find(b"PK\x01\x02")
    while at >= 0:
        marked[at + 8] |= 1
        at = marked.find(b"PK\x01\x02", at + 4)
    return bytes(marked)


def test_a_bundle_of_before_whose_events_say_all_themselves_is_proven_too(good: Path):
    old = rewritten(good, "manifest.json", lambda data: data.replace(b"audit-bundle/2", b"audit-bundle/1"))
    assert verified(old)[0] == 0
    newer = rewritten(good, "manifest.json", lambda data: data.replace(b"audit-bundle/2", b"audit-bundle/3"))
    code, said = verified(newer)
    assert (code, "its format is 'streamproc-audit-bundle/3'" in said) == (1, True)


def test_a_broken_manifest_is_no_traceback(good: Path):
    for broken in (b"{}", b"[]", b"nonsense", b'{"format": "streamproc-audit-bundle/1"}'):
        code, said = verified(rewritten(good, "manifest.json", lambda _, b=broken: b))  # type: ignore[misc]
        assert (code, said.startswith("WRONG: ")) == (1, True)


def test_the_program_is_python_3_9_and_imports_the_standard_library_alone():
    tree = ast.parse(Path(VERIFY).read_text(), feature_version=(3, 9))
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    imported |= {
        str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)]


# ---- its own Ed25519 ----

RFC_8032 = [  # section 7.1, tests 1, 2, 3 and SHA(abc): secret key, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032, ids=["1", "2", "3"])
def test_the_vectors_of_rfc_8032_verify(secret: str, public: str, message: str, signature: str):
    key, text, signed = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
    assert ed25519_verifies(key, signed, text)
    assert not ed25519_verifies(key, signed, text + b"!")
    own = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert (own.public_key().public_bytes_raw(), own.sign(text)) == (key, signed)


def test_it_verifies_what_cryptography_verifies_and_nothing_else():
    chance = random.Random(8032)
    for _ in range(25):
        own = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
        key, text = own.public_key().public_bytes_raw(), chance.randbytes(chance.randint(0, 200))
        signed = own.sign(text)
        assert ed25519_verifies(key, signed, text)
        for bad_key, bad, bad_text in (
            (key, flipped(signed, chance), text),
            (flipped(key, chance), signed, text),
            (key, signed, text + b"."),
            (key, signed[:32] + (int.from_bytes(signed[32:], "little") + L).to_bytes(32, "little"), text),
            (key, signed[:-1], text),
            (chance.randbytes(32), signed, text),
            (bytes(32), bytes(64), text),
        ):
            assert ed25519_verifies(bad_key, bad, bad_text) == cryptography_verifies(bad_key, bad, bad_text)


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) * 8)
    return bytes(byte ^ (1 << at % 8 if n == at // 8 else 0) for n, byte in enumerate(data))


def cryptography_verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True

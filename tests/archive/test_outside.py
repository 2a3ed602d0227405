"""The file of checkpoints: what a crash cut off is told from what somebody damaged."""

import asyncio
import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from streamproc.archive import signing_key
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.note import Signer, Trusted
from streamproc.archive.outside import Damaged, NotesFile, Stated, stated_in
from streamproc.archive.signing_key import make_key, read_key, read_or_make
from streamproc.errors import ConfigError, InputError, TryAgain

DEADLINE_S = 30.0
SIGNER = Signer(bytes(32))
TRUSTED = Trusted([SIGNER.public])


def note(size: int, partition: int = 0) -> str:
    one = Checkpoint(
        "24e51180-6416-47b1-bcdf-ffb323f35a5f",
        partition,
        size,
        bytes(32),
        f"{size}-0",
        bytes(32),
        datetime.now(UTC),
    )
    return SIGNER.sign(one.text())


def found(path: Path) -> list[int | str]:
    """Sizes of good checkpoints, and problems, in the file's order."""
    with path.open("rb") as file:
        return [
            one.checkpoint.size if isinstance(one, Stated) else one.problem
            for one in stated_in(file, TRUSTED)
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.txt"


async def test_notes_are_appended_and_read_back_in_order(path: Path) -> None:
    file = NotesFile(path)
    for size in (1, 5, 5, 9):
        await file.put(note(size))
    assert found(path) == [1, 5, 5, 9]
    assert path.read_text().count("\n\n— ") == 4


async def test_partitions_that_append_at_once_do_not_mix(path: Path) -> None:
    file = NotesFile(path)
    await asyncio.gather(
        *(file.put(note(size, partition)) for partition in range(4) for size in range(1, 26))
    )
    assert sorted(found(path)) == sorted([*range(1, 26)] * 4)  # type: ignore[type-var]


@pytest.mark.parametrize("kept", [1, 20, 45, 60, 230, 250, 252, 253, 254, 255, 300, -3, -2, -1])
async def test_a_write_that_a_crash_cut_off_anywhere_is_no_damage(path: Path, kept: int) -> None:
    first, second = note(1).encode(), note(7).encode()
    path.write_bytes(first + b"\n" + second[:kept])
    assert found(path) in ([1], [1, 7])
    await NotesFile(path).put(second.decode())
    await NotesFile(path).put(note(9))
    assert found(path) in ([1, 7, 9], [1, 7, 7, 9])


async def test_the_cut_off_note_of_one_partition_may_be_written_again_after_that_of_another(
    path: Path,
) -> None:
    lost = note(7)
    path.write_bytes(lost.encode()[:100])
    for one in (note(3, partition=1), lost):
        await NotesFile(path).put(one)
    assert found(path) == [3, 7]


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda text: text.replace("\n5\n", "\n6\n"), "forged or changed"),
        (lambda text: text.replace("entry 5-0\n", ""), "forged or changed"),
        (lambda text: text.replace("\n5\n", "\n6\n").replace("\n\n—", "\n—"), "no signed note"),
        (lambda text: "hello\n\n" + text, "no signed note"),
        (lambda text: text + "\n\n" + text[:20] + "x\n\n" + note(9), "no signed note"),
    ],
    ids=["a size", "a line", "a blank line", "words before", "words between"],
)
async def test_what_no_crash_leaves_is_damage(path: Path, harm, problem: str) -> None:  # type: ignore[no-untyped-def]
    path.write_text(note(1) + "\n" + harm(note(5)) + "\n" + note(8) + "\n")
    assert any(problem in str(what) for what in found(path))


def test_a_note_of_somebody_elses_key_is_damage_with_its_line(path: Path) -> None:
    other = Signer(b"1" * 32).sign(note(5).rpartition("\n\n")[0] + "\n")
    path.write_text(note(1) + "\n" + other + "\n")
    with path.open("rb") as file:
        _, damaged = stated_in(file, TRUSTED)
    assert isinstance(damaged, Damaged)
    assert damaged.line == 10
    assert "none of the keys that are trusted" in damaged.problem


async def test_a_place_that_cannot_be_written_is_to_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match="cannot be written: No such file or directory"):
        await NotesFile(tmp_path / "nowhere" / "file").put(note(1))


# ---- the key's file ----


@pytest.fixture(params=[0, errno.EPERM, errno.EOPNOTSUPP], ids=["links", "FAT", "SMB"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hard links, or without."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("file_system")
def test_a_key_is_made_once_for_this_user_alone_and_never_overwritten(path: Path) -> None:
    made, fresh = read_or_make(path)
    again, not_fresh = read_or_make(path)
    assert (fresh, not_fresh) == (True, False)
    assert made.public == again.public
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="never overwritten"):
        make_key(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("file_system", [errno.EPERM], indirect=True, ids=["FAT"])
@pytest.mark.usefixtures("file_system")
def test_of_two_that_make_a_key_where_there_are_no_links_the_later_one_gets_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is there before the key is; who comes in between waits for it."""
    name_it = Path.replace
    begun, looked, found = Event(), Event(), list[Any]()

    def look() -> None:
        begun.wait(DEADLINE_S)
        found.append(read_or_make(path))

    def named_late(fresh: Path, to: Path) -> Path:
        begun.set()
        assert looked.wait(DEADLINE_S), "nobody waits for the key"
        return name_it(fresh, to)

    def waits(_: float) -> None:
        looked.set()
        other_done.wait(DEADLINE_S)

    other_done = Event()
    monkeypatch.setattr(Path, "replace", named_late)
    monkeypatch.setattr(signing_key.time, "sleep", waits)
    later = Thread(target=look)
    later.start()
    made, fresh = read_or_make(path)
    other_done.set()
    later.join(DEADLINE_S)
    assert fresh
    assert [(one.public, fresh) for one, fresh in found] == [(made.public, False)]


def test_a_file_that_stays_empty_holds_no_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    monkeypatch.setattr(signing_key.time, "sleep", slept.append)
    path.touch()
    with pytest.raises(ConfigError, match="32 bytes"):
        read_or_make(path)
    assert len(slept) == signing_key.EMPTY_LOOKS_MAX


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_place_that_is_no_files_is_refused(place: str) -> None:
    why = "never overwritten" if os.access(Path(place), os.W_OK) else "cannot be written: Permission denied"
    with pytest.raises(InputError, match=why):
        make_key(Path(place))


def test_a_file_that_holds_no_key_is_refused_and_left_alone_and_not_shown(path: Path) -> None:
    path.write_text("c2VjcmV0\n")
    with pytest.raises(ConfigError, match="32 bytes") as refused:
        read_or_make(path)
    assert "c2VjcmV0" not in str(refused.value)
    assert path.read_text() == "c2VjcmV0\n"
    assert read_key(path.with_name("none")) is None

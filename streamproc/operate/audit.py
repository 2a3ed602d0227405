"""`audit verify`: is the audit trail still what was signed; and the keys and files for that."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from streamproc.archive.inspection import Inspector, OutsideNotes, checkpoints_file, read_outside
from streamproc.archive.note import PublicKey, Signer, Trusted
from streamproc.archive.outside import notes_path
from streamproc.archive.signing_key import KEY_FILE, read_key, trusted_keys
from streamproc.archive.store import errors_as_job_failed, snapshot
from streamproc.archive.walk import Fault, PartitionResult
from streamproc.errors import InputError
from streamproc.settings import Settings

VKEY_FILE_BYTES_MAX = 65_536
"""A file of public keys, one a line."""


class Verified(Struct):
    """What `audit verify` found. `outside`: the file that was compared, '' if there was none."""

    archive: str
    outside: str
    parts: list[PartitionResult]
    faults: list[Fault]
    """Faults of the file; those of a partition are in its part."""
    seconds: float
    notes: list[str]

    @property
    def rows(self) -> int:
        """Rows that are good."""
        return sum(part.rows for part in self.parts)

    @property
    def rows_per_s(self) -> int:
        """Rows verified each second."""
        return int(self.rows / self.seconds) if self.seconds > 0 else 0

    @property
    def broken(self) -> list[Fault]:
        """The first fault of each partition, then those of the file, of which there may be many."""
        return [*(part.fault for part in self.parts if part.fault is not None), *self.faults]


async def verify(
    dsn: str,
    trusted: Trusted,
    outside: Path | None,
    *,
    partition: int | None = None,
    is_copy: bool = False,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Compute chain and tree again from the stored bytes and compare them with every checkpoint, inside and outside.

    Needs only Postgres and the file. If the file is a copy, it may lack the newest checkpoints. Raises JobFailed if
    Postgres cannot be asked.
    """
    began = time.monotonic()
    notes = None if outside is None else read_outside(outside, trusted)
    with errors_as_job_failed():
        async with snapshot(dsn, name="streamproc audit verify") as db:
            inspector = await Inspector.open(db, trusted, notes, on_rows)
            known = await inspector.partitions()
            if partition is not None and partition not in known:
                raise InputError(
                    f"partition {partition}: this archive has {', '.join(map(str, known)) or 'none'}"
                )
            parts = await inspector.inspect(known if partition is None else [partition])
            if outside is not None and any(part.not_outside for part in parts):
                late = read_outside(outside, trusted)  # some may have come between the file and the snapshot
                for part in parts:
                    await inspector.count_missing(part, late)
    faults = (
        [*notes.faults, *_of_others(notes, inspector.archive), *_cut(notes, parts, is_copy)] if notes else []
    )
    seconds = time.monotonic() - began
    found = Verified(inspector.archive, str(outside or ""), parts, faults, seconds, [])
    found.notes += _notes(found)
    return found


def _of_others(notes: OutsideNotes, archive: str) -> list[Fault]:
    """The first checkpoint in the file that is of another archive."""
    for origin, sizes in notes.by_origin.items():
        if origin.split("/")[1] != archive:
            line = min(line for line, _ in sizes.values())
            problem = (
                f"this is a checkpoint of {origin}, and the database says that it is archive {archive}:"
                " the file is another archive's, or the database was exchanged"
            )
            return [Fault(f"{notes.where}, line {line}", problem)]
    return []


def _cut(notes: OutsideNotes, parts: Sequence[PartitionResult], is_copy: bool) -> list[Fault]:
    """Where the file lacks checkpoints that were published to it. One that begins later is only noted: its place may
    have changed."""
    if notes.faults:
        return []  # what is damaged there is missing too
    faults = []
    for part in parts:
        missing = part.missing_within if is_copy and part.outside else part.missing_since
        if missing:
            problem = (
                f"{missing} checkpoints of partition {part.partition} that were handed outside are not in it:"
                " it was cut, damaged or exchanged"
            )
            faults.append(Fault(notes.where, problem))
    return faults


def _notes(found: Verified) -> list[str]:
    notes = []
    if not found.outside:
        notes.append(
            "nothing outside the database was compared: whoever can delete rows can delete checkpoints too, and that"
            " would not show; name a copy of the published checkpoints by --checkpoints FILE"
        )
    missing = sum(part.not_outside for part in found.parts)
    if missing:
        notes.append(f"{missing} checkpoints that were handed outside are not in {found.outside}")
    return notes


# ---- keys and files ---------------------------------------------------------------------


def trusted_for(settings: Settings, named: Sequence[str]) -> Trusted:
    """The named keys (a vkey, or a file of vkeys); if none is named, our own and those in STREAMPROC_CHECKPOINT_KEYS.

    Raises InputError if there is none.
    """
    if named:
        vkeys = [vkey for name in named for vkey in _vkeys(name)]
        return trusted_keys([], vkeys, source=f"--key {' '.join(named)}")
    own = own_key(settings)
    found = trusted_keys([own] if own else [], settings.checkpoint_keys)
    if not found.keys:
        raise InputError(
            f"no key to check signatures by: {settings.data_dir / KEY_FILE} is not there, and neither"
            " STREAMPROC_SIGNING_KEY nor STREAMPROC_CHECKPOINT_KEYS is set; name a public key by --key"
        )
    return found


def _vkeys(name: str) -> list[str]:
    if "+" in name and "/" not in name.partition("+")[0]:
        return [name]
    path = Path(name)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(VKEY_FILE_BYTES_MAX).split()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not text"
        raise InputError(f"--key {name}: neither a public key nor a file of public keys: {why}") from problem


def own_key(settings: Settings) -> PublicKey | None:
    """The public half of the key that this system signs with; None if it has none yet."""
    if settings.signing_key:
        return Signer.of_text(settings.signing_key.reveal()).public
    signer = read_key(settings.data_dir / KEY_FILE)
    return signer.public if signer else None


def outside_file(settings: Settings, named: Path | None) -> Path | None:
    """The file of checkpoints to compare with; None if none is named and none is expected at its usual place.

    It is expected if the key that signs is in DATA_DIR, or STREAMPROC_CHECKPOINT_TO names it, even if it is gone.
    Raises InputError for a named one that is not there, and where that cannot be seen.
    """
    path = named or notes_path(settings.checkpoint_to, settings.data_dir)
    with checkpoints_file(path):
        if path.is_file():
            return path
        if named is not None:
            raise InputError(f"--checkpoints {named}: there is no such file")
        goes_here = settings.checkpoint_to or (settings.data_dir / KEY_FILE).is_file()
    return path if goes_here and "://" not in settings.checkpoint_to else None

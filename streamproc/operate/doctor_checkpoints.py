"""`doctor` on signed checkpoints: the key, whether they are made, whether they get outside, and what is known there."""

import asyncio
import os
import time
from pathlib import Path

from streamproc.archive.attest import CheckpointState, checkpoint_states, identity
from streamproc.archive.outside import Stated, notes_path, stated_in
from streamproc.archive.signing_key import KEY_FILE
from streamproc.archive.store import connection, errors_as_job_failed
from streamproc.errors import StreamprocError
from streamproc.operate.audit import own_key
from streamproc.operate.doctor_check import Check
from streamproc.settings import Settings

LATE_S = 60.0
"""Beyond the interval: an entry that waits longer for a checkpoint means that none is made."""
TAIL_BYTES = 1 << 20
"""Of the file outside, some thousand checkpoints. It grows for years, and the newest ones are at its end."""


async def checkpoint_checks(settings: Settings) -> list[Check]:
    """The signing key, and the state of the checkpoints. The schema must exist."""
    with errors_as_job_failed():
        async with connection(settings.postgres_dsn.reveal(), name="streamproc doctor") as db:
            rows, archive = await checkpoint_states(db), await identity(db)
    return [_key(settings), _made(settings, rows), await _outside(settings, rows, archive)]


def _key(settings: Settings) -> Check:
    name, path = "signing key", settings.data_dir / KEY_FILE
    try:
        key = own_key(settings)
    except StreamprocError as problem:
        return Check(
            name,
            "bad",
            str(problem),
            "without a key no checkpoint is signed: mend it and restart the projector",
        )
    if settings.signing_key and key is not None:
        return Check(name, "ok", f"set; its public key is {key.vkey}")
    advice = "`streamproc audit key --new FILE`, and STREAMPROC_SIGNING_KEY_FILE from a place of secrets"
    if key is None:
        return Check(name, "note", f"none on this machine; the projector makes {path} where it runs", advice)
    if path.stat().st_mode & 0o077:
        return Check(name, "bad", f"{path} can be read by others than its owner", f"chmod 600 {path}")
    detail = (
        f"{path} is on this machine: whoever takes it and can write to the database can sign another history"
    )
    return Check(name, "note", detail, advice)


def _made(settings: Settings, rows: list[CheckpointState]) -> Check:
    limit_ms = (settings.checkpoint_interval_s + LATE_S) * 1000
    now_ms = time.time() * 1000
    late = [
        f"partition {row.partition}: {row.seq - row.covered} archived entries are not signed"
        for row in rows
        if row.waiting_ms is not None and now_ms - row.waiting_ms > limit_ms
    ]
    if late:
        todo = "the projector's log says why (ALARM); `streamproc audit verify` looks for what is wrong"
        return Check("checkpoints", "bad", "; ".join(late), todo)
    behind = [
        f"partition {row.partition}: covers {row.covered}, handed outside up to {row.published}"
        for row in rows
        if row.unpublished_ms is not None and now_ms - row.unpublished_ms > LATE_S * 1000
    ]
    if behind:
        todo = "the projector's log says why it waits; STREAMPROC_CHECKPOINT_TO names the place"
        return Check("checkpoints", "bad", "; ".join(behind), todo)
    return Check("checkpoints", "ok", "what is archived is signed in time and handed outside")


async def _outside(settings: Settings, rows: list[CheckpointState], archive: str) -> Check:
    name, path = "checkpoints outside", notes_path(settings.checkpoint_to, settings.data_dir)
    if "://" not in settings.checkpoint_to and (lost := await asyncio.to_thread(_lost, path, rows, archive)):
        todo = (
            "what a failover of Postgres lost comes again from the log within seconds. If it does not, both stores were"
            ' set back: docs/reliability.md, "Both stores set back together"'
        )
        return Check(name, "bad", f"{path} states more than the archive has: {lost}", todo)
    if settings.checkpoint_to:
        return Check(name, "ok", f"handed to {settings.checkpoint_to}")
    detail = f"in {path}, perhaps on the machine of the database: whoever owns both can cut both"
    return Check(name, "note", detail, "STREAMPROC_CHECKPOINT_TO names a file or URL that others keep")


def _lost(path: Path, rows: list[CheckpointState], archive: str) -> str:
    """What the end of the file states of this archive and the archive lacks; '' for nothing, or if it cannot be read
    here."""
    newest = dict[str, int]()
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            for one in stated_in(file, None):
                if isinstance(one, Stated):
                    stated = one.checkpoint
                    newest[stated.origin] = max(stated.size, newest.get(stated.origin, 0))
    except OSError:
        return ""
    sizes = {row.partition: newest.get(f"streamproc/{archive}/{row.partition}", 0) for row in rows}
    return "; ".join(
        f"partition {row.partition}: {sizes[row.partition]} signed entries, and {row.seq} archived"
        for row in rows
        if sizes[row.partition] > row.seq
    )

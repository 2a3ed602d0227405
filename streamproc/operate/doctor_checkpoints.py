"""`doctor` on signed checkpoints: the key, whether they are made, and whether they get outside."""

import time
from pathlib import Path

from streamproc.archive.attest import checkpoint_states
from streamproc.archive.outside import notes_path
from streamproc.archive.signing_key import KEY_FILE
from streamproc.archive.store import connection, errors_as_job_failed
from streamproc.errors import StreamprocError
from streamproc.operate.audit import own_key
from streamproc.operate.doctor_check import Check
from streamproc.settings import Settings

LATE_S = 60.0
"""Beyond the interval: an entry that waits longer for a checkpoint means that none is made."""


async def checkpoint_checks(settings: Settings) -> list[Check]:
    """The signing key, and the state of the checkpoints. The schema must exist."""
    return [_key(settings), await _made(settings), _outside(settings)]


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


async def _made(settings: Settings) -> Check:
    with errors_as_job_failed():
        async with connection(settings.postgres_dsn.reveal(), name="streamproc doctor") as db:
            rows = await checkpoint_states(db)
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


def _outside(settings: Settings) -> Check:
    name = "checkpoints outside"
    if settings.checkpoint_to:
        return Check(name, "ok", f"handed to {settings.checkpoint_to}")
    path: Path = notes_path("", settings.data_dir)
    detail = f"in {path}, perhaps on the machine of the database: whoever owns both can cut both"
    return Check(name, "note", detail, "STREAMPROC_CHECKPOINT_TO names a file or URL that others keep")

"""An archive with signed checkpoints, for tests that tamper with it."""

from pathlib import Path

from projections.notary import CheckpointTerms
from streamproc.archive.note import Signer, Trusted
from streamproc.archive.outside import NotesFile, Outside

SIGNER = Signer(bytes(range(32)))
OTHER_SIGNER = Signer(bytes(32))
TRUSTED = Trusted([SIGNER.public])
NEVER_S = 3_600.0


def terms(
    outside: Path | Outside,
    *,
    entries: int = 10,
    every_s: float = NEVER_S,
    signer: Signer = SIGNER,
    trusted: Trusted = TRUSTED,
) -> CheckpointTerms:
    """Checkpoints by number of entries, and at the end of a projector."""
    place = NotesFile(outside) if isinstance(outside, Path) else outside
    return CheckpointTerms(signer, trusted, place, entries, every_s)

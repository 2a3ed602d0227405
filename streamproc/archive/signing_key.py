"""The file of the key that signs checkpoints: written once, whole or not at all, and never overwritten."""

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from streamproc.archive.note import PublicKey, Signer, Trusted, new_seed
from streamproc.errors import NO_LINKS, ConfigError, InputError

KEY_FILE = "checkpoint.key"
"""In DATA_DIR, where STREAMPROC_SIGNING_KEY is not set."""
KEY_FILE_BYTES_MAX = 4_096
"""A key has 45 bytes; a wrong file that is named by mistake is not read whole."""
EMPTY_LOOKS_MAX = 20
"""How often an empty file is looked at again, every EMPTY_LOOK_S: where there are no hard links, another process may be
about to put its key there."""
EMPTY_LOOK_S = 0.05


def read_key(path: Path) -> Signer | None:
    """The key in a file; None if there is no such file. Raises ConfigError if the file holds no key."""
    try:
        with path.open("rb") as file:
            text = file.read(KEY_FILE_BYTES_MAX).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(f"the signing key {path} cannot be read: {problem.strerror}") from problem
    try:
        return Signer.of_text(text)
    except ValueError as problem:
        raise ConfigError(f"the signing key {path} {problem}") from problem


def make_key(path: Path) -> Signer:
    """A new key in a new file that this user alone may read. Raises InputError where there is one, or it cannot be."""
    seed = new_seed()
    fresh = path.parent / f".key-{secrets.token_hex(4)}"  # a name as long as may be leaves no room for more
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(seed + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            _name(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as problem:
        raise InputError(f"{path} is there already, and a key is never overwritten") from problem
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from problem
    return Signer.of_text(seed)


def _name(fresh: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError if anything has it, also if it comes just now."""
    try:
        path.hardlink_to(fresh)  # unlike a rename it replaces nothing
    except OSError as problem:
        if problem.errno not in NO_LINKS:
            raise
        # The name is taken by an empty file, which only its maker replaces. A crash before that leaves it, for a
        # person to remove: it holds no key, and is said so.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            fresh.replace(path)
        except OSError:
            path.unlink()
            raise


def _read_settled(path: Path) -> Signer | None:
    """`read_key`, of a file whose name may have been taken just now for a key that follows."""
    for _ in range(EMPTY_LOOKS_MAX):
        if not _is_empty(path):
            break
        time.sleep(EMPTY_LOOK_S)
    return read_key(path)


def _is_empty(path: Path) -> bool:
    with suppress(OSError):  # which reading it reports
        return path.is_file() and path.stat().st_size == 0
    return False


def read_or_make(path: Path) -> tuple[Signer, bool]:
    """The key in a file, and whether it was made now. Of two at once one makes it. Raises as the two above."""
    found = _read_settled(path)
    if found is not None:
        return found, False
    try:
        return make_key(path), True
    except InputError:
        found = _read_settled(path)  # somebody was faster
        if found is None:
            raise
        return found, False


def trusted_keys(
    own: Iterable[PublicKey], vkeys: Iterable[str], *, source: str = "STREAMPROC_CHECKPOINT_KEYS"
) -> Trusted:
    """Our own key and the earlier ones that `source` names. Raises ConfigError for what is no public key."""
    earlier = []
    for number, vkey in enumerate(vkeys, 1):
        try:
            earlier.append(PublicKey.parse(vkey))
        except ValueError as problem:
            # Not the value: it may be a private key that was named by mistake.
            raise ConfigError(f"{source}: key {number} {problem}") from problem
    return Trusted([*own, *earlier])


def sync_directory(directory: Path) -> None:
    """Have a file's new name on disk as well."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The run file, by which other commands find a system that `up` runs."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from streamproc.errors import ConfigError
from streamproc.settings import PREFIX, Settings, load

RUN_FILE = "run.json"
LOCK_FILE = "up.lock"
"""Is locked as long as an `up` runs on the directory, by the kernel, and so not after a kill. Holds its pid."""
NAME_VARIABLE = "UP_PROCESS"
"""Variable in which `up` gives a child its name, so that output and metrics have the same one. Not a setting."""


@contextlib.contextmanager
def files_of(data_dir: Path) -> Iterator[None]:
    """Raise ConfigError, naming the file, for one that is not what it must be: a file where a directory belongs, or
    the reverse, or one that we may not write."""
    try:
        yield
    except OSError as problem:
        raise ConfigError(
            f"{PREFIX}DATA_DIR {data_dir} cannot be used: {problem.filename or data_dir}:"
            f" {problem.strerror or problem}"
        ) from problem


def write_run_file(settings: Settings, environment: Mapping[str, str]) -> Path:
    """Write to DATA_DIR, readable by this user only, what other commands need to reach the running system.

    *environment* is what `up` made itself: the addresses of its stores and the sandbox's keys,
    never the operator's secrets.
    """
    path = settings.data_dir / RUN_FILE
    fresh = path.with_suffix(".new")
    with files_of(settings.data_dir):
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode({"pid": os.getpid(), "environment": dict(environment)}))
        fresh.rename(path)
    return path


def forget_run_file(settings: Settings) -> None:
    """Remove what a killed `up` left. For whoever has just locked the directory, so as not to be taken for it."""
    with files_of(settings.data_dir):
        (settings.data_dir / RUN_FILE).unlink(missing_ok=True)


class _Run(msgspec.Struct, frozen=True):
    pid: int
    environment: dict[str, str]


def discover(settings: Settings) -> Settings:
    """Fill in what is left at its default from the `up` that runs on the same DATA_DIR, if one does.

    The run file of a killed `up` is ignored: other programs may have its ports by now.
    """
    try:
        run = msgspec.json.decode((settings.data_dir / RUN_FILE).read_bytes(), type=_Run)
    except OSError:
        return settings
    except msgspec.MsgspecError as problem:
        raise ConfigError(f"{settings.data_dir / RUN_FILE} is damaged: {problem}; delete it") from problem
    if not is_held(settings.data_dir):
        return settings
    running, default = load(run.environment), Settings()
    found: dict[str, Any] = {
        name: getattr(running, name)
        for name in settings.__struct_fields__
        if getattr(settings, name) == getattr(default, name)
    }
    return msgspec.structs.replace(settings, **found | {"data_dir": settings.data_dir})


def holder(directory: Path) -> str:
    """The pid of who holds the directory's lock, as ` (pid 123)`; empty where it did not say."""
    try:
        pid = (directory / LOCK_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (pid {pid})" if pid.isdecimal() else ""


def is_held(directory: Path) -> bool:
    """Whether an `up` holds the directory's lock. The run file's pid does not tell: after a restart of the machine or
    the container another process may have it. Raises ConfigError where that cannot be seen."""
    with files_of(directory):
        try:
            lock = os.open(directory / LOCK_FILE, os.O_RDONLY)
        except FileNotFoundError:
            return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False

"""The few errors of streamproc, named by what the caller does next.

Unprocessable   set the entry aside as a dead letter: trying again cannot help
TryAgain        leave the entry pending and take it up again after `after_s`
ConfigError     stop at start: a setting is missing or wrong (exit 2)
InputError      tell the person who typed or posted it (exit 2, HTTP 400)
JobFailed       the command ran and its answer is no (exit 1)
LogUnavailable  Redis did not answer: producers say 503, workers reconnect
LogBroken       the log is not what it must be (missing group, other partition count): stop, alarm
"""

import errno
from typing import ClassVar

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of the system that mean that a file cannot be written; no connection has them."""

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors by which a file system that has no hard links, such as FAT, refuses one."""

WHEN_LOST = (
    "stop the workers and the projector (`up` as a whole), so that nothing more is decided on what is left, and run"
    " `streamproc recover`, which rebuilds Redis from the archive"
)
"""What to do where the log is behind its archive or gone."""


class StreamprocError(Exception):
    """Base of every error that streamproc raises on purpose."""


class Unprocessable(StreamprocError):
    """The entry can never be handled; the message says why, with the value and the limit."""


class TryAgain(StreamprocError):
    """A dependency is away. `after_s` is the least wait in seconds; no attempt is used up."""

    may_be_done: ClassVar[bool] = False
    """Whether what was asked for may have been carried out all the same."""

    def __init__(self, message: str, *, after_s: float = 1.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class ConfigError(StreamprocError):
    """A setting is missing or wrong; the message names the variable."""


class InputError(StreamprocError):
    """A person or a client sent something wrong; the message names the value and the limit."""


class JobFailed(StreamprocError):
    """A command did its work and the result is a failure."""


class LogUnavailable(StreamprocError):
    """Redis or Valkey could not be reached or refused the write; nothing is known to be lost."""


class LogBroken(StreamprocError):
    """The log contradicts its own rules; going on could lose payouts, so the process stops."""


def first_of_ours(problem: BaseException) -> StreamprocError | None:
    """The first error of a task group that was raised on purpose; None if there are only defects."""
    if isinstance(problem, BaseExceptionGroup):
        return next((ours for one in problem.exceptions if (ours := first_of_ours(one))), None)
    return problem if isinstance(problem, StreamprocError) else None


def kind_of(problem: BaseException | None) -> str:
    """An error that is not ours, for those who may not see its words: they have hosts and users in them."""
    kind = type(problem).__name__
    return "no answer in time" if isinstance(problem, TimeoutError) else _IN_WORDS.get(kind, kind)


_IN_WORDS = {
    "ReadOnlySQLTransactionError": "it can only be read: a standby, or a primary that is one now",
    "TargetServerAttributeNotMatched": "no host of its DSN is one that can be written",
    "TooManyConnectionsError": "it has no connection left (max_connections)",
    "CannotConnectNowError": "it starts or stops",
    "LockNotAvailableError": "another session holds a lock",
    "DiskFullError": "its disk is full",
    "PostgresIOError": "its disk fails, and its own log says where",
    "UndefinedFileError": "a file of its own is gone, and its own log says which",
    "DataCorruptedError": "its data is damaged, and its own log says where",
    "IndexCorruptedError": "an index is damaged, and its own log says which",
    "InternalServerError": "it has an error of its own, and its own log says which",
}
"""Errors of Postgres whose name does not say enough."""


def named(problem: BaseException | None) -> str:
    """An error that is not ours, by its kind and its words; many have none, as what took too long."""
    words = str(problem).strip()
    return f"{type(problem).__name__}: {words}" if words else kind_of(problem)

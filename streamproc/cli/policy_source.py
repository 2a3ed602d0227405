"""Policy files as commands read them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from streamproc.errors import InputError

if TYPE_CHECKING:
    from streamproc.domain.policy import PolicyFile


def read_policy_file(file: Path) -> "PolicyFile":
    """A policy file, checked; `-` is stdin. Raises InputError with every mistake in it."""
    from streamproc.domain.policy import parse_policy_file

    return parse_policy_file(read_text(file), name=str(file))


def read_text(file: Path) -> str:
    """The file's text; `-` is stdin. Raises InputError where it cannot be read or is too long."""
    try:
        if str(file) == "-":
            return _within_limit(sys.stdin.buffer, file).decode("utf-8")
        with file.open("rb") as opened:
            return _within_limit(opened, file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise InputError(f"{file} cannot be read: {why}") from problem


def _within_limit(opened: BinaryIO, file: Path) -> bytes:
    """The file's bytes. Raises InputError above the limit, before an endless file fills all memory."""
    from streamproc.domain.policy_file import FILE_CHARS_MAX

    bytes_max = 4 * FILE_CHARS_MAX
    if len(found := opened.read(bytes_max + 1)) > bytes_max:
        raise InputError(f"{file} has more than {bytes_max} bytes; the limit is {FILE_CHARS_MAX} characters")
    return found

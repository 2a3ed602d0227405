"""Who acts, and why, as a person states it for the audit. Pure."""

import unicodedata

from streamproc.domain.plain import clean
from streamproc.errors import InputError

NAME_CHARS_MAX = 64
"""Longest name of a person who types a command."""
WHY_CHARS_MAX = 500
"""Longest reason, of a change as of a review. It goes into events, and into what people are shown."""


def who(text: str, *, called: str) -> str:
    """A person's name in one visible line. Raises InputError, naming the option (`called`)."""
    return _line(text, called, NAME_CHARS_MAX, "who does it")


def why(text: str, *, called: str) -> str:
    """A reason in one visible line. Raises InputError, naming the option (`called`)."""
    return _line(text, called, WHY_CHARS_MAX, "why")


def _line(text: str, called: str, chars_max: int, what: str) -> str:
    line = clean(text.strip(), len(text))
    if not line:
        raise InputError(f"{called} is blank: it must say {what}, for the audit")
    if len(line) > chars_max:
        raise InputError(f"{called} has {len(line)} characters, the limit is {chars_max}")
    return line


def folded(name: str) -> str:
    """A name as people mean it, without case, blanks and width: `Asha` is `asha`."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())

"""Who acts, why, and by which channel, as the audit has it. Pure.

A channel is `slack`, `api:` and a token's name, or `cli:` and the shell's login and host. Events of earlier versions
have only its kind, or none.
"""

import unicodedata

from msgspec import Struct

from streamproc.domain.plain import clean
from streamproc.errors import InputError

NAME_CHARS_MAX = 64
"""Longest name of a person who types a command."""
WHY_CHARS_MAX = 500
"""Longest reason, of a change as of a review. It goes into events, and into what people are shown."""


class Attribution(Struct, frozen=True):
    """Who does something, by which channel and why; `why` is '' where nobody is asked for a reason."""

    by: str
    channel: str
    why: str = ""


NOBODY = Attribution("", "")


def read_name(text: str, *, called: str) -> str:
    """A person's name in one visible line. Raises InputError, naming the option (`called`)."""
    return _line(text, called, NAME_CHARS_MAX, "who does it")


def read_reason(text: str, *, called: str) -> str:
    """A reason in one visible line. Raises InputError, naming the option (`called`)."""
    return _line(text, called, WHY_CHARS_MAX, "why")


def checked(given: Attribution, *, by: str, why: str) -> Attribution:
    """Name and reason each in one visible line. Raises InputError, naming what they were given as (`by` and `why`)."""
    return Attribution(read_name(given.by, called=by), given.channel, read_reason(given.why, called=why))


def _line(text: str, called: str, chars_max: int, what: str) -> str:
    line = clean(text.strip(), len(text))
    if not line:
        raise InputError(f"{called} is blank: it must say {what}, for the audit")
    if len(line) > chars_max:
        raise InputError(f"{called} has {len(line)} characters, the limit is {chars_max}")
    return line


def kind_of(channel: str) -> str:
    """A channel without the token or shell: `cli:asha@laptop` is `cli`."""
    return channel.partition(":")[0]


def named(by: str, channel: str) -> str:
    """Who it was for people, with the channel where it is known: `asha (cli:asha@laptop)`."""
    return f"{by} ({channel})" if channel else by


def folded(name: str) -> str:
    """A name as people mean it, without case, blanks and width: `Asha` is `asha`."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())

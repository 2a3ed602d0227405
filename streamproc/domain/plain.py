"""Text of strangers, made fit to be shown to a person: nothing in it is invisible, reorders what stands near it, or is
longer than its place. Pure."""

import re
import unicodedata
from collections.abc import Sequence

HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
"""What a terminal, a log or a reader's eye obeys instead of seeing: control characters, halves of a pair, ends of
lines, changes of direction, what hides in a line. Not the joiners U+200C and U+200D: Indian scripts need them."""
CUT = "…"
_BLANK = frozenset({"Zs", "Zl", "Zp"})
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Control characters; zero-width ones, and those that turn the direction of writing; halves of a pair; private ones;
what is not assigned. Of the last two nobody knows what a reader's device shows."""
_ALSO_UNSEEN = frozenset("\u115f\u1160\u2800\u3164\uffa0\u034f\u17b4\u17b5")
"""Letters and marks that show nothing."""
MARKS_MAX = 2
"""Combining marks on one letter: more are a way to write over the lines above and below."""
_LINE_ENDS = str.maketrans("\t\n\r", "   ")


def clean(text: str, chars_max: int) -> str:
    """Text that any log, terminal or database can hold: line breaks become blanks, what is HARMFUL
    U+FFFD; cut to `chars_max`. Nothing is dropped, so two different keys stay different."""
    if text.isprintable():
        return text[:chars_max]
    return HARMFUL.sub("\ufffd", text[:chars_max].translate(_LINE_ENDS))


def plain(text: str) -> str:
    """The text in one line of visible characters, with single blanks between words."""
    shown: list[str] = []
    marks = 0
    for char in text:
        kind = unicodedata.category(char)
        if kind in _BLANK or char in "\t\n\r\v\f\x85":
            marks = 0
            shown.append(" ")
        elif kind in _UNSEEN or char in _ALSO_UNSEEN or "\ufe00" <= char <= "\ufe0f":
            continue
        else:
            marks = marks + 1 if kind in ("Mn", "Me") else 0
            if marks <= MARKS_MAX:
                shown.append(char)
    return " ".join("".join(shown).split())


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes that are none reach Python as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def units(text: str) -> int:
    """Length in UTF-16 code units, as Slack counts: what is beyond the basic plane is two."""
    return len(text) + sum(char > "\uffff" for char in text)


def cut(text: Sequence[str], units_max: int) -> str:
    """The text, or its beginning and `…`, within so many UTF-16 code units; of a text in parts, whole parts of it."""
    whole = "".join(text)
    if units(whole) <= units_max:
        return whole
    left, kept = units_max - units(CUT), list[str]()
    for part in text:
        left -= units(part)
        if left < 0:
            break
        kept.append(part)
    return "".join(kept) + CUT


def cut_bytes(text: str, bytes_max: int) -> str:
    """The text, or its beginning and `…`, within so many bytes of UTF-8; a lone surrogate becomes `?`."""
    whole = text.encode("utf-8", "replace")
    if len(whole) <= bytes_max:
        return whole.decode()
    return whole[: bytes_max - len(CUT.encode())].decode("utf-8", "ignore") + CUT


def listed(names: Sequence[str], shown_max: int) -> str:
    """Names in a row, of many the first: `a, b and 3 more`."""
    more = len(names) - shown_max
    return ", ".join(names[:shown_max]) + (f" and {more} more" if more > 0 else "")

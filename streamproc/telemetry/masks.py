"""Masks secrets in log lines as they are written. No error should hold a secret, but one day one will."""

import re
from collections.abc import Iterable

MASK = "***"
SECRET_CHARS_MIN = 6
"""Shorter values are not masked: they would mask ordinary words too."""

_SHAPES = re.compile(
    r"spt_[A-Za-z0-9_-]{20,}"  # tokens of our API
    r"|xox[a-z]-[A-Za-z0-9-]{10,}"  # Slack's
    r"|(?<=://)[^/\s@]+(?=@)"  # the login in a URL
    r"|(?<=[?&]key=)[^&\s'\"]+"  # Google's API keys
)
_AUTHORIZATION = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)


class Masks:
    """Masks these values and everything that has the form of a secret."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({one for one in secrets if len(one) >= SECRET_CHARS_MIN}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """The text with secrets masked."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        return _AUTHORIZATION.sub(rf"\1\2{MASK}", _SHAPES.sub(MASK, text))

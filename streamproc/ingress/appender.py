"""What ingress needs of the log: `streamproc.log.stream.Producer` has it, and a recorder in tests."""

from typing import Protocol

from streamproc.log.stream import Append, Appended


class Appender(Protocol):
    """Appends to the log."""

    def now_us(self) -> int:
        """µs since 1970 by Redis's clock. Read it with no wait before the append: the clock may be found to be another
        one in between, and what was told by it before would pass for right."""
        ...

    async def sync(self) -> None:
        """Ask for Redis's clock if that is due: for callers that may append nothing. Raises LogUnavailable."""
        ...

    async def append(self, what: Append, /) -> Appended:
        """Append a delivery, unless one of its keys was seen. Raises LogUnavailable."""
        ...

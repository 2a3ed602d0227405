"""What producers need of the log: `streamproc.log.stream.Producer` has it, and so has a test's recorder."""

from typing import Protocol

from streamproc.log.stream import Append, Appended


class Door(Protocol):
    """The one way into the log."""

    def now_us(self) -> int:
        """µs since 1970 by Redis's clock."""
        ...

    async def append(self, what: Append, /) -> Appended:
        """Append once: a delivery with a key that was seen is a repeat. Raises LogUnavailable."""
        ...

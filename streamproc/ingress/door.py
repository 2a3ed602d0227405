"""What producers need of the log, as `streamproc.log.stream.Producer` has it, and a recorder in tests."""

from typing import Protocol

from streamproc.log.stream import Append, Appended


class Door(Protocol):
    """Appends to the log."""

    def now_us(self) -> int:
        """µs since 1970 by Redis's clock."""
        ...

    async def append(self, what: Append, /) -> Appended:
        """Append a delivery, unless one of its keys was seen. Raises LogUnavailable."""
        ...

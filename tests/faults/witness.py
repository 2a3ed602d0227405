"""A reader of the log while it is written, which therefore knows what a failover lost."""

import asyncio
from collections.abc import Callable

from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import Event
from streamproc.domain.wire import decode_events
from streamproc.errors import LogUnavailable, StreamprocError
from streamproc.log.stream import Entry, LogView

READ_MAX = 500
BLOCK_MS = 500


class Witness:
    """Reads the log while it is written. What was in it must be in the archive, whatever Redis has later.

    After a failover `entries` is the log that is valid from then on; entries that it lost are kept in `lost`.
    """

    def __init__(self, url: str, partition: int = 0) -> None:
        self.url, self.partition = url, partition
        self.turn = asyncio.Lock()
        """Held while it reads. Who holds it may change what is read."""
        self.entries: list[Entry] = []
        self.lost: list[Entry] = []
        """Entries that only the dead server had: neither the archive nor the new server has them."""
        self.dropped: list[Entry] = []
        """Entries that the new server wrote before its log was recovered from the archive."""
        self.heard: list[Callable[[Event], None]] = []
        self.rewritten: list[Callable[[], None]] = []
        """Called when `entries` was changed."""
        self._tail: list[Entry] = []
        self._forked_at = 0

    @property
    def last(self) -> str:
        """The newest entry that was seen."""
        return self.entries[-1].id if self.entries else "0-0"

    async def watch(self) -> None:
        """Read until cancelled."""
        while True:
            url = self.url
            async with LogView(url, self.partition) as view:
                while url == self.url:
                    async with self.turn:
                        away = url == self.url and await self._read(view) is None
                    if away:
                        await asyncio.sleep(0.05)

    async def catch_up(self) -> None:
        """Read to the end of a log that nobody writes to. The caller holds `turn`."""
        async with LogView(self.url, self.partition) as view:
            while await self._read(view, 0) != 0:
                pass

    def follow(self, url: str, shared: str) -> None:
        """Read from another server now, whose log is the same up to and including entry `shared`."""
        self.url = url
        self._tail = [entry for entry in self.entries if id_key(entry.id) > id_key(shared)]
        self.entries = self.entries[: len(self.entries) - len(self._tail)]
        self._forked_at = len(self.entries)
        self.lost = list(self._tail)
        self._call_rewritten()

    def recovered(self, head: str) -> None:
        """The log was rebuilt from the archive, whose last entry is `head`."""
        self.dropped = self.entries[self._forked_at :]
        self.lost = [entry for entry in self._tail if id_key(entry.id) > id_key(head)]
        back = self._tail[: len(self._tail) - len(self.lost)]
        self.entries = [*self.entries[: self._forked_at], *back]
        self._call_rewritten()

    def _call_rewritten(self) -> None:
        for call in self.rewritten:
            call()

    async def _read(self, view: LogView, block_ms: int = BLOCK_MS) -> int | None:
        """Read once. Returns the number of new entries; None while the log is away or being rebuilt."""
        try:
            entries = await view.read(self.last, READ_MAX, block_ms)
        except (LogUnavailable, StreamprocError):
            return None
        self.entries += entries
        for entry in entries:
            for event in decode_events(entry.e):
                for hear in self.heard:
                    hear(event)
        return len(entries)

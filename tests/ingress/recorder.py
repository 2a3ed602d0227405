"""A producer that remembers what was appended, and knows a key that it saw: enough for a producer's tests."""

from streamproc.domain.events import Event
from streamproc.errors import LogUnavailable
from streamproc.log.stream import Append, Appended

NOW_US = 1_760_000_000_000_000


class Recorder:
    def __init__(self) -> None:
        self.appends: list[Append] = []
        self.seen: dict[str, str] = {}
        self.is_away = False
        self.now_s = NOW_US // 1_000_000

    def now_us(self) -> int:
        return self.now_s * 1_000_000

    async def sync(self) -> None:
        """Its clock is right by itself."""

    async def append(self, what: Append, /) -> Appended:
        if self.is_away:
            raise LogUnavailable("connection refused to redis://user:SECRET@host")
        known = next((self.seen[key] for key in what.keys if key in self.seen), None)
        entry = known or f"{len(self.appends) + 1}-0"
        self.seen |= dict.fromkeys(what.keys, entry)
        if known is None:
            self.appends.append(what)
        return Appended(entry, known is None)

    @property
    def events(self) -> list[Event]:
        return [event for append in self.appends for event in append.events]

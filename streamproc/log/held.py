"""What a consumer has in its hands: taken up, if it came from others', and held until it is finished.

That it is still there is said before the claim time is over. What was read while a batch is at the bank waits for
that batch, and for what was found beside it. Without a word it would look abandoned: another worker would take it over
and, where entries are messages to people, tell them twice. Only who waits long says so, since each word is a write that
waits for the disk.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.log.names import Names
from streamproc.log.scripts import BATCH_MAX, Raw, Script

PART = 4
"""So many words have their time in the claim time; that one is late, or is lost, does no harm."""

_take_up, _hold = Script("take_up", "checks"), Script("hold", "checks")


class TakenUp(NamedTuple):
    """An entry that was in another's hands: how often it was delivered, and itself unless that is too often."""

    deliveries: int
    id: bytes
    entry: Raw | None = None


async def take_up(
    client: Redis, names: Names, group: str, consumer: str, entries: Sequence[bytes], *, most: int | None
) -> list[TakenUp]:
    """Take up what came into the consumer's hands from others', where it was delivered at most `most` times with this.

    None: take up all of it again, by a process that may have had it before and did not die of it; that is no delivery.
    What is not in these hands, is put off or has left the log is left out.
    """
    keys = [names.log, names.retries(group), names.tries(group)]
    rows = await _take_up(client, keys, [group, consumer, "" if most is None else most, *entries])
    return [TakenUp(int(n), entry, *(tuple(raw) for raw in more)) for n, entry, *more in rows]


async def hold(
    client: Redis, names: Names, group: str, consumer: str, entries: Sequence[bytes]
) -> list[bytes]:
    """Say that entries are still in the consumer's hands; those that are."""
    return list(await _hold(client, [names.log], [group, consumer, *entries]))


class Held:
    """The entries of one consumer."""

    def __init__(self, names: Names, group: str, consumer: str, claim_idle_s: float) -> None:
        self._names, self._group, self._me = names, group, consumer
        self._again_s = claim_idle_s / PART
        self._since: dict[bytes, float] = {}
        """When each was asked for, or it was asked whether it is there (monotonic clock, s)."""
        self._lost: set[bytes] = set()
        """Those of them that others have taken over."""

    def add(self, ids: Iterable[bytes], since_s: float) -> None:
        """They are in our hands, for as long at most as `since_s` (monotonic clock): when they were asked for.

        When the answer was seen says nothing: a process that stands still has it long before.
        """
        self._since |= dict.fromkeys(ids, since_s)

    def done(self, ids: Iterable[bytes]) -> None:
        """They are finished."""
        for entry in ids:
            self._since.pop(entry, None)
            self._lost.discard(entry)

    def clear(self) -> None:
        """Nothing is in our hands that we know of."""
        self._since.clear()
        self._lost.clear()

    async def renew(self, client: Redis, *, late: int = 1) -> None:
        """Say of those that they are here of which nothing was said for long, `late` times as long as is meant."""
        now = asyncio.get_running_loop().time()
        old = [entry for entry, since in self._since.items() if now - since >= late * self._again_s]
        for start in range(0, len(old), BATCH_MAX):
            some = old[start : start + BATCH_MAX]
            ours = set(await hold(client, self._names, self._group, self._me, some))
            for entry in self._since.keys() & set(some):  # others are finished meanwhile
                if entry in ours:
                    self._since[entry] = now
                else:
                    del self._since[entry]
                    self._lost.add(entry)

    async def ours(self, client: Redis, entries: Sequence[Raw]) -> Sequence[Raw]:
        """Those that others have not taken over: of a process that stood still they have what it had."""
        await self.renew(client, late=PART // 2)
        return [entry for entry in entries if entry[0] not in self._lost] if self._lost else entries

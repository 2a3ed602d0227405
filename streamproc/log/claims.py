"""A consumer's claims on the entries that it has in hand, renewed before others may claim them.

What was read while a batch is at the bank waits for that batch, and for what was found beside it. Without a renewal it
would look abandoned: another worker would take it over and, where entries are messages to people, tell them twice. Only
what waits long is renewed, since each renewal is a write that waits for the disk.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.log.scripts import BATCH_MAX, Raw

PART = 4
"""Renewals within one claim time, so that a late or lost one does no harm."""
ANY = 2**31
"""No limit of deliveries: the entry's turn has come."""

_take_up, _renew, _not_begun = (Script(name, "checks") for name in ("take_up", "renew", "not_begun"))


class TakenUp(NamedTuple):
    """An entry that is pending with this consumer now: how often it was delivered, and itself unless that is too
    often, or it waited in another's slow lane."""

    deliveries: int
    id: bytes
    entry: Raw | None = None
    waited: bool = False
    soon: bool = False
    """Of one that waited: whether it overtakes others (`LeaveToSlowLane.soon`)."""


async def take_up(
    client: Redis, names: Names, group: str, consumer: str, entries: Sequence[bytes], *, most: int | None
) -> list[TakenUp]:
    """Take up entries that were claimed from others, if they were delivered at most `most` times with this one and did
    not wait in a slow lane.

    `most` ANY: their turn has come, so take them up in any case. None: take up again all of them, which this process
    may have had before, and survived; that is no delivery. What is not pending with the consumer, is deferred or has
    left the log is left out.
    """
    keys = [names.log, names.retries(group), names.tries(group)]
    wanted = "" if most is None else "turn" if most == ANY else most
    rows = await _take_up(client, keys, [group, consumer, wanted, *entries])
    return [_taken_up(int(n), entry, *more) for n, entry, *more in rows]


def _taken_up(deliveries: int, entry: bytes, more: bytes | list[Any] | None = None) -> TakenUp:
    if isinstance(more, bytes):
        return TakenUp(deliveries, entry, waited=True, soon=more == b"1")
    return TakenUp(deliveries, entry, None if more is None else (more[0], more[1]))


async def renew(
    client: Redis, names: Names, group: str, consumer: str, entries: Sequence[bytes]
) -> list[bytes]:
    """Renew the claims on entries; those that are still pending with the consumer."""
    return list(await _renew(client, [names.log], [group, consumer, *entries]))


async def not_begun(
    client: Redis, names: Names, group: str, consumer: str, entries: Mapping[bytes, bool]
) -> None:
    """Take back the last delivery of entries that only wait, and note of each that it does, and whether it overtakes
    others: if their workers die meanwhile, it is not known to be of them."""
    ids = list(entries)
    for start in range(0, len(ids), BATCH_MAX):
        flat = [x for entry in ids[start : start + BATCH_MAX] for x in (entry, int(entries[entry]))]
        await _not_begun(client, [names.log, names.tries(group)], [group, consumer, *flat])


class Claims:
    """The claims of one consumer."""

    def __init__(self, names: Names, group: str, consumer: str, claim_idle_s: float) -> None:
        self._names, self._group, self._me = names, group, consumer
        self._again_s = claim_idle_s / PART
        self._since: dict[bytes, float] = {}
        """Entry -> when it was asked for, or its claim was last renewed (monotonic clock, s)."""
        self._lost: set[bytes] = set()
        """Entries that others have taken over before they were handled."""

    def add(self, ids: Iterable[bytes], since_s: float) -> None:
        """Entries came into hand, at `since_s` (monotonic clock) at the earliest: when they were asked for.

        When the answer was read says nothing: a process that stood still may have had it long before.
        """
        self._since |= dict.fromkeys(ids, since_s)

    def done(self, ids: Iterable[bytes]) -> None:
        """The entries are handled."""
        for entry in ids:
            self._since.pop(entry, None)
            self._lost.discard(entry)

    def clear(self) -> None:
        """Nothing is known to be in hand."""
        self._since.clear()
        self._lost.clear()

    async def renew(self, client: Redis, *, late: int = 1) -> None:
        """Renew the claims on entries whose last renewal is at least `late` renewal intervals ago."""
        now = asyncio.get_running_loop().time()
        old = [entry for entry, since in self._since.items() if now - since >= late * self._again_s]
        for start in range(0, len(old), BATCH_MAX):
            chunk = old[start : start + BATCH_MAX]
            ours = set(await renew(client, self._names, self._group, self._me, chunk))
            for entry in self._since.keys() & set(chunk):  # without those that were finished meanwhile
                if entry in ours:
                    self._since[entry] = now
                else:
                    del self._since[entry]
                    self._lost.add(entry)

    async def ours(self, client: Redis, entries: Sequence[Raw]) -> Sequence[Raw]:
        """The entries that others have not taken over, as they may have if this process stood still."""
        await self.renew(client, late=PART // 2)
        return [entry for entry in entries if entry[0] not in self._lost] if self._lost else entries

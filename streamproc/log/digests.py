"""Alerts that are alike are counted in Redis, so that people get one message and not a flood (ADR 22).

The first is told at once. Others of the same minute are counted, each once, and told together in a digest when the
minute is over; then the next minute begins, without a first. A digest is told under a lease: if the process that tells
it dies, another one does.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from streamproc.domain.events import NotificationSent
from streamproc.domain.wire import encode_events, written_by
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected, named_errors
from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.log.scripts import BATCH_MAX, Keys

GATHER_S = 60.0
"""One message a minute and kind: often enough to see that it goes on, seldom enough to be read."""
OPEN_MAX = 50
"""Kinds of alerts counted apart in a partition: agents' names are whatever somebody wrote. What is more goes to one
digest."""
EXACT_MAX = 10_000
"""Alerts of a digest that are counted exactly, by some 600 kB of ids. Beyond that it says `more than`."""
EXAMPLES_MAX = 5
"""Ids that a digest names."""
LEASE_S = 30.0
"""Longer than both channels together may take to answer."""
FORGOTTEN_S = 86_400.0
"""A digest that nobody could be told of for so long is dropped; the audit has every alert."""
DUE_AT_ONCE = 16
"""Digests taken in one look: telling them takes a few leases at most."""
OTHERS = "others"

_count, _take, _close = (
    Script("count_alerts", "checks"),
    Script("take_digest", "checks"),
    Script("close_digest", "checks"),
)


class Alert(NamedTuple):
    """An alert to count: its kind, what that is called to people (`about`), and its own id (`subject`)."""

    kind: str
    about: str
    subject: str
    paise: int


class Digest(Struct, frozen=True):
    """A digest in hand since `at` (µs). `more`: there were more than could be counted."""

    partition: int
    name: str
    lease: str
    at: int
    about: str
    count: int
    paise: int
    more: bool
    examples: tuple[str, ...]


def digest_name(kind: str) -> str:
    """A kind's part of a key: hashed, since a kind contains agents' names."""
    return hashlib.sha256(kind.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Digests:
    """The digests of all partitions. `gather_s` is how long each gathers."""

    def __init__(self, url: str, *, gather_s: float = GATHER_S, lease_s: float = LEASE_S) -> None:
        self._url = url
        self._gather_us = int(gather_s * 1e6)
        self._lease_us = int(lease_s * 1e6)
        self._longest_us = max(self._gather_us, self._lease_us)

    async def count(self, partition: int, alerts: Sequence[Alert]) -> list[bool]:
        """For each alert whether it is to be told now; the others are counted. Raises LogUnavailable."""
        names = Names(partition)
        answers: list[bool] = []
        async with connected(self._url) as client:
            for start in range(0, len(alerts), BATCH_MAX):
                keys = Keys(names.digests, names.digest(OTHERS), names.digested(OTHERS))
                args: list[Any] = [self._gather_us, OPEN_MAX, EXACT_MAX, EXAMPLES_MAX]
                args += [int(FORGOTTEN_S * 1000), OTHERS]
                for alert in alerts[start : start + BATCH_MAX]:
                    name = digest_name(alert.kind)
                    index = keys.index(names.digest(name))
                    keys.index(names.digested(name))
                    args += [index, name, alert.about, alert.subject, alert.paise]
                answers += [told == 1 for told in await _count(client, keys.list, args)]
        return answers

    async def take(self, partitions: int) -> list[Digest]:
        """Digests that are due, each leased to the caller. Raises LogUnavailable.

        One that would be due later than any is due too: Redis's clock went back.
        """
        found: list[Digest] = []
        async with connected(self._url) as client:
            now = await clock_us(client)
            with named_errors():
                async with client.pipeline(transaction=False) as pipe:
                    for partition in range(partitions):
                        key, later = Names(partition).digests, f"({now + self._longest_us}"
                        pipe.zrangebyscore(key, "-inf", now, start=0, num=DUE_AT_ONCE)
                        pipe.zrangebyscore(key, later, "+inf", start=0, num=DUE_AT_ONCE)
                    due = await pipe.execute()
            for partition in range(partitions):
                members = [*due[2 * partition], *due[2 * partition + 1]]
                for member in members[: DUE_AT_ONCE - len(found)]:
                    digest = await self._take_one(client, partition, member.decode())
                    found += [digest] if digest is not None else []
        return found

    async def _take_one(self, client: Any, partition: int, name: str) -> Digest | None:
        names = Names(partition)
        keys = [names.digests, names.digest(name), names.digested(name)]
        reply = await _take(client, keys, [name, self._lease_us, EXAMPLES_MAX, self._longest_us])
        if not reply:
            return None
        lease, about, count, paise, more, *examples = (part.decode() for part in reply)
        return Digest(
            partition=partition,
            name=name,
            lease=lease,
            at=int(lease) - self._lease_us,
            about=about,
            count=int(count),
            paise=int(paise),
            more=more == "1",
            examples=tuple(examples),
        )

    async def close(self, digest: Digest, event: NotificationSent, writer: str) -> bool:
        """Record that a digest was told; False where it took longer than the lease. Raises LogUnavailable."""
        names = Names(digest.partition)
        keys = [names.log, names.digests, names.digest(digest.name), names.digested(digest.name)]
        m = written_by(writer) + b"}"
        told = digest.name, digest.lease, digest.count, digest.paise
        args = [*told, self._gather_us, encode_events([event]), m]
        async with connected(self._url) as client:
            return bool(await _close(client, keys, args) == 1)

"""Trimming: removes the beginning of a partition's log that is archived and that nobody in Redis needs any more."""

from collections.abc import Callable

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.entry_ids import id_key
from streamproc.errors import WHEN_LOST, LogBroken
from streamproc.log.names import Names
from streamproc.log.script import Script

ENTRIES_MAX = 4_000
"""Entries that one call removes: 2.7 ms of the server's one thread, at 0.68 µs for an entry of 1 kB (measured)."""

CALLS_MAX = 250
"""Calls of one round of the janitor: a million entries, in slices between which the server serves others."""

_trim = Script("trim", "checks")


class Bound(Struct, frozen=True):
    """Something that needs the log from `entry` on: `archive`, `retention`, `pending GROUP` or `read GROUP`."""

    what: str
    entry: str


class Trimmed(Struct, frozen=True):
    """The result of a trim or a dry run. Nothing needs what is below `cut`; `first` is the log's first entry before."""

    removed: int
    first: str
    cut: str
    bounds: list[Bound]

    @property
    def held_by(self) -> Bound:
        """The lowest bound, which determines the cut."""
        return min(self.bounds, key=lambda bound: id_key(bound.entry))


async def trim(
    client: Redis, names: Names, *, anchor: str, retention_s: float, look_only: bool = False
) -> Trimmed:
    """Remove up to ENTRIES_MAX entries that nothing needs; `anchor` is the archive's last entry, which stays.

    Raises LogBroken, and removes nothing, where the log, the anchor or a group is gone.
    """
    args = [anchor, int(retention_s * 1000), ENTRIES_MAX, int(look_only)]
    reply = await _trim(client, [names.log, names.groups], args)
    if reply[0] == b"gone":
        raise LogBroken(
            f"consumer group {reply[1].decode()} of {names.log} is gone; nothing is trimmed: {WHEN_LOST}"
        )
    if reply[0] == b"lost":
        raise LogBroken(
            f"{names.log} no longer has the archive's last entry {anchor}; nothing is trimmed: {WHEN_LOST}"
        )
    texts = [part.decode() for part in reply[1:]]
    bounds = [Bound(what, entry) for what, entry in zip(texts[2::2], texts[3::2], strict=True)]
    return Trimmed(reply[0], texts[0], texts[1], bounds)


async def trim_round(
    client: Redis,
    names: Names,
    *,
    anchor: str,
    retention_s: float,
    calls_max: int = CALLS_MAX,
    on_removed: Callable[[int], None] = lambda _: None,
) -> tuple[Trimmed, bool]:
    """Trim until nothing is left to remove, in at most `calls_max` calls: the sum, and whether that limit ended it.

    `on_removed` is called with the number removed so far, after each call that removed any.
    """
    first = found = await trim(client, names, anchor=anchor, retention_s=retention_s)
    removed, calls = found.removed, 1
    while found.removed:
        on_removed(removed)
        if calls >= calls_max:
            break
        found = await trim(client, names, anchor=anchor, retention_s=retention_s)
        removed, calls = removed + found.removed, calls + 1
    return Trimmed(removed, first.first, found.cut, found.bounds), found.removed > 0

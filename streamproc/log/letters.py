"""Closes a dead letter, and gives back what was reserved for an intent that is given up with it."""

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.events import DeadLetterClosed
from streamproc.domain.wire import encode_events
from streamproc.errors import Unprocessable
from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.log.scripts import load, loaded

_close_letter = Script("close_letter", "checks")


class GivenUp(Struct, frozen=True):
    """What Redis has reserved for a payout of which the log says nothing."""

    version: bytes
    admission: bytes
    keys: list[str]


class Closed(Struct, frozen=True):
    """The id of the record of it, and the paise that are not reserved any more."""

    record: str
    freed: int


async def reserved_for(client: Redis, names: Names, payout: str) -> GivenUp | None:
    """What an intent's first pass reserved before it failed; None where there is nothing, or the log knows of it."""
    _, _, [row], _ = await load(client, names, [payout])
    found = loaded(row)
    room = found.admission.budget
    admission = row[2]
    if found.record is not None or admission is None or room is None or not room.granted:
        return None
    keys = [names.payout(payout), *(names.budget(w.scope, w.window) for w in room.windows)]
    return GivenUp(found.version, admission, keys)


async def close_letter(
    client: Redis, names: Names, closing: DeadLetterClosed, *, given_up: GivenUp | None = None
) -> Closed | None:
    """Give a dead letter's entry back to its group (`redrive`) or drop it (`discard`), as `closing` says, and record
    that.

    `given_up` is freed with a discarded one, unless it has changed. None: there is no such letter. Raises Unprocessable
    where the entry has left Redis.
    """
    _, _, letter = closing.letter.partition(":")
    group, entry = closing.group, closing.entry
    keys = [names.log, names.dead, names.retries(group), *(given_up.keys if given_up else ())]
    e, m = encode_events([closing]), msgspec.json.encode({"by": "operator", "actor": closing.by})
    args = [given_up.version, given_up.admission] if given_up else []
    answer: bytes | tuple[bytes, int] = await _close_letter(
        client, keys, [letter, group, entry, closing.action, e, m, *args]
    )
    if answer == b"gone":
        raise Unprocessable(
            f"entry {entry} has left Redis with the retention time; it cannot be handled again"
        )
    if isinstance(answer, bytes):
        return None
    record, freed = answer
    return Closed(record.decode(), freed)

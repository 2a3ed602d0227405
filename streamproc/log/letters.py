"""Closes a dead letter, and gives back what was reserved for an intent that is given up with it."""

from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.errors import Unprocessable
from streamproc.log.names import Names
from streamproc.log.scripts import Script, load, loaded

_close_letter = Script("close_letter", "checks")


class GivenUp(Struct, frozen=True):
    """What Redis has reserved for a payout of which the log says nothing. `amount`: paise."""

    version: bytes
    admission: bytes
    keys: list[str]
    amount: int


async def given_up(client: Redis, names: Names, payout: str) -> GivenUp | None:
    """What an intent's first pass reserved before it failed; None where there is nothing, or the log knows of it."""
    _, _, [row], _ = await load(client, names, [payout])
    found = loaded(row)
    room = found.admission.budget
    admission = row[2]
    if found.record is not None or admission is None or room is None or not room.granted:
        return None
    keys = [names.payout(payout), *(names.budget(w.scope, w.window) for w in room.windows)]
    return GivenUp(found.version, admission, keys, room.amount)


async def close_letter(
    client: Redis,
    names: Names,
    letter: str,
    *,
    group: str,
    entry: str,
    action: str,
    e: bytes,
    m: bytes,
    freed: GivenUp | None = None,
) -> tuple[str, int] | None:
    """Give a dead letter's entry back to its group (`redrive`) or drop it (`discard`), and record that.

    `freed`: what is not reserved any more, unless that has changed. The id of the record and the paise that were given
    back; None: there is no such letter. Raises Unprocessable where the entry has left Redis.
    """
    keys = [names.log, names.dead, names.retries(group), *(freed.keys if freed else ())]
    args = [freed.version, freed.admission] if freed else []
    answer: Any = await _close_letter(client, keys, [letter, group, entry, action, e, m, *args])
    if answer == b"gone":
        raise Unprocessable(
            f"entry {entry} has left Redis with the retention time; it cannot be handled again"
        )
    if not answer:
        return None
    record, gave_back = answer
    return record.decode(), freed.amount if freed is not None and gave_back == 1 else 0

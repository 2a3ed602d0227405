"""Take an entry that nobody can read from the groups, once a person has put on record that none of us wrote it (ADR
32)."""

from collections.abc import Sequence

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.entry_ids import id_key
from streamproc.log.connection import named_errors
from streamproc.log.inspect import DeadLetter, letter_of
from streamproc.log.names import Names
from streamproc.log.scripts import Delivery, append_once

LETTERS_MAX = 1_000
"""Dead letters among which those of the entry are looked for, from its time on."""


async def record(client: Redis, names: Names, entry: str, *, e: bytes, m: bytes) -> str:
    """Append the record of it, once; its id."""
    [(made, _)] = await append_once(client, names, [Delivery((f"disown:{entry}",), e, m)])
    return made


class TakenAway(Struct, frozen=True):
    """Groups that had the entry pending; those that have not read as far as it, and will get it still; its dead
    letters. `all_seen`: there are no more dead letters than were looked at."""

    held: list[str]
    unread: list[str]
    letters: list[DeadLetter]
    all_seen: bool


async def take_away(client: Redis, names: Names, entry: str, groups: Sequence[str]) -> TakenAway:
    """Acknowledge the entry for all groups.

    In one step with all that is told, so that no group that has read it has it pending then, and only a letter that is
    given back brings it to one again.
    """
    since_ms, _ = id_key(entry)
    with named_errors():
        async with client.pipeline(transaction=True) as pipe:
            for group in groups:
                pipe.execute_command("XACK", names.log, group, entry)
            pipe.xinfo_groups(names.log)
            pipe.execute_command("XRANGE", names.dead, since_ms, "+", "COUNT", LETTERS_MAX)
            *done, there, rows = await pipe.execute()
    read_upto = {row["name"].decode(): row["last-delivered-id"].decode() for row in there}
    return TakenAway(
        [group for group, acknowledged in zip(groups, done, strict=True) if acknowledged],
        [group for group in groups if group in read_upto and id_key(read_upto[group]) < id_key(entry)],
        [letter for letter in map(letter_of, rows) if letter.entry == entry],
        len(rows) < LETTERS_MAX,
    )

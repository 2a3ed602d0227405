"""Take an entry that nobody can read from the groups, once a person has put on record that none of us wrote it (ADR
32)."""

from collections.abc import Sequence

from redis.asyncio import Redis

from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.scripts import Delivery, append_once


async def disown(
    client: Redis, names: Names, entry: str, groups: Sequence[str], *, e: bytes, m: bytes
) -> tuple[str, list[str]]:
    """Append the record, once; then acknowledge the entry. The record's id, and the groups that had it pending.

    Safe to repeat after a crash in between. A retry that is due then finds the entry acknowledged.
    """
    [(record, _)] = await append_once(client, names, [Delivery((f"disown:{entry}",), e, m)])
    with named_errors():
        async with client.pipeline(transaction=True) as pipe:
            for group in groups:
                pipe.execute_command("XACK", names.log, group, entry)
            done = await pipe.execute()
    return record, [group for group, acknowledged in zip(groups, done, strict=True) if acknowledged]

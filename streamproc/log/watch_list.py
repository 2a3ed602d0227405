"""The payouts that an account's poller looks at again, each at its time: a sorted set in the account's partition.

Accounts that share a partition have a list each, since the key of one may not see the payouts of the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamproc.domain.payouts import PayoutRecord
from streamproc.log.connection import session
from streamproc.log.inspect import RECORDS_AT_ONCE, known_records, open_records
from streamproc.log.names import Names, partition_of
from streamproc.log.nodes import text_of

SEED_EVERY_S = 3_600
"""How long an open payout may be missing from the list: one whose record was made after the last seeding, and that the
poller never lists, since it is older than what each pass reads."""

Seeds = Callable[[Sequence[PayoutRecord]], Mapping[str, int]]


class WatchList:
    """Members are payout ids, scores Unix seconds. Its size is bounded by the payouts that are open at the bank."""

    def __init__(self, url: str, *, account: str, partitions: int) -> None:
        self._url = url
        self._account = account
        self._names = Names(partition_of(account, partitions))
        self._key = self._names.watch_list(account)
        self._mark = self._names.cursor(f"watch_seeded:{account}")

    async def add(self, when: Mapping[str, int]) -> None:
        """Add payouts that are not on the list yet."""
        async with session(self._url) as client:
            await client.zadd(self._key, dict(when), nx=True)

    async def due(self, now_s: int, limit: int, *, longest_s: int) -> list[tuple[str, PayoutRecord | None]]:
        """Payouts that are due, the longest first, with their records. Then those that would be due in more than
        `longest_s`: nothing is put off for so long, so the clock has gone back."""
        async with session(self._url) as client:
            found: list[Any] = await client.zrangebyscore(self._key, "-inf", now_s, start=0, num=limit)
            if len(found) < limit:
                later, room = f"({now_s + longest_s}", limit - len(found)
                found += await client.zrangebyscore(self._key, later, "+inf", start=0, num=room)
            records = await known_records(client, self._names, [text_of(member) for member in found])
        return list(records.items())

    async def move(self, when: Mapping[str, int | None]) -> None:
        """Set when each is due next; None takes it off the list."""
        async with session(self._url) as client, client.pipeline(transaction=False) as pipe:
            for payout, at in when.items():
                if at is None:
                    pipe.zrem(self._key, payout)
                else:
                    pipe.zadd(self._key, {payout: at}, xx=True)
            await pipe.execute()

    async def seed(self, seeds: Seeds, now_s: int) -> None:
        """Add the account's payouts that are open in Redis and not on the list, unless that was done within
        SEED_EVERY_S. O(keys of Redis)."""
        async with session(self._url) as client:
            seeded_s = int(await client.get(self._mark) or 0)
            if seeded_s <= now_s < seeded_s + SEED_EVERY_S:
                return
            async for records in open_records(client, self._names, at_once=RECORDS_AT_ONCE):
                when = seeds([record for record in records if record.account == self._account])
                if when:
                    await client.zadd(self._key, dict(when), nx=True)
            await client.set(self._mark, now_s)

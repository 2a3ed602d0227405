"""Bounded reads of the log's Redis without a consumer group: for operators, never for decisions."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.entry_ids import ZERO
from streamproc.domain.payouts import PayoutRecord, decode_record, is_terminal
from streamproc.errors import WHEN_LOST, JobFailed, LogBroken
from streamproc.log.connection import named_errors, session
from streamproc.log.names import META, Names
from streamproc.log.nodes import text_of
from streamproc.log.scripts import SEEN_TTL_S
from streamproc.log.stream import BEGUN, Entry, entry_of

SCAN_COUNT = 500
"""Keys that one SCAN visits: well under a millisecond of the server's one thread."""
RECORDS_AT_ONCE = 200
"""Records asked for together."""


class DeadLetter(Struct, frozen=True):
    """A dead letter as it is kept. `id` and `entry` are stream ids."""

    id: str
    entry: str
    group: str
    e: bytes
    m: bytes
    problem: str


class LogStats(Struct, frozen=True, kw_only=True):
    """The size of one partition. Ids are 0-0 if it is empty; the memory of log and dead letters is Redis's estimate."""

    partition: int
    length: int
    memory_bytes: int
    first: str
    last: str
    timers: int
    dead: int
    dead_bytes: int


async def partitions_of_log(client: Redis) -> int:
    """The number of partitions that this log was made with. Raises JobFailed if there is no log yet."""
    with named_errors():
        known = await client.hget(META, "partitions")
    if known is None:
        raise JobFailed(
            "this Redis holds no log yet: any role makes it at the first start;"
            " if there was one, run `streamproc recover`"
        )
    return int(known)


async def log_exists(client: Redis, partition: int) -> bool:
    """Whether a partition's stream is there."""
    with named_errors():
        return bool(await client.exists(Names(partition).log))


async def forgot_nothing(client: Redis, partitions: int) -> bool:
    """Whether Redis still knows every delivery that ever was: the log is younger than keys are kept, and has all its
    entries.

    Records of payouts may have expired, as retention times say.
    """
    with named_errors():
        begun, (now_s, _) = await client.hget(META, BEGUN), await client.time()
        # A negative age means that the clock went back, so the age is not known.
        if begun is None or now_s < int(begun):
            return False
        latest_s = now_s
        for partition in range(partitions):
            name = Names(partition).log
            log = await client.xinfo_stream(name) if await client.exists(name) else None
            if log is None or log["entries-added"] != log["length"]:
                return False
            # If that is still to come, the clock was there already, and what expired then is gone.
            latest_s = max(latest_s, int(log["last-generated-id"].partition(b"-")[0]) // 1_000)
    return latest_s - int(begun) < SEEN_TTL_S


async def record_of(client: Redis, partitions: int, payout: str) -> PayoutRecord | None:
    """What Redis knows of a payout, in whichever partition; None if it knows nothing (any more)."""
    found = await _records(client, [Names(partition).payout(payout) for partition in range(partitions)])
    records = [record for record in found if record is not None]
    # A payout under an intent's reference may have been seen on another account too; the intent is the one meant.
    return next((r for r in records if r.intent is not None), records[0] if records else None)


def is_held(record: PayoutRecord) -> bool:
    """Whether a payout waits for a person."""
    return record.state == "held"


def open_records(client: Redis, names: Names, *, at_once: int) -> AsyncGenerator[list[PayoutRecord], None]:
    """The payouts of a partition that have not ended, as `records_where` gives them."""
    return records_where(client, names, lambda record: not is_terminal(record), at_once=at_once)


async def records_where(
    client: Redis, names: Names, wanted: Callable[[PayoutRecord], bool], *, at_once: int
) -> AsyncGenerator[list[PayoutRecord], None]:
    """The payouts of a partition that are `wanted`, in lists of up to `at_once`, in no order. O(keys of Redis).

    A payout may come twice if keys are added meanwhile.
    """
    cursor, waiting = 0, list[PayoutRecord]()
    while True:
        with named_errors():
            cursor, keys = await client.scan(cursor, match=names.payout("*"), count=SCAN_COUNT, _type="HASH")
        records = await _records(client, keys)
        waiting += [record for record in records if record is not None and wanted(record)]
        while len(waiting) >= at_once:
            yield waiting[:at_once]
            waiting = waiting[at_once:]
        if cursor == 0:
            break
    if waiting:
        yield waiting


async def known_records(
    client: Redis, names: Names, payouts: Sequence[str]
) -> dict[str, PayoutRecord | None]:
    """What Redis knows of these payouts of a partition."""
    records = await _records(client, [names.payout(payout) for payout in payouts])
    return dict(zip(payouts, records, strict=True))


async def _records(client: Redis, keys: Sequence[Any]) -> list[PayoutRecord | None]:
    """The record under each key. Raises LogBroken where one cannot be read."""
    records: list[PayoutRecord | None] = []
    for start in range(0, len(keys), RECORDS_AT_ONCE):
        some = keys[start : start + RECORDS_AT_ONCE]
        with named_errors():
            async with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hget(key, "s")
                found = await pipe.execute()
        records += [_decoded(key, record) for key, record in zip(some, found, strict=True)]
    return records


def _decoded(key: Any, record: bytes | None) -> PayoutRecord | None:
    try:
        return decode_record(record) if record else None
    except ValueError as problem:  # msgspec's errors too
        raise LogBroken(
            f"what Redis has under {text_of(key)} cannot be read: {problem}; {WHEN_LOST}"
        ) from None


async def counted_in(
    client: Redis, names: Names, windows: Sequence[tuple[str, str]]
) -> list[tuple[int, int]]:
    """What these windows (scope, window) hold now: paise reserved, committed; 0 if nothing was charged yet."""
    if not windows:
        return []
    with named_errors():
        async with client.pipeline(transaction=True) as pipe:
            for window in windows:
                pipe.hmget(names.budget(*window), "r", "c")
            rows = await pipe.execute()
    return [(int(reserved or 0), int(committed or 0)) for reserved, committed in rows]


async def counted_budgets(client: Redis, names: Names) -> dict[tuple[str, str], tuple[int, int]]:
    """Every budget counter of a partition: (scope, window) -> paise reserved, committed. O(keys of Redis)."""
    prefix, cursor = names.budget("", "").removesuffix(":"), 0
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    while True:
        with named_errors():
            cursor, keys = await client.scan(cursor, match=f"{prefix}*", count=SCAN_COUNT, _type="HASH")
            async with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, "r", "c")
                found = await pipe.execute()
        for key, (reserved, committed) in zip(keys, found, strict=True):
            scope, _, window = text_of(key).removeprefix(prefix).rpartition(":")
            counted[scope, window] = (int(reserved or 0), int(committed or 0))
        if cursor == 0:
            return counted


async def delivered_as(client: Redis, partitions: int, key: str) -> Entry | None:
    """The entry that a delivery's key belongs to, in whichever partition; None if it is not in Redis."""
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for partition in range(partitions):
                pipe.get(Names(partition).seen(key))
            found = await pipe.execute()
    for partition, entry in enumerate(found):
        if entry is not None:
            return await entry_at(client, Names(partition), entry.decode())
    return None


async def entry_at(client: Redis, names: Names, entry: str) -> Entry | None:
    """An entry of the log by its id; None if Redis does not have it."""
    with named_errors():
        rows = await client.execute_command("XRANGE", names.log, entry, entry)
    return entry_of(rows[0]) if rows else None


async def logged_entry(url: str, partition: int, entry: str) -> Entry | None:
    """An entry as the log has it now; None if it does not have it. Raises LogUnavailable."""
    names = Names(partition)
    async with session(url, home=names.log) as client:
        return await entry_at(client, names, entry)


async def newest_entries(client: Redis, names: Names, count: int) -> list[Entry]:
    """The last `count` entries, oldest first."""
    if not count:
        return []
    with named_errors():
        rows = await client.execute_command("XREVRANGE", names.log, "+", "-", "COUNT", count)
    return [entry_of(row) for row in reversed(rows)]


async def log_stats(client: Redis, partition: int) -> LogStats:
    """Size and ends of a partition's log."""
    names = Names(partition)
    with named_errors():
        ends = [
            await client.execute_command(command, names.log, start, stop, "COUNT", 1)
            for command, start, stop in (("XRANGE", "-", "+"), ("XREVRANGE", "+", "-"))
        ]
        first, last = (rows[0][0].decode() if rows else ZERO for rows in ends)
        return LogStats(
            partition=partition,
            length=await client.xlen(names.log),
            memory_bytes=await client.memory_usage(names.log) or 0,
            first=first,
            last=last,
            timers=await client.zcard(names.timers),
            dead=await client.xlen(names.dead),
            dead_bytes=await client.memory_usage(names.dead) or 0,
        )


async def dead_letters(client: Redis, names: Names, *, limit: int, since_ms: int = 0) -> list[DeadLetter]:
    """The oldest `limit` dead letters of a partition that were made at `since_ms` or later."""
    with named_errors():
        rows = await client.execute_command("XRANGE", names.dead, since_ms, "+", "COUNT", limit)
    return [letter_of(row) for row in rows]


async def newest_dead_letter(client: Redis, names: Names) -> tuple[int, DeadLetter | None]:
    """How many dead letters a partition has, and the newest; None if there is none."""
    with named_errors():
        rows = await client.execute_command("XREVRANGE", names.dead, "+", "-", "COUNT", 1)
        return await client.xlen(names.dead), letter_of(rows[0]) if rows else None


async def dead_letter(client: Redis, names: Names, letter: str) -> DeadLetter | None:
    """One dead letter; None if there is none with this id."""
    with named_errors():
        rows = await client.execute_command("XRANGE", names.dead, letter, letter)
    return letter_of(rows[0]) if rows else None


def letter_of(row: Any) -> DeadLetter:
    """A dead letter from its entry in the stream."""
    identity, fields = row
    values = {k.decode(): v for k, v in zip(fields[::2], fields[1::2], strict=True)}
    return DeadLetter(
        id=identity.decode(),
        entry=values["entry"].decode(),
        group=values["group"].decode(),
        e=values["e"],
        m=values["m"],
        problem=values["problem"].decode(errors="replace"),
    )

"""The server's settings, and the state of the groups, for `doctor`, readiness and metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from streamproc.domain.entry_ids import id_key
from streamproc.domain.wire import Newer, decode_events
from streamproc.errors import Unprocessable
from streamproc.log.clock import clock_us
from streamproc.log.connection import CommandRefused, named_errors
from streamproc.log.names import Names
from streamproc.log.nodes import every_node, text_of

VERSION_MIN = (7, 0)
ARCHIVE_LATE_S = 30.0
"""How long an entry may wait to be archived: normally less than a second, with a big batch a few."""
GROUP_LATE_S = 60.0
"""How long an entry may wait in a group before it is bad, as for the alert StreamprocGroupLate."""
_WANTED = {
    "appendonly": ("yes", "the log is lost when the server stops"),
    "appendfsync": ("always", "the last second of the log may be lost when the machine stops"),
    "maxmemory-policy": ("noeviction", "the log itself may be evicted"),
}


async def server_settings(client: Redis) -> list[str]:
    """Settings that are not as the log needs them, or that the server does not tell, one line each; of a cluster, those
    of all primaries."""
    with named_errors():
        found = [await _server_settings(node) for node in await every_node(client)]
    return list(dict.fromkeys(problem for problems in found for problem in problems))


async def _server_settings(client: Redis) -> list[str]:
    config, unknown = dict[Any, Any](), "unknown"
    with named_errors():
        info = await client.info("server")
    try:
        with named_errors():
            config = await client.config_get("append*") | await client.config_get("maxmemory-policy")
    except CommandRefused:
        unknown = "unknown, since CONFIG GET is refused to the user of STREAMPROC_REDIS_URL"
    found = {text_of(key): text_of(value) for key, value in config.items()}
    problems = [
        f"{name} is {found.get(name, unknown)}, it must be {wanted}: {why}"
        for name, (wanted, why) in _WANTED.items()
        if found.get(name) != wanted
    ]
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if version < VERSION_MIN:
        problems.append(f"server version {info.get('redis_version')} is older than 7.0")
    return problems


async def logs_gone(client: Redis, partitions: int) -> list[int]:
    """The partitions that have no stream."""
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for partition in range(partitions):
                pipe.exists(Names(partition).log)
            there = await pipe.execute()
    return [partition for partition, exists in enumerate(there) if not exists]


async def waiting_ms(client: Redis, upto: Mapping[int, str]) -> dict[int, int]:
    """For each partition the age (ms) of the first entry after `upto`; 0 if there is none."""
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            pipe.time()
            for partition, entry in upto.items():
                pipe.execute_command("XRANGE", Names(partition).log, f"({entry}", "+", "COUNT", 1)
            (seconds, micros), *firsts = await pipe.execute()
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    return {
        partition: max(0, now_ms - id_key(text_of(first[0][0]))[0]) if first else 0
        for partition, first in zip(upto, firsts, strict=True)
    }


async def clock_behind_ms(client: Redis, partitions: int) -> int:
    """How far (ms) Redis's clock is behind the newest entry of any log, since it went back; 0 if it is not."""
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for partition in range(partitions):
                pipe.execute_command("XREVRANGE", Names(partition).log, "+", "-", "COUNT", 1)
            pipe.time()
            *newest, (seconds, micros) = await pipe.execute()
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    return max([0, *(id_key(text_of(found[0][0]))[0] - now_ms for found in newest if found)])


async def replica_count(client: Redis) -> int:
    """Replicas connected to the server; of a cluster, to the primary that has the fewest."""
    with named_errors():
        found = [await node.info("replication") for node in await every_node(client)]
    return min(int(info.get("connected_slaves", 0)) for info in found)


async def without_limit(client: Redis) -> bool:
    """Whether the server, or any primary of a cluster, has no `maxmemory`."""
    with named_errors():
        found = [await node.info("memory") for node in await every_node(client)]
    return any(not int(memory["maxmemory"]) for memory in found)


async def full(client: Redis) -> str:
    """That the server, or a primary of a cluster, is at `maxmemory` and refuses writes; empty if none is."""
    with named_errors():
        found = [await node.info("memory") for node in await every_node(client)]
    for memory in found:
        used, most = int(memory["used_memory"]), int(memory["maxmemory"])
        counted = used - int(memory.get("mem_not_counted_for_evict", 0))
        if 0 < most < counted:
            return f"{counted:,} bytes are used and maxmemory is {most:,}: writes are refused"
    return ""


ASKS_MS = 10_000
"""A consumer asks for entries every second. One that has none pending and did not ask for so long was killed."""


class GroupState(NamedTuple):
    """A consumer group on a partition. `missing`: it is not there, so that the rest says nothing."""

    partition: int
    group: str
    missing: bool = False
    gone: bool = False
    """It is missing, though it was made on this log: it is not made again."""
    lag: int | None = None
    """Entries that it was not given yet; None where entries were deleted, so that Redis does not know."""
    pending: int = 0
    oldest_ms: int = 0
    """Age of its oldest entry that is not acknowledged; 0 if there is none."""
    consumers: int = 0
    deferred: int = 0
    """Of those that are pending, how many wait for their next attempt."""


async def group_states(client: Redis, partitions: Iterable[int], groups: Sequence[str]) -> list[GroupState]:
    """The state of each group of these partitions, in three round trips; of a log that is gone all are missing."""
    every = [Names(partition) for partition in partitions]
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for names in every:
                pipe.exists(names.log)
                pipe.hkeys(names.groups)
            answers = await pipe.execute()
        made = dict(zip(every, answers[1::2], strict=True))
        logs = [names for names, there in zip(every, answers[::2], strict=True) if there]
        async with client.pipeline(transaction=False) as pipe:
            for names in logs:
                pipe.xinfo_groups(names.log)
            answers = await pipe.execute()
        rows = {
            (names, text_of(row["name"])): row
            for names, found in zip(logs, answers, strict=True)
            for row in found
        }
        present = {at: rows[at] for names in every for group in groups if (at := (names, group)) in rows}
        states = await _states(client, present)
    return [
        states.get((names, group))
        or GroupState(
            names.partition,
            group,
            missing=True,
            gone=names in logs and group in map(text_of, made[names]),
        )
        for names in every
        for group in groups
    ]


async def _states(
    client: Redis, present: Mapping[tuple[Names, str], Any]
) -> dict[tuple[Names, str], GroupState]:
    """The states of groups that are there, by what XINFO GROUPS says of each."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.time()
        for (names, group), row in present.items():
            if row["pending"]:
                pipe.xpending(names.log, group)
            else:
                after = f"({text_of(row['last-delivered-id'])}"
                pipe.execute_command("XRANGE", names.log, after, "+", "COUNT", 1)
            pipe.xinfo_consumers(names.log, group)
            pipe.zcard(names.retries(group))
        (seconds, micros), *answers = await pipe.execute()
    now_ms, states = int(seconds) * 1000 + int(micros) // 1000, {}
    asked = zip(present.items(), answers[::3], answers[1::3], answers[2::3], strict=True)
    for ((names, group), row), first, consumers, deferred in asked:
        entry = first["min"] if isinstance(first, dict) else first[0][0] if first else None
        states[names, group] = GroupState(
            names.partition,
            group,
            lag=row["lag"],
            pending=row["pending"],
            oldest_ms=0 if entry is None else max(0, now_ms - id_key(text_of(entry))[0]),
            consumers=sum(one["pending"] > 0 or one["idle"] < ASKS_MS for one in consumers),
            deferred=int(deferred),
        )
    return states


DEFERRED_LATE_S = 30.0
"""How long a group's oldest entry may wait while entries are deferred. A retry or two takes seconds."""


class Deferred(NamedTuple):
    """Entries of a group that wait for their next attempt, in all partitions, and the age (ms) of the oldest entry
    that such a partition's group has not handled; 0 if none is deferred. What only a later version can read counts as
    neither: nobody here knows what it is."""

    entries: int
    oldest_ms: int


LOOKED_AT_MAX = 16
"""How many of a group's oldest entries are looked at for those that only a later version can read. They stay while all
else is handled, so they are the oldest."""


async def deferred(client: Redis, partitions: int, group: str) -> Deferred:
    """What a group has deferred: a few round trips, however many partitions."""
    every = [Names(partition) for partition in range(partitions)]
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for names in every:
                pipe.zcard(names.retries(group))
            counts = [int(count) for count in await pipe.execute()]
        waiting = {names: count for names, count in zip(every, counts, strict=True) if count}
        if not waiting:
            return Deferred(0, 0)
        async with client.pipeline(transaction=False) as pipe:
            for names in waiting:  # whose group is there, since it has deferred something
                pipe.xpending_range(names.log, group, min="-", max="+", count=LOOKED_AT_MAX)
            oldest = [[text_of(row["message_id"]) for row in rows] for rows in await pipe.execute()]
        async with client.pipeline(transaction=False) as pipe:
            for names, entries in zip(waiting, oldest, strict=True):
                for entry in entries:
                    pipe.execute_command("XRANGE", names.log, entry, entry)
                    pipe.zscore(names.retries(group), entry)
            found = iter(await pipe.execute())
        now_ms = await clock_us(client) // 1000
    total, firsts = 0, []
    for count, entries in zip(waiting.values(), oldest, strict=True):
        looks = [(entry, _is_newer(next(found)), next(found) is not None) for entry in entries]
        if count := max(0, count - sum(is_newer and waits for _, is_newer, waits in looks)):
            total += count
            firsts += [entry for entry, is_newer, _ in looks if not is_newer][:1]
    return Deferred(total, max([0, *(now_ms - id_key(first)[0] for first in firsts)]))


def _is_newer(rows: Any) -> bool:
    """Whether the entry, as XRANGE answers, is one that only a later version can read."""
    try:
        for _, fields in rows:
            decode_events(fields[1])  # of `e` and `m`; without them it became a dead letter
    except Newer:
        return True
    except Unprocessable:
        return False
    return False


class PartitionSize(NamedTuple):
    """A partition in Redis: entries of its log and their memory, dead letters, timers."""

    entries: int
    bytes: int
    dead: int
    timers: int


class Sizes(NamedTuple):
    """All partitions, and the server's memory used and its limit (0: none), in bytes.

    Of a cluster it is the fullest primary, which refuses writes however much room the others have.
    """

    partitions: dict[int, PartitionSize]
    memory: int
    memory_max: int


async def log_sizes(client: Redis, partitions: int) -> Sizes:
    """The sizes of it all. Cheap, since Redis estimates a log's memory from a few of its nodes."""
    with named_errors():
        async with client.pipeline(transaction=False) as pipe:
            for names in map(Names, range(partitions)):
                pipe.xlen(names.log)
                pipe.memory_usage(names.log)
                pipe.xlen(names.dead)
                pipe.zcard(names.timers)
            found = [int(one or 0) for one in await pipe.execute()]
        memories = [await node.info("memory") for node in await every_node(client)]
    nodes = [(int(memory["used_memory"]), int(memory["maxmemory"])) for memory in memories]
    used, most = max(nodes, key=lambda node: (node[0] / node[1] if node[1] else 0.0, node[0]))
    rows = (PartitionSize(*found[start : start + 4]) for start in range(0, len(found), 4))
    return Sizes(dict(enumerate(rows)), used, most)

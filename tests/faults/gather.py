"""Waits until a system is at rest, and collects the evidence."""

import asyncio
import itertools
import json
from collections import Counter
from typing import Any, NamedTuple

import asyncpg

from streamproc.archive.rows import ArchivedEntry
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import decode_events, payout_of
from streamproc.log.connection import connected
from streamproc.log.names import Names, partition_of
from tests.faults.invariants import Answered, Command, Evidence, Letter, payouts_in
from tests.faults.load import ENDED, Load
from tests.faults.stand import Stand
from tests.journeys.truth import budgets_of_redis

LOOK_S = 0.7
LOOK_COSTS = 3.0
"""Time between two looks, in times of what the last one took. Every link to a store and to the bank is in this
process: after a long run, on a busy machine, looks one after the other would leave the links little time."""
FOLDED_AT_ONCE = 200
"""Entries or payouts folded before others have a turn: to a role a link that stands still is a store that is away."""
VERIFY_MAX_S = 120.0
"""Limit for a rebuild beside the live views, which takes seconds, on a busy machine."""
CALM_LOOKS = 3
"""Looks in a row that must find nothing waiting, since a timer or a poll may come between two of them."""


async def rest(stand: Stand, load: Load, within_s: float) -> dict[str, int]:
    """Wait until nothing waits any more. Returns what still does after `within_s`."""
    loop = asyncio.get_running_loop()
    end, calm = loop.time() + within_s, 0
    while True:
        began = loop.time()
        waits = await waiting(stand, load)
        calm = 0 if any(waits.values()) else calm + 1
        if calm >= CALM_LOOKS or loop.time() > end:
            return waits
        await asyncio.sleep(max(LOOK_S, LOOK_COSTS * (loop.time() - began)))


async def waiting(stand: Stand, load: Load) -> dict[str, int]:
    """The number of things that are unread, pending, deferred, not archived or not over, by kind."""
    counts, heads = await in_the_log(stand)
    counts["entries that the witness has not seen"] = sum(
        witness.last != head for witness, head in zip(stand.witnesses, heads, strict=True)
    )
    folds = await _folds(stand)
    counts["holds that nobody decided"] = sum(
        record.decision == "HELD" and record.bank_status not in ENDED for record in folds.values()
    )
    known = {record.at_bank: record.bank_status for record in folds.values() if record.bank_status}
    bank = {shown["id"]: shown["status"] for shown in await stand.bank.show("payouts")}
    counts["payouts that are not over at the bank"] = sum(status not in ENDED for status in bank.values())
    counts["payouts of which the log says otherwise"] = sum(known.get(p) != s for p, s in bank.items())
    counts["intents that the gateway never took"] = load.untaken
    counts["intents without an end"] = sum(
        not _over(folds.get(name)) for name in load.asked | {n for n in folds if is_intent(n)}
    )
    return counts


async def in_the_log(stand: Stand) -> tuple[dict[str, int], list[str]]:
    """The number of things that are unread, pending, deferred, not archived or on the way from the bank, by kind; and
    the last entry of each log."""
    counts, heads = Counter[str](), []
    async with connected(stand.system.redis_url) as client:
        for partition in range(stand.partitions):
            names = Names(partition)
            for group in await client.xinfo_groups(names.log):
                name = group["name"].decode()
                counts[f"{name} has not read"] += int(group["lag"] or 0)
                counts[f"{name} has in hand"] += group["pending"]
                counts[f"{name} has put off"] += await client.zcard(names.retries(name))
            heads.append((await client.xinfo_stream(names.log))["last-generated-id"].decode())
            counts["archive or views that are behind"] += await _behind(stand, partition, heads[-1])
    counts["webhooks under way"] = len(await stand.bank.deliveries(state="waiting"))
    return counts, heads


def _over(record: PayoutRecord | None) -> bool:
    return record is not None and (record.decision == "REJECTED" or record.bank_status in ENDED)


async def _behind(stand: Stand, partition: int, last: str) -> int:
    try:
        async with stand.system.pool.acquire(timeout=3.0) as db:
            heads = await db.fetch("SELECT entry_id FROM view_heads WHERE partition = $1", partition)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return 1  # Postgres is being started again
    return int(not heads) + sum(row["entry_id"] != last for row in heads)


async def _folds(stand: Stand) -> dict[str, PayoutRecord]:
    stories: dict[str, list[Any]] = {}
    entries = [*itertools.chain.from_iterable(witness.entries for witness in stand.witnesses)]
    for number, entry in enumerate(entries):
        if not number % FOLDED_AT_ONCE:
            await asyncio.sleep(0)
        for event in decode_events(entry.e):
            if payout_of(event):
                stories.setdefault(payout_of(event), []).append(event)
    folds = {}
    for number, (name, story) in enumerate(stories.items()):
        if not number % FOLDED_AT_ONCE:
            await asyncio.sleep(0)
        if (record := fold(story)) is not None:
            folds[name] = record
    return folds


async def evidence(stand: Stand, waits: dict[str, int]) -> list[Evidence]:
    """The evidence of each partition.

    That of the first also has what belongs to no partition: what waits, the views, roles that ended.
    """
    everything = await _commands_and_webhooks(stand)
    owners = {
        payout: partition
        for partition, witness in reversed(list(enumerate(stand.witnesses)))
        for payout in payouts_in((*witness.entries, *witness.lost, *witness.dropped))
    }
    views = await wrong_views(stand)
    parts = []
    for partition, witness in enumerate(stand.witnesses):
        names = Names(partition)
        first = partition == 0
        parts.append(
            Evidence(
                log=list(witness.entries),
                archive=await archive_of(stand, partition),
                commands=[sent for sent in everything.commands if owners.get(sent.name, 0) == partition],
                answered=[hook for account, hook in everything.answered if account == partition],
                bank={
                    name: status
                    for name, status in everything.bank.items()
                    if owners.get(name, 0) == partition
                },
                counters=await budgets_of_redis(stand.system, names),
                waiting=waits if first else {},
                letters=await letters_of(stand, partition),
                views=views if first else [],
                exits=list(stand.exits) if first else [],
                lost=list(witness.lost),
                dropped=list(witness.dropped),
            )
        )
    return parts


class Everything(NamedTuple):
    """What the bank has of all accounts. Each webhook comes with the partition of its account."""

    commands: list[Command]
    answered: list[tuple[int, Answered]]
    bank: dict[str, str]


async def _commands_and_webhooks(stand: Stand) -> Everything:
    shown = {payout["id"]: payout for payout in await stand.bank.show("payouts")}
    names = {payout: _name(each) for payout, each in shown.items()}
    return Everything(
        commands=commands_of(await stand.bank.record(), names),
        answered=[
            seen
            for delivery in await stand.bank.deliveries()
            for seen in _answered(delivery, names, stand.partitions)
        ],
        bank={names[payout]: each["status"] for payout, each in shown.items()},
    )


async def letters_of(stand: Stand, partition: int = 0) -> list[Letter]:
    """The dead letters of a partition."""
    async with connected(stand.system.redis_url) as client:
        return [_letter(fields) for _, fields in await client.xrange(Names(partition).dead)]


def _letter(fields: list[bytes]) -> Letter:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return Letter(*(values[name].decode() for name in (b"entry", b"group", b"problem")))


def _name(shown: dict[str, Any]) -> str:
    reference = shown.get("reference_id") or ""
    return reference if is_intent(reference) else str(shown["id"])


def _command(line: dict[str, Any]) -> str:
    """The command of a call (create, approve, reject, cancel), also if a fault kept the bank from carrying it out."""
    last = str(line["path"]).rpartition("/")[2]
    return {"payouts": "create"}.get(last, last if last in ("approve", "reject", "cancel") else "")


def commands_of(record: list[dict[str, Any]], names: dict[str, str]) -> list[Command]:
    """The commands of the bank's own record."""
    return [_command_in(line, names) for line in record if _command(line)]


def _command_in(line: dict[str, Any], names: dict[str, str]) -> Command:
    parts = str(line["path"]).split("/")
    payout = line["payout"] or (parts[3] if len(parts) > 3 else "")
    return Command(line["at"], _command(line), payout, names.get(payout, payout), line["effect"])


def _answered(delivery: dict[str, Any], names: dict[str, str], partitions: int) -> list[tuple[int, Answered]]:
    if not any(200 <= (attempt["status"] or 0) < 300 for attempt in delivery["attempts"]):
        return []
    envelope = json.loads(delivery["body"])
    entity = envelope["payload"].get("payout", {}).get("entity")
    if entity is None:
        return []
    payout = entity["id"]
    partition = partition_of(envelope["account_id"], partitions)
    return [(partition, Answered(envelope["event"], payout, names.get(payout, payout), entity["status"]))]


async def archive_of(stand: Stand, partition: int = 0) -> list[ArchivedEntry]:
    """Every archived entry of a partition, in order."""
    rows = await stand.system.pool.fetch(
        "SELECT partition, seq, entry_id AS id, payout, e, m, hash, archived_at FROM events"
        " WHERE partition = $1 ORDER BY seq",
        partition,
    )
    return [ArchivedEntry(**dict(row)) for row in rows]


async def wrong_views(stand: Stand, within_s: float = VERIFY_MAX_S) -> list[str]:
    """Views that differ from a rebuild from the archive."""
    try:
        code, out, err = await stand.system.cli("replay", "--verify", "--json", within_s=within_s)
    except TimeoutError:
        return ["replay --verify did not end: the views do not follow"]
    if not out:
        return [f"replay --verify ended with {code}: {err[-300:]}"]
    return [
        f"{view['view']} differs in {view['differing']} rows: {view['differences'][:2]}"
        for view in json.loads(out)["views"]
        if view["equal"] is not True
    ]

"""What is seen of a system at rest: waiting until it is, and collecting the evidence."""

import asyncio
import json
from typing import Any

import asyncpg

from streamproc.archive.load import ArchivedEntry
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import decode_events, payout_of
from streamproc.log.connection import connected
from tests.faults.invariants import Answered, Evidence, Letter, Told
from tests.faults.load import ENDED, Load
from tests.faults.stand import Stand
from tests.journeys.system import STEP_MAX_S
from tests.journeys.truth import budgets_of_redis

LOOK_S = 0.7
CALM_LOOKS = 3
"""Looks in a row that find nothing waiting: a timer or a poll could be between two of them."""


async def rest(stand: Stand, load: Load, within_s: float) -> dict[str, int]:
    """Wait until nothing waits any more; what still does after `within_s`."""
    loop = asyncio.get_running_loop()
    end, calm = loop.time() + within_s, 0
    while True:
        found = await waiting(stand, load)
        calm = 0 if any(found.values()) else calm + 1
        if calm >= CALM_LOOKS or loop.time() > end:
            return found
        await asyncio.sleep(LOOK_S)


async def waiting(stand: Stand, load: Load) -> dict[str, int]:
    """What is unread, in somebody's hands, put off, not archived or not over, by what it is."""
    found, last = await in_the_log(stand)
    found["entries that the witness has not seen"] = int(stand.witness.last != last)
    folds = _folds(stand)
    found["holds that nobody decided"] = sum(
        record.decision == "HELD" and record.bank_status not in ENDED for record in folds.values()
    )
    known = {record.at_bank: record.bank_status for record in folds.values() if record.bank_status}
    bank = {shown["id"]: shown["status"] for shown in await stand.bank.show("payouts")}
    found["payouts that are not over at the bank"] = sum(status not in ENDED for status in bank.values())
    found["payouts of which the log says otherwise"] = sum(known.get(p) != s for p, s in bank.items())
    found["intents that the gateway never took"] = load.untaken
    found["intents without an end"] = sum(
        not _over(folds.get(name)) for name in load.asked | {n for n in folds if is_intent(n)}
    )
    return found


async def in_the_log(stand: Stand) -> tuple[dict[str, int], str]:
    """What is unread, in somebody's hands, put off, not archived, or on its way from the bank; the newest entry."""
    names, found = stand.system.names, dict[str, int]()
    async with connected(stand.system.redis_url) as client:
        for group in await client.xinfo_groups(names.log):
            name = group["name"].decode()
            found[f"{name} has not read"] = int(group["lag"] or 0)
            found[f"{name} has in hand"] = group["pending"]
            found[f"{name} has put off"] = await client.zcard(names.retries(name))
        last = (await client.xinfo_stream(names.log))["last-generated-id"].decode()
    found["archive or views that are behind"] = await _behind(stand, last)
    found["webhooks under way"] = len(await stand.bank.deliveries(state="waiting"))
    return found, last


def _over(record: PayoutRecord | None) -> bool:
    return record is not None and (record.decision == "REJECTED" or record.bank_status in ENDED)


async def _behind(stand: Stand, last: str) -> int:
    try:
        async with stand.system.pool.acquire(timeout=3.0) as db:
            heads = await db.fetch("SELECT entry_id FROM view_heads WHERE partition = 0")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return 1  # on its way back
    return int(not heads) + sum(row["entry_id"] != last for row in heads)


def _folds(stand: Stand) -> dict[str, PayoutRecord]:
    stories: dict[str, list[Any]] = {}
    for entry in stand.witness.entries:
        for event in decode_events(entry.e):
            if payout_of(event):
                stories.setdefault(payout_of(event), []).append(event)
    return {name: record for name, story in stories.items() if (record := fold(story)) is not None}


async def evidence(stand: Stand, waits: dict[str, int]) -> Evidence:
    """Everything that the invariants look at."""
    shown = {payout["id"]: payout for payout in await stand.bank.show("payouts")}
    names = {payout: _name(each) for payout, each in shown.items()}
    letters = await letters_of(stand)
    return Evidence(
        log=list(stand.witness.entries),
        archive=await archive_of(stand),
        told=told_of(await stand.bank.record(), names),
        answered=[seen for delivery in await stand.bank.deliveries() for seen in _answered(delivery, names)],
        bank={names[payout]: each["status"] for payout, each in shown.items()},
        counters=await budgets_of_redis(stand.system),
        waiting=waits,
        letters=letters,
        views=await wrong_views(stand),
        exits=list(stand.exits),
        lost=list(stand.witness.lost),
        dropped=list(stand.witness.dropped),
    )


async def letters_of(stand: Stand) -> list[Letter]:
    """The dead letters."""
    async with connected(stand.system.redis_url) as client:
        return [_letter(fields) for _, fields in await client.xrange(stand.system.names.dead)]


def _letter(fields: list[bytes]) -> Letter:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return Letter(*(values[name].decode() for name in (b"entry", b"group", b"problem")))


def _name(shown: dict[str, Any]) -> str:
    reference = shown.get("reference_id") or ""
    return reference if is_intent(reference) else str(shown["id"])


def _command(line: dict[str, Any]) -> str:
    """create, approve, reject, cancel; also where the bank did not even look at the call."""
    last = str(line["path"]).rpartition("/")[2]
    return {"payouts": "create"}.get(last, last if last in ("approve", "reject", "cancel") else "")


def told_of(record: list[dict[str, Any]], names: dict[str, str]) -> list[Told]:
    """The commands of the bank's own record."""
    return [_told(line, names) for line in record if _command(line)]


def _told(line: dict[str, Any], names: dict[str, str]) -> Told:
    parts = str(line["path"]).split("/")
    payout = line["payout"] or (parts[3] if len(parts) > 3 else "")
    return Told(line["at"], _command(line), payout, names.get(payout, payout), line["effect"])


def _answered(delivery: dict[str, Any], names: dict[str, str]) -> list[Answered]:
    if not any(200 <= (attempt["status"] or 0) < 300 for attempt in delivery["attempts"]):
        return []
    envelope = json.loads(delivery["body"])
    entity = envelope["payload"].get("payout", {}).get("entity")
    if entity is None:
        return []
    payout = entity["id"]
    return [Answered(envelope["event"], payout, names.get(payout, payout), entity["status"])]


async def archive_of(stand: Stand) -> list[ArchivedEntry]:
    """Every archived entry, in order."""
    rows = await stand.system.pool.fetch(
        "SELECT partition, seq, entry_id AS id, payout, e, m, hash, archived_at FROM events ORDER BY seq"
    )
    return [ArchivedEntry(**dict(row)) for row in rows]


async def wrong_views(stand: Stand, within_s: float = STEP_MAX_S) -> list[str]:
    """Views that are not what a rebuild from the archive gives."""
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

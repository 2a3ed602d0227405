"""Holds: which payouts wait for a person, and recording a person's answer."""

import asyncio
import heapq
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from msgspec import Struct

from streamproc.archive.lookup import held_page
from streamproc.archive.read import await_views, views_upto
from streamproc.domain.attribution import Attribution, checked
from streamproc.domain.events import (
    EntrySetAside,
    Event,
    PayoutDecided,
    ReviewCounted,
    ReviewRefused,
    ReviewSubmitted,
)
from streamproc.domain.holds import (
    Action,
    Answered,
    HeldPage,
    NotCounted,
    NotHandled,
    Outcome,
    Position,
    position_of,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import plain
from streamproc.domain.wire import Newer, decode_events, decode_meta
from streamproc.errors import JobFailed, LogUnavailable, Unprocessable
from streamproc.log.clock import clock_us
from streamproc.log.connection import BLOCK_MS_MAX
from streamproc.log.inspect import newest_entries, records_where
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Append, Entry, LogView, Producer
from streamproc.operate.site import Site

LIST_MAX = 1_000
"""Holds in one answer: more than a person looks at, few enough for one query."""
RECORDS_AT_ONCE = 500
"""Holds of Redis that are put in order at once, while Postgres is away: some 1 MB, besides the page."""
ANSWER_WAIT_S = 10.0
"""How long a reviewer waits for the outcome; a running worker decides within milliseconds."""
VIEW_WAIT_S = 2.0
"""How long a list waits for the view to reach the log's end; the projector is there within tenths of a second."""
ENTRIES_AT_ONCE = 500


class Holds(Struct, frozen=True):
    """Held payouts, the longest waiting first. `next`: the `after` of the next page; None: there are no more."""

    items: list[PayoutRecord]
    next: str | None
    note: str = ""


async def held(
    site: Site,
    *,
    after: Position | None = None,
    limit: int,
    account: str = "",
    agent: str = "",
    turn: AbstractAsyncContextManager[Any] | None = None,
) -> HeldPage:
    """Held payouts after a position, the longest waiting first; of an account and an agent, if these are not ''.

    From the view, once it shows what the log has now: who saw a payout held or decided sees it here too. From Redis
    while Postgres is away or the view stays behind, and `note` says so; `turn` is then held, since that reads every
    payout there.
    """
    await site.ask_postgres(_view_is_here, site)
    found = await site.ask_postgres(held_page, after=after, account=account, agent=agent, limit=limit + 1)
    if found is not None:
        return _page(found, limit, "")
    note = f"{site.postgres_problem}; listed from Redis"

    def is_wanted(record: PayoutRecord) -> bool:
        return (
            record.state == "held"
            and (after is None or position_of(record) > after)
            and account in ("", record.account)
            and agent in ("", record.agent)
        )

    async with turn or nullcontext():
        return _page(await _first_in_redis(site, is_wanted, limit + 1), limit, note)


async def _first_in_redis(
    site: Site, is_wanted: Callable[[PayoutRecord], bool], limit: int
) -> list[PayoutRecord]:
    """The first `limit` of the wanted payouts, each once. All are looked at, so that none is missing before a page's
    last one: the next page begins there."""
    first: dict[tuple[int, str], PayoutRecord] = {}
    for partition in range(site.partitions):
        async for some in records_where(site.client, Names(partition), is_wanted, at_once=RECORDS_AT_ONCE):
            first |= {(partition, record.payout): record for record in some}
            first = dict(heapq.nsmallest(limit, first.items(), key=lambda found: position_of(found[1])))
    return list(first.values())


async def _view_is_here(pool: Any, site: Site) -> None:
    """Return when the views show what the log has now. Raises TryAgain after VIEW_WAIT_S, with how far they are."""
    until = asyncio.get_running_loop().time() + VIEW_WAIT_S
    for partition in range(site.partitions):
        for entry in await newest_entries(site.client, Names(partition), 1):
            left_s = round(max(0.1, until - asyncio.get_running_loop().time()), 1)
            # A Postgres that does not answer is not a view that stays behind.
            await views_upto(pool, partition)
            await await_views(pool, partition, entry.id, timeout_s=left_s)


def _page(found: list[PayoutRecord], limit: int, note: str) -> HeldPage:
    more = len(found) > limit
    return HeldPage(found[:limit], position_of(found[limit - 1]) if more else None, note)


async def list_holds(site: Site, *, after: str | None = None, limit: int = LIST_MAX) -> Holds:
    """A page of held payouts after a payout, for the command line. Raises JobFailed if that payout is not known."""
    position = None if after is None else position_of(await _known(site, after))
    page = await held(site, after=position, limit=min(limit, LIST_MAX))
    return Holds(page.items, page.next.payout if page.next is not None else None, page.note)


async def answer(site: Site, payout: str, action: Action, attribution: Attribution) -> Outcome:
    """Record a reviewer's answer and wait for its outcome.

    Raises JobFailed, with the reason, if it does not count or the payout is unknown; also if no worker handles it
    within ANSWER_WAIT_S, or Redis goes away meanwhile: it stays in the log then and is handled later.
    """
    at = await clock_us(site.client)
    event = submission(payout, action, attribution, at=at)
    account = (await _known(site, payout)).account
    key = f"review:cli:{secrets.token_hex(16)}"
    async with Producer(site.redis_url, partitions=site.partitions, name="cli") as producer:
        appended = await producer.append(Append(account, (key,), (event,)))
    partition = partition_of(account, site.partitions)
    try:
        found = await outcome_of(site.redis_url, partition, appended.entry, payout)
    except LogUnavailable as problem:
        raise JobFailed(
            f"the answer is recorded as {partition}:{appended.entry}; what came of it cannot be seen: {problem};"
            f" `streamproc explain {payout}` tells it"
        ) from problem
    if not isinstance(found, Outcome):
        raise JobFailed(found.problem)
    return found


def submission(payout: str, action: Action, attribution: Attribution, *, at: int) -> ReviewSubmitted:
    """A reviewer's answer as an event. Raises InputError without a name or a reason, or with a long one."""
    attribution = checked(attribution, by="the reviewer's name", why="the reason")
    return ReviewSubmitted(
        at=at,
        payout=payout,
        by=attribution.by,
        action=action,
        why=attribution.why,
        channel=attribution.channel,
    )


async def _known(site: Site, payout: str) -> PayoutRecord:
    record = await site.record(payout)
    if record is None:
        raise JobFailed(f"payout {plain(payout)} is not known here")
    return record


async def outcome_of(redis_url: str, partition: int, entry: str, payout: str) -> Answered:
    """The outcome of the answer in this entry, waited for up to ANSWER_WAIT_S."""
    view = LogView(redis_url, partition)
    try:
        async with asyncio.timeout(ANSWER_WAIT_S):
            return await _outcome_after(view, entry, payout)
    except TimeoutError:
        return NotHandled(
            payout,
            entry,
            f"the answer is recorded as {partition}:{entry}, but no worker handled it within {ANSWER_WAIT_S:g} s;"
            f" `streamproc groups` shows the workers, `streamproc explain {payout}` what came of it",
        )
    finally:
        await view.aclose()


async def _outcome_after(view: LogView, entry: str, payout: str) -> Answered:
    """The outcome of the answer in this entry, however long it takes."""
    after = entry
    while True:
        for found in await view.read(after, ENTRIES_AT_ONCE, BLOCK_MS_MAX):
            after = found.id
            if (outcome := _outcome_in(found, entry, payout)) is not None:
                return outcome


def _outcome_in(found: Entry, entry: str, payout: str) -> Answered | None:
    """The outcome, if `found` is the entry that handled `entry`."""
    if entry.encode() not in found.m:
        return None
    try:
        if decode_meta(found.m).cause != entry:
            return None
        events = decode_events(found.e)
    except Newer as problem:
        return NotHandled(
            payout,
            entry,
            f"the answer is recorded, and a later version handled it; what came of it cannot be read here: {problem}."
            f" That version's `streamproc explain {payout}` tells it",
        )
    except Unprocessable:
        return None  # no version of ours wrote that
    for event in events:
        if isinstance(event, ReviewRefused):
            return NotCounted(payout, entry, event.kind, event.problem)
        if isinstance(event, EntrySetAside):
            return NotHandled(payout, entry, f"the answer could not be handled: {event.problem}")
    return _counted(events, entry, payout)


def _counted(events: list[Event], entry: str, payout: str) -> Outcome | None:
    counted = next((event for event in events if isinstance(event, ReviewCounted)), None)
    decided = next((event for event in events if isinstance(event, PayoutDecided)), None)
    if counted is None and decided is None:
        return None
    return Outcome(
        payout=payout,
        entry=entry,
        needed=counted.needed if counted is not None else 0,
        decision=decided.decision if decided is not None else None,
        reason=decided.reason if decided is not None else "",
        by=counted.by if counted is not None else "",
    )

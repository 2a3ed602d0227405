"""The next batch is asked about while one is in hand; what that changes is never decided on what was before it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved
from streamproc.domain.payouts import decode_record
from streamproc.domain.wire import encode_events
from streamproc.log import batch, opened
from streamproc.log.batch import Handler, Limits
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.opened import Opened
from streamproc.log.stream import open_log
from streamproc.log.work import BatchContext, Group, Item, Stage, Work
from tests.bank import until
from tests.properties.test_fast_path import governance
from tests.words import apply_policies, observed

NAMES = Names(0)
NEVER_S = 3_600.0


class Seen:
    """A stage that holds the first batch until it is let go, and notes what was known of each payout then."""

    def __init__(self, *, facts: bool = False) -> None:
        self.called, self.go_on = asyncio.Event(), asyncio.Event()
        self.looks: list[tuple[str, bool]] = []
        stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=self._look)
        self.group = Group(name="g", stages=(stage,), outputs_are_facts=facts, read_max=1)

    async def _look(self, items: Sequence[Item], _: BatchContext) -> None:
        self.looks += [
            (work.record.bank_status if work.record else "", bool(work.loaded)) for work, _ in items
        ]
        self.called.set()
        await self.go_on.wait()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many works were asked about ahead, each time that it was done."""
    times: list[int] = []
    ask = opened.known_of

    async def heard(*args: Any) -> Any:
        known = await ask(*args)
        times.append(len(args[3]))
        return known

    monkeypatch.setattr(opened, "known_of", heard)
    return times


@asynccontextmanager
async def consuming(url: str, seen: Seen) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    running = asyncio.create_task(Consumer(url, 0, seen.group, name="me", limits=Limits()).run(stopping))
    try:
        yield
    finally:
        seen.go_on.set()
        stopping.set()
        await running


async def show(client: Redis, status: str) -> None:
    e = encode_events([observed("pout_1", 100, status=status)])
    await client.xadd(NAMES.log, {"e": e, "m": b'{"by":"webhook"}'})


async def all_done(client: Redis) -> None:
    async def is_done() -> bool:
        (row,) = await client.xinfo_groups(NAMES.log)
        return row["lag"] == 0 and row["pending"] == 0

    await until(is_done, what="everything is handled")


async def two_of_one_payout(client: Redis, url: str, seen: Seen, asked: list[int], *, ahead: bool) -> None:
    """The second is read while the first is in hand."""
    async with consuming(url, seen):
        await show(client, "pending")
        await seen.called.wait()
        await show(client, "processing")

        async def is_read() -> bool:
            return (await client.xpending(NAMES.log, "g"))["pending"] == 2 and asked == [1] * (2 * ahead)

        await until(is_read, what="the second is read, and asked about where that is done")
        seen.go_on.set()
        await all_done(client)


async def test_what_was_asked_before_the_payout_moved_on_is_asked_again(
    client: Redis, redis_url: str, asked: list[int]
) -> None:
    seen = Seen()
    await two_of_one_payout(client, redis_url, seen, asked, ahead=True)
    first, *_, last = seen.looks
    assert (first, last) == (("pending", False), ("processing", True))
    version = await client.hget(NAMES.payout("pout_1"), "v")
    assert version == b"2"


async def test_what_was_asked_too_long_ago_is_not_used(
    client: Redis, redis_url: str, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "AHEAD_S", 0.0)
    seen = Seen()
    await two_of_one_payout(client, redis_url, seen, asked, ahead=True)
    assert seen.looks == [("pending", False), ("processing", True)]


async def test_what_was_asked_ahead_of_a_payout_is_good_for_its_first_entry_only(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second entry is handled in a pass of its own, after the commit of the first."""
    monkeypatch.setattr(opened, "AHEAD_S", NEVER_S)
    seen = Seen()
    seen.go_on.set()
    handler = Handler(0, seen.group, Limits())
    for status in ("processing", "processed"):
        await show(client, status)
    ((_, entries),) = await client.execute_command(
        "XREADGROUP", "GROUP", "g", "me", "STREAMS", NAMES.log, ">"
    )
    found = await handler.opener.ahead(client, entries)
    assert found.known_lately(handler.opener.remembered) is not None
    await handler.handle(client, entries, taken=False, ahead=found)
    assert seen.looks == [("processing", False), ("processed", True)]


async def test_a_group_that_calls_others_asks_only_when_it_is_about_to_call(
    client: Redis, redis_url: str, asked: list[int]
) -> None:
    """What it was told of by a call before would else be called for again."""
    seen = Seen(facts=True)
    await two_of_one_payout(client, redis_url, seen, asked, ahead=False)
    assert seen.looks == [("pending", False), ("processing", True)]


POLICIES = """
defaults: {rate_limit: {count: 0}}
policies:
  changed: {changed_beneficiary: hold}
reviewers: [asha]
"""


async def test_a_beneficiary_that_the_batch_before_noted_is_known_to_the_next_one(client: Redis) -> None:
    """A vendor whose first account was just approved, and who is to be paid on another one."""
    chain = governance()
    await open_log(client, partitions=1, groups=[chain.name])
    await apply_policies(client, POLICIES)
    handler = Handler(0, chain, Limits())

    async def read(payout: str, vendor: str, account: str) -> Opened:
        event = observed(payout, 100, agent="changed", url=f"https://{vendor}/", fund_account=account)
        await client.xadd(NAMES.log, {"e": encode_events([event]), "m": b'{"by":"webhook"}'})
        while True:
            ((_, entries),) = await client.execute_command(
                "XREADGROUP", "GROUP", chain.name, "me", "COUNT", 1, "STREAMS", NAMES.log, ">"
            )
            found = await handler.opener.ahead(client, entries)
            if found.works:  # before it come the policies
                return found

    first = await read("pout_1", "shop.example", "fa_1")
    second = await read("pout_2", "shop.example", "fa_2")
    for each in (first, second):
        await handler.handle(client, each.entries, taken=False, ahead=each)
    records = [decode_record(await client.hget(NAMES.payout(payout), "s")) for payout in ("pout_1", "pout_2")]
    assert [(record.decision, record.reasons) for record in records] == [
        ("APPROVED", ["POLICY_OK"]),
        ("HELD", ["BENEFICIARY_CHANGED"]),
    ]


async def test_a_batch_that_is_tried_one_by_one_is_committed_under_the_policies_it_was_decided_under(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit is lowered between the first work and the second: the first is not approved under the old one."""
    chain = replace(governance(), fast_path=None)
    await open_log(client, partitions=1, groups=[chain.name])
    await apply_policies(client, "policies: {bot: {per_txn_limit: 1000, daily_limit: 100000}}")
    handler, run_chain, runs = Handler(0, chain, Limits()), batch.run_chain, 0

    async def lowered_midway(group: Group, works: Sequence[Work], ctx: BatchContext) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("nobody named this")
        await run_chain(group, works, ctx)
        if runs == 2:
            await apply_policies(client, "policies: {bot: {per_txn_limit: 50, daily_limit: 100000}}")

    monkeypatch.setattr(batch, "run_chain", lowered_midway)
    names = ("pout_1", "pout_2")
    for payout in names:
        e = encode_events([observed(payout, 100, agent="bot", url="")])
        await client.xadd(NAMES.log, {"e": e, "m": b'{"by":"webhook"}'})
    ((_, entries),) = await client.execute_command(
        "XREADGROUP", "GROUP", chain.name, "me", "STREAMS", NAMES.log, ">"
    )
    await handler.handle(client, entries, taken=False)
    records = [decode_record(await client.hget(NAMES.payout(payout), "s")) for payout in names]
    assert [record.reason for record in records] == ["TXN_LIMIT_EXCEEDED"] * 2

"""A worker may die at any await: the log in the end is as if it had not.

A batch with everything in it is handled by a worker that is killed (or cancelled) at its first suspension point, then
by one that reaches its second, and so on until one finishes. Each time another worker takes over what was left.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from consumers.attempt import Debit
from consumers.enact import execution
from streamproc.domain import events as e
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import encode_events, payout_of
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.work import Group
from tests.consumers.test_refuted import at_once
from tests.model.bank import Bank, Wired
from tests.model.crashing import Fuse, How
from tests.model.playing import counters, stories
from tests.model.stepping import (
    START,
    Row,
    World,
    governance,
    look_and_handle,
    not_blocking,
    the_tests_clock,
)
from tests.words import ACCOUNT, observed, requested, reviewed

pytestmark = pytest.mark.timeout(600)  # seconds, on a busy machine; alone each test takes a few

T = TypeVar("T")
POINTS_MAX = 400
"""More points than any batch here has. A worker that gets so far would never finish."""
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  plain: {daily_limit: 1000}
  other: {daily_limit: 1000}
  held: {daily_limit: 5000, require_approval_above: 300, hold_ttl: 1h}
  rated: {rate_limit: {count: 1, window: 60}, daily_limit: 5000}
  full: {daily_limit: 100}
  ice: {frozen: true}
  gateway: {daily_limit: 5000}
reviewers: [asha]
"""


def payout(name: str, amount: int, agent: str, *, status: str = "pending", url: str | None = None) -> e.Event:
    return observed(f"pout_{name}", amount, agent=agent, status=status, url=url, at=START)


def review(name: str, action: Any) -> e.Event:
    return reviewed(f"pout_{name}", "asha", action, at=START)


BEFORE = [
    *(payout(name, 500, "held") for name in ("yes", "no", "late", "gone", "hops")),
    *(payout(name, 100, "plain") for name in ("paid", "back")),
]
BATCH = [
    payout("new", 200, "plain"),
    payout("dear", 400, "held"),
    payout("first", 300, "rated"),
    payout("second", 300, "rated"),
    payout("room", 200, "full"),
    payout("risk", 200, "other", url="https://malware.example/"),
    payout("away", 200, "other", url="https://unknown.example/"),
    payout("known", 200, "other", url="https://shop.example/"),
    payout("ice", 200, "ice"),
    payout("none", 200, "stranger"),
    payout("queued", 700, "held", status="queued"),
    payout("moved", 200, "plain", status="processing"),
    requested(400, agent="gateway", at=START),
    review("yes", "approve"),
    review("no", "reject"),
    e.TimerFired(at=START + 3_600_000_000, payout="pout_late", timer="hold_expiry"),
    payout("gone", 500, "held", status="cancelled"),
    payout("hops", 500, "held", status="queued"),
    payout("paid", 100, "plain", status="processed"),
    payout("back", 100, "plain", status="failed"),
    payout("new", 200, "plain"),
    e.PayoutMalformed(at=START, payout="pout_bad", account=ACCOUNT, source="webhook", problem="amount"),
]
"""Rules of every stage, changes of status, reviews, an expiry, the same payout twice, a dead letter."""


class Process:
    """A worker process with its own connections. A turn handles what it had, what is new, and what is due."""

    def __init__(self, world: World, group: Group, name: str, *, claims: bool) -> None:
        self.consumer = Consumer(world.url, 0, group, name=name, limits=Limits(claim_idle_s=0.0))
        self.world, self.claims = world, claims

    async def turn(self) -> None:
        consumer = self.consumer
        async with connected(self.world.url) as client:
            not_blocking(client)
            await consumer._take_up_own(client)
            while entries := await consumer._read(client, block_ms=1):
                await consumer._handler.handle(client, entries, taken=False)
                await consumer._handler.acknowledge(client)
            await look_and_handle(consumer, client, claims=self.claims)


async def all_sent_is_done(world: World) -> None:
    """Wait until the server has done what a dead process had sent; it reads its connections in turn."""
    for _ in range(3):
        await world.client.execute_command("PING")


async def finish(world: World, make: Callable[[], Group]) -> None:
    """Let other workers do what is left."""
    process = Process(world, make(), f"heir-of-{make().name}", claims=True)
    for _ in range(20):
        await process.turn()
        if not any(what.startswith(make().name) for what in await world.waiting()):
            return
    raise AssertionError(f"left for ever: {await world.waiting()}")


def gist(rows: list[Row]) -> list[tuple[str, int, str]]:
    """Of each entry: who wrote it, the place of its cause, and its bytes without the ids of entries."""
    places = {row.id: place for place, row in enumerate(rows)}
    return [
        (
            row.meta.by,
            places.get(row.meta.cause, -1),
            re.sub(r"\d{13}-\d+", "ID", encode_events(row.events).decode()),
        )
        for row in rows
    ]


def by_payout(rows: list[Row]) -> dict[str, list[str]]:
    """The story of each payout, without the order at the counters, since the fast path is handled first."""
    return {
        payout: [re.sub(r'"(number|reserved|used)":\d+', r'"\1":0', text) for text in story]
        for payout, story in stories(rows).items()
    }


async def kept(world: World) -> dict[str, Any]:
    """Records without the order at the counters, and the counters."""
    state = await counters(world)
    for key, row in state.items():
        if ":payout:" in key:
            state[key] = re.sub(r'"(number|reserved)":\d+', "", (row[0] or b"").decode())
    return state


async def governed(url: str, fuse: Fuse, *, fast_path: bool) -> tuple[list[Row], dict[str, Any], int]:
    def chain() -> Group:
        return governance(fast_path=fast_path)

    world = World(url)
    try:
        await world.open([chain()])
        await world.apply(POLICIES)
        for event in BEFORE:
            await world.append(event)
        await finish(world, chain)
        for event in BATCH:
            await world.append(event)
        await fuse.run(Process(world, chain(), "first", claims=True).turn())
        await all_sent_is_done(world)
        await finish(world, chain)
        return await world.rows(), await kept(world), await world.client.xlen(world.names.dead)
    finally:
        await world.close()


@pytest.mark.parametrize("how", ["killed", "cancelled"])
@pytest.mark.parametrize("fast_path", [False, True])
async def test_a_governance_worker_may_end_at_any_await(unsynced: str, how: How, fast_path: bool) -> None:
    with the_tests_clock():
        rows, state, letters = await governed(unsynced, Fuse(0), fast_path=fast_path)
        assert letters == 1
        for at in range(1, POINTS_MAX):
            fuse = Fuse(at, how)
            after, state_after, letters = await governed(unsynced, fuse, fast_path=fast_path)
            if not fast_path:
                assert gist(after) == gist(rows), f"{how} at point {at}"
            assert by_payout(after) == by_payout(rows), f"{how} at point {at}"
            assert (state_after, letters) == (state, 1), f"{how} at point {at}"
            if not fuse.blown:
                break
    assert not fuse.blown
    print(f"{fuse.points} points")
    assert fuse.points > 20


# ---- execution --------------------------------------------------------------------------


class Slow(Wired):
    """A bank client whose calls can be interrupted before they act, and between acting and the answer."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.call = _slowly


async def _slowly(what: str, act: Callable[[], Awaitable[T]]) -> T:
    await asyncio.sleep(0)
    answer = await act()
    await asyncio.sleep(0)
    return answer


ORDERS = [
    payout("approve", 100, "plain"),
    payout("reject", 100, "stranger"),
    payout("cancel", 100, "stranger", status="queued"),
    payout("unheld", 700, "held", status="queued"),
    payout("pays", 100, "plain", status="queued"),
    payout("race", 100, "plain"),
    payout("waits", 700, "held"),
    requested(400, agent="gateway", at=START),
]


async def enacted(url: str, fuse: Fuse) -> tuple[Bank, dict[str, PayoutRecord], dict[str, list[str]]]:
    """A worker that ends, and then another one, send the bank the commands for what was decided.

    Of an intent only the record is compared, not the story: an approval that the bank has already is not answered
    again.
    """
    bank, world = Bank(), World(url)

    def desk() -> Group:
        return execution(Slow(bank), at_once, Debit("2323230000000000", ACCOUNT))

    try:
        await world.open([governance(), desk()])
        await world.apply(POLICIES)
        for event in ORDERS:
            if isinstance(event, e.PayoutObserved):
                bank.make(event.facts)
            await world.append(event)
        await finish(world, governance)
        bank.move("pout_race", "processing")  # a person at the bank was faster
        await fuse.run(Process(world, desk(), "first", claims=True).turn())
        await all_sent_is_done(world)
        await finish(world, desk)
        await finish(world, governance)
        await finish(world, desk)
        assert await world.client.xlen(world.names.dead) == 0
        stories: dict[str, list[e.Event]] = {}
        for row in await world.rows():
            for event in row.events:
                if payout_of(event):
                    stories.setdefault(payout_of(event), []).append(event)
        records = {name: record for name, story in stories.items() if (record := fold(story)) is not None}
        texts = {name: [_text(event) for event in story] for name, story in stories.items()}
        return bank, records, {name: story for name, story in texts.items() if not is_intent(name)}
    finally:
        await world.close()


def _text(event: e.Event) -> str:
    """An event as text, which is the same whether the bank answered `done` or `already`."""
    if isinstance(event, e.BankCommandAnswered):
        outcome = "done" if event.outcome in ("done", "already") else event.outcome
        return f"{event.command} {outcome}, {event.bank_status}"
    if isinstance(event, e.PayoutObserved):
        return f"{event.facts.id} is {event.facts.status}"
    return type(event).__name__


@pytest.mark.parametrize("how", ["killed", "cancelled"])
async def test_an_execution_worker_may_end_at_any_await(unsynced: str, how: How) -> None:
    with the_tests_clock():
        bank, records, texts = await enacted(unsynced, Fuse(0))
        assert sorted(command for _, command in bank.effects) == [
            *("approve", "approve", "cancel", "cancel", "create", "reject")
        ]
        for at in range(1, POINTS_MAX):
            fuse = Fuse(at, how)
            after, records_after, texts_after = await enacted(unsynced, fuse)
            assert sorted(after.effects) == sorted(bank.effects), f"{how} at point {at}"
            assert texts_after == texts, f"{how} at point {at}"
            assert records_after == records, f"{how} at point {at}"
            if not fuse.blown:
                break
    assert not fuse.blown
    print(f"{fuse.points} points")
    assert fuse.points > 20

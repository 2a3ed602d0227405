"""Open payouts are looked at again, however old; real Redis, and the bank as a real process."""

import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from streamproc.clients.razorpay import Razorpay, open_razorpay
from streamproc.domain.deliveries import derived_keys
from streamproc.domain.events import BankPayout, PayoutObserved
from streamproc.domain.payouts import PayoutRecord, encode_record
from streamproc.errors import LogUnavailable
from streamproc.ingress.razorpay_watch import (
    BETWEEN_S_MAX,
    BETWEEN_S_MIN,
    FIRST_LOOK_S,
    LOOKS_MAX,
    Watcher,
    next_look_s,
    seeds,
)
from streamproc.ingress.translate import append_of
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.watch_list import SEED_EVERY_S, WatchList
from tests.bank import Sandbox, running_sandbox
from tests.ingress.recorder import Recorder

ACCOUNT = "acc_1"
NAMES = Names(0)
DAY_S = 86_400


@pytest.fixture
async def bank() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def client(bank: Sandbox) -> AsyncIterator[Razorpay]:
    opened = open_razorpay(bank.url, key_id=bank.config.key_id, key_secret=bank.config.key_secret)
    yield opened
    await opened.aclose()


class Watch:
    """A watcher with its door and its list."""

    def __init__(self, redis_url: str, redis: Redis, client: Razorpay, account: str = ACCOUNT) -> None:
        self.door = Recorder()
        self.door.now_s = int(time.time())
        self.list = WatchList(redis_url, account=account, partitions=1)
        self.watcher = Watcher(client, self.door, self.list, account=account)
        self.redis = redis
        self.account = account

    async def know(self, payout: str, status: str, *, days_ago: float = 0) -> None:
        received_at = int((self.door.now_s - days_ago * DAY_S) * 1e6)
        record = PayoutRecord(
            payout=payout, account=self.account, received_at=received_at, bank_status=status
        )
        await self.redis.hset(NAMES.payout(payout), "s", encode_record(record))

    async def watched(self) -> set[str]:
        return {member.decode() for member in await self.redis.zrange(NAMES.watch_list(self.account), 0, -1)}

    def shown(self) -> list[tuple[str, str, str]]:
        return [
            (event.payout, event.source, event.facts.status)
            for event in self.door.events
            if isinstance(event, PayoutObserved)
        ]


@pytest.fixture
async def watch(redis_url: str, client: Razorpay) -> AsyncIterator[Watch]:
    async with connected(redis_url) as redis:
        yield Watch(redis_url, redis, client)


async def test_a_payout_held_for_60_days_is_seen_when_it_is_cancelled_at_the_bank(
    watch: Watch, bank: Sandbox
) -> None:
    made = await bank.pay(250_000)
    await watch.know(made["id"], "pending", days_ago=60)
    await watch.list.seed(seeds, watch.door.now_s)
    assert (await watch.watcher.look()).moved == 0
    assert watch.shown() == []  # it is as we know it: nothing is appended, nothing governed again

    await bank.advance(made["id"], "cancelled")  # there is no webhook for that
    assert (await watch.watcher.look()).looks == 0  # not before its time
    watch.door.now_s += BETWEEN_S_MAX
    assert (await watch.watcher.look()).moved == 1
    assert watch.shown() == [(made["id"], "fetch", "cancelled")]
    assert await watch.watched() == set()


async def test_fees_that_no_webhook_told_of_are_seen_in_a_status_that_is_known_and_appended_once(
    watch: Watch, bank: Sandbox
) -> None:
    """As `payout.updated` would have told them: under the same key, so whichever of both comes second adds nothing."""
    await bank.bank(processing_s=60.0)
    made = await bank.pay(250_000, status="processing")
    await watch.know(made["id"], "processing", days_ago=1)
    await watch.list.seed(seeds, watch.door.now_s)
    assert (await watch.watcher.look()).moved == 1
    (seen,) = [event for event in watch.door.events if isinstance(event, PayoutObserved)]
    assert (seen.facts.status, seen.facts.fees, seen.facts.tax) == ("processing", made["fees"], made["tax"])
    assert made["fees"] > 0
    told = append_of(
        seen.facts, account=ACCOUNT, source="webhook", now_us=0, bank_event="payout.updated", delivery="evt"
    )
    assert watch.door.appends[0].keys == told.keys == derived_keys([seen])
    watch.door.now_s += BETWEEN_S_MAX
    assert (await watch.watcher.look()).moved == 0


async def test_each_pass_looks_at_a_few_the_longest_due_first(watch: Watch, bank: Sandbox) -> None:
    payouts = [item["id"] for item in (await bank.pay(1_000, count=LOOKS_MAX + 4))["items"]]
    for days_ago, payout in enumerate(payouts, 1):
        await watch.know(payout, "pending", days_ago=days_ago)
        await bank.advance(payout, "cancelled")
    await watch.list.seed(seeds, watch.door.now_s)
    assert (await watch.watcher.look()).looks == LOOKS_MAX
    assert await watch.watched() == set(payouts[:4])  # the youngest
    assert (await watch.watcher.look()).looks == 4


async def test_after_a_clock_that_was_a_month_ahead_an_open_payout_is_looked_at_at_once(
    watch: Watch, bank: Sandbox
) -> None:
    month_s = 30 * DAY_S
    made = await bank.pay(1_000)
    await watch.know(made["id"], "pending", days_ago=60)
    await watch.list.seed(seeds, watch.door.now_s)
    watch.door.now_s += month_s
    assert (await watch.watcher.look()).looks == 1
    watch.door.now_s -= month_s
    await bank.advance(made["id"], "cancelled")
    assert (await watch.watcher.look()).moved == 1


async def test_what_is_final_here_costs_no_call(watch: Watch, bank: Sandbox) -> None:
    made = await bank.pay(1_000)
    await watch.watcher.note([BankPayout(id=made["id"], amount=1_000, currency="INR", status="pending")])
    await watch.know(made["id"], "rejected")  # by a webhook
    await bank.faults(api=[{"kind": "500"}])
    watch.door.now_s += FIRST_LOOK_S + 1
    assert (await watch.watcher.look()).moved == 0
    assert await watch.watched() == set()


async def test_one_that_the_bank_gives_no_answer_about_holds_up_nobody_and_is_looked_at_again(
    watch: Watch, bank: Sandbox
) -> None:
    bad, made = await bank.pay(1_000), await bank.pay(1_000)
    for payout in (bad["id"], made["id"]):
        await watch.know(payout, "pending", days_ago=1)
    await bank.advance(made["id"], "rejected")
    await watch.list.seed(seeds, watch.door.now_s)
    await bank.faults(api=[{"kind": "500", "path": f"/v1/payouts/{bad['id']}"}])
    looked = await watch.watcher.look()
    assert (looked.looks, looked.moved, len(looked.failed)) == (2, 1, 1)
    assert (await watch.watcher.look()).looks == 0, "it is not asked about again and again"
    await bank.faults(api=[])
    watch.door.now_s += BETWEEN_S_MIN
    looked = await watch.watcher.look()
    assert (looked.looks, looked.failed) == (1, ())


async def test_the_poller_of_one_account_leaves_those_of_another_in_its_partition_to_that_ones_poller(
    watch: Watch, redis_url: str, client: Razorpay, bank: Sandbox
) -> None:
    """The key of one account may not see the payouts of the other: it would report them as unknown to the bank."""
    other = Watch(redis_url, watch.redis, client, account="acc_2")
    ours, theirs, listed = await bank.pay(1_000), await bank.pay(1_000), await bank.pay(1_000)
    await watch.know(ours["id"], "pending", days_ago=1)
    await other.know(theirs["id"], "pending", days_ago=1)
    await watch.list.seed(seeds, watch.door.now_s)
    await other.list.seed(seeds, other.door.now_s)
    await other.watcher.note([BankPayout(id=listed["id"], amount=1_000, currency="INR", status="pending")])
    assert await watch.watched() == {ours["id"]}
    assert await other.watched() == {theirs["id"], listed["id"]}


async def test_one_that_the_bank_does_not_know_is_named_and_holds_up_nobody(
    watch: Watch, bank: Sandbox
) -> None:
    made = await bank.pay(1_000)
    for payout in ("pout_Ghost000000001", made["id"]):
        await watch.know(payout, "pending", days_ago=2)
    await bank.advance(made["id"], "cancelled")
    await watch.list.seed(seeds, watch.door.now_s)
    looked = await watch.watcher.look()
    assert (looked.looks, looked.moved) == (2, 1)
    (unknown,) = looked.unknown
    assert unknown.startswith("pout_Ghost000000001: ")
    assert unknown.count("pout_Ghost000000001") == 1
    assert (await watch.watcher.look()).unknown == (unknown,), "it stays so until the bank knows it"


async def test_a_look_that_the_log_did_not_take_fails_and_what_it_saw_is_looked_at_again(
    watch: Watch, bank: Sandbox
) -> None:
    made = await bank.pay(1_000)
    await watch.know(made["id"], "pending", days_ago=1)
    await bank.advance(made["id"], "cancelled")
    await watch.list.seed(seeds, watch.door.now_s)
    watch.door.is_away = True
    with pytest.raises(LogUnavailable):
        await watch.watcher.look()
    watch.door.is_away = False
    assert (await watch.watcher.look()).moved == 1


async def test_only_what_is_open_is_watched_and_seeding_is_not_done_in_each_pass(watch: Watch) -> None:
    for status in ("pending", "queued", "scheduled", "processing", "processed", "rejected", "reversed"):
        await watch.know(f"pout_{status}", status)
    await watch.list.seed(seeds, watch.door.now_s)
    assert await watch.watched() == {"pout_pending", "pout_queued", "pout_scheduled", "pout_processing"}
    await watch.know("pout_later", "pending")
    await watch.list.seed(seeds, watch.door.now_s + SEED_EVERY_S - 1)
    assert "pout_later" not in await watch.watched()
    await watch.list.seed(seeds, watch.door.now_s + SEED_EVERY_S)
    assert "pout_later" in await watch.watched()


async def test_a_payout_whose_record_is_made_after_the_poller_began_is_seen_when_it_is_cancelled(
    watch: Watch, bank: Sandbox
) -> None:
    """The poller began, or Redis was rebuilt, while its webhook was on its way or waited for a worker; and it is older
    than what the poller lists. It was looked at never."""
    made = await bank.pay(250_000)
    assert (await watch.watcher.look()).looks == 0
    await watch.know(made["id"], "pending", days_ago=30)
    await bank.advance(made["id"], "cancelled")
    watch.door.now_s += SEED_EVERY_S
    assert (await watch.watcher.look()).moved == 1
    assert watch.shown() == [(made["id"], "fetch", "cancelled")]


async def test_a_payout_that_came_a_moment_ago_is_looked_at_no_sooner_than_if_it_had_been_listed(
    watch: Watch, bank: Sandbox
) -> None:
    made = await bank.pay(250_000)
    await watch.know(made["id"], "pending")
    assert (await watch.watcher.look()).looks == 0
    watch.door.now_s += FIRST_LOOK_S
    assert (await watch.watcher.look()).looks == 1


async def test_a_seeding_that_an_older_version_made_once_for_all_counts_as_long_ago(watch: Watch) -> None:
    await watch.know("pout_later", "pending")
    await watch.redis.set(NAMES.cursor(f"watch_seeded:{ACCOUNT}"), 1)
    await watch.list.seed(seeds, watch.door.now_s)
    assert await watch.watched() == {"pout_later"}


def test_the_older_a_payout_the_more_seldom_it_is_looked_at() -> None:
    now_s = 1_790_000_000

    def wait_s(age_s: int) -> int:
        facts = BankPayout(id="p", amount=1, currency="INR", status="pending", created_at=now_s - age_s)
        at = next_look_s(facts, None, now_s)
        assert at is not None
        return at - now_s

    assert [wait_s(age) for age in (10, 3_600, DAY_S, 60 * DAY_S)] == [
        BETWEEN_S_MIN,
        450,
        DAY_S // 8,
        BETWEEN_S_MAX,
    ]

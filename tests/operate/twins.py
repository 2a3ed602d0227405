"""Two engines that are given the same: one that loses its Redis on the way, and one that never does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import consumers
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import TryAgain
from streamproc.ingress.translate import translate
from streamproc.log.stream import Append, Appended
from streamproc.operate import dead
from streamproc.operate.site import opened
from streamproc.settings import load
from tests.consumers.test_refuted import Bank
from tests.deadline import DEADLINE_S
from tests.engine import ZONE, Engine
from tests.operate.recovering import dump
from tests.words import ACCOUNT, Vendors, attributed, delivery, observed

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 1_000_000, weekly_limit: 2_000_000, monthly_limit: 3_000_000}
  east: {daily_limit: 1_000_000, monthly_limit: 1_500_000, timezone: America/New_York}
  quick: {daily_limit: 10_000_000, rate_limit: {count: 3, window: 3600}}
  slow: {daily_limit: 10_000_000, rate_limit: {count: 1, window: 3600}, on_rate_limit: hold}
  web: {daily_limit: 10_000_000, vendor_daily_limit: 500_000}
  member: {daily_limit: 10_000_000, team: red}
  careful: {daily_limit: 10_000_000, require_approval_above: 100_000, dual_approval_above: 500_000, hold_ttl: 1h}
  waits: {daily_limit: 10_000_000, require_approval_above: 100_000, queued_hold: allow}
  small: {per_txn_limit: 100}
  wary: {daily_limit: 10_000_000, new_beneficiary: hold, changed_beneficiary: hold}
teams: {red: {daily_limit: 600_000}}
accounts: {acc_Test0000000001: {daily_limit: 20_000_000}}
reviewers: [asha, vikram]
"""
CHANGED = POLICIES.replace("vendor_daily_limit: 500_000", "vendor_daily_limit: 600_000")
VENDORS = {"malware": "threat", "nobody-knows": "unavailable"}


class Twin:
    """An engine with both groups, and its bank."""

    def __init__(self, url: str, base_us: int) -> None:
        self.bank = Bank()
        self.is_open = True
        groups = [
            consumers.governance(Reputations(Vendors(VENDORS)), zone=ZONE),
            execution(self.bank, self.barrier),
        ]
        self.engine = Engine(url, groups=groups)
        self.base_us = base_us
        self.delivered: list[e.PayoutObserved] = []

    async def barrier(self, partition: int, entry: str, e: bytes) -> None:
        """Approvals wait while `is_open` is not set."""
        if not self.is_open:
            raise TryAgain("the barrier is closed", after_s=0.1)

    def event(self, payout: str, amount: int, agent: str, **more: Any) -> e.PayoutObserved:
        """What the bank shows; each a millisecond after the one before."""
        at = self.base_us + 1_000 * (len(self.delivered) + 1)
        event = observed(payout, amount, agent=agent, at=at, **more)
        self.delivered.append(event)
        return event

    async def pays(self, payout: str, amount: int, agent: str, **more: Any) -> None:
        """A payout is shown for the first time, and handled."""
        await self.engine.deliver(self.event(payout, amount, agent, **more))

    async def shows(self, payout: str, status: str, amount: int = 100, agent: str = "bot") -> None:
        """The bank moves a payout on and shows it."""
        self.bank.statuses[payout] = status
        await self.pays(payout, amount, agent, status=status)

    async def review(self, payout: str, by: str, action: str) -> None:
        """A reviewer answers."""
        await self.engine.review(payout, by, action, account=ACCOUNT)

    async def again(self, event: e.PayoutObserved) -> Appended:
        """The same delivery comes once more."""
        return await self.engine.producer.append(delivery(event))

    async def record(self, payout: str) -> PayoutRecord:
        """What Redis has of it."""
        found = (await dump(self.engine.client))["payouts"][payout]["record"]
        assert isinstance(found, PayoutRecord)
        return found

    async def outcome(self) -> dict[str, Any]:
        """What has come of everything, without times and ids, which two engines do not share."""
        found = await dump(self.engine.client)
        payouts = {payout: _told(row["record"]) for payout, row in found["payouts"].items()}
        due = {member.partition(b'"payout":"')[2].partition(b'"')[0].decode() for member in found["timers"]}
        policies = {scope: (state["version"], state["own"]) for scope, state in found["policies"].items()}
        return {
            "payouts": payouts,
            "budgets": found["budgets"],
            "rates": found["rates"],
            "due": sorted(payout for payout in due if payouts[payout][0] == "held"),
            "policies": policies,
            "paid": {key: sorted(names) for key, names in found["paid"].items()},
            "dead": [(letter[b"group"], letter[b"problem"]) for letter in found.get("dead", [])],
            "told": sorted(self.bank.told),
        }


def _told(record: PayoutRecord) -> tuple[Any, ...]:
    held = record.reservation
    return (
        *(record.state, record.bank_status, record.decision, record.reason, record.reasons),
        (held.state, held.amount, [(w.scope, w.window, w.limit) for w in held.windows]) if held else None,
        [(review.by, review.action) for review in record.reviews],
        (record.amount, record.received_at, record.policy_version, record.bypassed),
    )


@asynccontextmanager
async def twins(redis_url: str) -> AsyncIterator[tuple[Twin, Twin]]:
    """The one that will lose its Redis, in database 0, and the one that will not, in another."""
    other = redis_url.rpartition("/")[0] + "/7"
    mine = Twin(redis_url, 0)
    async with mine.engine:
        mine.base_us = mine.engine.producer.now_us()
        control = Twin(other, mine.base_us)
        async with control.engine:
            yield mine, control


async def lived(twin: Twin) -> None:
    """A history with everything in it that a payout can meet."""
    await twin.engine.apply(POLICIES)
    for n in range(5):
        await twin.pays(f"bot_{n}", 250_000, "bot")
    await twin.shows("bot_0", "processed")
    await twin.shows("bot_1", "failed")
    await twin.shows("bot_2", "processed")
    await twin.shows("bot_2", "reversed")
    await twin.pays("east_0", 900_000, "east")
    for n in range(4):
        await twin.pays(f"quick_{n}", 1_000, "quick")
    for n in range(2):
        await twin.pays(f"slow_{n}", 1_000, "slow")
    await twin.pays("web_0", 300_000, "web", url="https://shop.example.com/1")
    await twin.pays("web_1", 200_001, "web", url="https://shop.example.com/2")
    await twin.pays("web_2", 1_000, "web", url="https://pay.malware.example.net/")
    await twin.pays("web_3", 1_000, "web", url="https://nobody-knows.example.org/")
    await twin.pays("member_0", 600_000, "member")
    await twin.pays("member_1", 1, "member")
    for n in range(6):
        await twin.pays(f"careful_{n}", 200_000 if n < 3 else 600_000, "careful")
    await twin.review("careful_1", "asha", "approve")
    await twin.review("careful_2", "asha", "reject")
    await twin.review("careful_3", "asha", "approve")
    await twin.review("nobody_there", "asha", "approve")
    await twin.pays("waits_0", 200_000, "waits", status="queued")
    await twin.pays("queued_0", 200_000, "careful", status="queued")
    await twin.pays("bypass_0", 1_000, "bot", status="processing")
    await twin.pays("small_0", 101, "small")
    await twin.shows("small_0", "queued", 101, "small")
    await twin.pays("nobody_0", 1_000, "unlisted")
    await twin.pays("wary_0", 1_000, "wary", fund_account="fa_7", url="https://seven.example.com/1")
    await twin.review("wary_0", "asha", "approve")
    await twin.pays("wary_1", 1_000, "wary", fund_account="fa_8", url="https://eight.example.com/1")
    await twin.engine.freeze("agent:small")
    malformed = e.PayoutMalformed(
        at=twin.base_us, payout="bad_0", account=ACCOUNT, source="webhook", problem="its amount is 7"
    )
    await twin.engine.producer.append(Append(ACCOUNT, ("bad:bad_0:1",), (malformed,)))
    for name in ("payout.pending", "account.low_balance"):
        await twin.engine.producer.append(webhook(name, now_us=twin.base_us))
    await twin.engine.settled()
    await twin.engine.apply(CHANGED)


def webhook(name: str, now_us: int) -> Append:
    """A delivery as the bank makes it, with an event id."""
    entity = {"id": "hook_0", "amount": 1_000, "currency": "INR", "status": "pending"}
    body = {"event": name, "account_id": ACCOUNT, "payload": {"payout": {"entity": entity}}}
    return translate(
        json.dumps(body).encode(), delivery=f"evt_{name[-3:]}", fallback_account=ACCOUNT, now_us=now_us
    ).append


async def redriven(twin: Twin) -> None:
    """A person gives every dead letter back; what cannot be handled becomes one again."""
    async with opened(load({"STREAMPROC_REDIS_URL": twin.engine.url})) as site:
        for letter in await dead.list_letters(site):
            await dead.redrive(site, letter["id"], attributed("asha"))
    await twin.engine.settled()


async def lived_on(twin: Twin) -> None:
    """What comes after the loss."""
    await redriven(twin)
    for n in (0, 2):
        await twin.pays(f"edge_{n}", 250_000 + n // 2, "bot")
    await twin.pays("edge_east", 600_001, "east")
    await twin.pays("quick_9", 1_000, "quick")
    await twin.pays("slow_9", 1_000, "slow")
    await twin.pays("web_9", 99_999, "web", url="https://shop.example.com/9")
    await twin.pays("web_8", 200_001, "web", url="https://shop.example.com/8")
    await twin.pays("member_9", 1, "member")
    await twin.pays("wary_7", 1_000, "wary", fund_account="fa_7", url="https://seven.example.com/2")
    await twin.pays("wary_8", 1_000, "wary", fund_account="fa_8", url="https://eight.example.com/2")
    await twin.pays("wary_9", 1_000, "wary", fund_account="fa_9", url="https://seven.example.com/3")
    await twin.pays("small_9", 50, "small")
    for payout in ("careful_0", "slow_1"):
        held = await twin.record(payout)
        expiry = e.TimerFired(at=held.hold_expires_at, payout=payout, timer="hold_expiry")
        await twin.engine.append(ACCOUNT, expiry)
        await twin.engine.settled()
    await twin.review("careful_3", "vikram", "approve")
    await twin.review("careful_4", "asha", "reject")
    await twin.review("careful_5", "asha", "approve")
    await twin.review("waits_0", "vikram", "approve")
    for payout in ("bot_3", "east_0", "careful_1", "careful_3"):
        await twin.shows(payout, "processed")
    await twin.shows("bot_0", "reversed")
    await twin.pays("edge_4", 250_000, "bot")
    await twin.engine.settled()


async def handled(twin: Twin) -> None:
    """Run the engine, with nothing that holds it up, until nothing is pending any more."""
    twin.is_open = True
    if not twin.engine.tasks:
        twin.engine.start()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            await twin.engine.settled()
            rows = await twin.engine.client.xinfo_groups(twin.engine.names.log)
            if all(row["pending"] == 0 for row in rows):
                return
            await asyncio.sleep(0.02)

"""The scenarios, each through the bank's signed webhook into the running system. Amounts in paise.

A scenario yields checks: what was expected and what came. It states the whole outcome: the decision, its reason,
the payout's status at the bank, and every command that took effect there.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from ops.demo.running import OUTCOME_MAX_S, Outcome, Running, until

PROCESSED = ("processed", ("approve",))
REJECTED = ("rejected", ("reject",))
WAITING: tuple[str, tuple[str, ...]] = ("pending", ())

APPROVED_OK = Outcome("APPROVED", "POLICY_OK", *PROCESSED)
DELIVERIES = 3
"""How often the same webhook is sent."""
RATE_COUNT = 10
"""Requests of one agent that pass within a minute, by its policy."""
ZONE = ZoneInfo("Asia/Kolkata")
"""The time zone of limits per day, as in policies.yaml."""
DAY_LEFT_MIN_S = 3 * OUTCOME_MAX_S
"""A day that three payouts shall fill must not end before all are received."""
PAST_MIDNIGHT_S = 1.0
"""Margin after midnight: the time of a payout is by Redis's clock, which may differ from this one."""


class Check(NamedTuple):
    """One statement: what it is about, what was expected, what came. `payout` is empty if it is about none."""

    about: str
    expected: str
    came: str
    payout: str = ""

    @property
    def passed(self) -> bool:
        """It came as stated."""
        return self.expected == self.came


Scenario: TypeAlias = Callable[[Running], AsyncIterator[Check]]


def rupees(paise: int) -> str:
    """An amount for people."""
    return f"₹{paise // 100:,}" + (f".{paise % 100:02d}" if paise % 100 else "")


async def _pay(
    running: Running, agent: str, amount: int, expected: Outcome, url: str = "", what: str = ""
) -> Check:
    payout = await running.pay(agent, amount, url)
    came = await running.outcome(payout, expected)
    to = f" to {url}" if url else ""
    return Check(what or f"{agent} pays {rupees(amount)}{to}", str(expected), str(came), payout)


def _rejected(reason: str) -> Outcome:
    return Outcome("REJECTED", reason, *REJECTED)


def _held(reason: str) -> Outcome:
    return Outcome("HELD", reason, *WAITING)


async def legitimate_vendor(running: Running) -> AsyncIterator[Check]:
    """A legitimate vendor is paid"""
    yield await _pay(running, "demo-procurement", 250_000, APPROVED_OK, "https://paper.example.com/shop")


async def dangerous_vendor(running: Running) -> AsyncIterator[Check]:
    """A vendor that Safe Browsing names is refused"""
    url = "https://malware.example.net/invoice"
    yield await _pay(running, "demo-reputation", 250_000, _rejected("RISK_HIGH"), url)


async def transaction_limit(running: Running) -> AsyncIterator[Check]:
    """The limit of one transaction passes, one paisa more does not"""
    yield await _pay(running, "demo-limits", 500_000, APPROVED_OK)
    yield await _pay(running, "demo-limits", 500_001, _rejected("TXN_LIMIT_EXCEEDED"))


def wait_for_a_day_s(now: datetime) -> float:
    """Seconds until a day has DAY_LEFT_MIN_S left: none, but right before midnight."""
    here = now.astimezone(ZONE)
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    left_s = (midnight - here).total_seconds()
    return left_s + PAST_MIDNIGHT_S if left_s < DAY_LEFT_MIN_S else 0.0


async def day_limit(running: Running) -> AsyncIterator[Check]:
    """What exactly fills the day passes, then the day is full"""
    await asyncio.sleep(wait_for_a_day_s(datetime.now(ZONE)))
    yield await _pay(running, "demo-budget", 600_000, APPROVED_OK)
    yield await _pay(running, "demo-budget", 400_000, APPROVED_OK, what="demo-budget fills the day: ₹4,000")
    yield await _pay(running, "demo-budget", 100, _rejected("LIMIT_EXCEEDED"), what="demo-budget: ₹1 more")


async def approval(running: Running) -> AsyncIterator[Check]:
    """Above the threshold a person decides"""
    held = await _pay(running, "demo-approvals", 800_000, _held("APPROVAL_REQUIRED"))
    yield held
    if not held.passed:
        return
    await running.cli("hold", "approve", held.payout, "--by", "asha", "--reason", "ordered by the office")
    expected = Outcome("APPROVED", "REVIEW_APPROVED", *PROCESSED)
    came = await running.outcome(held.payout, expected)
    yield Check("asha approves it", str(expected), str(came), held.payout)


async def blocked_suffix(running: Running) -> AsyncIterator[Check]:
    """A blocked suffix is refused"""
    url = "https://cheap-laptops.xyz/pay"
    yield await _pay(running, "demo-domains", 250_000, _rejected("DOMAIN_BLOCKED"), url)


async def nobodys_agent(running: Running) -> AsyncIterator[Check]:
    """An agent without a policy may spend nothing"""
    yield await _pay(running, "demo-stranger", 250_000, _rejected("NO_POLICY"))


async def rate_limit(running: Running) -> AsyncIterator[Check]:
    """The eleventh request within a minute is one too many"""
    wanted = [APPROVED_OK] * RATE_COUNT + [_rejected("RATE_LIMITED")]
    payouts: list[str] = []
    for expected in wanted:
        # One after the other, so that the order is certain; by the bank alone, so that it is within the minute.
        payouts.append(await running.pay("demo-rate", 10_000))
        await running.at_bank(payouts[-1], expected)
    for number, (payout, expected) in enumerate(zip(payouts, wanted, strict=True), 1):
        came = await running.outcome(payout, expected)
        yield Check(f"demo-rate, request {number}", str(expected), str(came), payout)


async def same_webhook(running: Running) -> AsyncIterator[Check]:
    """The same webhook three times is one decision"""
    paid = await _pay(running, "demo-procurement", 120_000, APPROVED_OK)
    yield paid
    (delivery,) = await running.deliveries(paid.payout, "payout.pending")

    async def answers() -> list[int | None]:
        (shown,) = await running.deliveries(paid.payout, "payout.pending")
        return [attempt["status"] for attempt in shown["attempts"]]

    for count in range(2, DELIVERIES + 1):
        await running.control(f"deliveries/{delivery['id']}/resend")
        await until(partial(_as_many, answers, count))
    came = str(await answers())
    yield Check("the bank's deliveries were answered", str([200] * DELIVERIES), came, paid.payout)
    story = await running.explain(paid.payout) or {"events": []}
    types = Counter(event["type"] for event in story["events"])
    came = f"{types['payout.decided']} decision, {types['payout.budget_reserved']} reservation"
    yield Check("in the log", "1 decision, 1 reservation", came, paid.payout)


async def _as_many(answers: Callable[[], Awaitable[list[int | None]]], count: int) -> bool:
    return len(await answers()) >= count


async def reputation_down(running: Running) -> AsyncIterator[Check]:
    """While Safe Browsing is down a payout waits, and nothing is approved or called fraud"""
    await running.control("safebrowsing", down="500")
    try:
        url = "https://during-the-outage.example.com/"
        yield await _pay(running, "demo-outage", 250_000, _held("REPUTATION_UNAVAILABLE"), url)
    finally:
        await running.control("safebrowsing", down="ok")
    url = "https://after-the-outage.example.com/"
    yield await _pay(running, "demo-outage", 250_000, APPROVED_OK, url, what="when it is back")


SCENARIOS: tuple[Scenario, ...] = (
    legitimate_vendor,
    dangerous_vendor,
    transaction_limit,
    day_limit,
    approval,
    blocked_suffix,
    nobodys_agent,
    rate_limit,
    same_webhook,
    reputation_down,
)

"""A history of any length for `bench replay`: the entries that the engine would have written, generated without it.

A few hundred payouts are under way at a time, and the budgets add up. Of 22 payouts 14 are approved and processed, 2
are approved by a reviewer, and one each is rejected, exceeds a limit, fails, is cancelled, is reversed, or has its hold
expire. An approved payout has 6 entries with 11 events. The same number of payouts always gives the same bytes.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from streamproc.bench import job
from streamproc.domain import events as e
from streamproc.domain.asks import uses
from streamproc.domain.budget import Counters, Limits, Window, windows_of
from streamproc.domain.policy import Policy, ScopeLimits, effective_policy, fields_of
from streamproc.domain.wire import encode_events
from streamproc.log.stream import Entry

START_US: Final = 1_790_000_000_000_000
"""µs; Mon 21 Sep 2026 in Asia/Kolkata."""
STEP_US: Final = 400_000
"""Time between two entries (µs): some 200,000 entries a day."""
UNDER_WAY: Final = 300
"""Payouts under way at a time."""
SEED: Final = 7

_FATES: Final = (
    *("processed",) * 14,
    *("reviewed", "reviewed", "rejected", "limit", "failed", "cancelled", "reversed", "expired"),
)


@dataclass
class _Book:
    """What the payouts share: the clock, the partition's numbers, the budgets."""

    now_us: int = START_US
    number: int = 0
    counters: Counters = field(default_factory=Counters)
    last_ms: int = 0
    in_ms: int = 0

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def id(self) -> str:
        """The next entry's id; two entries may share a millisecond."""
        self.now_us += STEP_US
        ms = self.now_us // 1000
        self.in_ms = self.in_ms + 1 if ms == self.last_ms else 0
        self.last_ms = ms
        return f"{ms}-{self.in_ms}"


Batch = tuple[str, int | None, list[e.Event]]
"""The writer of an entry, the number of its settlement or None, its events."""


def entries(payouts: int) -> Iterator[Entry]:
    """The log of so many payouts, in order. The memory in use does not depend on their number."""
    chance, book = random.Random(SEED), _Book()
    for changes in _policies(book.now_us):
        yield Entry(book.id(), encode_events([changes]), b'{"by":"policy","actor":"bench"}')
    lives = (_life(i, chance.choice(_FATES), book) for i in range(payouts))
    under_way: list[tuple[Iterator[Batch], str]] = []
    more = True
    while more or under_way:
        while more and len(under_way) < UNDER_WAY:
            life = next(lives, None)
            more = life is not None
            if life is not None:
                under_way.append((life, ""))
        if not under_way:
            return
        place = chance.randrange(len(under_way))
        life, cause = under_way[place]
        batch = next(life, None)
        if batch is None:
            under_way[place] = under_way[-1]
            under_way.pop()
            continue
        by, settled, happened = batch
        entry = Entry(book.id(), encode_events(happened), _meta(by, cause, settled))
        under_way[place] = (life, entry.id)
        yield entry


def _meta(by: str, cause: str, settled: int | None) -> bytes:
    parts = [f'"by":"{by}"']
    if cause and by != "webhook":
        parts.append(f'"cause":"{cause}"')
    if settled is not None:
        parts.append(f'"settled":{settled}')
    return ("{" + ",".join(parts) + "}").encode()


def _policies(at: int) -> Iterator[e.PolicyChanged]:
    for agent in job.AGENT_NAMES:
        own: dict[str, object] = {"daily_limit": job.DAY_LIMIT_PAISE, "weekly_limit": job.DAY_LIMIT_PAISE}
        effective = fields_of(effective_policy({}, own))
        yield e.PolicyChanged(
            at=at,
            scope=f"agent:{agent}",
            version=1,
            before=None,
            after=own,
            effective=effective,
            by="bench",
            why="bench",
        )


_POLICY: Final = Policy(daily_limit=job.DAY_LIMIT_PAISE, weekly_limit=job.DAY_LIMIT_PAISE)
_ACCOUNT: Final = ScopeLimits(daily_limit=10 * job.DAY_LIMIT_PAISE)


def _life(i: int, fate: str, book: _Book) -> Iterator[Batch]:
    first = job.observed(i, book.now_us)
    agent = first.facts.notes["agent_id"]
    yield "webhook", None, [first]
    windows = windows_of(
        Limits(_POLICY, _ACCOUNT),
        agent=agent,
        account=job.ACCOUNT,
        vendor="",
        received_at=first.at,
        zone=job.ZONE,
    )
    amount = first.facts.amount
    if fate == "rejected":
        findings = [
            _finding("screening", "DOMAIN_BLOCKED", "REJECTED", host="blocked.example.net", rule="*.net")
        ]
        yield "governance", None, [_decided(first, agent, "REJECTED", findings, book.now_us)]
        yield from _command_answered(first, "reject", "rejected", book)
        return
    passed = _checks_passed(first, agent, book)
    if fate == "limit":
        findings = [_finding("budget", "LIMIT_EXCEEDED", "REJECTED", scope=f"agent:{agent}", amount=amount)]
        yield "governance", None, [*passed, _decided(first, agent, "REJECTED", findings, book.now_us)]
        yield from _command_answered(first, "reject", "rejected", book)
        return
    held = fate in ("reviewed", "expired")
    findings = [_finding("approval", "APPROVAL_REQUIRED", "HELD", amount=amount, above=1)] if held else []
    decided = _decided(first, agent, "HELD" if held else "APPROVED", findings, book.now_us)
    yield "governance", None, [*passed, _reserve(first, windows, book), decided]
    settle = _settlement(first, windows, book)
    if fate == "expired":
        yield "timers", None, [e.TimerFired(at=book.now_us, payout=first.payout, timer="hold_expiry")]
        findings = [*findings, _finding("review", "HOLD_EXPIRED", "REJECTED", expired_at=book.now_us)]
        rejected = _decided(first, agent, "REJECTED", findings, book.now_us)
        number, released = settle("reserved", "released", "HOLD_EXPIRED")
        yield "governance", number, [rejected, released]
        yield from _command_answered(first, "reject", "rejected", book)
        return
    if held:
        yield "hold", None, [_submitted(first, book.now_us)]
        counted = _counted(first, book.now_us)
        yield (
            "governance",
            None,
            [counted, _decided(first, agent, "APPROVED", findings, book.now_us, by="asha")],
        )
    yield from _command_answered(first, "approve", "processing", book)
    yield from _bank(first, fate, settle, book)


Settle = Callable[[str, str, str], tuple[int, e.PayoutSettled]]


def _bank(first: e.PayoutObserved, fate: str, settle: Settle, book: _Book) -> Iterator[Batch]:
    """The bank's last webhooks, and how they settle the reservation."""
    last = fate if fate in ("failed", "cancelled") else "processed"
    yield "webhook", None, [_observed_later(first, last, book.now_us)]
    number, settled = settle("reserved", "committed" if last == "processed" else "released", f"bank: {last}")
    yield "governance", number, [settled]
    if fate == "reversed":
        yield "webhook", None, [_observed_later(first, "reversed", book.now_us)]
        number, settled = settle("committed", "released", "bank: reversed")
        yield "governance", number, [settled]


# ---- events -------------------------------------------------------------------------------


def _checks_passed(first: e.PayoutObserved, agent: str, book: _Book) -> list[e.Event]:
    at, payout = book.now_us, first.payout
    return [
        e.PayoutScreened(
            at=at, payout=payout, agent=agent, identity="claimed", policy_version=1, findings=[]
        ),
        e.VelocityChecked(
            at=at, payout=payout, number=book.next_number(), used=3, limit=10, window_s=60, findings=[]
        ),
        e.ReputationChecked(
            at=at,
            payout=payout,
            verdict="clean",
            checked_at=at - 5_000_000,
            fresh_until=at + 300_000_000,
            findings=[],
        ),
    ]


def _reserve(first: e.PayoutObserved, windows: tuple[Window, ...], book: _Book) -> e.BudgetReserved:
    amount = first.facts.amount
    _, before = book.counters.reserve(windows, amount)
    return e.BudgetReserved(
        at=book.now_us,
        payout=first.payout,
        amount=amount,
        number=book.number,
        windows=uses(windows, before),
        findings=[],
    )


def _settlement(first: e.PayoutObserved, windows: tuple[Window, ...], book: _Book) -> Settle:
    def settle(held: str, settlement: str, why: str) -> tuple[int, e.PayoutSettled]:
        book.counters.settle(windows, first.facts.amount, held, settlement)
        event = e.PayoutSettled(
            at=book.now_us,
            payout=first.payout,
            settlement="committed" if settlement == "committed" else "released",
            amount=first.facts.amount,
            why=why,
            windows=[[window.scope, window.window] for window in windows],
        )
        return book.next_number(), event

    return settle


def _command_answered(
    first: e.PayoutObserved, command: e.BankCommand, status: str, book: _Book
) -> Iterator[Batch]:
    """The bank's answer to a command: the payout's state, and that the command was accepted."""
    answered = e.BankCommandAnswered(
        at=book.now_us,
        payout=first.payout,
        command=command,
        outcome="done",
        http_status=200,
        bank_status=status,
        caused_by=f"0:{book.last_ms}-0:4",
    )
    yield "execution", None, [_observed_later(first, status, book.now_us, source="fetch"), answered]


def _observed_later(
    first: e.PayoutObserved, status: str, at: int, source: e.Source = "webhook"
) -> e.PayoutObserved:
    facts = e.BankPayout(
        id=first.payout,
        amount=first.facts.amount,
        currency="INR",
        status=status,
        created_at=first.facts.created_at,
        fund_account_id=first.facts.fund_account_id,
        mode="IMPS",
        utr="000123456789" if status == "processed" else "",
        fees=590 if status == "processed" else 0,
        tax=90 if status == "processed" else 0,
        notes=first.facts.notes,
    )
    name = f"payout.{status}" if source == "webhook" else ""
    return e.PayoutObserved(
        at=at, payout=first.payout, account=job.ACCOUNT, source=source, bank_event=name, facts=facts
    )


def _finding(stage: str, code: str, outcome: Literal["REJECTED", "HELD"], **evidence: str | int) -> e.Finding:
    return e.Finding(stage=stage, code=code, outcome=outcome, evidence=dict(evidence))


def _decided(
    first: e.PayoutObserved,
    agent: str,
    decision: e.Decision,
    findings: list[e.Finding],
    at: int,
    by: str = "",
) -> e.PayoutDecided:
    reason = findings[-1].code if findings else "POLICY_OK"
    if by:
        reason = "REVIEW_APPROVED"
    return e.PayoutDecided(
        at=at,
        payout=first.payout,
        account=job.ACCOUNT,
        agent=agent,
        amount=first.facts.amount,
        decision=decision,
        reason=reason,
        findings=findings,
        policy_version=1,
        bank_status="pending",
        identity="claimed",
        hold_expires_at=at + 86_400_000_000 if decision == "HELD" else 0,
        by=by,
    )


def _submitted(first: e.PayoutObserved, at: int) -> e.ReviewSubmitted:
    return e.ReviewSubmitted(
        at=at, payout=first.payout, by="asha", action="approve", why="invoice checked", channel="cli"
    )


def _counted(first: e.PayoutObserved, at: int) -> e.ReviewCounted:
    return e.ReviewCounted(
        at=at,
        payout=first.payout,
        by="asha",
        action="approve",
        why="invoice checked",
        channel="cli",
        needed=0,
    )

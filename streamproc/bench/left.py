"""What a side leaves behind, compared with the engine: the speed of a side that leaves less means nothing.

Each payout of a sample is checked by itself first: its record must be the fold of its events, and its admission must
agree with them. Then its events are compared with the engine's, except for what depends on when a batch was read and
what was in it: times, numbers, earlier use of a window, beneficiaries noted by then. Counters and registry are compared
whole.
"""

import random
from collections import Counter
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace
from redis.asyncio import Redis

import consumers
from streamproc.bench import engine, job
from streamproc.domain.beneficiaries import Pair, to_note
from streamproc.domain.budget import NOTHING_ASKED, US, Admission, RateAnswer
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import (
    BeneficiaryNoted,
    BudgetReserved,
    Event,
    Evidence,
    PayoutDecided,
    PayoutObserved,
    PayoutScreened,
    ReputationChecked,
    VelocityChecked,
)
from streamproc.domain.payouts import encode_record, fold
from streamproc.domain.wire import decode_events, decode_meta
from streamproc.errors import JobFailed
from streamproc.log import scripts
from streamproc.log.stream import LogView

SAMPLE_MAX = 500
"""Payouts that are compared one by one, which takes about 50 µs each."""


class Kept(Struct):
    """Everything that is stored of one payout."""

    seen: PayoutObserved
    entry: str
    events: list[Event] = field(default_factory=list)
    by: str = ""
    cause: str = ""
    version: bytes = b""
    record: bytes = b""
    admission: Admission = NOTHING_ASKED

    @property
    def decision(self) -> PayoutDecided | None:
        """The last decision."""
        return next((event for event in reversed(self.events) if type(event) is PayoutDecided), None)


class Left(Struct):
    """What a side left behind: the payouts of the sample, all counters, and the registry."""

    payouts: dict[str, Kept]
    number: Any
    slots: dict[str, int]
    budgets: dict[str, Any]
    """By scope, without the day, which may change during a benchmark."""
    paid: dict[str, list[Any]]


async def left(url: str, client: Redis, payouts: int, payees: int) -> Left:
    """Read what a side left behind.

    The registry is left out if every payout has a new payee, since chance then decides which payees it still has.
    """
    numbers = random.Random(payouts).sample(range(payouts), min(payouts, SAMPLE_MAX))
    sample = {job.observed(i, 0).payout for i in numbers}
    kept: dict[str, Kept] = {}
    after = ZERO
    async with LogView(url, 0) as view:
        while entries := await view.read(after, engine.READ_BATCH, 0):
            after = entries[-1].id
            for entry in entries:
                _keep(kept, entry.id, decode_events(entry.e), entry.m, sample)
    names = engine.NAMES
    for payout, item in kept.items():
        row: list[Any] = await client.hmget(names.payout(payout), ["v", "s", "a"])
        loaded = scripts.loaded(row)
        item.version, item.record, item.admission = loaded.version, loaded.record or b"", loaded.admission
    budgets = await _keys(client, names.budget("*", "*"))
    paid = await _keys(client, f"{names.base}:paid:*") if payees else []
    return Left(
        payouts=kept,
        number=await client.get(names.number),
        slots={agent: await client.zcard(names.rate(agent)) for agent in job.AGENT_NAMES},
        budgets={key.rpartition(":")[0]: await client.hgetall(key) for key in budgets},
        paid={key: sorted(await client.hkeys(key)) for key in paid},
    )


async def _keys(client: Redis, pattern: str) -> list[str]:
    return sorted([key.decode() async for key in client.scan_iter(match=pattern, count=1_000)])


def _keep(kept: dict[str, Kept], entry: str, events: list[Event], m: bytes, sample: set[str]) -> None:
    first = events[0]
    payout = getattr(first, "payout", "")
    if payout not in sample:
        return
    if type(first) is PayoutObserved:
        kept[payout] = Kept(first, entry)
        return
    item, meta = kept[payout], decode_meta(m)
    item.events += events
    item.by, item.cause = meta.by, meta.cause


def compare(side: str, theirs: Left, engines: Left) -> None:
    """Raise JobFailed if a side left behind anything else than the engine, or a payout contradicts itself."""
    for payout, ours in engines.payouts.items():
        _check_alone("engine", payout, ours)
        other = theirs.payouts.get(payout)
        if other is None:
            raise JobFailed(f"{side}: payout {payout} is not in the log")
        _check_alone(side, payout, other)
        if _only_one_was_in_time(other, ours):
            continue
        _agree(side, f"payout {payout}", _comparable(other.events), _comparable(ours.events))
        _agree(side, f"payout {payout}'s admission", _terms(other.admission), _terms(ours.admission))
    _agree(side, "the counter", theirs.number, engines.number)
    _agree(side, "slots", theirs.slots, engines.slots)
    _agree(side, "budgets", theirs.budgets, engines.budgets)
    _agree(side, "beneficiaries", theirs.paid, engines.paid)


def _only_one_was_in_time(theirs: Kept, ours: Kept) -> bool:
    """Whether one side approved it and the other found the tight agent's budget full, which depends on the order."""
    reasons = {kept.decision.reason if kept.decision else "" for kept in (theirs, ours)}
    return reasons == {"POLICY_OK", "LIMIT_EXCEEDED"} and ours.seen.facts.notes["agent_id"] == job.TIGHT_AGENT


def _agree(side: str, what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise JobFailed(f"{side}: of {what} it left {theirs}; the engine left {ours}"[:2_000])


def _check_alone(side: str, payout: str, kept: Kept) -> None:
    """Raise JobFailed if what is stored of a payout contradicts itself."""
    folded = fold([kept.seen, *kept.events])
    slot, room = _admission_of(kept.events)
    admission = kept.admission
    problems = {
        "its record is not the fold of its events": folded is None or kept.record != encode_record(folded),
        "its record's version is not 1": kept.version != b"1",
        "it was not decided once": Counter(map(type, kept.events))[PayoutDecided] != 1,
        "its entry is not caused by its observation": (kept.by, kept.cause)
        != (consumers.GOVERNANCE, kept.entry),
        "its slot is not what its events tell": admission.rate != slot,
        "its room is not what its events tell": _answered(admission) != room,
        "its beneficiary is noted wrongly": _is_noted(kept.events) != _must_be_noted(kept),
    }
    broken = [problem for problem, is_so in problems.items() if is_so]
    if broken:
        raise JobFailed(f"{side}: payout {payout}: {', '.join(broken)}: {kept}"[:4_000])


def _admission_of(events: list[Event]) -> tuple[RateAnswer | None, tuple[Any, ...] | None]:
    """The admission according to the events: rate slot and room (number, amount, granted, windows as they were)."""
    slot: RateAnswer | None = None
    room: tuple[Any, ...] | None = None
    for event in events:
        if type(event) is VelocityChecked:
            slot = RateAnswer(event.number, event.used, False, event.limit, event.window_s * US)
        elif type(event) is BudgetReserved:
            windows = [(w.scope, w.window, w.limit, w.reserved, w.committed) for w in event.windows]
            room = (event.number, event.amount, True, windows)
        elif type(event) is PayoutDecided and event.reason == "LIMIT_EXCEEDED":
            evidence = event.findings[-1].evidence
            window = tuple(evidence[name] for name in ("scope", "window", "limit", "reserved", "committed"))
            room = (evidence["number"], event.amount, False, [window])
    return slot, room


def _answered(admission: Admission) -> tuple[Any, ...] | None:
    """The room of a stored admission, in the form of `_admission_of`."""
    answer = admission.budget
    if answer is None:
        return None
    windows = [
        (w.scope, w.window, w.limit, *before) for w, before in zip(answer.windows, answer.before, strict=True)
    ]
    return (answer.number, answer.amount, answer.granted, windows)


def _is_noted(events: list[Event]) -> bool:
    return any(type(event) is BeneficiaryNoted for event in events)


def _must_be_noted(kept: Kept) -> bool:
    screened = next((event for event in kept.events if type(event) is PayoutScreened), None)
    if screened is None or kept.decision is None or kept.decision.decision != "APPROVED":
        return False
    return to_note(Pair(kept.seen.account, kept.seen.facts.fund_account_id, ""), screened.beneficiary)


def _comparable(events: list[Event]) -> list[Event]:
    """The events without what depends on when a batch was read and what was in it."""
    return [_without_chance(event) for event in events if type(event) is not BeneficiaryNoted]


def _without_chance(event: Event) -> Event:
    if type(event) is PayoutScreened:
        return replace(event, at=0, beneficiary=None)
    if type(event) is VelocityChecked:
        return replace(event, at=0, number=0, used=0)
    if type(event) is ReputationChecked:
        return replace(event, at=0, checked_at=0, fresh_until=event.fresh_until - event.checked_at)
    if type(event) is BudgetReserved:
        windows = [replace(window, window="", reserved=0) for window in event.windows]
        return replace(event, at=0, number=0, windows=windows)
    if type(event) is PayoutDecided:
        findings = [
            replace(finding, evidence=_without(finding.evidence, "number", "window"))
            for finding in event.findings
        ]
        return replace(event, at=0, findings=findings)
    return event


def _without(evidence: Evidence, *names: str) -> Evidence:
    return {name: value for name, value in evidence.items() if name not in names}


def _terms(admission: Admission) -> tuple[Any, ...]:
    """The question of an admission, without answer and day."""
    rate, budget = admission.rate, admission.budget
    return (
        (rate.count, rate.window_us) if rate is not None else None,
        (budget.amount, budget.granted, [(w.scope, w.limit) for w in budget.windows])
        if budget is not None
        else None,
    )

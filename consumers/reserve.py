"""Velocity (rule 10) and budget (rule 16): the two questions that only the partition's counters can answer. Rule 15,
which needs no answer and never rejects, is applied with the second one.

Both are asked in one round trip if nothing outside has to be asked in between, that is, if the vendor's reputation is
known already and is no threat. Answers are recorded for good, so a stage that runs again, here or in another worker,
gets the same ones.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from consumers.verdicts import found_by, record_decision, record_reservation, record_slot
from streamproc.domain.asks import ask_of, charged_windows, rate_ask, vendor_charged
from streamproc.domain.budget import QUARTER_US, US, Ask, RateAsk, Window
from streamproc.domain.case import Case, Reputation, case_of
from streamproc.domain.events import PayoutScreened, ReputationChecked
from streamproc.domain.governance import RULES, find, is_rejected
from streamproc.log.work import BatchContext, Item, Stage, Work

TERMS_MAX = 4_096
"""Rates, and sets of windows, that are kept, some 300 bytes each. When full, all are dropped."""


class Terms:
    """What payouts under one book of policies ask of the counters. Payouts that ask for the same share one object:
    it is made once, and `scripts.admit`, which compares by identity, sends it once."""

    def __init__(self, zone: str) -> None:
        self._zone = zone
        self._rates: dict[str, RateAsk | None] = {}
        self._windows: dict[tuple[str, str, str, int], tuple[Window, ...]] = {}

    def rate(self, case: Case) -> RateAsk | None:
        """The rate limit that a slot must be asked of; None where the policy has no limit. Cached by agent."""
        agent = case.payout.agent
        if agent in self._rates:
            return self._rates[agent]
        if len(self._rates) >= TERMS_MAX:
            self._rates.clear()
        rate = self._rates[agent] = rate_ask(case)
        return rate

    def windows(self, case: Case) -> tuple[Window, ...]:
        """The windows to charge. Cached by quarter of an hour, within which their names and ends are the same."""
        payout, vendor = case.payout, vendor_charged(case)
        key = (payout.agent, payout.account, vendor, payout.received_at // QUARTER_US)
        known = self._windows.get(key)
        if known is None:
            if len(self._windows) >= TERMS_MAX:
                self._windows.clear()
            known = self._windows[key] = charged_windows(case, vendor, self._zone)
        return known


async def _admit(asks: Sequence[tuple[Work, Ask]], ctx: BatchContext) -> None:
    """Ask the counters in one round trip, and give each work its answer."""
    if asks:
        answers = await ctx.admit([ask for _, ask in asks])
        for (work, _), answer in zip(asks, answers, strict=True):
            work.admission = answer


def velocity_stage(known: Callable[[str, int], Reputation | None], zone: str) -> Stage:
    """Rule 10. `known(url, now_us)` gives a reputation from memory; None: it has to be looked up."""

    async def check(items: Sequence[Item], ctx: BatchContext) -> None:
        records = [work.known() for work, _ in items]
        cases = [case_of(record, ctx.party(record)) for record in records]
        asked: list[tuple[Work, Ask]] = []
        terms = Terms(zone)
        for (work, _), case in zip(items, cases, strict=True):
            if case.agent is None:  # the policy was removed between two commits
                record_decision(work, ctx, found_by("velocity", case))
                continue
            reputation = known(case.payout.vendor_url, ctx.now_us)
            ask_for_room = reputation is not None and reputation.verdict != "threat"
            ask = ask_of(case.payout, terms.rate(case), terms.windows(case) if ask_for_room else None)
            if ask.rate is not None or ask.windows is not None:
                asked.append((work, ask))
        await _admit(asked, ctx)
        for (work, event), case in zip(items, cases, strict=True):
            if case.agent is not None and type(event) is PayoutScreened:
                _check_one(work, event, ctx)

    return Stage(name="velocity", consumes=frozenset({PayoutScreened}), handle=check)


def _check_one(work: Work, event: PayoutScreened, ctx: BatchContext) -> None:
    record = work.known()
    case = case_of(record, ctx.party(record), admission=work.admission)
    assert case.agent is not None
    findings = [*event.findings, *found_by("velocity", case)]
    if is_rejected(findings):
        record_decision(work, ctx, findings)
        return
    answer, limit = work.admission.rate, case.agent.policy.rate_limit
    if answer is not None and not answer.count:  # admitted by a version that did not keep the terms
        answer = replace(answer, count=limit.count, window_us=limit.window_s * US)
    record_slot(work, ctx, answer, findings)


def budget_stage(zone: str) -> Stage:
    """Rules 15 and 16, for payouts that no rule has rejected."""

    async def reserve(items: Sequence[Item], ctx: BatchContext) -> None:
        # What is decided asks for no room: it is rejected, or a review looked at it again.
        live = [
            (work, event)
            for work, event in items
            if type(event) is ReputationChecked and work.known().decision is None
        ]
        missing = [work for work, _ in live if work.admission.budget is None]
        records = [work.known() for work in missing]
        cases = [case_of(record, ctx.party(record)) for record in records]
        terms = Terms(zone)
        asks = [
            (work, ask_of(case.payout, None, terms.windows(case)))
            for work, case in zip(missing, cases, strict=True)
            if case.agent is not None
        ]
        await _admit(asks, ctx)
        for work, event in live:
            _reserve_one(work, event, ctx)

    return Stage(name="budget", consumes=frozenset({ReputationChecked}), handle=reserve)


def _reserve_one(work: Work, event: ReputationChecked, ctx: BatchContext) -> None:
    record, answer = work.known(), work.admission.budget
    case = case_of(record, ctx.party(record), admission=work.admission)
    if answer is None:  # not asked for, since its policy is gone
        record_decision(work, ctx, [*event.findings, *found_by("budget", case)])
        return
    findings = [*event.findings, *find((*RULES["anomaly"], *RULES["budget"]), case)]
    if is_rejected(findings):
        record_decision(work, ctx, findings)
        return
    record_reservation(work, ctx, answer, findings)

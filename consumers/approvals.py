"""What is recorded of a payout that nothing but the counters can reject, and the forms that such payouts share.

A form is made of the record and the events themselves, of a payout whose values are marks. So there is one place that
says what is recorded (`Approval.told`), and a form is used only once it has given what that says of a real payout.
"""

import logging
import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from consumers.verdicts import decision_of, noted_by, slot
from consumers.vet import checked_at
from streamproc.domain.approval import approved
from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import US, Admission, Ask, BudgetAnswer, RateAnswer, RateAsk, Window
from streamproc.domain.events import BudgetReserved, Event, Finding, Identity, PayoutScreened
from streamproc.domain.governance import RULES, Case, Reputation, conclude, find, uses
from streamproc.domain.payouts import PayoutRecord, encode_record, fold
from streamproc.domain.policy import AgentPolicy
from streamproc.domain.reminders import hold_timers
from streamproc.domain.wire import encode_events
from streamproc.log.forms import (
    AMOUNT,
    AT,
    COMMON,
    PAYOUT,
    RECEIVED_AT,
    VALUES,
    Fate,
    Form,
    Offer,
    Told,
    as_filled,
    blank,
    form_of,
    form_with,
    no_room_of,
    no_slot_of,
    offer_of,
)

log = logging.getLogger(__name__)

FORMS_MAX = 4_096
"""Agents, with what else a form goes by, whose forms a process knows: some 500 bytes each. Then it begins anew."""
TEXTS_MAX = 4_096
"""Vendors' URLs, fund accounts and times whose JSON a process keeps, some 200 bytes each."""

_POLICY_OK = conclude(())
is_plain_id = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
"""An id that is the same in JSON."""
json_of = msgspec.json.Encoder().encode
"""A text's JSON, as a form's value is written."""


class Approval(Struct, frozen=True):
    """A payout that no rule rejects, and by what it was looked at: approved, or held for somebody to approve.

    `at`: when (µs).
    """

    record: PayoutRecord
    """As it was seen, with what the registry of beneficiaries knew."""
    identity: Identity
    agent: AgentPolicy
    reputation: Reputation
    at: int
    rate: RateAsk | None
    windows: tuple[Window, ...]
    findings: tuple[Finding, ...] = ()
    """What the rules found: why it is held."""

    def told(self, fate: Fate = Fate.DONE) -> Told:
        """What the stages would record of it, each its own, with 0 for what only the counters can say. It is the first
        window that has no room."""
        record, at = self.record, self.at
        screened = PayoutScreened(
            at=at,
            payout=record.payout,
            agent=record.agent,
            identity=self.identity,
            policy_version=self.agent.version,
            findings=self._found("screening"),
            beneficiary=record.beneficiary,
        )
        if fate is Fate.NO_SLOT:
            return self._rejected("velocity", Admission(rate=self._slot(limited=True)), screened)
        checked = slot(record.payout, at, self._slot(), screened.findings)
        found = self._found("screening", "reputation")
        vetted = checked_at(at, record.payout, self.reputation, found)
        if fate is Fate.NO_ROOM:
            return self._rejected("budget", Admission(budget=self._no_room()), screened, checked, vetted)
        reserved = BudgetReserved(
            at=at,
            payout=record.payout,
            amount=record.amount,
            number=0,
            windows=uses(self.windows, self._before()),
            findings=found,
            count_fees=self.agent.policy.count_fees,
        )
        verdict = conclude(self.findings) if self.findings else _POLICY_OK
        decision = decision_of(record, self.agent, self.identity, verdict, at)
        out: list[Event] = [screened, checked, vetted, reserved, decision]
        out += noted_by(decision, record, record.beneficiary)
        return approved(record, screened, vetted, reserved, decision), out

    def _found(self, *stages: str) -> list[Finding]:
        """What these stages' rules found."""
        return [finding for finding in self.findings if finding.stage in stages] if self.findings else []

    def of(self, record: PayoutRecord, at: int) -> "Approval":
        """The same of another payout that is alike, as it was seen, at that moment."""
        seen = replace(record, beneficiary=self.record.beneficiary)
        return replace(self, record=seen, at=at)

    def _rejected(self, table: str, answer: Admission, *before: Event) -> Told:
        """By the one rule of `table`, which looks at what the counters answered."""
        case = Case(self.record, self.identity, self.agent, admission=answer)
        verdict = conclude(find(RULES[table], case))
        out = [*before, decision_of(self.record, self.agent, self.identity, verdict, self.at)]
        after = fold(out, self.record)
        assert after is not None
        return after, out

    def _slot(self, *, limited: bool = False) -> RateAnswer | None:
        rate = self.rate
        return RateAnswer(0, 0, limited, rate.count, rate.window_us) if rate is not None else None

    def _before(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),) * len(self.windows)

    def _no_room(self) -> BudgetAnswer:
        return BudgetAnswer(0, self.record.amount, 0, self.windows, self._before())


# ---- forms ------------------------------------------------------------------------------

OWN = frozenset(
    {"payout", "amount", "received_at", "vendor_url", "fund_account", "reference_id", "updated_at"}
)
"""Fields of a record that are the payout's own: a form has blanks for them; `updated_at` is when it is decided."""
KEYED = frozenset({"account", "currency", "agent", "identity", "state", "bank_status", "beneficiary"})
"""Those that a form has as they are, and goes by (`identity` as it is decided, `state` by the bank's status)."""
_NOT_SEEN = frozenset(
    {"decision", "decided_at", "reason", "reasons", "findings", "policy_version", "hold_expires_at"}
    | {"reputation_fresh_until", "reservation", "reviews", "bypassed", "maybe_sent", "bank_fee", "intent"}
    | {"bank_payout", "created_as", "copies", "failure", "notices"}
)
"""Those that no observation of a payout of the bank's own sets, or that the decision does."""
EMPTY = frozenset({"agent_sig", "utr", "fees", "tax"})
"""Those that are seldom set before a payout is decided; then it has a form of its own."""
FITS = frozenset(PayoutRecord.__struct_fields__) == OWN | KEYED | _NOT_SEEN | EMPTY
"""Else a field that somebody added would be what it was for a form's first payout: then there are no forms."""

_VALUES = ("vendor_url", "fund_account", "reference_id", "checked_at", "fresh_until")
_COMMON = ("agent", "version", "count", "window_s")
_BLANKS = {
    **{"payout": PAYOUT, "amount": AMOUNT, "received_at": RECEIVED_AT},
    **{name: VALUES + place for place, name in enumerate(_VALUES)},
    **{name: COMMON - place for place, name in enumerate(_COMMON)},
}
"""Fields of the record, the reputation, the policy and its rate, and the blanks for them."""
_TEXTS = frozenset({"payout", "vendor_url", "fund_account", "reference_id", "agent"})
_MARKS: dict[str, Any] = {
    name: secrets.token_hex(16) if name in _TEXTS else 8_100_000_000_000_000_000 + place
    for name, place in _BLANKS.items()
}
"""Values that nothing else has: texts that nobody can guess, and numbers as long as no other is."""
_MARKED_AT = 8_200_000_000_000_000_000


class Forms:
    """The forms of one process, which the batches of all its consumers share."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], Form] = {}
        self._known: dict[tuple[object, ...], _Known] = {}

    def offer(self, approval: Approval) -> Offer:
        """What to ask the script for."""
        record, reputation = approval.record, approval.reputation
        ask = Ask(record.payout, record.amount, record.received_at, approval.rate, approval.windows)
        if approval.findings or not FITS or not _is_usual(approval):
            return _alone(ask, approval)
        key = (
            id(approval.agent),
            record.agent,
            record.account,
            approval.identity,
            record.currency,
            record.bank_status,
            reputation.verdict,
            # What is empty is not written, or not in the same way.
            not record.vendor_url,
            not record.fund_account,
            not record.reference_id,
            not reputation.checked_at,
            not reputation.fresh_until,
        )
        known = self._known.get(key)
        if known is None:
            known = self._meet(key, approval, ask)
        if known.form is None:
            return _alone(ask, approval)
        values = _values(record, reputation)
        return Offer(ask, approval.at, known.form, known.common, values, record.agent, approval.told)

    def _meet(self, key: tuple[object, ...], approval: Approval, ask: Ask) -> "_Known":
        """Find the form for the first of such payouts; none where it does not give what is told of this one."""
        if len(self._known) >= FORMS_MAX:
            self._known.clear()
            self._forms.clear()
        rate = approval.rate
        terms = (approval.agent.policy.count_fees, rate is None, rate is not None and rate.hold)
        which = (*key[2:], *terms)
        form = self._forms.get(which)
        if form is None:
            form = self._forms[which] = _form_of(_marked(approval))
        common = _common(approval)
        values, agent = _values(approval.record, approval.reputation), approval.record.agent
        offer = Offer(ask, approval.at, form, common, values, agent, approval.told)
        fits = all(_texts(approval, fate) == as_filled(one, offer) for fate, one in _forms_in(form))
        if not fits:
            log.error("agent %s: no form gives what is told of payout %s", approval.record.agent, ask.payout)
        known = self._known[key] = _Known(approval.agent, form if fits else None, common)
        return known


def _alone(ask: Ask, approval: Approval) -> Offer:
    """With a form of its own. Without a slot or room the chain has it."""
    record, out = approval.told()
    until = record.hold_expires_at
    timers = hold_timers(record.payout, record.decided_at, until) if record.state == "held" else ()
    return offer_of(ask, approval.at, record, out, timers)


def _form_of(marked: Approval) -> Form:
    """The form of an approval whose values are marks, with what it is without a slot and without room."""
    record, rate = marked.record, marked.rate
    ask = Ask(record.payout, record.amount, record.received_at, rate, marked.windows)

    def form(of: Callable[[Ask, str, str], tuple[str, str]], fate: Fate) -> Form:
        return form_with(*map(_with_blanks, of(ask, *_texts(marked, fate))))

    # A limit that holds is no rejection: the chain goes on with it.
    no_slot = form(no_slot_of, Fate.NO_SLOT) if rate is not None and not rate.hold else None
    return replace(form(form_of, Fate.DONE), no_slot=no_slot, no_room=form(no_room_of, Fate.NO_ROOM))


def _forms_in(form: Form) -> list[tuple[Fate, Form]]:
    both = (Fate.DONE, form), (Fate.NO_SLOT, form.no_slot), (Fate.NO_ROOM, form.no_room)
    return [(fate, one) for fate, one in both if one is not None]


class _Known(NamedTuple):
    """A form and what the payouts of an agent share; None where theirs need forms of their own.

    The policy is kept with it, so that no other one takes over its identity.
    """

    agent: AgentPolicy
    form: Form | None
    common: tuple[str, ...]


def _is_usual(approval: Approval) -> bool:
    """Whether what is told of it is nothing but what a form has, goes by, or has a blank for."""
    record = approval.record
    return (
        record.intent is None
        # Of who is paid without a vendor's URL it is another object, which says the same.
        and record.beneficiary == NOTED
        and not (record.agent_sig or record.utr or record.fees or record.tax or approval.reputation.threats)
        and record.amount > 0
        and record.received_at > 0
        and record.updated_at <= approval.at
        and is_plain_id(record.payout) is not None
    )


def _values(record: PayoutRecord, reputation: Reputation) -> tuple[str, ...]:
    """Of `_VALUES`, as JSON."""
    return (
        _repeated(record.vendor_url),
        _repeated(record.fund_account),
        json_of(record.reference_id).decode(),
        *_when(reputation.checked_at, reputation.fresh_until),
    )


@lru_cache(maxsize=TEXTS_MAX)
def _when(checked_at: int, fresh_until: int) -> tuple[str, str]:
    """When a vendor was asked for, and for how long that holds, as many payouts have it."""
    return str(checked_at), str(fresh_until)


def _common(approval: Approval) -> tuple[str, ...]:
    """Of `_COMMON`, as JSON."""
    rate = approval.rate
    terms = (rate.count, rate.window_us // US) if rate is not None else ()
    return (_repeated(approval.record.agent), *map(str, (approval.agent.version, *terms)))


@lru_cache(maxsize=TEXTS_MAX)
def _repeated(text: str) -> str:
    """The JSON of a text that many payouts have."""
    return json_of(text).decode()


def _texts(approval: Approval, fate: Fate) -> tuple[str, str]:
    record, out = approval.told(fate)
    return encode_record(record).decode(), encode_events(out).decode()


def _marked(approval: Approval) -> Approval:
    """The same with a mark for each value that is its own, where there is one."""

    def marks(of: Struct) -> dict[str, Any]:
        return {name: mark for name, mark in _MARKS.items() if getattr(of, name, None)}

    rate = approval.rate
    if rate is not None:
        rate = replace(rate, count=_MARKS["count"], window_us=_MARKS["window_s"] * US)
    return replace(
        approval,
        record=replace(approval.record, updated_at=0, **marks(approval.record)),
        reputation=replace(approval.reputation, **marks(approval.reputation)),
        agent=replace(approval.agent, version=_MARKS["version"]),
        rate=rate,
        at=_MARKED_AT,
    )


def _with_blanks(text: str) -> str:
    """The blanks in the place of marks. A payout's id is written without quotes, as the script has it."""
    for name, mark in _MARKS.items():
        written = f'"{mark}"' if name in _TEXTS - {"payout"} else str(mark)
        text = text.replace(written, blank(_BLANKS[name]))
    return text.replace(str(_MARKED_AT), AT)

"""What is recorded of a payout that only the counters can still reject, and the templates that such payouts share.

A template is made from a real record and its events, with marks in place of the payout's values. So one function
(`Approval.outputs`) says what is recorded, and a template is used only after it gave what that says of a real payout.

From here to the script it is three things in turn, and each module knows only its own:

- objects, here: what is recorded, and which payouts may share a template;
- texts with blanks, `log/templates.py`: JSON, and no rule or policy;
- one MessagePack, `log/grants.py`: the script's order, and that what payouts share is sent once.
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

from consumers.verdicts import decision_of, noted_by, velocity_checked
from consumers.vet import reputation_checked
from streamproc.domain.approval import approved
from streamproc.domain.asks import ask_of, uses
from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import US, Admission, Ask, BudgetAnswer, RateAnswer, RateAsk, Window
from streamproc.domain.case import Case, Reputation
from streamproc.domain.events import BudgetReserved, EntitySeen, Event, Finding, Identity, PayoutScreened
from streamproc.domain.governance import RULES, conclude, find
from streamproc.domain.payouts import PayoutRecord, encode_record, fold
from streamproc.domain.policy import AgentPolicy
from streamproc.domain.reminders import hold_timers
from streamproc.domain.wire import encode_events
from streamproc.log.templates import (
    AMOUNT,
    AT,
    COMMON,
    PAYOUT,
    RECEIVED_AT,
    VALUES,
    Offer,
    OfferFate,
    RecordAndEvents,
    Template,
    as_filled,
    blank,
    no_room_of,
    no_slot_of,
    offer_of,
    template_of,
    template_with,
)

log = logging.getLogger(__name__)

TEMPLATES_MAX = 4_096
"""Keys (an agent and what else a template depends on) whose templates a process keeps, some 500 bytes each. When full,
it is cleared."""
TEXTS_MAX = 4_096
"""Vendors' URLs, fund accounts and agents whose JSON a process keeps, some 200 bytes each."""

_POLICY_OK = conclude(())
is_plain_id = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
"""Whether an id needs no escape in JSON."""
json_of = msgspec.json.Encoder().encode
"""A value's JSON, as a template needs it."""


class Approval(Struct, frozen=True):
    """A payout that no rule rejects, approved or held, with all that the decision depends on. `at`: when (µs)."""

    record: PayoutRecord
    """As it was seen, with what the registry of beneficiaries knew."""
    identity: Identity
    agent: AgentPolicy
    reputation: Reputation
    at: int
    rate: RateAsk | None
    windows: tuple[Window, ...]
    findings: tuple[Finding, ...] = ()
    """What the rules found: the reasons to hold it."""
    entity: EntitySeen | None = None
    """What the register said of its contact, if that was asked."""

    def outputs(self, fate: OfferFate = OfferFate.DONE) -> RecordAndEvents:
        """The payout's record afterwards and the events that the stages would write, if the counters' answer is `fate`.

        What only the counters know is 0; of a rejection for want of room, the window is the first one.
        """
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
        if fate is OfferFate.NO_SLOT:
            return self._rejected("velocity", Admission(rate=self._slot(limited=True)), screened)
        checked = velocity_checked(record.payout, at, self._slot(), screened.findings)
        found = self._found("screening", "reputation")
        vetted = reputation_checked(at, record.payout, self.reputation, found, self.entity)
        if fate is OfferFate.NO_ROOM:
            return self._rejected("budget", Admission(budget=self._no_room()), screened, checked, vetted)
        reserved = BudgetReserved(
            at=at,
            payout=record.payout,
            amount=record.amount,
            number=0,
            windows=uses(self.windows, self._before()),
            findings=self._found("screening", "reputation", "anomaly"),
            count_fees=self.agent.policy.count_fees,
        )
        verdict = conclude(self.findings) if self.findings else _POLICY_OK
        decision = decision_of(record, self.agent, self.identity, verdict, at)
        out: list[Event] = [screened, checked, vetted, reserved, decision]
        out += noted_by(decision, record, record.beneficiary)
        return approved(record, screened, vetted, reserved, decision), out

    def _found(self, *stages: str) -> list[Finding]:
        """The findings of these stages."""
        return [finding for finding in self.findings if finding.stage in stages] if self.findings else []

    def of(self, record: PayoutRecord, at: int) -> "Approval":
        """The approval of another payout that is alike, decided at `at` (µs)."""
        seen = replace(record, beneficiary=self.record.beneficiary)
        return replace(self, record=seen, at=at)

    def _rejected(self, table: str, answer: Admission, *before: Event) -> RecordAndEvents:
        """The rejection by the one rule of `table`, which looks at the counters' answer."""
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


# ---- templates ------------------------------------------------------------------------------

OWN = frozenset(
    {"payout", "amount", "received_at", "vendor_url", "fund_account", "reference_id", "updated_at"}
)
"""Fields of a record that differ by payout: a template has blanks for them. `updated_at` is the time of the
decision."""
KEYED = frozenset({"account", "currency", "agent", "identity", "state", "bank_status", "beneficiary"})
"""Fields that a template contains as they are, so that it is chosen by them: `identity` by the decision's, `state` by
the bank's status."""
_NOT_SEEN = frozenset(
    {"decision", "decided_at", "reason", "reasons", "findings", "policy_version", "hold_expires_at"}
    | {"reputation_fresh_until", "reservation", "reviews", "bypassed", "maybe_sent", "bank_fee", "intent"}
    | {"bank_payout", "created_as", "copies", "failure", "notices"}
)
"""Fields that are not set when a payout at the bank is first seen, or that the decision sets."""
EMPTY = frozenset({"agent_sig", "utr", "fees", "tax"})
"""Fields that are rarely set before a payout is decided; a payout with one of them gets a template of its own."""
FITS = frozenset(PayoutRecord.__struct_fields__) == OWN | KEYED | _NOT_SEEN | EMPTY
"""False once somebody adds a field to the record: a template would give it the value of the template's first payout.
Then no templates are shared."""

_TEXTS = ("payout", "vendor_url", "fund_account", "reference_id", "agent")
_NUMBERS = ("amount", "received_at", "checked_at", "fresh_until", "version", "count", "window_s")
_MARKS: dict[str, Any] = {
    **{name: secrets.token_hex(16) for name in _TEXTS},
    **{name: 8_100_000_000_000_000_000 + n for n, name in enumerate(_NUMBERS)},
}
"""For each field of the record, the reputation, the policy and its rate that has a blank, a value that nothing else
has: texts that nobody can guess, and numbers longer than any other."""
_MARKED_AT = 8_200_000_000_000_000_000


class Templates:
    """The templates of one process, shared by all of its consumers."""

    def __init__(self) -> None:
        self._templates: dict[tuple[object, ...], Template] = {}
        self._known: dict[tuple[object, ...], _Known] = {}

    def offer(self, approval: Approval) -> Offer:
        """The offer for an approval, with a shared template where there is one."""
        record, reputation = approval.record, approval.reputation
        ask = ask_of(record, approval.rate, approval.windows)
        if approval.findings or not FITS or not _is_usual(approval):
            return _alone(ask, approval)
        shape = (
            record.account,
            approval.identity,
            record.currency,
            record.bank_status,
            reputation.verdict,
            # JSON omits a field that is empty, or writes it otherwise.
            not record.vendor_url,
            not record.fund_account,
            not record.reference_id,
            not reputation.checked_at,
            not reputation.fresh_until,
        )
        key = (id(approval.agent), record.agent, shape)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._meet(shape, approval, ask)
        if known.template is None:
            return _alone(ask, approval)
        values = _values(record, reputation)
        return Offer(ask, approval.at, known.template, known.common, values, record.agent, approval.outputs)

    def _meet(self, shape: tuple[object, ...], approval: Approval, ask: Ask) -> "_Known":
        """Find or make the template for the first payout of this shape that an agent has; none, unless it gives exactly
        what is recorded of this one."""
        if len(self._known) >= TEMPLATES_MAX:
            self._known.clear()
            self._templates.clear()
        rate = approval.rate
        template_key = (shape, approval.agent.policy.count_fees, rate is None, rate is not None and rate.hold)
        template = self._templates.get(template_key)
        if template is None:
            template = self._templates[template_key] = _template_of(_marked(approval))
        common = _common(approval)
        values, agent = _values(approval.record, approval.reputation), approval.record.agent
        offer = Offer(ask, approval.at, template, common, values, agent, approval.outputs)
        fits = all(_texts(approval, fate) == as_filled(one, offer) for fate, one in _templates_in(template))
        if not fits:
            log.error(
                "agent %s: its cached template does not give the events of payout %s, and is not used",
                approval.record.agent,
                ask.payout,
            )
        return _Known(approval.agent, template if fits else None, common)


def _alone(ask: Ask, approval: Approval) -> Offer:
    """An offer with a template of its own; without a slot or room the chain decides it."""
    record, out = approval.outputs()
    until = record.hold_expires_at
    timers = hold_timers(record.payout, record.decided_at, until) if record.state == "held" else ()
    return offer_of(ask, approval.at, record, out, timers)


def _template_of(marked: Approval) -> Template:
    """The template of an approval whose values are marks, including its templates for no slot and for no room.

    The payout's own values are found by their marks; what only the script knows is 0 in the texts, and is found by what
    stands around it (templates.py).
    """
    record, rate = marked.record, marked.rate
    ask = ask_of(record, rate, marked.windows)

    def template(of: Callable[[Ask, str, str], tuple[str, str]], fate: OfferFate) -> Template:
        texts = of(ask, *_texts(marked, fate))
        return template_with(*(_with_blanks(text, marked) for text in texts))

    # Where the limit holds instead of rejecting, the chain goes on with the other rules.
    no_slot = template(no_slot_of, OfferFate.NO_SLOT) if rate is not None and not rate.hold else None
    return replace(
        template(template_of, OfferFate.DONE),
        no_slot=no_slot,
        no_room=template(no_room_of, OfferFate.NO_ROOM),
    )


def _templates_in(template: Template) -> list[tuple[OfferFate, Template]]:
    templates = (
        (OfferFate.DONE, template),
        (OfferFate.NO_SLOT, template.no_slot),
        (OfferFate.NO_ROOM, template.no_room),
    )
    return [(fate, given) for fate, given in templates if given is not None]


class _Known(NamedTuple):
    """The template of payouts alike and the texts they share. `template` None: each needs a template of its own.

    The policy is referenced so that its id, which is part of the key, is not reused by another object.
    """

    agent: AgentPolicy
    template: Template | None
    common: tuple[str, ...]


def _is_usual(approval: Approval) -> bool:
    """Whether a template can express it: each value is in the template, in the template's key, or has a blank."""
    record = approval.record
    return (
        record.intent is None
        and approval.entity is None
        # Compared by value: of a payout without a vendor's URL it is another object.
        and record.beneficiary == NOTED
        and not (record.agent_sig or record.utr or record.fees or record.tax or approval.reputation.threats)
        and record.amount > 0
        and record.received_at > 0
        and record.updated_at <= approval.at
        and is_plain_id(record.payout) is not None
    )


def _values(record: PayoutRecord, reputation: Reputation) -> tuple[str, str, str]:
    """A payout's own values, as JSON: whom it pays, when the vendor was looked up, and until when that holds ('' where
    nobody was).

    Fields that are neighbours wherever they are written are one value: each blank costs the script.
    """
    payee = _fields(
        vendor_url=_repeated(record.vendor_url),
        fund_account=_repeated(record.fund_account),
        reference_id=json_of(record.reference_id).decode(),
    )
    fresh_until = str(reputation.fresh_until or "")
    return payee, _fields(checked_at=str(reputation.checked_at or ""), fresh_until=fresh_until), fresh_until


def _common(approval: Approval) -> tuple[str, ...]:
    """What payouts with the same terms share, likewise: the agent, its policy's version, both, and its rate."""
    agent, version, rate = _repeated(approval.record.agent), str(approval.agent.version), approval.rate
    common = agent, version, _fields(agent=agent, policy_version=version)
    if rate is None:
        return common
    return (*common, _fields(limit=str(rate.count), window_s=str(rate.window_us // US)))


def _fields(**values: str) -> str:
    """Fields as they stand in an object's JSON, which omits those that are empty."""
    return ",".join(f'"{name}":{value}' for name, value in values.items() if value not in ("", '""'))


@lru_cache(maxsize=TEXTS_MAX)
def _repeated(text: str) -> str:
    """The JSON of a text that many payouts have, cached."""
    return json_of(text).decode()


def _texts(approval: Approval, fate: OfferFate) -> tuple[str, str]:
    record, out = approval.outputs(fate)
    return encode_record(record).decode(), encode_events(out).decode()


def _marked(approval: Approval) -> Approval:
    """The approval with a mark in place of each value that has a blank, where it has a value at all."""

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


def _with_blanks(text: str, marked: Approval) -> str:
    """The text with blanks in place of marks. A payout's id keeps its quotes, since the script has it without."""
    record = marked.record
    places = {
        record.payout: PAYOUT,
        str(record.amount): AMOUNT,
        str(record.received_at): RECEIVED_AT,
        **{value: VALUES + n for n, value in enumerate(_values(record, marked.reputation))},
        **{value: COMMON + n for n, value in enumerate(_common(marked))},
    }
    places.pop("", None)  # of what it does not have
    for value in sorted(places, key=len, reverse=True):  # each before those that are parts of it
        text = text.replace(value, blank(places[value]))
    return text.replace(str(_MARKED_AT), AT)

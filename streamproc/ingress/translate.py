"""The bank's deliveries become events. Pure: bytes and a time in, events and idempotency keys out.

A body that is no payload is refused and changes nothing (the bank tries again and a person sees it there).
Everything else is recorded: a payout that cannot be governed becomes `PayoutMalformed`, an event that is
not about a payout's state `BankEventIgnored`. So nothing that was signed and answered 2xx is lost.
"""

from msgspec import Struct

from streamproc.clients.json_text import NotJson, decode_json
from streamproc.clients.razorpay_entities import (
    UNIX_S_MAX,
    MalformedPayout,
    Object,
    count_or_zero,
    id_or_empty,
    read_payout,
    shown,
)
from streamproc.domain.copies import name_here
from streamproc.domain.deliveries import (
    UPDATED,
    body_digest,
    body_key,
    delivery_key,
    malformed_key,
    observation_key,
)
from streamproc.domain.events import (
    BankDowntimeReported,
    BankEventIgnored,
    BankPayout,
    Event,
    PayoutMalformed,
    PayoutObserved,
    Source,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import clean
from streamproc.domain.reconciliation import bank_adds_details
from streamproc.errors import InputError
from streamproc.log.stream import Append

PAYOUT_STATE_EVENTS = frozenset(
    {
        "payout.pending",
        "payout.rejected",
        "payout.queued",
        "payout.initiated",
        "payout.processed",
        "payout.updated",
        "payout.reversed",
        "payout.failed",
    }
)
"""Every event about a payout's state. There is none for cancelled or scheduled."""
DOWNTIME_EVENTS = frozenset({"payout.downtime.started", "payout.downtime.resolved"})
EVENT_NAME_CHARS_MAX = 64
"""Longest name in the bank's catalogue: 33 characters."""
METHODS_MAX = 16
"""Rails kept of one downtime; the bank has six."""


class Translation(Struct, frozen=True):
    """One webhook as the log shall have it. `ignored`: it is not about a payout's state."""

    append: Append
    ignored: bool


def translate(body: bytes, *, delivery: str, fallback_account: str, now_us: int) -> Translation:
    """A verified body as events. Raises InputError when it is not a payload.

    `delivery` is the bank's event id or empty; `fallback_account` is used where the body names no usable account.
    """
    envelope = _envelope(body)
    event = clean(str(envelope["event"]), EVENT_NAME_CHARS_MAX)
    account = id_or_empty(envelope.get("account_id")) or fallback_account
    digest = body_digest(body)
    first = (delivery_key(delivery, digest),) if delivery else ()
    if event in PAYOUT_STATE_EVENTS:
        payout = read_payout(_payout_entity(envelope))
        append = append_of(
            payout, account=account, source="webhook", now_us=now_us, bank_event=event, delivery=delivery
        )
        keys, told = first + append.keys, digest if delivery else ""
        return Translation(Append(account, keys, append.events, told), ignored=False)
    fact: Event
    if event in DOWNTIME_EVENTS:
        fact = _downtime(envelope, event, account, delivery, now_us)
    else:
        fact = BankEventIgnored(at=now_us, account=account, bank_event=event, delivery=delivery)
    append = Append(account, (*first, body_key(digest)), (fact,), digest)
    return Translation(append, ignored=event not in DOWNTIME_EVENTS)


def append_of(
    payout: BankPayout | MalformedPayout,
    *,
    account: str,
    source: Source,
    now_us: int,
    bank_event: str = "",
    delivery: str = "",
) -> Append:
    """A payout as the bank showed it, however it was seen: webhook and poller give the same keys."""
    if isinstance(payout, MalformedPayout):
        malformed = PayoutMalformed(
            at=now_us,
            payout=payout.payout,
            account=account,
            source=source,
            bank_event=bank_event,
            delivery=delivery,
            problem=payout.problem,
        )
        known = payout.payout
        key = malformed_key(known, payout.problem) if known else f"bad:{payout.fingerprint}"
        return Append(account, (key,), (malformed,))
    observed = PayoutObserved(
        at=now_us,
        payout=name_here(payout),  # the bank's own id stays in the facts, and in the keys
        account=account,
        source=source,
        bank_event=bank_event,
        delivery=delivery,
        facts=payout,
    )
    return Append(account, (observation_key(payout, bank_event),), (observed,))


def append_of_look(
    facts: BankPayout, record: PayoutRecord | None, *, account: str, now_us: int
) -> Append | None:
    """What the bank answered about one payout; None if its record has all of that.

    In a status that is known, what is new is what `payout.updated` would have told: both have the same key.
    """
    is_known = record is not None and (facts.id, facts.status) == (record.at_bank, record.bank_status)
    if is_known and record is not None and not bank_adds_details(record, facts):
        return None
    bank_event = UPDATED if is_known else ""
    return append_of(facts, account=account, source="fetch", now_us=now_us, bank_event=bank_event)


def _envelope(body: bytes) -> Object:
    try:
        envelope = decode_json(body)
    except NotJson as error:
        raise InputError(f"the body is not a payload: {error}") from error
    if not isinstance(envelope, dict):
        raise InputError("the body is not a payload: it is not a JSON object")
    event = envelope.get("event")
    if not isinstance(event, str) or not event.strip():
        raise InputError(f"the body is not a payload: its event is {shown(event)}, not a name")
    if not isinstance(envelope.get("payload"), dict):
        raise InputError(
            f"the body is not a payload: its payload is {shown(envelope.get('payload'))}, not an object"
        )
    return envelope


def _inner(envelope: Object, name: str) -> object:
    payload = envelope["payload"]
    return payload.get(name) if isinstance(payload, dict) else None


def _payout_entity(envelope: Object) -> object:
    """The payout's fields: under `entity`, or, as the docs' expanded UPI sample has it, beside it."""
    wrapper = _inner(envelope, "payout")
    if not isinstance(wrapper, dict):
        return wrapper
    entity = wrapper.get("entity")
    if not isinstance(entity, dict):
        return wrapper
    return entity if len(wrapper) == 1 else {**wrapper, **entity}


def _downtime(envelope: Object, event: str, account: str, delivery: str, now_us: int) -> BankDowntimeReported:
    wrapper = _inner(envelope, "payout.downtime")
    entity = wrapper.get("entity") if isinstance(wrapper, dict) else None
    fields: Object = entity if isinstance(entity, dict) else {}
    methods = fields.get("method")
    named = [methods] if isinstance(methods, str) else methods if isinstance(methods, list) else []
    return BankDowntimeReported(
        at=now_us,
        account=account,
        bank_event=event,
        delivery=delivery,
        methods=[
            clean(method, EVENT_NAME_CHARS_MAX) for method in named[:METHODS_MAX] if isinstance(method, str)
        ],
        begin=count_or_zero(fields.get("begin"), UNIX_S_MAX),
        end=count_or_zero(fields.get("end"), UNIX_S_MAX),
    )

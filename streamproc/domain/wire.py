"""The bytes of an entry: field `e`, a JSON array of events, and field `m`, its metadata: who wrote it and why. Pure, so
that the log and the archive share it.

Writers only write the newest version of an event. Readers upcast: `UPCASTERS[type, v]` turns the JSON object of version
`v` into that of `v + 1`, step by step, before it is decoded strictly. A type or version that is not known here is
refused by name, since skipping a fact is how money goes missing: so readers are deployed before writers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr, replace

from streamproc.domain.events import Event, Fact, PayoutObserved, StageFact
from streamproc.errors import Unprocessable

EventJson: TypeAlias = dict[str, object]
"""One event as it was decoded, of whatever version."""
Upcaster: TypeAlias = Callable[[EventJson], EventJson]


def _velocity_checked_1(raw: EventJson) -> EventJson:
    """Version 1 had the policy's terms also where they limited no rate; version 2 has 0 then."""
    return raw if raw.get("number") else {**raw, "limit": 0, "window_s": 0}


def _as_it_was(raw: EventJson) -> EventJson:
    """The next version only adds fields, and their defaults are right for the older one."""
    return raw


UPCASTERS: Mapping[tuple[str, int], Upcaster] = {
    ("payout.velocity_checked", 1): _velocity_checked_1,
    ("payout.observed", 1): _as_it_was,
    ("governance.bypassed", 1): _as_it_was,
    ("payout.cancel_requested", 1): _as_it_was,
    ("payout.velocity_checked", 2): _as_it_was,
    ("payout.velocity_checked", 3): _as_it_was,
    ("bank.command_answered", 1): _as_it_was,
    ("payout.screened", 1): _as_it_was,
    ("payout.screened", 2): _as_it_was,
    ("payout.screened", 3): _as_it_was,
    ("payout.reputation_checked", 1): _as_it_was,
    ("payout.reputation_checked", 2): _as_it_was,
    ("payout.reputation_checked", 3): _as_it_was,
    ("payout.reputation_checked", 4): _as_it_was,
    ("payout.budget_reserved", 1): _as_it_was,
    ("payout.budget_reserved", 2): _as_it_was,
    ("payout.budget_reserved", 3): _as_it_was,
    ("payout.decided", 1): _as_it_was,
    ("payout.decided", 2): _as_it_was,
    ("payout.settled", 1): _as_it_was,
    ("policy.changed", 1): _as_it_was,
    ("policy.changed", 2): _as_it_was,
    ("policy.proposed", 1): _as_it_was,
    ("policy.proposal_confirmed", 1): _as_it_was,
    ("policy.proposal_withdrawn", 1): _as_it_was,
    ("token.created", 1): _as_it_was,
    ("token.created", 2): _as_it_was,
    ("token.revoked", 1): _as_it_was,
    ("dead_letter.closed", 1): _as_it_was,
    ("dead_letter.closed", 2): _as_it_was,
    ("entry.disowned", 1): _as_it_was,
    ("review.counted", 1): _as_it_was,
    ("review.refused", 1): _as_it_was,
}
"""(type, v) -> the step from version v to v + 1, which need not set `v`."""


class Newer(Unprocessable):
    """An event of a type or version that a later streamproc writes: one that knows it can handle it."""


VERSION_MAX = 1_000
"""Highest version that counts as a later one; beyond it the number was not written by any streamproc."""
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding foreign bytes may raise: the decoder's own error, one for text that is not UTF-8, and one for
nesting."""
_TYPE = re.compile(r"[a-z_]{1,40}(?:\.[a-z_]{1,40}){1,3}")


class Meta(Struct, frozen=True):
    """Field `m` of an entry. Unknown fields are ignored, so that a reader of some fields can use it too."""

    by: str = ""
    """The group, or the producer, that wrote it."""
    cause: str = ""
    """The entry whose handling wrote it; empty for what came from outside."""
    actor: str = ""
    """The person who did it, if one did."""
    keys: tuple[str, ...] = ()
    """The idempotency keys of the delivery, unless the entry's events imply them (domain/deliveries.py)."""
    body: str = ""
    """Digest of a webhook's body, from which some of those keys are made."""
    settled: int = 0
    """The number of a settlement, in the common order of the partition's admissions and settlements."""
    trace: str = ""
    """The trace context (W3C) of the request that brought it, if that was traced."""
    rescued: str = ""
    """Its id in the log that `streamproc recover` set aside."""


def written_by(writer: str) -> bytes:
    """How field `m` of a writer's entries begins: the JSON of `Meta.by`, after which other fields or `}` come."""
    return b'{"by":"' + writer.encode() + b'"'


def newest_versions(kinds: Sequence[type[Fact]]) -> dict[str, int]:
    """The newest version of each type: the default of its field `v`."""
    newest: dict[str, int] = {}
    for kind in kinds:
        v = next(field for field in msgspec.structs.fields(kind) if field.name == "v")
        version = v.default if v.default_factory is msgspec.NODEFAULT else v.default_factory()
        newest[str(kind.__struct_config__.tag)] = int(version)
    return newest


EVENT_KINDS: tuple[type[Fact], ...] = get_args(Event)
NEWEST: Mapping[str, int] = newest_versions(EVENT_KINDS)
_VERSION_OF_KIND = {kind: NEWEST[str(kind.__struct_config__.tag)] for kind in EVENT_KINDS}
_READ_AS_THEY_WERE = {
    (kind, since): newest
    for kind, newest in _VERSION_OF_KIND.items()
    for since in range(1, newest)
    if all(UPCASTERS.get((str(kind.__struct_config__.tag), v)) is _as_it_was for v in range(since, newest))
}
"""(class, v) -> newest version, where all steps between only add defaults: such old events need no second decoding."""

_known = b"|".join(re.escape(kind.encode()) for kind in NEWEST)
_names_other_types = re.compile(rb'"type":"(?!(?:' + _known + rb')")[a-z_]+\.').search
"""Whether field `e` may hold an event of an unknown type. Without decoding, so a text in an event may look like one."""

_STAGE_FACTS = frozenset(kind for kind in EVENT_KINDS if issubclass(kind, StageFact))

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[Event])
_raw_decoder = msgspec.json.Decoder(list[EventJson])
_meta_decoder = msgspec.json.Decoder(Meta)


def encode_events(events: Sequence[Event]) -> bytes:
    """Field `e` of one entry, without what a reader can derive. The same events always give the same bytes."""
    first = events[0]
    return _encoder.encode([_short(event, first) for event in events])


def decode_events(e: bytes) -> list[Event]:
    """The events of field `e`, complete and in their newest version.

    Raises Unprocessable, naming the type and version, for one that is not known here (Newer, if a later version may
    know it) or does not fit its shape.
    """
    try:
        events = _decoder.decode(e)
    except MALFORMED:
        return _upcast_and_decode(e)
    for event in events:
        kind, v = type(event), event.v
        if v != _VERSION_OF_KIND[kind]:
            newest = _READ_AS_THEY_WERE.get((kind, v))
            if newest is None:
                return _upcast_and_decode(e)
            force_setattr(event, "v", newest)  # nobody else has seen it yet
        complete = _COMPLETE.get(kind)
        if complete is not None:
            complete(event, events[0], v)
    return events


def _short(event: Event, first: Event) -> Event:
    """The event without what it, or the first event of its entry, says already."""
    if type(event) is PayoutObserved:
        facts = replace(event.facts, id="") if event.facts.id == event.payout else event.facts
        name = "" if event.bank_event == _usual_name(event) else event.bank_event
        return replace(event, facts=facts, bank_event=name)
    if event is first or type(event) not in _STAGE_FACTS:
        return event
    same = event.at == first.at and payout_of(event) == payout_of(first)
    return replace(event, at=0, payout="") if same else event


# ---- put back what `_short` left out of an event of version `v`, in place: nobody else has seen the event yet ----


def _complete_sighting(event: PayoutObserved, first: Event, v: object) -> None:
    if not event.facts.id:
        force_setattr(event.facts, "id", event.payout)
    if not event.bank_event and v == _VERSION_OF_KIND[PayoutObserved]:
        force_setattr(event, "bank_event", _usual_name(event))


def _complete_stage_fact(event: StageFact, first: Event, v: object) -> None:
    if not event.at and not event.payout:
        force_setattr(event, "at", first.at)
        force_setattr(event, "payout", payout_of(first))
    if not event.at or not event.payout:
        raise Unprocessable(
            f"event type {tag_of(type(event))!r} v{event.v}: nothing says its time or its payout"
        )


_COMPLETE: Mapping[type[Fact], Callable[[Any, Event, object], None]] = {
    PayoutObserved: _complete_sighting,
    **dict.fromkeys(_STAGE_FACTS, _complete_stage_fact),
}


def _usual_name(seen: PayoutObserved) -> str:
    """The name of the webhook that reports this status; empty if no webhook reported it."""
    return "payout." + seen.facts.status if seen.source == "webhook" else ""


def refuse_newer(e: bytes) -> None:
    """Raise Newer if field `e` has an event of a type that only a later version knows. All else passes, even if
    unreadable."""
    if _names_other_types(e) is None:
        return
    try:
        decode_events(e)
    except Newer:
        raise
    except Unprocessable:
        return


def decode_meta(m: bytes) -> Meta:
    """Field `m` of one entry. Raises Unprocessable if it is not an entry's metadata."""
    try:
        return _meta_decoder.decode(m)
    except MALFORMED as problem:
        raise Unprocessable(f"field m is not an entry's metadata: {problem}") from problem


def read_entry(e: bytes, m: bytes) -> tuple[Meta, list[Event]]:
    """An entry's metadata and events. Raises Unprocessable if either cannot be read: then no reader accepts the
    entry."""
    return decode_meta(m), decode_events(e)


def payout_of(event: Event) -> str:
    """The payout that the event is about; empty where it is about none."""
    payout: str = getattr(event, "payout", "")
    return payout


def tag_of(kind: type[Fact]) -> str:
    """An event class's type on the wire, for example `payout.decided`."""
    return str(kind.__struct_config__.tag)


def type_of(event: Event) -> str:
    """An event's type on the wire."""
    return tag_of(type(event))


def upcast(
    raw: EventJson, upcasters: Mapping[tuple[str, int], Upcaster], newest: Mapping[str, int]
) -> EventJson:
    """The JSON object of one event in its newest version. Raises Unprocessable where there is no way to it."""
    kind, version = raw.get("type"), raw.get("v")
    if not isinstance(kind, str) or kind not in newest:
        newer = isinstance(kind, str) and _TYPE.fullmatch(kind)
        problem = f"event type {kind!r} is not known here; deploy the reader that knows it first"
        raise Newer(problem) if newer else Unprocessable(problem)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= newest[kind]:
        is_newer = type(version) is int and newest[kind] < version <= VERSION_MAX
        problem = f"event type {kind!r} has version {version!r}; known here are 1 to {newest[kind]}: "
        problem += "deploy the reader that knows it first"
        raise Newer(problem) if is_newer else Unprocessable(problem)
    for step in range(version, newest[kind]):
        if (kind, step) not in upcasters:
            raise Unprocessable(f"event type {kind!r} has version {step} and no upcaster to {step + 1}")
        raw = {**upcasters[kind, step](raw), "v": step + 1}
    return raw


def _decode_raw(e: bytes) -> list[EventJson]:
    try:
        return _raw_decoder.decode(e)
    except MALFORMED as problem:
        raise Unprocessable(f"field e is not a JSON array of events: {problem}") from problem


def _upcast_and_decode(e: bytes) -> list[Event]:
    events: list[Event] = []
    for raw in _decode_raw(e):
        newest = upcast(raw, UPCASTERS, NEWEST)
        try:
            event: Event = msgspec.convert(newest, Event)
        except msgspec.ValidationError as problem:
            raise Unprocessable(f"event type {newest['type']!r} v{newest['v']}: {problem}") from problem
        events.append(event)
        if complete := _COMPLETE.get(type(event)):
            complete(event, events[0], raw["v"])
    return events

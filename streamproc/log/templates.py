"""Templates: the record and the events of a decision as texts with blanks, for `grant.lua` to fill in.

Decisions on one agent's payouts differ in few places. So the texts go to the script once for all of them, and each
payout brings only its own values. What would be recorded if there is no slot or no room is a template too, with the
same values; the script takes the one that fits. A blank stands between two characters that no JSON text contains.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streamproc.domain.asks import uses
from streamproc.domain.budget import US, Ask, Window
from streamproc.domain.events import BeneficiaryNoted, Event, TimerFired
from streamproc.domain.payouts import PayoutRecord, encode_record, is_terminal
from streamproc.domain.wire import encode_events

MARK = "\x01"
"""Begins and ends a blank. JSON always escapes a control character."""
PAYOUT, AMOUNT, RECEIVED_AT, VALUES = 3, 4, 5, 6
"""Places in a payout's row, as `grant.lua` counts them: 1 is its template's number, 2 its entry; from VALUES on come
its own values, as JSON."""
NOTHING, NUMBER, USED, ROOM, LACK, COMMON = 15, 16, 17, 18, 19, 20
"""Blanks that the script fills: with nothing, the number and the slots used, the text of the reservation, the text of
the window without room; and from COMMON on the texts that payouts with the same terms share."""
BLANKS = (0, 4, 13)
"""Numbers of blanks that a text may have for the script. One with fewer is filled up with blanks for NOTHING."""
WINDOWS_MAX = 1_024
"""Sets of windows whose texts a process keeps, some 500 bytes each: an agent's are the same until its day ends."""

_SLOT = '"number":0,"used":0'
_AMOUNT_AND_NUMBER = '"amount":0,"number":0'
_USE = '"reserved":0,"committed":0'
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class OfferFate(IntEnum):
    """What became of an offer: left to the chain, recorded, or rejected because there is no slot or no room."""

    LEFT = 0
    DONE = 1
    NO_SLOT = 2
    NO_ROOM = 3


def blank(place: int) -> str:
    """The blank for a place of a row (below NOTHING), or for what the script knows."""
    return f"{MARK}{place}{MARK}"


AT = "\x02"
"""Stands for the time (µs) of the decision, which a batch has in common. No JSON text contains this character
either."""
SLOT = f'"number":{blank(NUMBER)},"used":{blank(USED)}'


class Text(NamedTuple):
    """A text with blanks, split for the script."""

    pieces: list[str | list[str]]
    """The pieces, one more than there are blanks. A piece that has AT in it is split there."""
    blanks: list[int]
    """What goes between each two pieces."""
    timed: list[int]
    """Places of the pieces that have AT in them, counted from 1."""

    @classmethod
    def of(cls, text: str) -> "Text":
        """Split a text at its blanks, which are numbers between two MARKs (see `blank`). Raises ValueError if it has
        more of them than the script can fill."""
        before, *rest = text.split(MARK)
        pieces: list[str | list[str]] = [before, *rest[1::2]]
        blanks = list(map(int, rest[::2]))
        timed = [place for place, piece in enumerate(pieces, 1) if AT in piece]
        for place in timed:
            pieces[place - 1] = str(pieces[place - 1]).split(AT)
        lacking = next((most for most in BLANKS if most >= len(blanks)), 0) - len(blanks)
        if lacking < 0:
            raise ValueError(f"a text has {len(blanks)} blanks; the script fills {BLANKS[-1]} at most")
        return cls([*pieces, *[""] * lacking], [*blanks, *[NOTHING] * lacking], timed)


class Template(Struct, frozen=True):
    """The JSON of the record and of the events that one outcome writes, with blanks for what is a payout's own."""

    record: Text
    e: Text
    packed: msgspec.Raw
    """Both as the script takes them: the same in all batches, so packed once."""
    no_slot: "Template | None" = None
    """What is recorded instead if there is no slot; None: left to the chain. `no_room` likewise."""
    no_room: "Template | None" = None
    ends: bool = False
    """Whether the payout is over then, so that its record may expire from Redis."""


def template_with(record: str, e: str, *, ends: bool = False) -> Template:
    """The template of a record's JSON and an entry's events `e`, both with MARKs and AT in them."""
    texts = Text.of(record), Text.of(e)
    packed = _pack(texts)
    # A string to MessagePack, not binary data, which the server's Lua does not know.
    raw = msgspec.Raw(b"\xdb" + len(packed).to_bytes(4, "big") + packed)
    return Template(*texts, raw, ends=ends)


RecordAndEvents = tuple[PayoutRecord, Sequence[Event]]
"""A payout's record after a decision, and the events of the decision's entry."""


class Offer(Struct, eq=False):
    """What would be recorded of a new payout that no rule rejects, if there is a slot and room; or of one that is
    rejected without asking for either."""

    ask: Ask
    at: int
    """When it is decided (µs)."""
    template: Template
    common: tuple[str, ...]
    """Fill the template's blanks from COMMON on; the same object for payouts with the same terms."""
    values: Sequence[str]
    """Fill those from VALUES on."""
    agent: str
    outputs: Callable[[OfferFate], RecordAndEvents]
    """The record and the events of a fate, for telemetry and tests, with 0 for what only the counters know."""
    noted: Sequence[Event] = ()
    """Those of the events that the registry of beneficiaries takes in."""
    timers: Sequence[TimerFired] = ()
    """Timers to set."""

    @property
    def asks(self) -> bool:
        """Whether it depends on the counters and on who was paid before; a rejection by screening does not."""
        return self.ask.windows is not None


def offer_of(
    ask: Ask, at: int, record: PayoutRecord, out: Sequence[Event], timers: Sequence[TimerFired] = ()
) -> Offer:
    """An offer with a template of its own, for what is rare. Raises ValueError if `out` does not tell of slot and
    room."""
    template = template_with(*template_of(ask, encode_record(record).decode(), encode_events(out).decode()))
    noted = [event for event in out if type(event) is BeneficiaryNoted]
    return Offer(ask, at, template, (), (), record.agent, lambda _: (record, out), noted, timers)


def rejection_of(ask: Ask, at: int, record: PayoutRecord, out: Sequence[Event]) -> Offer:
    """An offer to reject a payout without asking a counter."""
    record_text, e = encode_record(record).decode(), encode_events(out).decode()
    template = template_with(record_text, e, ends=is_terminal(record))
    return Offer(ask, at, template, (), (), record.agent, lambda _: (record, out))


def template_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """The texts of a granted payout with blanks in place of what only the script knows, which is 0 in them.

    The patterns replaced here contain a quoted name with its colon. Within a JSON string a quote is escaped, so a
    pattern is never found in a value.
    """
    room = _room_text(ask.amount, ask.windows or ())
    e = _replaced(e, room, blank(ROOM))
    return _replaced(record, room, blank(ROOM)), _with_slot(ask, e)


def no_slot_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """As `template_of`, of the texts of a rejection because there is no slot."""
    assert ask.rate is not None
    terms = f',"limit":{ask.rate.count},"window_s":{ask.rate.window_us // US},"number":'
    lack, blanks = f'"used":0{terms}0', f'"used":{blank(USED)}{terms}{blank(NUMBER)}'
    return _replaced(record, lack, blanks), _replaced(e, lack, blanks)


def no_room_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """As `template_of`, of the texts of a rejection because the first window has no room."""
    assert ask.windows
    amount = f',"amount":{ask.amount},"number":'
    lack, blanks = f"{_lack_text(ask.windows[0])}{amount}0", f"{blank(LACK)}{amount}{blank(NUMBER)}"
    return _replaced(record, lack, blanks), _with_slot(ask, _replaced(e, lack, blanks))


def _with_slot(ask: Ask, e: str) -> str:
    """The blank for the slot in `e`; nothing to replace where no rate was asked for."""
    return e if ask.rate is None else _replaced(e, _SLOT, SLOT)


def _replaced(text: str, mark: str, blanks: str) -> str:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"an offer has no {mark}")
    return before + blanks + after


def _room_text(amount: int, windows: tuple[Window, ...]) -> str:
    """A reservation's amount, number and windows, with 0 for what only the script knows."""
    used = _encode(uses(windows, ((0, 0),) * len(windows))).decode()
    return f'"amount":{amount},"number":0,"windows":{used}'


def _lack_text(window: Window) -> str:
    return f"{_lack_of(window)}0,{_USE}"


def _lack_of(window: Window) -> str:
    """The evidence of rule 16 for a window without room, up to the amount used."""
    named = _encode({"scope": window.scope, "window": window.window, "limit": window.limit}).decode()
    return named[1:-1] + ',"used":'


class WindowTexts(NamedTuple):
    """The pieces that the script concatenates, for payouts that are charged to the same windows."""

    room: tuple[str, ...]
    """The text of the reservation; between the pieces go the amount, the number, and what was reserved and committed
    in each before."""
    lack: tuple[str, ...]
    """For each window the text of the rejection by it, as far as the amount used."""


@lru_cache(maxsize=WINDOWS_MAX)
def texts_of(windows: tuple[Window, ...]) -> WindowTexts:
    """The JSON of a reservation and of a rejection by each of the windows, split where the script puts amounts."""
    before, *rest = _room_text(0, windows).removeprefix(_AMOUNT_AND_NUMBER).split(_USE)
    pieces = ['"amount":', ',"number":', before]
    for after in rest:
        pieces[-1] += '"reserved":'
        pieces += (',"committed":', after)
    return WindowTexts(tuple(pieces), tuple(map(_lack_of, windows)))


def as_filled(template: Template, offer: Offer) -> tuple[str, str]:
    """A template's texts as the script would fill them in, to check a template: what only the script knows is 0, and
    the first window has no room."""
    ask = offer.ask
    windows = ask.windows or ()
    row = ("", "", ask.payout, str(ask.amount), str(ask.received_at), *offer.values)
    amount, *others = texts_of(windows).room
    room = f"{amount}{ask.amount}" + "0".join(others)
    computed = ("", "0", "0", room, _lack_text(windows[0]) if windows else "", *offer.common)

    def filled(text: Text) -> str:
        at = str(offer.at)
        first, *others = (at.join(piece) if type(piece) is list else str(piece) for piece in text.pieces)
        values = (row[place - 1] if place < NOTHING else computed[place - NOTHING] for place in text.blanks)
        return first + "".join(value + piece for value, piece in zip(values, others, strict=True))

    return filled(template.record), filled(template.e)

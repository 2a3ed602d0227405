"""Forms: the texts that a payout's decision leaves behind, with blanks for what only it has, or only the script knows.

Payouts of one agent differ in few places of their record and their events. So the texts go to `grant.lua` once for all
of them, and each payout brings its values alone. A blank stands between two characters that no JSON text has. What it
comes to where there is no slot or no room is a form too, of the same values: the script takes the one that fits.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streamproc.domain.budget import US, Ask, Window
from streamproc.domain.events import BeneficiaryNoted, Event, TimerFired
from streamproc.domain.governance import uses
from streamproc.domain.payouts import PayoutRecord, encode_record, is_terminal
from streamproc.domain.wire import encode_events

MARK = "\x01"
"""In JSON a control character is always written as an escape."""
ENTRY, PAYOUT, AMOUNT, RECEIVED_AT, VALUES = 2, 3, 4, 5, 6
"""Where a payout's row has them: its form's number is first, and its own values, as JSON, come last."""
NUMBER, USED, ROOM, LACK, COMMON = -1, -2, -3, -4, -5
"""What the script knows; what tells of the room; what tells of the window that has none; and from COMMON downwards what
payouts with the same terms share."""
WINDOWS_MAX = 1_024
"""Windows of agents whose texts a process keeps, some 500 bytes each: they are the same until a day ends."""

_SLOT = '"number":0,"used":0'
_NUMBER = '"number":0'
_USE = '"reserved":0,"committed":0'
_encode = msgspec.json.Encoder().encode


class Fate(IntEnum):
    """What becomes of an offer: it is done, nothing is done, or it is rejected as there is no slot or no room."""

    DONE = 1
    LEFT = 2
    NO_SLOT = 3
    NO_ROOM = 4


def blank(place: int) -> str:
    """The blank for what is at that place of a row, or for what the script knows."""
    return f"{MARK}{place}{MARK}"


AT = "\x02"
"""Where a text has the time (µs) of its decision, which a batch has in common. No JSON text has this one either."""
SLOT = f'"number":{blank(NUMBER)},"used":{blank(USED)}'


class Text(Struct, frozen=True):
    """A text with blanks, laid out once: every batch needs it, with its own time."""

    pieces: list[str | int]
    """With 0 for each blank between two of them."""
    blanks: list[int]
    """What is to be put there."""
    times: list[tuple[int, list[str]]]
    """Pieces that name the time: which, and their parts, between which it stands."""

    @classmethod
    def of(cls, text: str) -> "Text":
        """Lay out a text in which a blank, or the time, is a mark."""
        before, *rest = text.split(MARK)
        pieces: list[str | int] = [before]
        blanks: list[int] = []
        for place, after in zip(rest[::2], rest[1::2], strict=True):
            pieces += (0, after)
            blanks.append(int(place))
        parts = [(k, piece.split(AT)) for k, piece in enumerate(pieces) if type(piece) is str and AT in piece]
        return cls(pieces, blanks, parts)

    def at(self, at: int) -> list[str | int]:
        """The pieces at that time (µs)."""
        if not self.times:
            return self.pieces
        pieces, when = self.pieces.copy(), str(at)
        for place, parts in self.times:
            pieces[place] = when.join(parts)
        return pieces


class Form(Struct, frozen=True):
    """A record and the events of an entry, with blanks."""

    record: Text
    e: Text
    no_slot: "Form | None" = None
    """What it is where there is no slot; None: the chain is to look at it then."""
    no_room: "Form | None" = None
    ends: bool = False
    """Whether the payout is over with it, so that its record may leave Redis."""


def form_with(record: str, e: str, *, ends: bool = False) -> Form:
    """The form of two texts with blanks."""
    return Form(Text.of(record), Text.of(e), ends=ends)


Told = tuple[PayoutRecord, Sequence[Event]]


class Offer(Struct, eq=False):
    """What is recorded of a payout that is new and that no rule rejects, if there is a slot and room; or of one that is
    rejected without asking for any.

    What the counters will answer (numbers, slots used, what was in the windows before) is 0 in what is `told`.
    """

    ask: Ask
    at: int
    """When it is decided (µs)."""
    form: Form
    common: tuple[str, ...]
    """For the form's blanks from COMMON on: the same object for payouts with the same terms."""
    values: Sequence[str]
    """For those from VALUES on."""
    agent: str
    told: Callable[[Fate], Told]
    """The record and the events of a fate; made when somebody wants to see them."""
    noted: Sequence[Event] = ()
    """What the registry of beneficiaries is told, among the events."""
    timers: Sequence[TimerFired] = ()
    """What is appended when its time has come."""

    @property
    def asks(self) -> bool:
        """Whether it depends on the counters and on who was paid before."""
        return self.ask.windows is not None


def offer_of(
    ask: Ask, at: int, record: PayoutRecord, out: Sequence[Event], timers: Sequence[TimerFired] = ()
) -> Offer:
    """An offer with a form of its own, for what is seldom. ValueError: it does not tell of slot and room."""
    form = form_with(*form_of(ask, encode_record(record).decode(), encode_events(out).decode()))
    noted = [one for one in out if type(one) is BeneficiaryNoted]
    return Offer(ask, at, form, (), (), record.agent, lambda _: (record, out), noted, timers)


def rejection_of(ask: Ask, at: int, record: PayoutRecord, out: Sequence[Event]) -> Offer:
    """An offer to reject a payout, for which nothing is asked."""
    record_text, e = encode_record(record).decode(), encode_events(out).decode()
    form = form_with(record_text, e, ends=is_terminal(record))
    return Offer(ask, at, form, (), (), record.agent, lambda _: (record, out))


def form_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """Blanks in texts that have 0 for what only the script knows.

    A name in quotes and a colon are never within a JSON text, where a quote has a backslash before it. So only what is
    meant is found.
    """
    room = _told_room(ask.windows or ())
    e = _put_in(e, room, blank(ROOM))
    return _put_in(record, room, blank(ROOM)), _with_slot(ask, e)


def no_slot_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """The same of texts that tell that there is no slot."""
    assert ask.rate is not None
    terms = f',"limit":{ask.rate.count},"window_s":{ask.rate.window_us // US},"number":'
    lack, blanks = f'"used":0{terms}0', f'"used":{blank(USED)}{terms}{blank(NUMBER)}'
    return _put_in(record, lack, blanks), _put_in(e, lack, blanks)


def no_room_of(ask: Ask, record: str, e: str) -> tuple[str, str]:
    """The same of texts that tell that the first window has no room."""
    assert ask.windows
    amount = f',"amount":{ask.amount},"number":'
    lack, blanks = f"{_told_lack(ask.windows[0])}{amount}0", f"{blank(LACK)}{amount}{blank(NUMBER)}"
    return _put_in(record, lack, blanks), _with_slot(ask, _put_in(e, lack, blanks))


def _with_slot(ask: Ask, e: str) -> str:
    """Without a rate there is no slot to be told of."""
    return e if ask.rate is None else _put_in(e, _SLOT, SLOT)


def _put_in(text: str, mark: str, blanks: str) -> str:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"an offer has no {mark}")
    return before + blanks + after


def _told_room(windows: tuple[Window, ...]) -> str:
    return f'{_NUMBER},"windows":' + _encode(uses(windows, ((0, 0),) * len(windows))).decode()


def _told_lack(window: Window) -> str:
    return f"{_lack_of(window)}0,{_USE}"


def _lack_of(window: Window) -> str:
    """What rule 16 says of a window without room, as far as what is used in it."""
    named = _encode({"scope": window.scope, "window": window.window, "limit": window.limit}).decode()
    return named[1:-1] + ',"used":'


class WindowTexts(NamedTuple):
    """What the script puts together for payouts that are charged to the same windows."""

    room: tuple[str, ...]
    """What tells of the room, in pieces: between them go the number, and what was reserved and committed before."""
    lack: tuple[str, ...]
    """Of each, what tells that it has none, as far as what is used."""


@lru_cache(maxsize=WINDOWS_MAX)
def texts_of(windows: tuple[Window, ...]) -> WindowTexts:
    """The texts of windows."""
    before, *rest = _told_room(windows).removeprefix(_NUMBER).split(_USE)
    pieces = ['"number":', before]
    for after in rest:
        pieces[-1] += '"reserved":'
        pieces += (',"committed":', after)
    return WindowTexts(tuple(pieces), tuple(map(_lack_of, windows)))


def laid_out(form: Form | None, at: int) -> tuple[object, ...] | None:
    """Its texts at that time (µs) as the script has them."""
    if form is None:
        return None
    record, e = form.record, form.e
    return record.at(at), record.blanks, e.at(at), e.blanks


def as_filled(form: Form, offer: Offer) -> tuple[str, str]:
    """Its texts as the script fills them in, with 0 for what only the script knows, and no room in the first window."""
    ask = offer.ask
    windows = ask.windows or ()
    row = ("", "", ask.payout, str(ask.amount), str(ask.received_at), *offer.values)
    room = "0".join(texts_of(windows).room)
    own = ("0", "0", room, _told_lack(windows[0]) if windows else "", *offer.common)

    def filled(text: Text) -> str:
        pieces = text.at(offer.at).copy()
        pieces[1::2] = [row[place - 1] if place > 0 else own[-place - 1] for place in text.blanks]
        return "".join(map(str, pieces))

    return filled(form.record), filled(form.e)

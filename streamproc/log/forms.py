"""Forms: the texts that a payout's approval leaves behind, with blanks for what only it has, or only the script knows.

Payouts of one agent differ in few places of their record and their events. So the texts go to `grant.lua` once for all
of them, and each payout brings its values alone. A blank stands between two characters that no JSON text has.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from streamproc.domain.budget import Ask, Window
from streamproc.domain.events import BeneficiaryNoted, Event
from streamproc.domain.governance import uses
from streamproc.domain.payouts import PayoutRecord, encode_record
from streamproc.domain.wire import encode_events

MARK = "\x01"
"""In JSON a control character is always written as an escape."""
ENTRY, PAYOUT, AMOUNT, RECEIVED_AT, VALUES = 2, 3, 4, 5, 6
"""Where a payout's row has them: its form's number is first, and its own values, as JSON, come last."""
NUMBER, USED, ROOM, COMMON = -1, -2, -3, -4
"""What the script knows; what tells of the room; from COMMON downwards what payouts with the same terms share."""

_SLOT = '"number":0,"used":0'
_NUMBER = '"number":0'
_USE = '"reserved":0,"committed":0'
_encode = msgspec.json.Encoder().encode


def blank(place: int) -> str:
    """The blank for what is at that place of a row, or for what the script knows."""
    return f"{MARK}{place}{MARK}"


AT = f"{MARK}at{MARK}"
"""When it is decided (µs), which a batch has in common."""
SLOT = f'"number":{blank(NUMBER)},"used":{blank(USED)}'


class Form(Struct, frozen=True):
    """A record and the events of an entry, with blanks."""

    record: str
    e: str


class Offer(Struct, eq=False):
    """What is recorded of a payout that is new and that nothing stands against, if there is a slot and room.

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
    told: Callable[[], tuple[PayoutRecord, Sequence[Event]]]
    """The record and the events; made when somebody wants to see them."""
    noted: Sequence[Event] = ()
    """What the registry of beneficiaries is told, among the events."""


def offer_of(ask: Ask, at: int, record: PayoutRecord, out: Sequence[Event]) -> Offer:
    """An offer with a form of its own, for what is seldom. ValueError: it does not tell of slot and room."""
    form = form_of(ask, encode_record(record).decode(), encode_events(out).decode())
    noted = [one for one in out if type(one) is BeneficiaryNoted]
    return Offer(ask, at, form, (), (), lambda: (record, out), noted)


def form_of(ask: Ask, record: str, e: str) -> Form:
    """The form of texts that have 0 for what only the script knows.

    A name in quotes and a colon are never within a JSON text, where a quote has a backslash before it. So only what is
    meant is found.
    """
    room = _told_room(ask.windows or ())
    e = _put_in(e, room, blank(ROOM))
    # Without a rate there is no slot to be told of.
    return Form(_put_in(record, room, blank(ROOM)), e if ask.rate is None else _put_in(e, _SLOT, SLOT))


def _put_in(text: str, mark: str, blanks: str) -> str:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"an offer has no {mark}")
    return before + blanks + after


def _told_room(windows: tuple[Window, ...]) -> str:
    return f'{_NUMBER},"windows":' + _encode(uses(windows, ((0, 0),) * len(windows))).decode()


def room_of(windows: tuple[Window, ...]) -> list[str]:
    """What tells of the room, in pieces: between them go the number, and what was reserved and committed before."""
    before, *rest = _told_room(windows).removeprefix(_NUMBER).split(_USE)
    pieces = ['"number":', before]
    for after in rest:
        pieces[-1] += '"reserved":'
        pieces += (',"committed":', after)
    return pieces


def laid_out(text: str, at: int) -> tuple[list[str | int], list[int]]:
    """Its pieces, with 0 for each blank between two of them, and what is to be put there."""
    pieces: list[str | int] = [*text.replace(AT, str(at)).split(MARK)]
    places = [int(place) for place in pieces[1::2]]
    pieces[1::2] = [0] * len(places)
    return pieces, places


def as_filled(text: str, offer: Offer) -> str:
    """As the script fills it in, with 0 for what only the script knows."""
    ask = offer.ask
    row = ("", "", ask.payout, str(ask.amount), str(ask.received_at), *offer.values)
    own = ("0", "0", "0".join(room_of(ask.windows or ())), *offer.common)
    pieces, places = laid_out(text, offer.at)
    pieces[1::2] = [row[place - 1] if place > 0 else own[-place - 1] for place in places]
    return "".join(map(str, pieces))

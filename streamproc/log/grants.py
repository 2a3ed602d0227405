"""Payouts that nothing stands against: one script (`grant.lua`) admits them and hands them over."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.asyncio import Redis

from streamproc.domain.budget import NOTHING_ASKED, Window
from streamproc.domain.governance import uses
from streamproc.domain.payouts import encode_record
from streamproc.domain.wire import encode_events
from streamproc.log.names import Names
from streamproc.log.scripts import Keys, Script, terms_of
from streamproc.log.work import Desk, Group, Offer, Work

log = logging.getLogger(__name__)

GRANTED, LEFT = 1, 2
"""What becomes of a grant: all of it is done, or nothing."""

_grant = Script("grant", "checks", "counters", "beneficiaries", "own")

_SLOT = b'"number":0,"used":0'
_USE = b'"reserved":0,"committed":0'
_encode = msgspec.json.Encoder().encode


def offers_of(group: Group, works: Sequence[Work], desk: Desk) -> list[tuple[Work, Offer]]:
    """The works that may go the group's short way, each with what it would record."""
    if group.straight is None:
        return []
    ask = group.straight(desk)
    return [(work, offer) for work in works if _is_new(work) and (offer := _offered(ask, work))]


def _is_new(work: Work) -> bool:
    """One event about a payout of which Redis knows nothing, and that leaves no traces of earlier attempts."""
    return (
        work.version == b"0"
        and work.loaded is None
        and work.admission is NOTHING_ASKED
        and work.problem is None
        and not work.taken
        and len(work.events) == 1
    )


def _offered(ask: Callable[[Work], Offer | None], work: Work) -> Offer | None:
    try:
        return ask(work)
    except Exception:  # the chain comes upon it as well, and pins it on its entry
        log.warning("entry %s does not go straight", work.entry.decode(), exc_info=True)
        return None


@dataclass(slots=True)
class Grant:
    """One input with what its handling leaves behind if there is a slot and room."""

    entry: bytes
    offer: Offer
    notes: list[tuple[str, str, int]] = field(default_factory=list)
    """As in a `Handover`."""


async def grant(
    client: Redis,
    names: Names,
    group: str,
    grants: Sequence[Grant],
    *,
    rev: bytes,
    m: tuple[bytes, bytes],
    keep_budgets_s: int,
) -> list[int]:
    """Admit, acknowledge and append; GRANTED or LEFT for each.

    `rev` is the policy revision of the offers, `m` each output's metadata before and after the id of its cause.
    """
    payouts = (names.payout(one.offer.ask.payout) for one in grants)
    keys = Keys(names.log, names.number, names.policy, names.own(group), *payouts)
    numbers: dict[tuple[int, int], int] = {}  # by identity, as in `scripts.admit`
    terms: list[Any] = []
    rooms: list[bytes] = []
    pieces: list[bytes] = []
    rows: list[Any] = []
    notes: list[Any] = []
    for place, one in enumerate(grants, 1):
        ask = one.offer.ask
        both = (id(ask.rate), id(ask.windows))
        number = numbers.get(both)
        if number is None:
            number = numbers[both] = len(numbers) + 1
            terms += terms_of(names, keys, ask.rate, ask.windows)
            rooms.append(_room(ask.windows or ()))
            pieces += _around_blanks(rooms[-1])
        rows += (one.entry, ask.payout, ask.amount, ask.received_at, number)
        rows += parts(one.offer, rooms[number - 1])
        for key, name, at in one.notes:
            notes += (place, keys.index(key), name, at)
    counts = len(grants), len(numbers)
    args = (group, rev, keep_budgets_s, *m, *counts, *terms, *pieces, *rows, *notes)
    return list(await _grant(client, keys.list, args))


def _room(windows: tuple[Window, ...]) -> bytes:
    """What tells of the room in an offer's record and in its events, with 0 for what only the script knows."""
    return b'"number":0,"windows":' + _encode(uses(windows, ((0, 0),) * len(windows)))


def _around_blanks(room: bytes) -> list[bytes]:
    """Its pieces: between them go the number, and what was reserved and committed in each window.

    A name in quotes and a colon are never within a JSON text, where a quote has a backslash before it. So only what is
    meant is found, here and in `parts`.
    """
    before, *rest = room.removeprefix(b'"number":0').split(_USE)
    pieces = [b'"number":', before]
    for text in rest:
        pieces[-1] += b'"reserved":'
        pieces += (b',"committed":', text)
    return pieces


def parts(offer: Offer, room: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """The record before and after its room, and `e` before its slot, from there to its room, and after it.

    Without a rate there is no slot to be told of, and nothing before it.
    """
    start, end = _cut(encode_record(offer.record), room)
    before, after = _cut(encode_events(offer.out), room)
    if offer.ask.rate is None:
        return start, end, b"", before, after
    return start, end, *_cut(before, _SLOT), after


def _cut(text: bytes, mark: bytes) -> tuple[bytes, bytes]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"an offer has no {mark.decode()}")
    return before, after

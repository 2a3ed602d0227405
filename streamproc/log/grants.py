"""Payouts that nothing stands against: one script (`grant.lua`) admits them and hands them over."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.payouts import encode_record
from streamproc.domain.wire import encode_events
from streamproc.log.names import Names
from streamproc.log.scripts import Keys, Script, terms_of
from streamproc.log.work import Desk, Group, Offer, Work

log = logging.getLogger(__name__)

GRANTED, LEFT = 1, 2
"""What becomes of a grant: all of it is done, or nothing."""

_grant = Script("grant", "checks", "counters", "beneficiaries")

_SLOT = b'"number":0,"used":0,"limit":', b'"number":%d,"used":%d,"limit":'
_ROOM = b'"number":0,"windows":', b'"number":%d,"windows":'
_USE = b'"reserved":0,"committed":0}', b'"reserved":%d,"committed":%d}'


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
    """One input with what its handling leaves behind if there is a slot and room. `m` is whole."""

    entry: bytes
    offer: Offer
    m: bytes
    notes: list[tuple[str, str, int]] = field(default_factory=list)
    """As in a `Handover`."""


async def grant(
    client: Redis, names: Names, group: str, grants: Sequence[Grant], *, rev: bytes, keep_budgets_s: int
) -> list[int]:
    """Admit, acknowledge and append; GRANTED or LEFT for each. `rev`: the policy revision of the offers."""
    keys = Keys(names.log, names.number, names.policy, *(names.payout(g.offer.ask.payout) for g in grants))
    numbers: dict[tuple[int, int], int] = {}  # by identity, as in `scripts.admit`
    terms: list[Any] = []
    rows: list[Any] = []
    for one in grants:
        ask = one.offer.ask
        both = (id(ask.rate), id(ask.windows))
        number = numbers.get(both)
        if number is None:
            number = numbers[both] = len(numbers) + 1
            terms += terms_of(names, keys, ask.rate, ask.windows)
        record, e = formats(one.offer)
        rows += (one.entry, ask.payout, ask.amount, ask.received_at, number, record, e, one.m, len(one.notes))
        for key, name, at in one.notes:
            rows += (keys.index(key), name, at)
    args = (group, rev, keep_budgets_s, len(grants), len(numbers), *terms, *rows)
    return list(await _grant(client, keys.list, args))


def formats(offer: Offer) -> tuple[bytes, bytes]:
    """Record and `e` as Lua's formats: `%d` where an offer has 0 because only the script knows.

    A name in quotes and a colon are never within a JSON text, where a quote has a backslash before it; and what others
    wrote are texts, never numbers. So only what is meant is found.
    """
    windows = len(offer.ask.windows or ())
    record, e = _with_blanks(encode_record(offer.record), windows), encode_events(offer.out)
    if offer.ask.rate is None:
        return record, _with_blanks(e, windows)
    before, after = _cut(e, _SLOT[0])
    return record, _escaped(before) + _SLOT[1] + _with_blanks(after, windows)


def _with_blanks(text: bytes, windows: int) -> bytes:
    """Blanks for the number and for what was in each window. The rest is looked through once: texts are long."""
    before, after = _cut(_escaped(text), _ROOM[0])
    filled = after.replace(*_USE)
    if len(filled) - len(after) != windows * (len(_USE[1]) - len(_USE[0])):
        raise ValueError(f"an offer does not have {windows} windows in its record and in its events")
    return before + _ROOM[1] + filled


def _cut(text: bytes, mark: bytes) -> tuple[bytes, bytes]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"an offer has no {mark.decode()}")
    return before, after


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%") if b"%" in text else text

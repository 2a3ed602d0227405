"""First decisions that need no more than the counters: one script (`grant.lua`) makes them and hands them over."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.wire import encode_events
from streamproc.log.forms import VALUES, Fate, Offer, laid_out, texts_of
from streamproc.log.names import Names, Note
from streamproc.log.payees import First
from streamproc.log.scripts import Keys, Script, terms_of
from streamproc.log.work import Desk, Group, Work

log = logging.getLogger(__name__)

_FATES = {fate.value: fate for fate in Fate}

_grant = Script("grant", "checks", "counters", "beneficiaries", "own")

_pack = msgspec.msgpack.Encoder().encode


def offers_of(
    group: Group, works: Sequence[Work], desk: Desk, opens: Callable[[Work], None] | None = None
) -> list[tuple[Work, Offer]]:
    """The works that may go the group's short way, each with what it would record.

    `opens` opens a first look that has to be looked at as a whole; None: all are open.
    """
    if group.straight is None:
        return []
    ask = group.straight(desk)
    offers = []
    for work in works:
        offer = None
        if opens is not None:
            if work.beneficiary is NOTED:
                offer = _offered(ask.at_sight, work)
            if offer is None:
                opens(work)
        if offer is None and _is_new(work):
            offer = _offered(ask, work)
        if offer is not None:
            offers.append((work, offer))
    return offers


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


class Grant(Struct, eq=False):
    """One input with what its handling leaves behind if there is a slot and room."""

    entry: bytes
    offer: Offer
    notes: list[Note] = []
    """As in a `Handover`."""
    first: First | None = None
    """Whose beneficiary is still to be found as it was remembered; None where Redis was asked about it just now."""


async def grant(
    client: Redis,
    names: Names,
    group: str,
    grants: Sequence[Grant],
    *,
    rev: bytes,
    m: tuple[bytes, bytes],
    keep_budgets_s: int,
    unasked_at: int = 0,
) -> list[Fate]:
    """Admit, acknowledge and append; what became of each.

    `rev` is the policy revision of the offers, `m` each output's metadata before and after the id of its cause.
    `unasked_at`: when they are decided (µs), where Redis was not asked for the time; the script has it then.
    """
    keys, texts = written_out(names, group, grants, unasked_at)
    fates = await _grant(client, keys, (group, rev, keep_budgets_s, *m, texts))
    return [_FATES[fate] for fate in fates]


def written_out(
    names: Names, group: str, grants: Sequence[Grant], unasked_at: int = 0
) -> tuple[list[str], bytes]:
    """The keys, and all that is said of the grants, as the script has it."""
    payouts = (names.payout(one.offer.ask.payout) for one in grants)
    keys = Keys(names.log, names.number, names.policy, names.own(group), *payouts)
    numbers: dict[tuple[int, int, int], int] = {}  # by identity, as in `scripts.admit`
    places: dict[tuple[int, int], int] = {}
    terms: list[Any] = []
    texts: list[Any] = []
    rows: list[Any] = []
    notes: list[Any] = []
    remembered: list[Any] = []
    pairs: dict[tuple[str, str], int] = {}
    timers: list[Any] = []
    for place, one in enumerate(grants, 1):
        offer = one.offer
        ask, form, common = offer.ask, offer.form, offer.common
        same = (id(ask.rate), id(ask.windows), id(common))
        number = numbers.get(same)
        if number is None:
            number = numbers[same] = len(numbers) + 1
            terms += terms_of(names, keys, ask.rate, ask.windows)
            terms += (len(common), *common)
            if ask.windows is not None:
                room, lack = texts_of(ask.windows)
                terms += (*room, *lack)
        at = offer.at
        which = (id(form), at)
        laid = places.get(which)
        if laid is None:
            laid = places[which] = len(places) + 1
            length = len(offer.values) + VALUES + 1
            rejections = laid_out(form.no_slot, at) or False, laid_out(form.no_room, at) or False
            texts.append((length, laid_out(form, at), int(form.ends), *rejections))
        entry = one.entry.decode()
        pair, first = 0, one.first
        if first is not None:
            both = (first.by_account, first.by_vendor)
            pair = pairs.get(both, 0)
            if not pair:
                pair = pairs[both] = len(pairs) + 1
                remembered += (keys.index(first.by_account), first.pair.vendor)
                remembered += (keys.index(first.by_vendor), first.pair.fund_account)
        rows += (laid, entry, ask.payout, str(ask.amount), str(ask.received_at), *offer.values, pair, number)
        for key, name, when, first_there in one.notes:
            notes += (place, keys.index(key), name, str(when), int(first_there))
        for timer in offer.timers:
            timers += (place, str(timer.at), encode_events([timer]).decode())
    ends = grants[0].entry.decode(), grants[-1].entry.decode()
    later = (keys.index(names.timers), *timers) if timers else ()
    return keys.list, _pack((len(grants), *ends, terms, texts, rows, notes, unasked_at, remembered, later))

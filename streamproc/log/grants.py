"""Fast path of a group (ADR 25): first decisions that need the counters at most, a whole batch in one
`grant.lua`."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.wire import encode_events, written_by
from streamproc.log.names import Names, Note
from streamproc.log.payees import First
from streamproc.log.script import Script
from streamproc.log.scripts import Keys, terms_of
from streamproc.log.templates import VALUES, Offer, OfferFate, texts_of
from streamproc.log.work import BatchContext, Group, Work

log = logging.getLogger(__name__)

Offered = tuple[Work, Offer]

_FATES = tuple(OfferFate)

_grant = Script("grant", "checks", "counters", "beneficiaries", "own")

_pack = msgspec.msgpack.Encoder().encode


def offers_of(group: Group, works: Sequence[Work], ctx: BatchContext) -> list[Offered]:
    """The works that may take the group's fast path, each with its offer."""
    if group.fast_path is None:
        return []
    offer_for = group.fast_path(ctx)
    offers = (
        (work, _offered(offer_for, work)) for work in works if not work.left_by_fast_path and _is_new(work)
    )
    return [(work, offer) for work, offer in offers if offer is not None]


def offers_at_sight(
    group: Group, works: Sequence[Work], ctx: BatchContext, opens: Callable[[Work], None]
) -> list[Offered]:
    """As `offers_of`, for first looks that are not open yet: `opens` opens one that cannot be offered as it is."""
    if group.fast_path is None:
        return []
    offer_for, offers = group.fast_path(ctx), []
    for work in works:
        offer = _offered(offer_for.at_sight, work) if work.beneficiary is NOTED else None
        if offer is None:
            opens(work)
            offer = _offered(offer_for, work) if _is_new(work) else None
        if offer is not None:
            offers.append((work, offer))
    return offers


def _is_new(work: Work) -> bool:
    """Whether it is the only event of a payout that Redis does not know, and has no traces of earlier attempts."""
    return (
        work.version == b"0"
        and work.loaded is None
        and work.admission is NOTHING_ASKED
        and work.problem is None
        and not work.taken
        and len(work.events) == 1
    )


def _offered(offer_for: Callable[[Work], Offer | None], work: Work) -> Offer | None:
    try:
        return offer_for(work)
    except Exception:  # the chain meets the same failure, and attributes it to this entry
        log.warning(
            "the fast path failed for entry %s; the chain handles it", work.entry.decode(), exc_info=True
        )
        return None


class Grant(Struct, eq=False):
    """One input of `grant` with all that its handling leaves behind if it is granted."""

    entry: bytes
    offer: Offer
    notes: list[Note] = []
    """As in a `Handover`."""
    first: First | None = None
    """The remembered pair that the script must still find noted; None if Redis was asked about it just now."""


async def grant(
    client: Redis,
    names: Names,
    group: str,
    grants: Sequence[Grant],
    *,
    rev: bytes,
    keep_budgets_s: int,
    decided_at: int = 0,
) -> list[OfferFate]:
    """Admit, acknowledge and append; what became of each.

    `rev` is the policy revision of the offers. `decided_at`: when they were decided (µs), by a remembered clock, which
    the script checks; 0: by Redis's.
    """
    keys, texts = written_out(names, group, grants, decided_at)
    m = written_by(group) + b',"cause":"', b'"}'  # each output's, around the id of its cause
    fates = await _grant(client, keys, (group, rev, keep_budgets_s, *m, texts))
    return [_FATES[fate] for fate in fates]


def written_out(
    names: Names, group: str, grants: Sequence[Grant], decided_at: int = 0
) -> tuple[list[str], bytes]:
    """The script's keys, and the MessagePack of all grants. What payouts share is in it once, and they name its
    number."""
    of_payout = names.payout("")
    payouts = [of_payout + item.offer.ask.payout for item in grants]
    keys = Keys(names.log, names.number, names.policy, names.own(group), *payouts)
    terms_numbers: dict[tuple[int, int, int], int] = {}  # by identity, as in `scripts.admit`
    template_numbers: dict[tuple[int, int], int] = {}
    pair_numbers: dict[tuple[str, str], int] = {}
    terms, templates, rows = list[Any](), list[Any](), list[Any]()
    notes, pairs, timers = list[Any](), list[Any](), list[Any]()
    for payout_n, item in enumerate(grants, 1):
        offer, first = item.offer, item.first
        ask = offer.ask
        terms_key = (id(ask.rate), id(ask.windows), id(offer.common))
        terms_n = terms_numbers.get(terms_key)
        if terms_n is None:
            terms_n = terms_numbers[terms_key] = len(terms_numbers) + 1
            terms += _terms(names, keys, offer)
        template_key = (id(offer.template), offer.at)
        template_n = template_numbers.get(template_key)
        if template_n is None:
            template_n = template_numbers[template_key] = len(template_numbers) + 1
            templates.append(_template(offer))
        pair_n: int | None = 0
        if first is not None:
            pair, pair_key = first.whom
            pair_n = pair_numbers.get(pair_key)
            if pair_n is None:
                pair_n = pair_numbers[pair_key] = len(pair_numbers) + 1
                by_account, by_vendor = map(keys.index, pair_key)
                pairs += (by_account, pair.vendor, by_vendor, pair.fund_account)
        entry = item.entry.decode()
        rows += (
            template_n, entry, ask.payout, str(ask.amount), str(ask.received_at), *offer.values, pair_n, terms_n,
        )  # fmt: skip
        for key, name, when, first_there in item.notes:
            notes += (payout_n, keys.index(key), name, str(when), int(first_there))
        for timer in offer.timers:
            timers += (payout_n, str(timer.at), encode_events([timer]).decode())
    end_ids = grants[0].entry.decode(), grants[-1].entry.decode()
    timer_args = (keys.index(names.timers), *timers) if timers else ()
    return keys.list, _pack(
        (len(grants), *end_ids, terms, templates, rows, notes, decided_at, pairs, timer_args)
    )


def _terms(names: Names, keys: Keys, offer: Offer) -> list[Any]:
    """What an offer asks for, and the texts that it shares with others that ask for the same."""
    ask, common = offer.ask, offer.common
    terms = [*terms_of(names, keys, ask.rate, ask.windows), len(common), *common]
    if ask.windows is not None:
        room, lack = texts_of(ask.windows)
        terms += (*room, *lack)
    return terms


def _template(offer: Offer) -> tuple[object, ...]:
    """An offer's template, with the time of the decision; False for an answer that it leaves to the chain."""
    template, length = offer.template, len(offer.values) + VALUES + 1
    texts = (of is not None and of.packed for of in (template, template.no_slot, template.no_room))
    return length, int(template.ends), str(offer.at), *texts

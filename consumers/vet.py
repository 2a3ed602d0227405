"""Reputation: rules 11 to 13. What Safe Browsing says of the vendor, asked at most once while its answer is fresh.

It is looked for in this process's memory, then in Redis, then at the service. All unknown URLs of a batch go out in one
request, so a slow lookup costs the batch one timeout.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import TypeAlias

import msgspec

from consumers.verdicts import case_of, found_by, record_decision
from streamproc.domain.budget import US
from streamproc.domain.events import Finding, ReputationChecked, VelocityChecked
from streamproc.domain.governance import NO_URL, Reputation, is_rejected, vendor_of
from streamproc.log.cache import Cache
from streamproc.log.work import BatchContext, Item, Stage, Work

Lookup: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Reputation]]]
"""Asks the service about canonical URLs. Never raises: it answers `unavailable`."""

REMEMBERED_MAX = 10_000
"""URLs in a process's memory, about 2 MB."""
AHEAD_US_MAX = 60 * US
"""How much later than a batch's begin another one may have asked; a batch takes less."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Reputation).decode


class Reputations:
    """Reputations of vendor URLs, cached in memory and in Redis for as long as the service allows."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._memory: dict[str, Reputation] = {}

    def known(self, text: str, now_us: int) -> Reputation | None:
        """The reputation from memory only; None: it has to be looked up."""
        url = vendor_of(text)
        if url is None:
            return NO_URL
        return self._fresh(url.href, now_us)

    async def of(self, texts: Iterable[str], cache: Cache, now_us: int) -> dict[str, Reputation]:
        """The reputations of URLs, keyed by the URL as written; texts that are no URL have none.

        Memory is asked first, then Redis, then Safe Browsing, whose failure is a reputation too.
        """
        hrefs = {text: url.href for text in texts if (url := vendor_of(text)) is not None}
        known = {href: r for href in set(hrefs.values()) if (r := self._fresh(href, now_us)) is not None}
        wanted = sorted(set(hrefs.values()) - known.keys())
        if wanted:
            known |= await self._cached(wanted, cache, now_us)
            wanted = [href for href in wanted if href not in known]
        if wanted:
            known |= await self._asked(wanted, cache, now_us)
        return {text: known[href] for text, href in hrefs.items()}

    def _fresh(self, href: str, now_us: int) -> Reputation | None:
        remembered = self._memory.get(href)
        return remembered if remembered is not None and _is_fresh(remembered, now_us) else None

    async def _cached(self, hrefs: Sequence[str], cache: Cache, now_us: int) -> dict[str, Reputation]:
        values = await cache.get_many([cache_key(href) for href in hrefs])
        found = {href: _decode(value) for href, value in zip(hrefs, values, strict=True) if value is not None}
        fresh = {href: reputation for href, reputation in found.items() if _is_fresh(reputation, now_us)}
        self._remember(fresh)
        return fresh

    async def _asked(self, hrefs: Sequence[str], cache: Cache, now_us: int) -> dict[str, Reputation]:
        answers = {href: _as_of(now_us, r) for href, r in (await self._lookup(hrefs)).items()}
        lasting = {href: r for href, r in answers.items() if r.fresh_until > now_us}
        if lasting:
            await cache.put_many(
                {cache_key(h): (_encode(r), (r.fresh_until - now_us) // US + 1) for h, r in lasting.items()}
            )
            self._remember(lasting)
        return answers

    def _remember(self, fresh: Mapping[str, Reputation]) -> None:
        if len(self._memory) + len(fresh) > REMEMBERED_MAX:
            self._memory.clear()  # rare; Redis still has them
        self._memory.update(fresh)


def _is_fresh(reputation: Reputation, now_us: int) -> bool:
    """Whether it may be used. One of much later than now is of a clock that went back, and would last until that has
    come there again."""
    return reputation.checked_at - AHEAD_US_MAX <= now_us < reputation.fresh_until


def _as_of(now_us: int, answer: Reputation) -> Reputation:
    """The answer by Redis's clock: hosts' clocks differ, but a duration is the same everywhere."""
    fresh_until = now_us + answer.fresh_until - answer.checked_at
    return Reputation(answer.verdict, answer.threats, now_us, fresh_until, answer.problem)


def cache_key(href: str) -> str:
    """The full hash of the canonical URL, so that two URLs never share an answer."""
    return sha256(href.encode()).hexdigest()


def reputation_stage(reputations: Reputations) -> Stage:
    """Rules 11 to 13 for payouts that have a rate slot."""

    async def vet(items: Sequence[Item], ctx: BatchContext) -> None:
        urls = {work.known().vendor_url for work, _ in items}
        answers = await reputations.of(urls, ctx.cache, ctx.now_us)
        for work, event in items:
            if type(event) is VelocityChecked:
                _vet_one(work, event, ctx, answers.get(work.known().vendor_url, NO_URL))

    return Stage(name="reputation", consumes=frozenset({VelocityChecked}), handle=vet)


def _vet_one(work: Work, event: VelocityChecked, ctx: BatchContext, reputation: Reputation) -> None:
    record = work.known()
    case = case_of(record, ctx, reputation=reputation)
    findings = [*event.findings, *found_by("reputation", case)]
    work.emit(looked_up(ctx.now_us, work.payout, reputation, findings))
    if is_rejected(findings):
        record_decision(work, ctx, findings)


def looked_up(at: int, payout: str, reputation: Reputation, findings: list[Finding]) -> ReputationChecked:
    """The event that records a reputation, as it was known at a time (µs)."""
    return ReputationChecked(
        at=at,
        payout=payout,
        verdict=reputation.verdict,
        threats=list(reputation.threats),
        checked_at=reputation.checked_at,
        fresh_until=reputation.fresh_until,
        findings=findings,
    )

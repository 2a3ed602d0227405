"""Reputation: rules 11 to 14. What Safe Browsing says of the vendor, and a register of its legal entity, each asked at
most once while its answer is fresh.

An answer is looked for in this process's memory, then in Redis, then at the service. All unknown URLs of a batch go out
in one request, beside the questions to the register, so slow lookups cost the batch one timeout.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from consumers.answers import Answers
from consumers.concurrency import together
from consumers.entities import Entities
from consumers.verdicts import found_by, record_decision
from streamproc.domain.case import NO_URL, Reputation, case_of
from streamproc.domain.domains import vendor_of
from streamproc.domain.events import EntitySeen, Finding, ReputationChecked, VelocityChecked
from streamproc.domain.governance import is_rejected
from streamproc.domain.legal_entities import Question
from streamproc.log.cache import Cache
from streamproc.log.work import BatchContext, Item, Stage, Work

Lookup: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Reputation]]]
"""Asks the service about canonical URLs. Never raises: it answers `unavailable`."""


class Reputations:
    """Reputations of vendor URLs, cached in memory and in Redis for as long as the service allows."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._answers = Answers[str, Reputation](Reputation, str)

    def known(self, text: str, now_us: int) -> Reputation | None:
        """The reputation from memory only; None: it has to be looked up."""
        url = vendor_of(text)
        return NO_URL if url is None else self._answers.known(url.href, now_us)

    async def of(self, texts: Iterable[str], cache: Cache, now_us: int) -> dict[str, Reputation]:
        """The reputations of URLs, keyed by the URL as written; texts that are no URL have none.

        Memory is asked first, then Redis, then Safe Browsing, whose failure is a reputation too.
        """
        hrefs = {text: url.href for text in texts if (url := vendor_of(text)) is not None}
        known = await self._answers.of(sorted(set(hrefs.values())), cache, now_us, self._lookup)
        return {text: known[href] for text, href in hrefs.items()}


def reputation_stage(reputations: Reputations, entities: Entities) -> Stage:
    """Rules 11 to 14 for payouts that have a rate slot."""

    async def vet(items: Sequence[Item], ctx: BatchContext) -> None:
        urls = {work.known().vendor_url for work, _ in items}
        vetting = reputations.of(urls, ctx.cache, ctx.now_us)
        asked = _questions(items, ctx, entities)
        if asked:
            required = [question for question, is_required in asked.values() if is_required]
            others = [question for question, is_required in asked.values() if not is_required]
            asking = entities.of(required, others, ctx.cache, ctx.now_us)
            answers, found = await together(vetting, asking)
        else:
            answers, found = await vetting, {}
        for work, event in items:
            if type(event) is VelocityChecked:
                record = work.known()
                entity = found.get(asked[record.payout][0]) if record.payout in asked else None
                _vet_one(work, event, ctx, answers.get(record.vendor_url, NO_URL), entity)

    return Stage(name="reputation", consumes=frozenset({VelocityChecked}), handle=vet)


def _questions(
    items: Sequence[Item], ctx: BatchContext, entities: Entities
) -> dict[str, tuple[Question, bool]]:
    """What the register is asked about payouts, and whether the policy requires an answer."""
    asked = dict[str, tuple[Question, bool]]()
    for work, _ in items:
        record = work.known()
        agent = ctx.party(record).agent
        is_required = agent is not None and agent.policy.require_entity
        question = entities.question_of(record, required=is_required)
        if question is not None:
            asked[record.payout] = question, is_required
    return asked


def _vet_one(
    work: Work, event: VelocityChecked, ctx: BatchContext, reputation: Reputation, entity: EntitySeen | None
) -> None:
    record = work.known()
    case = case_of(record, ctx.party(record), reputation=reputation, entity=entity)
    findings = [*event.findings, *found_by("reputation", case)]
    work.emit(reputation_checked(ctx.now_us, work.payout, reputation, findings, entity))
    if is_rejected(findings):
        record_decision(work, ctx, findings)


def reputation_checked(
    at: int,
    payout: str,
    reputation: Reputation,
    findings: list[Finding],
    entity: EntitySeen | None = None,
) -> ReputationChecked:
    """The event that records a reputation, as it was known at a time (µs); `entity` None: no register was asked."""
    return ReputationChecked(
        at=at,
        payout=payout,
        verdict=reputation.verdict,
        threats=list(reputation.threats),
        checked_at=reputation.checked_at,
        fresh_until=reputation.fresh_until,
        findings=findings,
        entity=entity,
    )

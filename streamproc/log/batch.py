"""Handling one batch: decode, load, run the chain, commit. What failed meanwhile is left to `failures.py`."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import monotonic, time_ns

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import NOTHING_ASKED, Admission, Ask
from streamproc.domain.payouts import decode_record, encode_record, unknown_in
from streamproc.domain.policy import PolicyBook
from streamproc.domain.wire import encode_events
from streamproc.errors import LogBroken, LogUnavailable, StreamprocError, TryAgain, Unprocessable
from streamproc.log import grants, payees, scripts
from streamproc.log.batch_telemetry import BatchTelemetry, Granted
from streamproc.log.cache import Cache
from streamproc.log.connection import named_errors, shielded
from streamproc.log.failures import Failures
from streamproc.log.grants import Offered
from streamproc.log.names import Names
from streamproc.log.opened import NEWER_S, Known, Opened, Opener, events_in, known_of
from streamproc.log.payees import First
from streamproc.log.policies import Policies
from streamproc.log.scripts import Committed, Deferral, Handover, Raw
from streamproc.log.templates import OfferFate
from streamproc.log.work import BatchContext, Group, Work, run_chain

log = logging.getLogger(__name__)

BATCH_TIMEOUT_S = 25.0
"""Limit of the whole chain over one batch. Every outside call has a shorter limit of its own."""
STALE_MAX = 20
"""Times in a row that a payout may change during its pass before the entry is deferred."""


class Limits(Struct, frozen=True):
    """Set by the operator. `claim_idle_s`: an entry that is pending for longer is taken over."""

    claim_idle_s: float = 60.0
    retention_s: float = 30 * 86_400.0


class Handler:
    """Handles entries of one group on one partition over a consumer's own connection."""

    def __init__(
        self, partition: int, group: Group, limits: Limits, consumer: str = "", *, say_s: float = 0.0
    ) -> None:
        """`consumer`: only entries that are pending with it are deferred; '' where no other consumer can take them.
        `say_s`: how long the log says nothing more of what is deferred, once it has said something."""
        self.group, self.partition, self.limits = group, partition, limits
        self.names = Names(partition)
        self._policies = Policies(self.names)
        self._policies_now = Policies(self.names)
        """Apart: `_policies.rev` has to stay the revision that the batch in hand is decided under."""
        self.telemetry = BatchTelemetry(group, partition)
        self.opener = Opener(self.names, group)
        self._failures = Failures(self.names, group, consumer, self.telemetry, say_s=say_s)
        self._where = f"{group.name}/{partition}"
        self.skipped: list[bytes] = []
        """Entries that only have to be acknowledged; nobody waits for that, so `acknowledge` does it later."""
        self.for_slow_lane: list[Work] = []
        """What the last `handle` left to the slow lane, in order."""
        self.may_wait = False
        """Stages may leave works to the slow lane: it runs."""
        self.is_slow_lane = False
        """It handles what waited in the slow lane: commits then remove the mark that it waited."""

    async def handle(
        self,
        client: Redis,
        entries: Sequence[Raw],
        *,
        taken: bool,
        ahead: Opened | None = None,
        unsent: frozenset[bytes] = frozenset(),
    ) -> None:
        """Handle entries to the end: committed, deferred, dead-lettered, in `skipped` or, if they `may_wait`, in
        `for_slow_lane`. `ahead`: they are opened already. `unsent`: those that were only put off before."""
        self.for_slow_lane = []
        opened = ahead or self.opener.open(entries, taken=taken, unsent=unsent)
        if (taken or self.is_slow_lane) and opened.skipped:  # by a commit, which removes traces of it
            handovers = [Handover(entry, taken=True) for entry in opened.skipped]
            await scripts.commit(client, self.names, self.group.name, handovers)
        else:
            self.skipped += opened.skipped
        if opened.unreadable:
            await self._failures.dead_letter(client, opened.unreadable)
        await self._failures.dispose(client, opened.newer)
        works = await self._offer_from_memory(client, opened.works, opened.from_memory)
        known = opened.known_lately(self.opener.remembered)
        while works:
            batch, rest = self.opener.one_pass(works)
            works = [*await self._round(client, batch, known), *rest]
            known = None

    def forget(self) -> None:
        """The connections are new: what Redis said before may not hold for the server they lead to."""
        self.skipped.clear()
        self.opener.remembered.forget()
        self._policies.forget()
        self._policies_now.forget()

    async def acknowledge(self, client: Redis) -> None:
        """Acknowledge `skipped` in one call, which waits for the server's disk; so does every command after it."""
        if self.skipped:
            with named_errors():
                await client.execute_command("XACK", self.names.log, self.group.name, *self.skipped)
            self.skipped.clear()

    async def _round(self, client: Redis, works: list[Work], known: Known | None) -> list[Work]:
        """One pass over distinct payouts: the fast path takes what it can finish, and the chain the rest. Returns the
        works that are stale, since their payout changed meanwhile."""
        ctx = await self._load(client, works, known)
        # That of this context: `_run` may load a later one for works that are tried one by one.
        rev = self._policies.rev
        finished = await self._grant(client, grants.offers_of(self.group, works, ctx), {})
        works = [work for work in works if work not in finished]
        if not works:
            return []
        runs_once = self.group.outputs_are_facts and not self.group.looks_again
        fresh = [w for w in works if not (runs_once and w.stale_times)]
        await self._run(client, fresh, ctx)
        stale = await self._commit(client, [w for w in works if w.problem is None], rev)
        self.for_slow_lane += await self._failures.dispose(
            client, [w for w in works if w.problem is not None]
        )
        return stale

    async def _offer_from_memory(
        self, client: Redis, works: list[Work], looks: Sequence[First]
    ) -> list[Work]:
        """Offer these first looks by what is remembered of Redis. Returns the works that are not finished by that."""
        remembered = self.opener.remembered
        if not looks or not remembered.is_fresh():
            return works
        for first in looks:
            first.work.beneficiary = NOTED if remembered.is_noted(first) else None
        ctx = self._context(client, remembered.now_us(looks), self._policies.book, time_ns())
        firsts = [first.work for first in looks]
        offers = grants.offers_at_sight(self.group, firsts, ctx, self._open)
        unsure = remembered.unsure(looks)
        for work, offer in offers:
            if work in unsure and not offer.asks:  # it does not depend on who was paid before
                del unsure[work]
        asked_s = monotonic()
        finished = await self._grant(client, offers, unsure, decided_at=ctx.now_us)
        for work in finished & unsure.keys():
            remembered.found(unsure[work], asked_s)
        return [work for work in works if work not in finished]

    async def _grant(
        self, client: Redis, offers: Sequence[Offered], unsure: Mapping[Work, First], *, decided_at: int = 0
    ) -> set[Work]:
        """Send offers down the fast path. Returns the works that are finished by that; the chain has the others.

        `unsure`: of works that were offered from memory, the pairs that the script must still find noted.
        """
        if not offers:
            return set()
        sent = [
            grants.Grant(
                work.entry,
                offer,
                payees.notes_of(self.names, work, offer.noted) if offer.noted else [],
                unsure.get(work),
            )
            for work, offer in offers
        ]
        sent_ns = time_ns()
        granting = grants.grant(
            client,
            self.names,
            self.group.name,
            sent,
            rev=self._policies.rev,
            keep_budgets_s=int(self.limits.retention_s),
            decided_at=decided_at,
        )
        try:
            fates = await shielded(granting, self.telemetry.record_if_due)
        except StreamprocError:
            raise
        except Exception:  # whatever part of it was done, the chain's scripts find that
            log.exception("%s: no fast path for %d entries", self._where, len(sent))
            fates = [OfferFate.LEFT] * len(sent)
        self.opener.remembered.doubt(grant.notes for grant in sent if grant.notes)
        done = list[Granted]()
        for (work, offer), fate in zip(offers, fates, strict=True):
            if fate is OfferFate.LEFT:
                work.left_by_fast_path = True
            else:
                done.append((work, offer, fate))
        self.telemetry.granted(done, sent_ns)
        return {work for work, _, _ in done}

    async def dead_letter(self, client: Redis, entry: Raw, why: str) -> None:
        """Make a dead letter of an entry unseen: its workers die with it."""
        work, *_ = [*self.opener.open([entry], taken=True).works, Work(entry[0], [], taken=True)]
        await self._failures.dead_letter(client, [(work, why)])

    async def _load(self, client: Redis, works: list[Work], known: Known | None = None) -> BatchContext:
        if known is None:
            known = await known_of(client, self.names, self.group, works)
        row = iter(known.rows)
        for work in works:
            self._open(work, next(row) if work.payout else None)
        for first, seen in zip(known.seen, known.beneficiaries, strict=True):
            first.work.beneficiary = seen
            first.work.unpaid = [key for key in first.whom.keys if key in known.unpaid]
        book = await self._policies.refresh(client, known.rev)
        self.opener.remembered.learn(known.now_us, known.at_s, known.seen, known.beneficiaries)
        return self._context(client, known.now_us, book, known.at_ns)

    def _context(self, client: Redis, now_us: int, book: PolicyBook, at_ns: int) -> BatchContext:
        """The context of a batch that begins now; Redis's clock was `now_us` when this host's was `at_ns`."""

        async def admit(asks: Sequence[Ask]) -> list[Admission]:
            return await scripts.admit(client, self.names, asks, keep_budgets_s=int(self.limits.retention_s))

        ctx = BatchContext(
            now_us=now_us,
            partition=self.partition,
            book=book,
            admit=admit,
            cache=Cache(client, self.names),
            book_now=lambda: self._policies_now.now(client),
            entry=lambda entry: events_in(client, self.names, entry),
            may_wait=self.may_wait,
        )
        self.telemetry.loaded(ctx, at_ns)
        return ctx

    def _open(self, work: Work, row: scripts.Row | None = scripts.NO_ROW) -> None:
        """Start a work from its payout's row. A row that cannot be read fails this entry, not the worker."""
        keep = self.group.outputs_are_facts and work.stale_times > 0
        if row is None:
            work.open(scripts.UNCHECKED, None, work.admission, keep=keep)
            return
        version, record, admission = b"0", None, NOTHING_ASKED
        if row is not scripts.NO_ROW:
            try:
                known = scripts.loaded(row)
                record = decode_record(known.record) if known.record else None
            except ValueError as problem:  # msgspec's errors too
                work.fail(Unprocessable(f"what Redis has of payout {work.payout} cannot be read: {problem}"))
                return
            unknown = unknown_in(record, known.record) if record is not None and known.record else []
            if unknown:  # this version would write the record back without these fields
                what = f"what Redis has of payout {work.payout} was written by a later version: {', '.join(unknown)}"
                work.fail(TryAgain(f"{what} is not known here", after_s=NEWER_S))
                return
            version, admission = known.version, known.admission
        try:
            work.open(version, record, admission, keep=keep)
        except ValueError as problem:
            # There are outputs, but no record any more: the payout was over, and the record expired between load and
            # commit. The next attempt finds out what was done outside.
            work.fail(problem)

    async def _run(self, client: Redis, works: list[Work], ctx: BatchContext) -> None:
        """Run the chain. An error that no stage attributed is attributed to one entry, by running each work alone."""
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_S) as limit:
                await run_chain(self.group, works, ctx)
        except (LogUnavailable, LogBroken):
            raise
        except TryAgain as problem:
            for work in works:
                work.fail(problem)
        except Exception as problem:  # noqa: BLE001  # attributed to one entry, whose attempts are counted and limited
            if limit.expired():
                for work in works:
                    work.fail(TryAgain(f"the batch took longer than {BATCH_TIMEOUT_S} s", after_s=1.0))
                return
            if len(works) == 1:
                works[0].fail(problem)
                return
            for work in works:
                await self._run(client, [work], await self._load(client, [work]))

    # ---- leaving a batch behind ---------------------------------------------------------

    async def _commit(self, client: Redis, works: list[Work], rev: bytes) -> list[Work]:
        group, handovers = self.group, [self._handover(work) for work in works]
        rev = b"" if group.outputs_are_facts else rev
        statuses = await scripts.commit(client, self.names, group.name, handovers, rev=rev)
        self.opener.remembered.doubt(handover.notes for handover in handovers)
        self.telemetry.committed(works, statuses)
        stale = [work for work, status in zip(works, statuses, strict=True) if status is Committed.STALE]
        for work in stale:
            work.stale_times += 1
        late = [work for work in stale if work.stale_times > STALE_MAX]
        if late:
            await self._failures.defer(
                client, [(work, Deferral(work.entry, 1.0, counts=False)) for work in late]
            )
        return [work for work in stale if work.stale_times <= STALE_MAX]

    def _handover(self, work: Work) -> Handover:
        handover = Handover(entry=work.entry, taken=work.taken or self.is_slow_lane)
        changed = work.record is not None and work.record != work.loaded
        if changed or work.out or work.looked_at:
            handover.payout = work.payout
            handover.version = work.version
        if work.record is not None and (changed or work.out):
            handover.record, handover.recalled = encode_record(work.record), work.recalled
            handover.keep_s = work.keep_s(self.limits.retention_s)
        if work.out:
            handover.e = encode_events(work.out)
            handover.m = self.group.meta_of_output(work.entry)
        if work.settle and work.admission.budget is not None:
            handover.settle, handover.windows = work.settle, work.admission.budget.windows
            handover.fees = work.fees
        handover.notes = payees.notes_of(self.names, work, work.out)
        handover.timers = [(timer.at, encode_events([timer])) for timer in work.timers]
        return handover

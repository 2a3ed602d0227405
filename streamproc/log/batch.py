"""Handling one batch: decode, load, run the chain, commit, and defer or set aside what failed."""

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic, time_ns
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.events import EntrySetAside
from streamproc.domain.payouts import decode_record, encode_record, unknown_in
from streamproc.domain.policy import PolicyBook
from streamproc.domain.wire import encode_events
from streamproc.errors import LogUnavailable, StreamprocError, TryAgain, Unprocessable, named
from streamproc.log import grants, payees, scripts
from streamproc.log.cache import Cache
from streamproc.log.connection import named_errors, whole
from streamproc.log.forms import Fate
from streamproc.log.names import Names
from streamproc.log.opened import NEWER_S, Known, Opened, Opener, events_in, known_of
from streamproc.log.payees import First
from streamproc.log.policies import Policies
from streamproc.log.scripts import Committed, Handover, Raw
from streamproc.log.watched import Watched
from streamproc.log.work import Desk, Group, Work, run_chain, written_ms

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
"""Attempts at an entry that fails by itself; after these it becomes a dead letter."""
BACKOFF = scripts.Backoff(first_s=0.5, longest_s=60.0, longest_wait_s=10.0)
"""A dependency that is back is noticed within `longest_wait_s`; an entry that fails by itself can wait longer."""
BATCH_TIMEOUT_S = 25.0
"""Limit of the whole chain over one batch. Every outside call has a shorter limit of its own."""
LATE_S = 600.0
"""An entry that waits for a dependency for longer raises an alarm: a rejection that the bank does not know of may be
paid by somebody else's approval."""
STALE_MAX = 20
"""Times in a row that a payout may change during its pass before the entry is deferred."""


class Limits(Struct, frozen=True):
    """Set by the operator. `claim_idle_s`: an entry that is pending for longer is taken over."""

    claim_idle_s: float = 60.0
    retention_s: float = 30 * 86_400.0


class Handler:
    """Handles entries of one group on one partition over a consumer's own connection."""

    def __init__(self, partition: int, group: Group, limits: Limits, consumer: str = "") -> None:
        """`consumer`: only entries that are pending with it are deferred; '' where no other consumer can take them."""
        self.group, self.partition, self.limits, self._consumer = group, partition, limits, consumer
        self.names = Names(partition)
        self._policies = Policies(self.names)
        self._policies_now = Policies(self.names)
        """Apart: `_policies.rev` has to stay the revision that the batch in hand is decided under."""
        self.watched = Watched(group, partition)
        self.opener = Opener(self.names, group)
        self._caused = b'{"by":"' + group.name.encode() + b'","cause":"'
        self.skipped: list[bytes] = []
        """Entries that only have to be acknowledged; nobody waits for that, so `acknowledge` does it later."""

    async def handle(
        self, client: Redis, entries: Sequence[Raw], *, taken: bool, ahead: Opened | None = None
    ) -> None:
        """Handle entries to the end: committed, deferred, set aside, or in `skipped`. `ahead`: they are opened
        already."""
        opened = ahead or self.opener.open(entries, taken=taken)
        if taken and opened.skipped:  # by a commit, which removes traces of earlier attempts
            await self._send(client, [Handover(entry, taken=True) for entry in opened.skipped])
        else:
            self.skipped += opened.skipped
        if opened.unreadable:
            await self._set_aside(client, opened.unreadable)
        await self._settle_problems(client, opened.newer)
        works, known, unasked = opened.works, opened.known_lately(self.opener.unasked), opened.unasked
        while works:
            batch, rest = self.opener.one_pass(works)
            works = [*await self._round(client, batch, known, unasked), *rest]
            known, unasked = None, ()

    def forget(self) -> None:
        """The connections are new: what Redis said before may not hold for the server they lead to."""
        self.skipped.clear()
        self.opener.unasked.forget()
        self._policies.forget()
        self._policies_now.forget()

    async def acknowledge(self, client: Redis) -> None:
        """Acknowledge `skipped` in one call, which waits for the server's disk; so does every command after it."""
        if self.skipped:
            with named_errors():
                await client.execute_command("XACK", self.names.log, self.group.name, *self.skipped)
            self.skipped.clear()

    async def _round(
        self, client: Redis, works: list[Work], known: Known | None, unasked: Sequence[First]
    ) -> list[Work]:
        """One pass over distinct payouts. Returns the works that are stale, since their payout changed meanwhile."""
        offered: set[Work] = set()
        if unasked and self.opener.unasked.is_fresh():  # whoever was told the time was told of the policies
            finished, offered = await self._go_unasked(client, unasked)
            works = [work for work in works if work not in finished]
            if not works:
                return []
        desk = await self._load(client, works, known)
        rev = self._policies.rev  # that of this desk; `_run` may load a later one for works tried one by one
        finished = await self._go_straight(client, [work for work in works if work not in offered], desk)
        works = [work for work in works if work not in finished]
        if not works:
            return []
        runs_once = self.group.outputs_are_facts and not self.group.looks_again
        fresh = [w for w in works if not (runs_once and w.stale_times)]
        await self._run(client, fresh, desk)
        stale = await self._commit(client, [w for w in works if w.problem is None], rev)
        await self._settle_problems(client, [w for w in works if w.problem is not None])
        return stale

    async def _go_unasked(self, client: Redis, unasked: Sequence[First]) -> tuple[set[Work], set[Work]]:
        """Send offers by what is remembered of Redis. Returns the works that are finished by that, and those for
        which asking Redis would give the same offer, so it is not made again."""
        remembered = self.opener.unasked
        for first in unasked:
            first.work.beneficiary = NOTED if remembered.is_noted(first) else None
        desk = self._desk(client, remembered.now_us(unasked), self._policies.book, time_ns())
        finished = await self._go_straight(client, [first.work for first in unasked], desk, unasked)
        return finished, {first.work for first in unasked if first.work.beneficiary is NOTED}

    async def _go_straight(
        self, client: Redis, works: Sequence[Work], desk: Desk, unasked: Sequence[First] = ()
    ) -> set[Work]:
        """Send what needs the counters at most down the fast path. Returns the works that are finished by that."""
        opens = (lambda work: self._open(work, scripts.NO_ROW)) if unasked else None
        offers = grants.offers_of(self.group, works, desk, opens)
        if not offers:
            return set()
        remembered, sent_s = self.opener.unasked, monotonic()
        asking = {work for work, offer in offers if offer.asks}
        unsure = {f.work: f for f in unasked if f.work in asking and not remembered.is_believed(f)}
        sent = [
            grants.Grant(work.entry, offer, payees.notes_of(self.names, work, offer.noted), unsure.get(work))
            for work, offer in offers
        ]
        rev, keep_s, sent_ns = self._policies.rev, int(self.limits.retention_s), time_ns()
        granting = grants.grant(
            client,
            self.names,
            self.group.name,
            sent,
            rev=rev,
            m=(self._caused, b'"}'),
            keep_budgets_s=keep_s,
            unasked_at=desk.now_us if unasked else 0,
        )
        try:
            fates = await whole(granting, self.watched.tell_if_due)
        except StreamprocError:
            raise
        except Exception:  # whatever part of it was done, the chain's scripts find that
            log.exception("%s/%d: no fast path for %d entries", self.group.name, self.partition, len(sent))
            return set()
        done = [(*pair, fate) for pair, fate in zip(offers, fates, strict=True) if fate is not Fate.LEFT]
        remembered.doubt(grant.notes for grant in sent)
        self.watched.granted(done, sent_ns)
        finished = {work for work, *_ in done}
        for work in finished & unsure.keys():
            remembered.found(unsure[work], sent_s)
        return finished

    async def set_aside(self, client: Redis, entry: Raw, why: str) -> None:
        """Make a dead letter of an entry unseen: its workers die with it."""
        work, *_ = [*self.opener.open([entry], taken=True).works, Work(entry[0], [], taken=True)]
        await self._set_aside(client, [(work, why)])

    async def _load(self, client: Redis, works: list[Work], known: Known | None = None) -> Desk:
        beneficiaries = known.beneficiaries() if known is not None else []
        # Else the batch before may have noted their beneficiaries; the commit finds that only where nobody was noted.
        if known is None or any(seen is not NOTED for seen in beneficiaries):
            known = await known_of(client, self.names, self.group, works)
            beneficiaries = known.beneficiaries()
        row = iter(known.rows)
        for work in works:
            self._open(work, next(row) if work.payout else None)
        for (work, _, *keys), seen in zip(known.seen, beneficiaries, strict=True):
            work.beneficiary, work.unpaid = seen, [key for key in keys if not known.noted[key]]
        book = await self._policies.refresh(client, known.rev)
        self.opener.unasked.learn(known.now_us, known.at_s, known.seen, beneficiaries)
        return self._desk(client, known.now_us, book, known.at_ns)

    def _desk(self, client: Redis, now_us: int, book: PolicyBook, at_ns: int) -> Desk:
        """The desk of a batch that begins now; Redis's clock was `now_us` when this host's was `at_ns`."""

        async def admit(asks: Sequence[Any]) -> list[Any]:
            return await scripts.admit(client, self.names, asks, keep_budgets_s=int(self.limits.retention_s))

        desk = Desk(
            now_us=now_us,
            partition=self.partition,
            book=book,
            admit=admit,
            cache=Cache(client, self.names),
            book_now=lambda: self._policies_now.now(client),
            entry=lambda entry: events_in(client, self.names, entry),
        )
        self.watched.loaded(desk, at_ns)
        return desk

    def _open(self, work: Work, row: scripts.Row | None) -> None:
        """Start a work from its payout's row. A row that cannot be read fails this entry, not the worker."""
        keep = self.group.outputs_are_facts and work.stale_times > 0
        if row is None:
            work.open(b"-1", None, work.admission, keep=keep)
            return
        version, record, admission = b"0", None, NOTHING_ASKED
        if row is not scripts.NO_ROW:
            try:
                known = scripts.loaded(row)
                record = decode_record(known.record) if known.record else None
            except ValueError as problem:  # msgspec's errors too
                work.fail(Unprocessable(f"what Redis has of payout {work.payout} cannot be read: {problem}"))
                return
            later = unknown_in(record, known.record) if record is not None and known.record else []
            if later:  # this version would write the record back without these fields
                what = f"what Redis has of payout {work.payout} was written by a later version: {', '.join(later)}"
                work.fail(TryAgain(f"{what} is not known here", after_s=NEWER_S))
                return
            version, admission = known.version, known.admission
        try:
            work.open(version, record, admission, keep=keep)
        except ValueError as problem:
            # There are outputs, but no record any more: the payout was over, and the record expired between load and
            # commit. The next attempt finds out what was done outside.
            work.fail(problem)

    async def _run(self, client: Redis, works: list[Work], desk: Desk) -> None:
        """Run the chain. An error that no stage attributed is attributed to one entry, by running each work alone."""
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_S):
                await run_chain(self.group, works, desk)
        except LogUnavailable:
            raise
        except TimeoutError:
            for work in works:
                work.fail(TryAgain(f"the batch took longer than {BATCH_TIMEOUT_S} s", after_s=1.0))
        except TryAgain as problem:
            for work in works:
                work.fail(problem)
        except Exception as problem:  # noqa: BLE001  # attributed to one entry, whose attempts are counted and limited
            if len(works) == 1:
                works[0].fail(problem)
                return
            for work in works:
                await self._run(client, [work], await self._load(client, [work]))

    # ---- leaving a batch behind ---------------------------------------------------------

    async def _commit(self, client: Redis, works: list[Work], rev: bytes) -> list[Work]:
        handovers = [self._handover(work) for work in works]
        statuses = await self._send(client, handovers, b"" if self.group.outputs_are_facts else rev)
        self.opener.unasked.doubt(handover.notes for handover in handovers)
        self.watched.committed(works, statuses)
        stale = [work for work, status in zip(works, statuses, strict=True) if status is Committed.STALE]
        for work in stale:
            work.stale_times += 1
        late = [work for work in stale if work.stale_times > STALE_MAX]
        if late:
            await self._put_off(client, [(work, 1.0, False) for work in late])
        return [work for work in stale if work.stale_times <= STALE_MAX]

    async def _send(self, client: Redis, handovers: list[Handover], rev: bytes = b"") -> list[Committed]:
        """Commit in chunks. None is cut off half way: a worker that is cancelled waits for the answer first."""
        statuses: list[Committed] = []
        for start in range(0, len(handovers), scripts.BATCH_MAX):
            chunk = handovers[start : start + scripts.BATCH_MAX]
            statuses += await whole(scripts.commit(client, self.names, self.group.name, chunk, rev=rev))
        return statuses

    def _meta(self, work: Work) -> bytes:
        """Field `m` of what a work emits, without its closing brace, which commit.lua adds."""
        return self._caused + work.entry + b'"'

    def _handover(self, work: Work) -> Handover:
        handover = Handover(entry=work.entry, taken=work.taken)
        changed = work.record is not None and work.record != work.loaded
        if changed or work.out or work.looked_at:
            handover.payout = work.payout
            handover.version = work.version
        if work.record is not None and (changed or work.out):
            handover.record, handover.recalled = encode_record(work.record), work.recalled
            handover.keep_s = work.keep_s(self.limits.retention_s)
        if work.out:
            handover.e = encode_events(work.out)
            handover.m = self._meta(work)
        if work.settle and work.admission.budget is not None:
            handover.settle, handover.windows = work.settle, work.admission.budget.windows
            handover.fees = work.fees
        handover.notes = payees.notes_of(self.names, work, work.out)
        handover.timers = [(timer.at, encode_events([timer])) for timer in work.timers]
        return handover

    async def _settle_problems(self, client: Redis, works: list[Work]) -> None:
        aside: list[tuple[Work, str]] = []
        off: list[tuple[Work, float, bool]] = []
        for work in works:
            match work.problem:
                case TryAgain(after_s=after_s):
                    off.append((work, after_s, False))
                case Unprocessable():
                    aside.append((work, str(work.problem)))
                case problem:
                    log.error(
                        "%s/%d: entry %s failed unexpectedly; it is retried, and in the end a dead letter",
                        self.group.name,
                        self.partition,
                        work.entry.decode(),
                        exc_info=problem,
                        extra={"payout": work.payout},
                    )
                    off.append((work, 0.0, True))
        if off:
            await self._tell_of(client, [work for work, _, _ in off])
            await self._put_off(client, off)
        if aside:
            await self._set_aside(client, aside)

    async def _tell_of(self, client: Redis, works: list[Work]) -> None:
        """Log what is deferred, as an alarm where it has waited too long."""
        now_us, *_ = await scripts.load(client, self.names, [])
        oldest = min(works, key=lambda work: written_ms(work.entry))
        late_s = now_us / 1e6 - written_ms(oldest.entry) / 1e3
        level, alarm = (logging.ERROR, "ALARM, ") if late_s > LATE_S else (logging.WARNING, "")
        log.log(
            level,
            "%s%s/%d: %d entries put off; the oldest, %s, waits for %d s: %s",
            alarm,
            self.group.name,
            self.partition,
            len(works),
            oldest.entry.decode(),
            late_s,
            _named(oldest.problem),
        )

    async def _put_off(self, client: Redis, works: Sequence[tuple[Work, float, bool]]) -> None:
        self.watched.put_off([work for work, _, _ in works])
        deferrals = [scripts.Deferral(work.entry, after_s, counts) for work, after_s, counts in works]
        times = await scripts.defer(client, self.names, self.group.name, deferrals, BACKOFF, self._consumer)
        spent = []
        for (work, _, counts), n in zip(works, times, strict=True):
            if counts and n >= ATTEMPTS_MAX:
                work.taken = True
                why = f"failed {n} times, the limit is {ATTEMPTS_MAX}; last: {_named(work.problem)}"
                spent.append((work, why))
        if spent:
            await self._set_aside(client, spent)

    async def _set_aside(self, client: Redis, works: Sequence[tuple[Work, str]]) -> None:
        """Make dead letters, with the reason; the log gets an event about each."""
        self.watched.set_aside([work for work, _ in works])
        now_us, *_ = await scripts.load(client, self.names, [])
        handovers = []
        for work, why in works:
            log.error(
                "%s/%d: entry %s became a dead letter: %s",
                self.group.name,
                self.partition,
                work.entry.decode(),
                why,
                extra={"payout": work.payout},
            )
            event = EntrySetAside(
                at=now_us,
                payout=work.payout,
                group=self.group.name,
                entry=work.entry.decode(),
                stage="",
                problem=why,
            )
            handovers.append(
                Handover(
                    entry=work.entry,
                    e=encode_events([event]),
                    m=self._meta(work),
                    taken=True,
                    problem=why,
                )
            )
        await self._send(client, handovers)


def _named(problem: Exception | None) -> str:
    if isinstance(problem, StreamprocError):
        return str(problem)
    return named(problem)[:300]

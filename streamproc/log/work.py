"""What a group does with an entry, apart from reading and committing it: stages, works, the chain.

A stage is data: a name, the events it consumes, and a function over a batch. The function says what it wants by
`Work.emit`, `Work.set_timer` and `Work.fail`. Nothing is written until the whole chain is through; then the entry is
acknowledged and all of it appended in one step.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import time_ns
from typing import Protocol, TypeAlias

from msgspec import Struct

from streamproc.domain.budget import NOTHING_ASKED, Admission, Ask
from streamproc.domain.events import BeneficiarySeen, Event, Fact, Identity, TimerFired
from streamproc.domain.identity import Party, identity_of, party_as
from streamproc.domain.payouts import ASKED, PayoutRecord, evolve, fold, is_terminal
from streamproc.domain.policy import PolicyBook
from streamproc.domain.record import Reservation
from streamproc.domain.recovery import budget_answer
from streamproc.domain.wire import written_by
from streamproc.log.cache import Cache
from streamproc.log.scripts import FOR_GOOD, kept_admission
from streamproc.log.templates import Offer
from streamproc.telemetry.watch import Call


class LeaveToSlowLane(Exception):
    """Fails a work that may wait (`BatchContext.may_wait`): its entry goes to the consumer's slow lane, and is handled
    anew there. Nothing was done for it yet. `soon`: it overtakes those that are not, at every second turn."""

    def __init__(self, *, soon: bool = False) -> None:
        super().__init__("it waits for its turn")
        self.soon = soon


Settlement: TypeAlias = str
"""'committed', 'released' or '' for none."""
Passed: TypeAlias = Sequence[tuple[str, int, int]]
"""Stages that had something to do: name, begin and end (ns, this host's clock)."""


class Work(Struct, eq=False):
    """One entry in hand: what it says, what is known of its payout, and what is to be recorded.

    A Struct, since a dataclass with so many fields takes three times as long to make.
    """

    entry: bytes
    events: list[Event]
    payout: str = ""
    taken: bool = False
    """It came from retries or from another consumer, so the commit removes traces of earlier attempts."""
    unsent: bool = False
    """All that came of it before was to put it off: nothing was sent outside for it (`Group.notes_sending`)."""
    sent: bool = False
    """Something was sent outside for it in this pass, or may have been, and was not refused."""
    loaded: PayoutRecord | None = None
    """The payout's record as Redis had it when the batch was loaded; None if it had none."""
    version: bytes = b"0"
    """Of that record: the commit fails if it has moved on."""
    record: PayoutRecord | None = None
    """The record with this entry, and with what the stages have emitted so far."""
    admission: Admission = NOTHING_ASKED
    """What the counters answered to the payout, in this pass or before."""
    out: list[Event] = []
    """The events to append with the commit, in order."""
    timers: list[TimerFired] = []
    """Timers to set with it."""
    settle: Settlement = ""
    """What is to become of the reservation with it."""
    fees: int = 0
    """All fees that are committed with the amount (paise)."""
    beneficiary: BeneficiarySeen | None = None
    """What the registry knew when the batch was loaded; None where the entry is no first look at an open payout."""
    unpaid: Sequence[str] = ()
    """Keys of the beneficiary's hashes that were empty then: the commit fails if somebody else is noted there first."""
    problem: Exception | None = None
    left_by_fast_path: bool = False
    """Its offer was sent and not taken: the chain decides it, and it is not offered again."""
    calls: list[Call] = []
    """What it waited for: the barrier, the bank."""
    passed: Passed = ()
    """Stages of earlier passes, whose outputs it keeps though their commit came too late; known only to traces."""
    stale_times: int = 0
    looked_at: bool = False
    """A stage relied on the payout's state without recording anything; the commit checks that it has not moved on."""
    recalled: bytes = b""
    """What the archive has of the reservation, in commit.lua's form, if the payout has left Redis."""
    e: bytes = b"[]"
    """The entry's events, as they were read."""
    m: bytes = b"{}"
    """The entry's metadata, as it was read."""

    def open(self, version: bytes, record: PayoutRecord | None, admission: Admission, *, keep: bool) -> None:
        """Start from what Redis knows. `keep` leaves the outputs of an earlier pass: they are facts, only the fold
        is new."""
        self.loaded, self.version, self.admission, self.problem = record, version, admission, None
        self.looked_at, self.recalled = False, b""
        # Producers append without touching the record: what they saw is folded by whoever handles it.
        for event in self.events:
            if type(event) in ASKED:
                record = evolve(record, event)
        self.record = record
        if record is not None and record.reservation is not None and admission.budget is None:
            self._hold(record.reservation)  # an earlier version recalled it, and left out what was admitted
        if keep:
            self.record = fold(self.out, self.record)
        else:
            self.out, self.timers, self.settle, self.fees = [], [], "", 0

    def recall(self, record: PayoutRecord) -> None:
        """Go on from what the archive has of a payout that has left Redis, its reservation included: what comes of that
        later, as a reversal, must find it."""
        self.record = record
        if record.reservation is not None:
            self._hold(record.reservation)

    def _hold(self, held: Reservation) -> None:
        self.admission = Admission(None, budget_answer(held))
        self.recalled = b"%b %d %b" % (held.state.encode(), held.fees, kept_admission(self.admission))

    def ends_hold(self) -> bool:
        """Whether it ends the wait for a person: by a decision, or since the bank moved or ended the payout."""
        before, after = self.loaded, self.record
        return before is not None and before.state == "held" and after is not None and after.state != "held"

    def emit(self, event: Event) -> None:
        """Record `event` with this entry's commit. Later stages of the chain see it."""
        self.out.append(event)
        self.record = evolve(self.record, event)

    def set_timer(self, timer: TimerFired) -> None:
        """Set a timer with this entry's commit; it comes back as an entry of the log when its `at` (µs) has come."""
        self.timers.append(timer)

    def fail(self, problem: Exception) -> None:
        """Take the work out of the chain: Unprocessable makes its entry a dead letter, LeaveToSlowLane does what
        it says, all else defers it; only TryAgain costs no attempt."""
        self.problem = problem

    def keep_s(self, retention_s: float) -> int:
        """Seconds until the record expires from Redis after this commit, if the payout is over: `retention_s`.

        FOR_GOOD: it was to expire and must not any more. 0: nothing changes.
        """
        if is_terminal(self.known()):
            return int(retention_s)
        return FOR_GOOD if self.loaded is not None and is_terminal(self.loaded) else 0

    @property
    def maybe_sent(self) -> bool:
        """Whether something may have been sent outside for it before this pass, and its answer lost."""
        return self.taken and not self.unsent

    def known(self) -> PayoutRecord:
        """The payout's record. Raises LookupError where it was never observed."""
        if self.record is None:
            raise LookupError(f"payout {self.payout} was never observed in this log")
        return self.record


@dataclass(slots=True)
class BatchContext:
    """What a batch is handled with: Redis's clock, the policies in force, the counters, the cache."""

    now_us: int
    partition: int
    book: PolicyBook
    admit: Callable[[Sequence[Ask]], Awaitable[list[Admission]]]
    cache: Cache
    book_now: Callable[[], Awaitable[PolicyBook]]
    """The policies in force at this moment, which may be newer than `book`: a batch may wait long at the barrier."""
    entry: Callable[[str], Awaitable[list[Event]]]
    """The events of another entry of this log; none where it has left Redis."""
    may_wait: bool = False
    """Works that are slow may be left to the slow lane, by LeaveToSlowLane."""
    passed: list[tuple[str, int, int]] = field(default_factory=list)
    """Stages of this pass, as `Passed`."""
    _parties: dict[tuple[str, str, Identity], Party] = field(default_factory=dict)
    _signed: dict[tuple[str, str, str], Identity] = field(default_factory=dict)
    """By payout, agent and fund account, for payouts with a signature, which takes long to verify."""

    def party(self, record: PayoutRecord) -> Party:
        """Whose payout this is under the policies in force; looked up once a batch, since every stage asks."""
        identity = self._identity(record)
        # All else depends on the agent and the account alone, which many payouts have in common.
        key = (record.agent, record.account, identity)
        known = self._parties.get(key)
        if known is None:
            known = self._parties[key] = party_as(identity, record, self.book)
        return known

    def _identity(self, record: PayoutRecord) -> Identity:
        if not record.agent_sig:
            return identity_of(record, self.book)
        key = (record.payout, record.agent, record.fund_account)
        known = self._signed.get(key)
        if known is None:
            known = self._signed[key] = identity_of(record, self.book)
        return known


class FastPath(Protocol):
    """The fast path of one batch: gives an offer for a work, or leaves it to the chain."""

    def __call__(self, work: Work) -> Offer | None:
        """The offer for an open work; None: the chain has to handle it."""
        ...

    def at_sight(self, work: Work) -> Offer | None:
        """The offer for a first look that is not opened, whose pair is noted; None: open it and ask `__call__`."""
        ...


Item: TypeAlias = tuple[Work, Event]
Handle: TypeAlias = Callable[[Sequence[Item], BatchContext], Awaitable[None]]


class Stage(Struct, frozen=True):
    """One step of a chain. `handle` gets every consumed event of a batch at once."""

    name: str
    consumes: frozenset[type[Fact]]
    handle: Handle


class Group(Struct, frozen=True):
    """A chain of stages with one consumer group.

    `outputs_are_facts`: what the chain emits happened in the world (the bank answered), so a commit that comes
    too late only needs a new fold; the handlers are not run again, unless `looks_again`: then they see what they
    emitted (`Work.out`) beside the newer record, and may add to it.
    """

    name: str
    stages: tuple[Stage, ...]
    fast_path: Callable[[BatchContext], FastPath] | None = None
    """Makes a batch's fast path, for what the chain decides at once; it must come to the same result as the chain."""
    outputs_are_facts: bool = False
    looks_again: bool = False
    notes_sending: bool = False
    """Its stages keep `Work.sent`. So a work that was only put off is known by that when it is taken up
    (`Work.unsent`)."""
    slow_lane: bool = False
    """What may wait is handled beside the rest (slow_lane.py)."""
    read_max: int = 256
    """Entries read at once: as many as the floor of the benchmarks reads. Other sizes have not been measured."""
    works_max: int = 256
    """Entries of those in one pass of the chain: as many as surely fit into the batch's time."""
    wanted: bytes = b""
    """A pattern over an entry's bytes, if not every event of a consumed type matters: what does not match is not
    decoded."""

    @property
    def consumes(self) -> frozenset[type[Fact]]:
        """Everything that any stage consumes."""
        return frozenset().union(*(stage.consumes for stage in self.stages))

    def meta_of_output(self, cause: bytes) -> bytes:
        """Field `m` of what the handling of an entry writes, without its closing brace, which commit.lua adds."""
        return written_by(self.name) + b',"cause":"' + cause + b'"'


async def run_chain(group: Group, works: Sequence[Work], ctx: BatchContext) -> None:
    """Run every stage in order over the batch. Later stages of the same pass also handle what a stage emits."""
    for stage in group.stages:
        items = [
            (work, event)
            for work in works
            if work.problem is None
            for event in (*work.events, *work.out)
            if type(event) in stage.consumes
        ]
        if items:
            begun_ns = time_ns()
            await stage.handle(items, ctx)
            ctx.passed.append((stage.name, begun_ns, time_ns()))


def distinct_payouts(works: Iterable[Work]) -> tuple[list[Work], list[Work]]:
    """The first work of each payout, and the rest in order: a pass handles one work of a payout."""
    first: list[Work] = []
    rest: list[Work] = []
    seen: set[str] = set()
    for work in works:
        if work.payout and work.payout in seen:
            rest.append(work)
        else:
            seen.add(work.payout)
            first.append(work)
    return first, rest


def written_ms(entry: bytes) -> int:
    """When an entry was written (ms, by Redis's clock), as its id says."""
    return int(entry.partition(b"-")[0])

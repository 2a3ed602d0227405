"""Invariants of a system at rest, whatever was done to it. Pure: they check what was seen from outside.

The log is what a witness read while it was written; the rest is what archive, Redis, views and bank held in the end.
Nothing here relies on the product's own view of itself: events are decoded, and counted by hand.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from streamproc.archive.rows import ArchivedEntry
from streamproc.domain import events as e
from streamproc.domain.wire import decode_events, decode_meta, payout_of
from streamproc.log.stream import Entry
from tests.chained import BrokenLink, verify

MOVES_MONEY = ("create", "approve")
RELEASED = ("cancelled", "rejected", "failed", "reversed")
SHOWN_MAX = 5
"""Most findings of one kind that are shown; there may be one per payout."""


class Command(Struct, frozen=True):
    """A command that the bank got. `payout`: its own id; `name`: our name of the payout. Unix seconds."""

    at: float
    command: str
    payout: str
    name: str
    effect: bool = True


class Answered(Struct, frozen=True):
    """A webhook that was answered 2xx."""

    event: str
    payout: str
    name: str
    status: str


class Letter(Struct, frozen=True):
    """A dead letter."""

    entry: str
    group: str
    problem: str


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything that was seen. Amounts are paise."""

    log: Sequence[Entry]
    archive: Sequence[ArchivedEntry]
    commands: Sequence[Command] = ()
    answered: Sequence[Answered] = ()
    bank: dict[str, str] = {}
    """The bank's status of each payout, by our name for it."""
    counters: dict[tuple[str, str], tuple[int, int]] = {}
    """Redis's reserved and committed, by scope and window."""
    waiting: dict[str, int] = {}
    """How much is still pending, unread or not over, by kind."""
    letters: Sequence[Letter] = ()
    views: Sequence[str] = ()
    """Views that are not the fold of the archive, each with the difference."""
    exits: Sequence[str] = ()
    """Roles that ended by themselves."""
    lost: Sequence[Entry] = ()
    """Entries lost in a failover: neither the new server nor the archive has them."""
    dropped: Sequence[Entry] = ()
    """Entries that the new server wrote before it was recovered from the archive."""
    growing: Sequence[str] = ()
    """What grew in the second half of a measured run (tests/faults/flat.py)."""


class Happened(NamedTuple):
    """An event, its place, and the settlement number of its entry."""

    entry: str
    place: int
    event: e.Event
    meta: bytes


class Violation(NamedTuple):
    """An invariant that does not hold, and how."""

    invariant: str
    how: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.how}"


def violations(evidence: Evidence) -> list[Violation]:
    """All violations, SHOWN_MAX of each invariant at most."""
    found = []
    for check in INVARIANTS:
        hows = list(check(evidence))
        found += [Violation(check.__name__, how) for how in hows[:SHOWN_MAX]]
        if len(hows) > SHOWN_MAX:
            found.append(Violation(check.__name__, f"and {len(hows) - SHOWN_MAX} more"))
    return found


def history(log: Sequence[Entry]) -> Iterator[Happened]:
    """Every event of the log, in order."""
    for entry in log:
        for place, event in enumerate(decode_events(entry.e)):
            yield Happened(entry.id, place, event, entry.m)


def what_was_answered_is_decided_once(seen: Evidence) -> Iterator[str]:
    """Every webhook answered 2xx is in the log, and its payout has one decision, or a bypass on record.

    HELD is followed by at most one more decision; an approval that a freeze stopped is followed by a rejection.
    Exceptions: a webhook lost in a failover; a payout ended by a rejection or cancel that was lost with its log (the
    bank has our command on record and the log its outcome, so nothing is left to decide); and a payout of which we
    first heard when it had ended unpaid, since webhooks overtake each other, and the bank gives up one that is refused
    for long.
    """
    lost = {
        (event.facts.id, event.facts.status)
        for _, _, event, _ in history(seen.lost)
        if isinstance(event, e.PayoutObserved)
    }
    decided: dict[str, list[str]] = defaultdict(list)
    observed: set[tuple[str, str]] = set()
    ended: set[tuple[str, str]] = set()
    excused: set[str] = set()
    known: set[str] = set()
    first_seen: dict[str, str] = {}
    for _, _, event, _ in history(seen.log):
        match event:
            case e.PayoutObserved():
                observed.add((event.facts.id, event.facts.status))
                ended.add((event.payout, event.facts.status))
                known.add(event.payout)
                first_seen.setdefault(event.payout, event.facts.status)
            case e.BankCommandAnswered():
                ended.add((event.payout, event.bank_status))
            case e.PayoutRequested():
                known.add(event.payout)
                first_seen.setdefault(event.payout, "requested")
            case e.PayoutDecided():
                decided[event.payout].append(event.decision)
            case e.GovernanceBypassed() | e.BankFeeRecorded() | e.PayoutMalformed():
                excused.add(event.payout)
            case e.PayoutStopped():
                decided[event.payout].append("stopped")
    observed |= lost
    for hook in seen.answered:
        if (hook.payout, hook.status) not in observed and hook.name not in excused:
            yield f"{hook.event} of {hook.payout} was answered 2xx and {hook.status} is not in the log"
    gone = _ending((*seen.lost, *seen.dropped))
    for sent in seen.commands:  # not of an intent: another's payout may have its reference
        ours = sent.effect and sent.command in ("reject", "cancel") and sent.name == sent.payout
        status = seen.bank.get(sent.name, "")
        if (
            ours
            and sent.name in gone
            and status in ("cancelled", "rejected")
            and (sent.name, status) in ended
        ):
            excused.add(sent.name)
    excused |= {
        payout for payout, status in first_seen.items() if status in ("cancelled", "rejected", "failed")
    }
    for payout in sorted(known):
        chain_ = " ".join(decided[payout])
        if chain_ not in _DECISIONS and not (chain_ == "" and payout in excused):
            yield f"{payout} is decided {chain_ or 'never'}: {_story(seen, payout)}"


def _story(seen: Evidence, payout: str) -> str:
    """What the log, the bank's record of commands and the bank itself have of a payout, for debugging."""
    events = [
        f"{entry} {event} by {meta!r}" for entry, _, event, meta in history(seen.log) if payout in repr(event)
    ]
    commands = [str(sent) for sent in seen.commands if payout in (sent.payout, sent.name)]
    return "; ".join([*events, *commands, f"at the bank {seen.bank.get(payout, 'nothing')}"])


def _ending(log: Sequence[Entry]) -> set[str]:
    """Payouts that this log decides to end. The bank is told so without waiting for the archive."""
    return {
        event.payout
        for _, _, event, _ in history(log)
        if isinstance(event, e.CancelRequested)
        or (isinstance(event, e.PayoutDecided) and (event.decision == "REJECTED" or event.cancel_held))
    }


_DECISIONS = {
    f"{first}{last}"
    for first in ("", "HELD ")
    for last in ("APPROVED", "REJECTED", "APPROVED stopped REJECTED")
} | {"HELD"}


def no_delivery_counts_twice(seen: Evidence) -> Iterator[str]:
    """A payout in one status is recorded once, however often webhook and poller see it."""
    times: Counter[tuple[str, str]] = Counter()
    for _, _, event, _ in history(seen.log):
        if (
            isinstance(event, e.PayoutObserved)
            and event.source != "fetch"
            and event.bank_event != "payout.updated"
        ):
            times[event.facts.id, event.facts.status] += 1
    for (payout, status), count in times.items():
        if count > 1:
            yield f"{payout} {status} was appended {count} times"


def no_window_is_over_its_limit(seen: Evidence) -> Iterator[str]:
    """At every prefix of the log, what is reserved and committed in a window is within the limit then in force.

    That limit is the one of the counted reservation with the highest number: when it was made, all others counted
    already. An older one may have had another limit.
    """
    windows: dict[tuple[str, str], list[tuple[int, str, int, int | None]]] = defaultdict(list)
    totals: dict[tuple[str, str], int] = defaultdict(int)
    of: dict[str, e.BudgetReserved] = {}
    for entry, _, event, _ in history(seen.log):
        if isinstance(event, e.BudgetReserved):
            of[event.payout] = event
            for use in event.windows:
                held = windows[use.scope, use.window]
                insort(held, (event.number, event.payout, event.amount, use.limit), key=lambda row: row[0])
                totals[use.scope, use.window] += event.amount
                total, limit = totals[use.scope, use.window], held[-1][3]
                if limit is not None and total > limit:
                    yield f"at {entry} {use.scope} {use.window} holds {total} paise, the limit is {limit}"
        elif isinstance(event, e.PayoutSettled) and event.settlement == "released" and event.payout in of:
            for use in of[event.payout].windows:
                held = windows[use.scope, use.window]
                place = bisect_left(held, of[event.payout].number, key=lambda row: row[0])
                while place < len(held) and held[place][1] != event.payout:
                    place += 1
                if place < len(held):
                    totals[use.scope, use.window] -= held.pop(place)[2]


def every_reservation_found_what_was_there(seen: Evidence) -> Iterator[str]:
    """In the order of numbers, each reservation found in its windows what the earlier ones had left there."""
    numbered: list[tuple[int, e.BudgetReserved | e.PayoutSettled]] = []
    for _, _, event, meta in history(seen.log):
        if isinstance(event, e.BudgetReserved):
            numbered.append((event.number, event))
        elif isinstance(event, e.PayoutSettled) and (number := decode_meta(meta).settled):
            numbered.append((number, event))
    money: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    of: dict[str, e.BudgetReserved] = {}
    state: dict[str, str] = {}
    for number, event in sorted(numbered, key=lambda pair: pair[0]):
        if isinstance(event, e.BudgetReserved):
            of[event.payout], state[event.payout] = event, "reserved"
            for use in event.windows:
                there = money[use.scope, use.window]
                if there != [use.reserved, use.committed]:
                    yield (
                        f"reservation {number} of {event.payout} met {use.reserved} + {use.committed} in {use.scope}"
                        f" {use.window}; those before it had left {there[0]} + {there[1]}"
                    )
                there[0] += event.amount
        elif event.payout in of:
            for use in of[event.payout].windows:
                _move(
                    money[use.scope, use.window],
                    of[event.payout].amount,
                    state[event.payout],
                    event.settlement,
                )
            state[event.payout] = event.settlement


def reserved_is_what_is_open(seen: Evidence) -> Iterator[str]:
    """Redis's counters hold exactly the reservations of the log, in the windows that were charged."""
    expected: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    of: dict[str, e.BudgetReserved] = {}
    state: dict[str, str] = {}
    for _, _, event, _ in history(seen.log):
        if isinstance(event, e.BudgetReserved):
            of[event.payout], state[event.payout] = event, "reserved"
            for use in event.windows:
                expected[use.scope, use.window][0] += event.amount
        elif isinstance(event, e.PayoutSettled) and event.payout in of:
            for use in of[event.payout].windows:
                _move(
                    expected[use.scope, use.window],
                    of[event.payout].amount,
                    state[event.payout],
                    event.settlement,
                )
            state[event.payout] = event.settlement
    for key in sorted({*expected, *seen.counters}):
        in_log, in_redis = tuple(expected[key]), seen.counters.get(key, (0, 0))
        if in_log != in_redis:
            scope, window = key
            yield f"{scope} {window}: Redis has {in_redis[0]} + {in_redis[1]}, the log says {in_log[0]} + {in_log[1]}"


def _move(money: list[int], amount: int, state: str, settlement: str) -> None:
    if state == settlement or state == "released":
        return
    money[0 if state == "reserved" else 1] -= amount
    if settlement == "committed":
        money[1] += amount


def each_reservation_is_settled_once(seen: Evidence) -> Iterator[str]:
    """It is committed or released once, or one after the other, in the windows charged, as the bank's status says."""
    reserved: dict[str, e.BudgetReserved] = {}
    settled: dict[str, list[str]] = defaultdict(list)
    decision: dict[str, str] = {}
    bypassed: set[str] = set()
    for _, _, event, _ in history(seen.log):
        match event:
            case e.BudgetReserved():
                if event.payout in reserved:
                    yield f"{event.payout} is reserved twice"
                reserved[event.payout] = event
            case e.PayoutDecided():
                decision[event.payout] = event.decision
            case e.GovernanceBypassed():
                bypassed.add(event.payout)  # rejected, but the bank moved it; that is on record
            case e.PayoutSettled():
                settled[event.payout].append(event.settlement)
                mine = reserved.get(event.payout)
                windows = [[use.scope, use.window] for use in mine.windows] if mine else []
                if mine is None or event.windows != windows or event.amount != mine.amount:
                    yield f"{event.payout} is settled to {event.windows}, charged were {windows}"
    for payout in sorted({*reserved, *settled}):
        steps, status = settled[payout], seen.bank.get(payout, "")
        if steps not in ([], ["committed"], ["released"], ["committed", "released"]):
            yield f"{payout} is settled {' '.join(steps)}"
            continue
        last = steps[-1] if steps else "reserved"
        over = status in RELEASED or (decision.get(payout) == "REJECTED" and status != "processed")
        due = "released" if over else "committed" if status == "processed" else last
        if last != due and payout not in bypassed:
            yield f"{payout} is {last}, and the bank has it {status or 'nowhere'}"


def money_moves_after_the_archive(seen: Evidence) -> Iterator[str]:
    """No command that moves money reaches the bank before its approval is archived."""
    approved: dict[str, float] = {}
    for row in seen.archive:
        for event in decode_events(row.e):
            if (
                isinstance(event, e.PayoutDecided)
                and event.decision == "APPROVED"
                and row.archived_at is not None
            ):
                approved.setdefault(event.payout, row.archived_at.timestamp())
    for sent in seen.commands:
        if sent.command not in MOVES_MONEY or not (sent.effect or sent.payout):
            continue
        at = approved.get(sent.name)
        if at is None:
            yield f"the bank was told to {sent.command} {sent.payout}, and no approval of it is archived"
        elif at > sent.at:
            yield f"{sent.command} of {sent.payout} was sent {at - sent.at:.3f} s before its approval was archived"


def one_command_takes_effect(seen: Evidence) -> Iterator[str]:
    """An intent makes one payout at the bank; of each payout one command takes effect, the one that was decided.

    Rejections do not wait for the archive: one lost in a failover, or decided before the log was recovered, may
    have taken effect too. An approval may not.
    """
    created: Counter[str] = Counter()
    effective: dict[str, list[str]] = defaultdict(list)
    last: dict[str, str] = {}
    ended = _ending((*seen.log, *seen.lost, *seen.dropped))
    for _, _, event, _ in history(seen.log):
        if isinstance(event, e.PayoutDecided):
            last[event.payout] = event.decision
    for sent in seen.commands:
        if not sent.effect:
            continue
        if sent.command == "create":
            created[sent.name] += 1
        else:
            effective[sent.payout].append(sent.command)
        # A held payout that the bank queued is cancelled, and a person may approve it before we know of that.
        if sent.name not in ended if sent.command not in MOVES_MONEY else last.get(sent.name) != "APPROVED":
            yield f"{sent.command} of {sent.payout} took effect; {sent.name} is {last.get(sent.name, 'not decided')}"
    for name, count in created.items():
        if count > 1:
            yield f"{name} was made {count} times at the bank"
    for payout, commands in effective.items():
        if len(commands) > 1:
            yield f"{payout}: {', '.join(commands)} took effect"


def the_archive_is_the_log(seen: Evidence) -> Iterator[str]:
    """The archive equals the log, byte for byte; its sequence is dense and its hash chain holds."""
    log = {entry.id: (entry.e, entry.m) for entry in seen.log}
    archived = {row.id: (row.e, row.m) for row in seen.archive}
    for entry in (*log, *(identity for identity in archived if identity not in log)):
        if entry not in archived:
            yield f"entry {entry} of the log is not archived"
        elif entry not in log:
            yield f"archived entry {entry} was never seen in the log"
        elif log[entry] != archived[entry]:
            yield f"entry {entry} has other bytes in the archive"
    if [entry.id for entry in seen.log if entry.id in archived] != [
        row.id for row in seen.archive if row.id in log
    ]:
        yield "the archive has another order than the log"
    end = verify(seen.archive)
    if isinstance(end, BrokenLink):
        yield f"the chain breaks at {end.seq}, entry {end.id}: {end.problem}"


def the_views_are_the_fold(seen: Evidence) -> Iterator[str]:
    """A rebuild from the archive gives the same rows."""
    yield from seen.views


def nothing_waits_for_ever(seen: Evidence) -> Iterator[str]:
    """Once all faults are over, no entry is unread, unacknowledged or put off, and no payout is without an end."""
    for what, count in seen.waiting.items():
        if count:
            yield f"{what}: {count}"


def every_dead_letter_says_why(seen: Evidence) -> Iterator[str]:
    """A dead letter has a reason, and the log has it too."""
    recorded = {
        (event.entry, event.group)
        for _, _, event, _ in history(seen.log)
        if isinstance(event, e.EntrySetAside) and event.problem
    }
    for letter in seen.letters:
        if not letter.problem:
            yield f"{letter.group}: entry {letter.entry} was set aside without a reason"
        elif (letter.entry, letter.group) not in recorded:
            yield f"{letter.group}: the log does not say that entry {letter.entry} was set aside"


def no_role_ends_by_itself(seen: Evidence) -> Iterator[str]:
    """A role waits for what is away; only a log that lost something may stop it."""
    yield from seen.exits


def nothing_grows(seen: Evidence) -> Iterator[str]:
    """In a measured run, memory, descriptors, connections and the log in Redis do not grow."""
    yield from seen.growing


INVARIANTS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    what_was_answered_is_decided_once,
    no_delivery_counts_twice,
    no_window_is_over_its_limit,
    every_reservation_found_what_was_there,
    reserved_is_what_is_open,
    each_reservation_is_settled_once,
    money_moves_after_the_archive,
    one_command_takes_effect,
    the_archive_is_the_log,
    the_views_are_the_fold,
    nothing_waits_for_ever,
    every_dead_letter_says_why,
    no_role_ends_by_itself,
    nothing_grows,
)


def payouts_in(log: Sequence[Entry]) -> set[str]:
    """Every payout that the log is about."""
    return {payout for _, _, event, _ in history(log) if (payout := payout_of(event))}

"""Each invariant reports a hand-made history that breaks it, and nothing in a sound one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest

from streamproc.archive.load import chained
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import Head
from streamproc.domain import events as e
from streamproc.domain.wire import encode_events
from streamproc.log.stream import Entry
from tests.faults.invariants import INVARIANTS, Answered, Command, Evidence, Letter, violations
from tests.words import ACCOUNT, NOW, observed

DAY = "2026-09-21"
ARCHIVED_AT = datetime.fromtimestamp(NOW / 1e6, UTC)
LATER_S = NOW / 1e6 + 1


def decided(payout: str = "pout_1", decision: e.Decision = "APPROVED") -> e.PayoutDecided:
    return e.PayoutDecided(
        at=NOW,
        payout=payout,
        account=ACCOUNT,
        agent="bot",
        amount=100,
        decision=decision,
        reason="",
        reasons=[],
        findings=[],
        policy_version=1,
        bank_status="pending",
    )


def reserved(
    payout: str = "pout_1", number: int = 1, before: int = 0, limit: int | None = 1_000, amount: int = 100
) -> e.BudgetReserved:
    use = e.WindowUse(scope="agent:bot", window=DAY, limit=limit, reserved=before, committed=0)
    return e.BudgetReserved(at=NOW, payout=payout, amount=amount, number=number, windows=[use], findings=[])


def settled(payout: str = "pout_1", settlement: str = "committed", window: str = DAY) -> e.PayoutSettled:
    return e.PayoutSettled(
        at=NOW,
        payout=payout,
        settlement=settlement,  # type: ignore[arg-type]
        amount=100,
        why="",
        windows=[["agent:bot", window]],
    )


@dataclass
class Log:
    """A log that is written entry by entry."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, *events: e.Event, number: int = 0) -> "Log":
        """Append an entry. `number` is the number that the counters gave its settlement."""
        meta = {"by": "test"} | ({"settled": number} if number else {})
        identity = f"{NOW // 1000}-{len(self.entries) + 1}"
        self.entries.append(Entry(identity, encode_events(events), msgspec.json.encode(meta)))
        return self


def archive_of(entries: Sequence[Entry]) -> list[ArchivedEntry]:
    rows, _, _ = chained(0, Head(), entries)
    return [msgspec.structs.replace(row, archived_at=ARCHIVED_AT) for row in rows]


def sound() -> Log:
    return (
        Log()
        .add(observed())
        .add(reserved(), decided())
        .add(observed(status="processed"))
        .add(settled(), number=2)
    )


def seen(log: Log, **changes: object) -> Evidence:
    """The evidence of a sound system with this log, except for the changes."""
    shown: dict[str, object] = {
        "log": log.entries,
        "archive": archive_of(log.entries),
        "commands": [Command(LATER_S, "approve", "pout_1", "pout_1")],
        "answered": [Answered("payout.pending", "pout_1", "pout_1", "pending")],
        "bank": {"pout_1": "processed"},
        "counters": {("agent:bot", DAY): (0, 100)},
    }
    return Evidence(**{**shown, **changes})  # type: ignore[arg-type]


def broken(evidence: Evidence) -> set[str]:
    return {found.invariant for found in violations(evidence)}


def test_a_sound_history_breaks_nothing() -> None:
    assert violations(seen(sound())) == []


def test_every_invariant_is_broken_by_one_of_these_histories() -> None:
    assert {name for name, _ in BROKEN} == {check.__name__ for check in INVARIANTS}


BROKEN: list[tuple[str, Evidence]] = [
    (
        "what_was_answered_is_decided_once",
        seen(sound(), answered=[Answered("payout.pending", "pout_2", "pout_2", "pending")]),
    ),
    ("what_was_answered_is_decided_once", seen(sound().add(observed("pout_2")))),
    ("what_was_answered_is_decided_once", seen(sound().add(decided()))),
    ("what_was_answered_is_decided_once", seen(sound().add(decided(decision="HELD")))),
    ("no_delivery_counts_twice", seen(sound().add(observed()))),
    (
        "no_window_is_over_its_limit",
        seen(
            sound()
            .add(observed("pout_2"))
            .add(reserved("pout_2", 3, limit=199), decided("pout_2", "REJECTED"))
        ),
    ),
    (
        "every_reservation_found_what_was_there",
        seen(
            sound()
            .add(observed("pout_2"))
            .add(reserved("pout_2", 3, before=0), decided("pout_2", "REJECTED"))
        ),
    ),
    ("reserved_is_what_is_open", seen(sound(), counters={("agent:bot", DAY): (100, 0)})),
    ("reserved_is_what_is_open", seen(sound(), counters={})),
    (
        "reserved_is_what_is_open",
        seen(sound(), counters={("agent:bot", DAY): (0, 100), ("agent:bot", "2026-09-22"): (-100, 0)}),
    ),
    ("each_reservation_is_settled_once", seen(sound().add(settled(), number=3))),
    (
        "each_reservation_is_settled_once",
        seen(sound().add(settled(settlement="released", window="2026-09-22"))),
    ),
    ("each_reservation_is_settled_once", seen(sound(), bank={"pout_1": "failed"})),
    ("each_reservation_is_settled_once", seen(Log().add(observed()).add(decided()).add(settled()))),
    (
        "money_moves_after_the_archive",
        seen(sound(), commands=[Command(LATER_S - 2, "approve", "pout_1", "pout_1")]),
    ),
    (
        "money_moves_after_the_archive",
        seen(sound(), commands=[Command(LATER_S, "approve", "pout_2", "pout_2", effect=False)]),
    ),
    (
        "one_command_takes_effect",
        seen(sound(), commands=2 * [Command(LATER_S, "approve", "pout_1", "pout_1")]),
    ),
    ("one_command_takes_effect", seen(sound(), commands=[Command(LATER_S, "reject", "pout_1", "pout_1")])),
    (
        "one_command_takes_effect",
        seen(sound(), commands=[Command(LATER_S, "create", bank, "pout_1") for bank in ("pout_8", "pout_9")]),
    ),
    ("the_archive_is_the_log", seen(sound(), archive=archive_of(sound().entries[:-1]))),
    ("the_archive_is_the_log", seen(sound(), archive=archive_of(sound().entries[1:]))),
    ("the_archive_is_the_log", seen(sound(), archive=archive_of(sound().entries)[1:])),
    ("the_archive_is_the_log", seen(sound(), archive=archive_of(sound().add(settled()).entries))),
    ("the_views_are_the_fold", seen(sound(), views=["budgets differs in 1 row"])),
    ("nothing_waits_for_ever", seen(sound(), waiting={"governance has in hand": 1})),
    ("every_dead_letter_says_why", seen(sound(), letters=[Letter("1-1", "governance", "")])),
    ("every_dead_letter_says_why", seen(sound(), letters=[Letter("1-1", "governance", "no such thing")])),
    ("no_role_ends_by_itself", seen(sound(), exits=["worker-1 ended by itself with 1"])),
    ("nothing_grows", seen(sound(), growing=["serve: memory grew"])),
]


@pytest.mark.parametrize(
    ("invariant", "evidence"), BROKEN, ids=[f"{n}-{name}" for n, (name, _) in enumerate(BROKEN)]
)
def test_a_broken_history_is_found_by_its_invariant(invariant: str, evidence: Evidence) -> None:
    assert invariant in broken(evidence)


def test_a_hold_that_a_person_approves_and_a_reversal_after_the_commitment_are_sound() -> None:
    log = (
        Log()
        .add(observed())
        .add(reserved(), decided(decision="HELD"))
        .add(decided())
        .add(observed(status="processed"), settled(), number=2)
        .add(observed(status="reversed"), settled(settlement="released"), number=3)
    )
    evidence = seen(log, bank={"pout_1": "reversed"}, counters={("agent:bot", DAY): (0, 0)})
    assert violations(evidence) == []


def test_a_queued_payout_that_is_held_is_cancelled_and_may_be_approved_too_late() -> None:
    held = msgspec.structs.replace(decided(decision="HELD"), bank_status="queued", cancel_held=True)
    log = (
        Log()
        .add(observed(status="queued"))
        .add(reserved(), held)
        .add(decided())
        .add(observed(status="cancelled"), settled(settlement="released"), number=2)
    )
    evidence = seen(
        log,
        commands=[Command(LATER_S, "cancel", "pout_1", "pout_1")],
        answered=[],
        bank={"pout_1": "cancelled"},
        counters={("agent:bot", DAY): (0, 0)},
    )
    assert violations(evidence) == []


def test_a_rejected_payout_that_the_bank_pays_all_the_same_is_released_and_must_be_on_record() -> None:
    log = Log().add(observed(status="queued")).add(reserved(), decided(decision="HELD"))
    log.add(decided(decision="REJECTED"), settled(settlement="released"), number=2)
    log.add(observed(status="processed"))
    shown = {"commands": [], "answered": [], "counters": {("agent:bot", DAY): (0, 0)}}
    assert broken(seen(log, **shown)) == {"each_reservation_is_settled_once"}
    log.add(
        e.GovernanceBypassed(
            at=NOW, payout="pout_1", account=ACCOUNT, agent="bot", amount=100, status="processed"
        )
    )
    assert violations(seen(log, **shown)) == []


def test_a_limit_that_was_lowered_later_does_not_condemn_what_was_reserved_before() -> None:
    log = (
        Log()
        .add(observed(), reserved(limit=100), decided())
        .add(observed("pout_2"), reserved("pout_2", 2, before=100, limit=300), decided("pout_2"))
    )
    evidence = seen(log, bank={}, counters={("agent:bot", DAY): (200, 0)})
    assert violations(evidence) == []


def test_a_webhook_that_a_failover_took_is_excused_and_no_other() -> None:
    taken = Log().add(observed("pout_2"))
    answered = [Answered("payout.pending", "pout_2", "pout_2", "pending")]
    assert violations(seen(sound(), answered=answered, lost=taken.entries)) == []
    assert broken(seen(sound(), answered=answered, dropped=taken.entries)) == {
        "what_was_answered_is_decided_once"
    }, "what came from outside on the log before it was recovered is kept"


def test_a_rejection_that_a_failover_took_may_have_taken_effect_and_an_approval_may_not() -> None:
    commands = [Command(LATER_S, "reject", "pout_2", "pout_2")]
    for where in ("lost", "dropped"):
        rejected = Log().add(observed("pout_2")).add(decided("pout_2", "REJECTED"))
        log = seen(sound(), commands=commands, bank={"pout_1": "processed"}, **{where: rejected.entries})
        assert violations(log) == []
        approved = Log().add(observed("pout_2")).add(decided("pout_2"))
        moved = [Command(LATER_S, "approve", "pout_2", "pout_2")]
        assert broken(seen(sound(), commands=moved, **{where: approved.entries})) == {
            "money_moves_after_the_archive",
            "one_command_takes_effect",
        }


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected"])
def test_what_was_first_seen_when_it_had_ended_unpaid_needs_no_decision(status: str) -> None:
    assert violations(seen(sound().add(observed("pout_2", status=status)))) == []
    overtaken = sound().add(observed("pout_2", status=status)).add(observed("pout_2"))
    assert violations(seen(overtaken)) == []
    earlier = sound().add(observed("pout_2")).add(observed("pout_2", status=status))
    assert broken(seen(earlier)) == {"what_was_answered_is_decided_once"}


def test_what_was_ended_on_a_rejection_that_is_gone_needs_no_decision_and_what_others_ended_does() -> None:
    gone = Log().add(observed("pout_2")).add(decided("pout_2", "REJECTED"))
    ours = [Command(LATER_S, "approve", "pout_1", "pout_1"), Command(LATER_S, "reject", "pout_2", "pout_2")]
    bank = {"pout_1": "processed", "pout_2": "rejected"}
    log = sound().add(observed("pout_2")).add(observed("pout_2", status="rejected"))
    for where in ("lost", "dropped"):
        assert violations(seen(log, commands=ours, bank=bank, **{where: gone.entries})) == []
    found = {"what_was_answered_is_decided_once"}
    assert found <= broken(seen(log, commands=ours, bank=bank)), "nothing of ours had decided it"
    assert broken(seen(log, bank=bank, lost=gone.entries)) == found, "somebody else ended it"
    unseen = sound().add(observed("pout_2"))
    assert broken(seen(unseen, commands=ours, bank=bank, lost=gone.entries)) == found, (
        "the log does not say how it ended"
    )
    pending = {**bank, "pout_2": "pending"}
    assert broken(seen(log, commands=ours, bank=pending, lost=gone.entries)) == found, (
        "the bank still has it open"
    )
    approved = Log().add(observed("pout_2")).add(decided("pout_2"))
    assert found <= broken(seen(log, commands=ours, bank=bank, lost=approved.entries)), (
        "it was not decided so"
    )

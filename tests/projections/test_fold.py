"""An entry that approves a payout at first sight is folded in one step: what it leaves is what `evolve` makes of it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from projections.fold import ALL, DECISION, Decoded, Step, steps_of
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord, evolve, fold
from tests.words import ACCOUNT, NOW, observed, requested

SEEN = observed(amount=500)
ASKED = requested(500)
WINDOWS = [e.WindowUse(scope="agent:bot", window="2026-11-30", limit=None, reserved=0, committed=0)]
times = st.sampled_from([NOW - 1, NOW, NOW, NOW, NOW + 5])
agents = st.sampled_from(["bot", "bot", "bot", "scout"])
versions = st.sampled_from([1, 1, 1, 2])
identities: st.SearchStrategy[e.Identity] = st.sampled_from(["claimed", "claimed", "verified", "unknown"])
beneficiaries = st.none() | st.builds(e.BeneficiarySeen, known=st.booleans())
decisions: st.SearchStrategy[e.Decision] = st.sampled_from(["APPROVED", "APPROVED", "HELD", "REJECTED"])


def approval(payout: str, at: int = NOW, agent: str = "bot", **changed: object) -> list[e.Event]:
    """The events of an approval at first sight."""
    decided: dict[str, object] = {
        "agent": agent, "decision": "APPROVED", "reason": "POLICY_OK", "policy_version": 1, "identity": "claimed",
    } | changed  # fmt: skip
    return [
        e.PayoutScreened(
            at=at, payout=payout, agent=agent, identity="claimed", policy_version=1, findings=[],
            beneficiary=e.BeneficiarySeen(known=True),
        ),
        e.VelocityChecked(at=at, payout=payout, number=1, used=0, limit=9, window_s=60, findings=[]),
        e.ReputationChecked(at=at, payout=payout, verdict="clean", fresh_until=NOW + 99, findings=[]),
        e.BudgetReserved(at=at, payout=payout, amount=500, number=3, windows=WINDOWS, findings=[], count_fees=True),
        e.PayoutDecided(
            at=at, payout=payout, account=ACCOUNT, amount=500, reasons=["POLICY_OK"], findings=[],
            bank_status="pending", **decided,  # type: ignore[arg-type]
        ),
    ]  # fmt: skip


def folded(
    record: PayoutRecord | None, events: list[e.Event], reads: frozenset[type[e.Fact]] = ALL
) -> list[Step]:
    payout = "" if record is None else record.payout
    return steps_of(0, [Decoded(1, "1-0", payout, "governance", events)], {payout: record}, reads=reads)


@st.composite
def entries(draw: st.DrawFn) -> tuple[PayoutRecord, list[e.Event]]:
    """A payout of any past, and an entry that is an approval at first sight, or nearly one."""
    seen: e.Event = draw(st.sampled_from([SEEN, ASKED]))
    record = evolve(None, seen)
    assert record is not None
    if draw(st.booleans()):
        held = approval(record.payout, NOW - 9, decision="HELD", reason="OUTSIDE_HOURS")
        record = fold(held[DECISION:], record)
        assert record is not None
    at = draw(times)
    events = approval(
        record.payout,
        at,
        draw(agents),
        decision=draw(decisions),
        policy_version=draw(versions),
        identity=draw(identities),
    )
    odd = draw(st.sampled_from(["", "", "time", "agent", "order", "more", "less"]))
    match odd:
        case "time":
            events[draw(st.integers(0, 4))] = approval(record.payout, at + 1)[0]
        case "agent":
            events[0] = approval(record.payout, at, "another")[0]
        case "order":
            events = draw(st.permutations(events))
        case "more":
            events += approval(record.payout, at + 3)[: draw(st.integers(1, 5))]
        case "less":
            del events[draw(st.integers(0, 4))]
    return record, list(events)


@given(entries())
def test_what_an_entry_leaves_of_a_payout_is_what_its_events_make_of_it_one_by_one(
    found: tuple[PayoutRecord, list[e.Event]],
) -> None:
    record, events = found
    steps = folded(record, events)
    assert steps[-1].after == fold(events, record)
    assert [step.event for step in steps] == events
    assert [step.place for step in steps] == list(range(len(events)))
    assert all(one.after is other.before for one, other in pairwise(steps))
    for step in steps:
        if type(step.event) is e.PayoutDecided and step.after is not None:
            assert step.after.decision == step.event.decision


READ = frozenset({e.BudgetReserved, e.PayoutDecided})


@given(entries())
def test_steps_that_change_nothing_are_left_out_where_nobody_reads_their_events(
    found: tuple[PayoutRecord, list[e.Event]],
) -> None:
    wanted = [s for s in folded(*found) if s.after is not s.before or type(s.event) in READ]
    assert folded(*found, READ) == wanted


def test_an_approval_at_first_sight_changes_the_record_once_with_its_decision() -> None:
    record = evolve(None, SEEN)
    steps = folded(record, approval("pout_1"))
    assert [step.after is record for step in steps] == [True, True, True, True, False]
    assert steps[DECISION].before is record

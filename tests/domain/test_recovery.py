"""What Redis must hold, from entries alone: rate slots, what was handled, records, ends of windows."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain import events as e
from streamproc.domain.budget import Ask, Ledger, Limits, RateAsk, window_end_s, windows_of
from streamproc.domain.payouts import fold
from streamproc.domain.policy import Policy
from streamproc.domain.recovery import Rates, Stored, Unhandled, is_over, rebuild
from streamproc.domain.wire import Meta
from tests.projections.histories import decided, reserved, settled
from tests.words import NOW, observed

INPUTS = {
    "governance": frozenset({e.PayoutObserved, e.ReviewSubmitted, e.TimerFired, e.BankCommandAnswered}),
    "execution": frozenset({e.PayoutDecided, e.CancelRequested}),
}
WINDOW_S = 60


def entry(n: int, *events: e.Event, by: str = "webhook", cause: int = 0) -> Stored:
    return Stored(f"1-{n}", Meta(by=by, cause=f"1-{cause}" if cause else ""), list(events))


def answered(payout: str, status: str = "processing") -> e.BankCommandAnswered:
    return e.BankCommandAnswered(at=NOW, payout=payout, command="approve", outcome="done", bank_status=status)


# ---- rate slots ----


@given(
    asked=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 200)), max_size=60),
    limit=st.integers(1, 4),
    swaps=st.lists(st.integers(0, 58), max_size=20),
)
def test_slots_are_those_that_admission_left_whatever_order_they_were_committed_in(
    asked: list[tuple[str, int]], limit: int, swaps: list[int]
) -> None:
    model, checked = Ledger(), list[tuple[str, e.VelocityChecked, int]]()
    for n, (agent, second) in enumerate(asked):
        at = NOW + second * 1_000_000
        ask = Ask(f"p{n}", 1, at, RateAsk(agent, limit, WINDOW_S * 1_000_000, True))
        rate = model.admit(ask).rate
        assert rate is not None
        limited = [e.Finding(stage="velocity", code="RATE_LIMITED", outcome="HELD")] if rate.limited else []
        event = e.VelocityChecked(
            at=NOW,
            payout=f"p{n}",
            number=rate.number,
            used=rate.used,
            limit=limit,
            window_s=WINDOW_S,
            findings=limited,
        )
        checked.append((agent, event, at))
    for i in swaps:
        if i + 1 < len(checked):
            checked[i], checked[i + 1] = checked[i + 1], checked[i]
    rates = Rates()
    for agent, event, at in checked:
        rates.add(agent, event, at, NOW // 1000)
    found = {agent: slots for agent, slots, _, _ in rates.agents()}
    for agent, slots in model.counters.rates.items():
        assert sorted(found[agent].values()) == [at for at in slots if at > slots[-1] - WINDOW_S * 1_000_000]
    answers = {payout: admission.rate for payout, admission in model.admissions.items()}
    assert not any(answers[payout].limited for slots in found.values() for payout in slots)


def test_an_agent_with_many_payouts_keeps_no_more_slots_than_can_count() -> None:
    rates = Rates()
    for n in range(5_000):
        event = e.VelocityChecked(
            at=NOW, payout=f"p{n}", number=n + 1, used=0, limit=5, window_s=WINDOW_S, findings=[]
        )
        rates.add("bot", event, NOW + n * 20_000_000, NOW // 1000)
    [(_, slots, window_us, _)] = rates.agents()
    assert list(slots) == ["p4997", "p4998", "p4999"]
    assert window_us == WINDOW_S * 1_000_000
    assert len(rates._agents["bot"].taken) < 1_000


# ---- who handled what ----


def test_an_entry_is_handled_by_the_group_that_names_it_as_the_cause() -> None:
    unhandled = Unhandled(INPUTS)
    for one in (
        entry(1, observed()),
        entry(2, decided("pout_1", 1), by="governance", cause=1),
        entry(3, observed(status="processing")),
        entry(4, answered("pout_1"), by="execution", cause=2),
    ):
        unhandled.see(one)
    assert unhandled.by_group() == {"governance": ["1-3", "1-4"]}


def test_a_dead_letters_entry_is_handled_until_it_is_redriven() -> None:
    aside = e.EntrySetAside(at=NOW, payout="pout_1", group="governance", entry="1-1", stage="", problem="x")
    closed = e.DeadLetterClosed(
        at=NOW, payout="pout_1", group="governance", entry="1-1", letter="0:1-1", action="redrive", by="asha"
    )
    unhandled = Unhandled(INPUTS)
    unhandled.see(entry(1, observed()))
    unhandled.see(entry(2, aside, by="governance", cause=1))
    assert unhandled.by_group() == {}
    unhandled.see(entry(3, closed, by="operator"))
    assert unhandled.by_group() == {"governance": ["1-1"]}


# ---- a payout ----


def test_a_payout_that_nobody_looked_at_has_no_record_yet() -> None:
    built = rebuild([entry(1, observed()), entry(2, observed(status="failed"))], INPUTS, "governance")
    assert built.record is None
    assert built.pending == {"governance": ["1-1", "1-2"]}


def test_a_decided_payout_has_all_that_was_seen_of_it_but_that_it_was_queued() -> None:
    history = [
        entry(1, observed()),
        entry(2, reserved("pout_1", 250_000), decided("pout_1", 250_000, "HELD"), by="governance", cause=1),
        entry(3, observed(status="queued")),
    ]
    held = rebuild(history, INPUTS, "governance")
    assert held.record is not None
    assert held.record.bank_status == "pending", "whoever sees it become queued cancels it"
    seen = rebuild([*history[:2], entry(3, observed(status="processed"))], INPUTS, "governance")
    assert seen.record == fold([*history[0].events, *history[1].events, observed(status="processed")])


def test_a_payout_that_ended_before_anybody_looked_has_its_record() -> None:
    built = rebuild([entry(1, observed(status="rejected"))], INPUTS, "governance")
    assert built.record is not None
    assert built.record.state == "declined"


def test_a_hold_is_due_until_its_timer_has_fired() -> None:
    held = e.PayoutDecided(
        **{
            name: getattr(decided("pout_1", 1, "HELD"), name)
            for name in e.PayoutDecided.__struct_fields__
            if name != "v"
        }
        | {"hold_expires_at": NOW + 5}
    )
    history = [entry(1, observed()), entry(2, held, by="governance", cause=1)]
    due = rebuild(history, INPUTS, "governance").timers
    assert [timer.timer for timer in due] == ["hold_reminder", "hold_escalation", "hold_expiry"]
    assert due[-1].at == NOW + 5
    fired = e.TimerFired(at=NOW + 5, payout="pout_1", timer="hold_expiry")
    built = rebuild([*history, entry(3, fired, by="timers")], INPUTS, "governance")
    assert [timer.timer for timer in built.timers] == ["hold_reminder", "hold_escalation"]
    assert built.pending["governance"] == ["1-3"]


RESERVATION = reserved("pout_1", 250_000)


@pytest.mark.parametrize(
    ("events", "over"),
    [
        ([observed(), RESERVATION, decided("pout_1", 250_000)], False),
        (
            [observed(), RESERVATION, decided("pout_1", 250_000), observed(status="processed")],
            False,
        ),  # not settled
        (
            [
                *(observed(), RESERVATION, decided("pout_1", 250_000), observed(status="processed")),
                settled(RESERVATION, "committed"),
            ],
            True,
        ),
        ([observed(), decided("pout_1", 1, "REJECTED"), observed(status="rejected")], True),
        ([observed(), decided("pout_1", 1, "REJECTED"), observed(status="processed")], False),  # a bypass
        ([observed(status="rejected")], False),  # was it looked at?
    ],
)
def test_a_payout_is_over_when_nothing_of_it_can_still_be_to_do(events: list[e.Event], over: bool) -> None:
    record = fold(events)
    assert record is not None
    assert is_over(record) == over


# ---- windows ----


@given(
    zone=st.sampled_from(
        ["Asia/Kolkata", "America/New_York", "Pacific/Pago_Pago", "Pacific/Kiritimati", "UTC"]
    ),
    at_s=st.integers(1_700_000_000, 1_900_000_000),
)
def test_no_window_ends_later_than_its_name_tells_nor_a_day_and_two_hours_earlier(
    zone: str, at_s: int
) -> None:
    policy = Policy(daily_limit=1, weekly_limit=1, monthly_limit=1, timezone=zone)
    windows = windows_of(
        Limits(policy), agent="a", account="b", vendor="", received_at=at_s * 1_000_000, zone="UTC",
    )  # fmt: skip
    for window in windows:
        assert 0 <= window_end_s(window.window) - window.ends_at <= 26 * 3_600 + 3_600


def test_a_windows_end_is_midnight_in_the_last_zone() -> None:
    ends = [
        datetime.fromtimestamp(window_end_s(name), UTC)
        for name in ("2026-12-31", "2026-W53", "2026-12", "2026-09")
    ]
    assert [end.isoformat()[:16] for end in ends] == [
        "2027-01-01T12:00",
        "2027-01-04T12:00",
        "2027-01-01T12:00",
        "2026-10-01T12:00",
    ]

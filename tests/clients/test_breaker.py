import pytest

from streamproc.clients.breaker import Breaker
from tests.clients.loopback import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def begun(breaker: Breaker) -> int:
    ticket = breaker.begin()
    assert ticket is not None
    return ticket


def opened(clock: HandClock) -> Breaker:
    breaker = Breaker(failures_max=2, open_s=10, clock=clock)
    for _ in range(2):
        breaker.failed(begun(breaker))
    return breaker


def test_it_opens_at_the_last_allowed_failure_in_a_row_and_not_before(clock: HandClock) -> None:
    breaker = Breaker(failures_max=3, open_s=10, clock=clock)
    for _ in range(2):
        breaker.failed(begun(breaker))
    assert breaker.state == "closed"
    breaker.failed(begun(breaker))
    assert breaker.state == "open"


def test_a_success_between_failures_starts_the_count_again(clock: HandClock) -> None:
    breaker = Breaker(failures_max=2, open_s=10, clock=clock)
    breaker.failed(begun(breaker))
    breaker.succeeded(begun(breaker))
    breaker.failed(begun(breaker))
    assert breaker.state == "closed"


def test_while_open_nothing_begins_and_the_wait_is_what_is_left(clock: HandClock) -> None:
    breaker = opened(clock)
    clock.now_s += 4
    assert (breaker.begin(), breaker.wait_s, breaker.opened_for_s) == (None, 6, 4)


def test_half_open_lets_exactly_one_call_through(clock: HandClock) -> None:
    breaker = opened(clock)
    clock.now_s += 10
    assert breaker.state == "half_open"
    assert breaker.begin() is not None
    assert breaker.begin() is None
    assert breaker.wait_s > 0


def test_a_probe_that_succeeds_closes_it(clock: HandClock) -> None:
    breaker = opened(clock)
    clock.now_s += 10
    breaker.succeeded(begun(breaker))
    assert (breaker.state, breaker.opened_for_s) == ("closed", 0)
    assert breaker.begin() is not None
    assert breaker.begin() is not None


def test_a_probe_that_fails_opens_it_again_at_once_and_the_trouble_counts_on(clock: HandClock) -> None:
    breaker = opened(clock)
    clock.now_s += 10
    breaker.failed(begun(breaker))
    assert (breaker.state, breaker.wait_s, breaker.opened_for_s) == ("open", 10, 10)


def test_a_cancelled_probe_leaves_its_place_to_another(clock: HandClock) -> None:
    breaker = opened(clock)
    clock.now_s += 10
    breaker.abandoned(begun(breaker))
    assert breaker.begin() is not None


@pytest.mark.parametrize("late", ["succeeded", "failed"])
def test_the_end_of_a_call_from_before_the_trouble_changes_nothing(clock: HandClock, late: str) -> None:
    breaker = Breaker(failures_max=2, open_s=10, clock=clock)
    old = begun(breaker)
    for _ in range(2):
        breaker.failed(begun(breaker))
    clock.now_s += 10
    probe = begun(breaker)
    getattr(breaker, late)(old)
    assert breaker.state == "half_open"
    breaker.succeeded(probe)
    assert breaker.state == "closed"


@pytest.mark.parametrize("late", ["succeeded", "failed"])
def test_a_late_answer_neither_closes_it_while_it_is_open_nor_keeps_it_open_longer(
    clock: HandClock, late: str
) -> None:
    breaker = Breaker(failures_max=2, open_s=10, clock=clock)
    old = begun(breaker)
    for _ in range(2):
        breaker.failed(begun(breaker))
    clock.now_s += 4
    getattr(breaker, late)(old)
    assert (breaker.state, breaker.wait_s) == ("open", 6)

"""A profile is measured from an agent's own history, and of that history it holds no more than the stated share."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.domain.anomaly import PAYOUTS_MIN, THRESHOLD_MAX, THRESHOLD_MIN, score_of, written_profile
from streamproc.domain.calibration import PastPayout, calibrated, profile_wanted, scored, too_short
from streamproc.domain.policy_fields import POLICY_FIELDS
from tests.words import NOW

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ZONE = "Asia/Kolkata"


def history(amounts: list[int], times: list[int] | None = None) -> list[PastPayout]:
    """Payouts of these amounts, received at these times (µs), or all at NOW, a Monday at 19:43."""
    at = times or [NOW] * len(amounts)
    return [
        PastPayout(f"pout_{n}", amount, when)
        for n, (amount, when) in enumerate(zip(amounts, at, strict=True))
    ]


def test_amounts_are_what_so_many_twentieths_of_the_payouts_do_not_exceed() -> None:
    profile = calibrated(history(list(range(1_000, 0, -1))), zone=ZONE).profile
    assert profile.amounts == (1, *range(50, 951, 50))
    assert calibrated(history([7] * 50), zone=ZONE).profile.amounts == (7,) * 20


def test_hours_are_counted_in_the_zone_weekends_apart() -> None:
    times = [NOW] * 30 + [NOW + 5 * DAY_US] * 20 + [NOW + 6 * DAY_US] * 3  # Mon, Sat, Sun
    profile = calibrated(history([5] * 53, times), zone=ZONE).profile
    assert (profile.payouts, profile.weekday_hours[19], profile.weekend_hours[19]) == (53, 30, 23)
    assert sum(profile.weekday_hours) + sum(profile.weekend_hours) == 53
    assert calibrated(history([5] * 53, times), zone="UTC").profile.weekday_hours[14] == 30
    assert (profile.since, profile.until) == ("2026-09-21T14:13:20.000000Z", "2026-09-27T14:13:20.000000Z")


def test_of_an_agent_that_is_like_a_clock_nothing_is_held() -> None:
    found = calibrated(history([50_000] * 60), zone=ZONE)
    assert (found.profile.threshold, found.above) == (THRESHOLD_MIN, ())


def test_what_is_unlike_is_named_the_highest_score_first() -> None:
    found = calibrated(history([50_000] * 98 + [900_000, 2_000_000]), zone=ZONE, share_held=20)
    assert [one.payout.payout for one in found.above] == ["pout_99", "pout_98"]
    assert found.profile.threshold == THRESHOLD_MIN


def test_a_few_large_payouts_do_not_make_others_look_usual() -> None:
    plain, with_large = ([50_000] * 57 + rest for rest in ([50_000] * 3, [50_000, 900_000, 1_000_000]))
    scores = [
        score_of(calibrated(history(amounts), zone=ZONE).profile, 800_000, NOW)
        for amounts in (plain, with_large)
    ]
    assert scores[0] == scores[1]


def test_a_payout_of_the_history_counts_as_one_of_the_next_would() -> None:
    """The only one of its hour is at an hour that was never seen, and its neighbours have it beside them."""
    past = history([5_000] * 60, [NOW] * 59 + [NOW + 8 * HOUR_US])
    profile = calibrated(past, zone=ZONE).profile
    assert (
        score_of(profile, 5_000, NOW + 8 * HOUR_US).time == 951
    )  # 1 - (2 * 2 * 1 + 8) / (2 * 2 * 59 + 8), in per mille
    assert [one.score.time for one in scored(past, profile)] == [0] * 59 + [968]


@pytest.mark.parametrize("many", [60, 300, 3_000])
@pytest.mark.parametrize(
    "hours",
    [lambda chance: chance.gauss(13.5, 2.5), lambda chance: chance.uniform(0, 24)],
    ids=["office hours", "round the clock"],
)
def test_of_the_next_payouts_of_a_steady_agent_few_are_held(
    many: int, hours: Callable[[Random], float]
) -> None:
    """Of sixty one exceeds the threshold, so of the next some three in a hundred do; of more, one in a hundred."""
    chance = Random(1)

    def some(number: int) -> list[PastPayout]:
        return [
            PastPayout(
                str(n), int(50_000 * chance.lognormvariate(0, 0.5)), DAY + int(hours(chance) * HOUR_US)
            )
            for n in range(number)
            for DAY in [chance.randrange(30) * DAY_US]
        ]

    held = []
    for _ in range(10):
        profile = calibrated(some(many), zone="UTC").profile
        held += [
            score_of(profile, one.amount, one.received_at).score > profile.threshold for one in some(300)
        ]
    assert sum(held) <= len(held) * (0.04 if many == 60 else 0.02)


@pytest.mark.parametrize("spread", [0, 1.5])
def test_of_no_history_twenty_times_what_is_usual_is_let_through(spread: float) -> None:
    """An agent with a batch at two, and as many large payouts at other hours as would lift the threshold to 700, which
    no amount exceeds at two."""
    chance = Random(1)
    batch = [(max(1, int(chance.lognormvariate(10, spread))), 2 * HOUR_US) for _ in range(970)]
    others = [(10_000_000, n % 24 * HOUR_US) for n in range(30)]
    amounts, hours = zip(*batch, *others, strict=True)
    past = history(list(amounts), [n % 28 * DAY_US + hour for n, hour in enumerate(hours)])
    found = calibrated(past, zone="UTC")
    profile, large = found.profile, 20 * found.profile.amounts[-1]
    assert profile.threshold == THRESHOLD_MAX
    assert all(score_of(profile, large, one.received_at).score > THRESHOLD_MAX for one in past)
    assert len(found.above) <= len(past) / 20


habits = st.builds(
    lambda seed, many, spread: [
        PastPayout(
            f"pout_{n}",
            max(1, int(chance.lognormvariate(10, spread))),
            NOW - chance.randrange(30 * 24) * HOUR_US,
        )
        for chance in [Random(seed)]
        for n in range(many)
    ],
    st.integers(0, 2**32),
    st.integers(PAYOUTS_MIN, 300),
    st.sampled_from([0, 0.1, 1, 3]),
)


@settings(deadline=None)
@given(past=habits, share=st.integers(0, 100))
def test_the_threshold_holds_at_most_the_stated_share_and_no_lower_one_would(
    past: list[PastPayout], share: int
) -> None:
    found = calibrated(past, zone=ZONE, share_held=share)
    scores = [score_of(found.profile, one.amount, one.received_at).score for one in past]
    may = -(-len(past) * share // 1_000)
    threshold = found.profile.threshold
    assert sum(score > threshold for score in scores) <= len(found.above)
    assert len(found.above) <= (may if threshold < THRESHOLD_MAX else len(past) / 20)
    as_one_of_the_next = [one.score.score for one in scored(past, found.profile)]
    assert sum(score > threshold for score in as_one_of_the_next) == len(found.above)
    assert threshold == THRESHOLD_MIN or sum(score >= threshold for score in as_one_of_the_next) > may
    assert THRESHOLD_MIN <= threshold <= THRESHOLD_MAX
    assert POLICY_FIELDS["anomaly_profile"](written_profile(found.profile)) == found.profile


@pytest.mark.parametrize(("days", "short"), [(0, True), (6, True), (7, False), (30, False)])
def test_a_history_of_less_than_a_week_is_said_to_be_short(days: int, short: bool) -> None:
    times = [NOW - n * days * DAY_US // 49 for n in range(50)]
    assert bool(too_short(calibrated(history([5_000] * 50, times), zone=ZONE).profile)) is short


@settings(deadline=None, max_examples=20)
@given(past=habits, seed=st.integers())
def test_the_order_in_which_payouts_are_read_does_not_matter(past: list[PastPayout], seed: int) -> None:
    other = list(past)
    Random(seed).shuffle(other)
    assert calibrated(other, zone=ZONE) == calibrated(past, zone=ZONE)


@pytest.mark.parametrize(
    ("effective", "wanted"),
    [
        (None, False),
        ({"anomaly": False, "anomaly_profile": None}, False),
        ({"anomaly": True, "anomaly_profile": {"payouts": 50}}, False),
        ({"anomaly": True, "anomaly_profile": None}, True),
    ],
)
def test_a_policy_that_asks_and_has_no_profile_is_told_what_to_do(
    effective: dict[str, object] | None, wanted: bool
) -> None:
    said = profile_wanted("bot", effective)
    assert said.endswith("streamproc policy calibrate bot") is wanted
    assert bool(said) is wanted

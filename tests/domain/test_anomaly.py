"""Rule 15's score: what an amount and an hour come to, and how a profile is read."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain.anomaly import (
    HOURS,
    PAYOUTS_MAX,
    QUANTILES,
    AnomalyProfile,
    evidence_of_anomaly,
    read_profile,
    score_of,
    written_profile,
)
from streamproc.domain.governance import decide
from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.policy_fields import POLICY_FIELDS
from streamproc.domain.shown import evidence_texts
from tests.domain.test_governance import bare
from tests.profiles import OFFICE, policy_fields
from tests.words import NOW

HOUR_US = 3_600_000_000
AT_14 = NOW - 5 * HOUR_US
"""Mon 14:43, a typical hour of OFFICE."""
LAST_HOUR = NOW
"""Mon 19:43: the hour after it is empty."""
AN_HOUR_LATE = NOW + HOUR_US
AT_NIGHT = NOW + 8 * HOUR_US
ON_SUNDAY = AT_14 - 24 * HOUR_US


@pytest.mark.parametrize(
    ("amount", "part"),
    [
        (1, 0),
        (99, 0),
        (100, 0),
        (1_000, 236),  # 9/19 of 500
        (1_050, 250),
        (1_099, 262),
        (2_000, 500),
        (2_001, 500),
        (4_000, 750),
        (20_000, 950),
        (AMOUNT_MAX_PAISE, 999),
    ],
)
def test_an_amount_counts_half_its_rank_and_above_the_usual_by_ratio(amount: int, part: int) -> None:
    assert score_of(OFFICE, amount, AT_14) == (7 * part // 10, part, 0)


@pytest.mark.parametrize(
    ("at", "part"), [(AT_14, 0), (LAST_HOUR, 228), (AN_HOUR_LATE, 682), (AT_NIGHT, 910), (ON_SUNDAY, 910)]
)
def test_an_hour_counts_by_how_much_rarer_it_is_than_a_typical_one(at: int, part: int) -> None:
    assert score_of(OFFICE, 2_000, at) == ((7 * 500 + 3 * part) // 10, 500, part)


def test_a_payout_on_a_weekend_counts_as_much_as_weekends_are_rarer() -> None:
    both = replace(OFFICE, weekday_hours=(5,) * 10 + (0,) * 14, weekend_hours=(2,) * 10 + (0,) * 14)
    times = {score_of(both, 100, NOW - 15 * HOUR_US - days * 24 * HOUR_US).time for days in range(7)}
    assert times == {0}  # each at 04:43


@pytest.mark.parametrize(
    ("amount", "part"), [(999, 0), (1_000, 250), (1_001, 250), (2_000, 625), (20_000, 962)]
)
def test_of_an_agent_that_always_pays_the_same_a_little_more_is_not_unlike(amount: int, part: int) -> None:
    assert score_of(replace(OFFICE, amounts=(1_000,) * QUANTILES), amount, AT_14).amount == part


def test_hours_are_those_of_the_profiles_zone() -> None:
    assert [
        score_of(replace(OFFICE, timezone=zone), 100, LAST_HOUR).time for zone in ("UTC", "Asia/Kolkata")
    ] == [0, 228]


counts = st.integers(0, PAYOUTS_MAX)
hours = st.lists(counts, min_size=HOURS, max_size=HOURS).map(tuple)
money = st.integers(1, AMOUNT_MAX_PAISE) | st.integers(1, 2_000)
profiles = st.builds(
    lambda amounts, weekday, weekend, zone: replace(
        OFFICE, amounts=tuple(sorted(amounts)), weekday_hours=weekday, weekend_hours=weekend, timezone=zone
    ),
    st.lists(money, min_size=QUANTILES, max_size=QUANTILES),
    hours,
    hours,
    st.sampled_from(["Asia/Kolkata", "UTC", "America/New_York"]),
)
times = st.integers(0, 4_000_000_000_000_000)


@given(profile=profiles, amounts=st.lists(money, min_size=2, max_size=6), at=times)
def test_a_larger_payout_never_has_a_lower_score_and_all_are_per_mille(
    profile: AnomalyProfile, amounts: list[int], at: int
) -> None:
    for edge in profile.amounts:  # where one rule for amounts ends and another begins
        amounts += [max(1, edge - 1), edge, edge + 1]
    scores = [score_of(profile, amount, at) for amount in sorted(amounts)]
    assert all(one.score <= more.score for one, more in pairwise(scores))
    assert all(0 <= number <= 1_000 for score in scores for number in score)


@given(profile=profiles, amount=money, at=times)
def test_evidence_is_there_where_the_score_is_above_the_threshold(
    profile: AnomalyProfile, amount: int, at: int
) -> None:
    score = score_of(profile, amount, at).score
    assert evidence_of_anomaly(replace(profile, threshold=score), amount, at) is None
    found = evidence_of_anomaly(replace(profile, threshold=score - 1), amount, at)
    assert found is not None
    assert (found["score"], found["threshold"]) == (score, score - 1)


STEADY = replace(OFFICE, amounts=(1_000,) * QUANTILES)


@pytest.mark.parametrize(
    ("profile", "at", "passes", "held"),
    [(OFFICE, AT_14, 3_500, 3_600), (STEADY, AT_14, 2_600, 2_700), (OFFICE, AT_NIGHT, 1_300, 1_400)],
    ids=["typical hour", "always the same", "at night"],
)
def test_what_the_document_says_of_a_threshold_of_500(
    profile: AnomalyProfile, at: int, passes: int, held: int
) -> None:
    found = [evidence_of_anomaly(profile, amount, at) is not None for amount in (passes, held)]
    assert found == [False, True]


# ---- the rule ----


@pytest.mark.parametrize(
    ("fields", "amount", "decision"),
    [
        (policy_fields(), 2_000, "APPROVED"),
        (policy_fields(), 40_000, "HELD"),
        (policy_fields(threshold=750), 40_000, "APPROVED"),
        (policy_fields().replace("true", "false", 1), 40_000, "APPROVED"),
        ("anomaly: true", 40_000, "APPROVED"),
    ],
    ids=["usual", "twenty times as much", "threshold not exceeded", "switched off", "never measured"],
)
def test_a_payout_above_the_threshold_is_held_where_the_policy_asks(
    fields: str, amount: int, decision: str
) -> None:
    assert decide(bare(fields, amount=amount)).decision == decision


def test_a_threshold_that_is_reached_is_not_exceeded() -> None:
    score = score_of(OFFICE, 40_000, NOW).score
    held = [decide(bare(policy_fields(threshold=at), amount=40_000)).reason for at in (score, score - 1)]
    assert held == ["POLICY_OK", "ANOMALY_DETECTED"]


def test_what_is_held_says_the_score_its_parts_and_what_is_usual() -> None:
    [finding] = decide(bare(policy_fields(), amount=40_000)).findings
    assert (finding.stage, finding.code, finding.outcome) == ("anomaly", "ANOMALY_DETECTED", "HELD")
    assert evidence_texts(finding) == [
        "score 750", "threshold 500", "amount_score 975", "time_score 228", "amount ₹400.00",
        "usual_up_to ₹20.00", "received Mon 19:43", "zone Asia/Kolkata", "payouts 100",
    ]  # fmt: skip


def test_it_is_held_behind_what_reputation_finds_and_before_a_person_is_asked_for_the_amount() -> None:
    case = bare(policy_fields() + ", require_approval_above: 0, new_beneficiary: hold", amount=40_000)
    assert decide(case).reasons == ["BENEFICIARY_NEW", "ANOMALY_DETECTED", "APPROVAL_REQUIRED"]


# ---- as a policy has it ----


read = POLICY_FIELDS["anomaly_profile"]


@given(profile=profiles)
def test_a_profile_that_is_written_reads_as_the_same(profile: AnomalyProfile) -> None:
    count = sum(profile.weekday_hours) + sum(profile.weekend_hours)
    whole = replace(profile, payouts=count)
    if 50 <= count <= PAYOUTS_MAX:
        assert read(written_profile(whole)) == whole
    else:
        with pytest.raises(ValueError, match="payouts must be a whole number from 50 to 10000"):
            read(written_profile(whole))


def test_null_is_no_profile() -> None:
    assert read(None) is None
    assert read(written_profile(OFFICE)) == OFFICE


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"threshold": 1_001}, "threshold must be a whole number from 0 to 1000, not 1001"),
        ({"threshold": 0.5}, "threshold must be a whole number from 0 to 1000, not 0.5"),
        ({"threshold": True}, "threshold must be a whole number from 0 to 1000, not true"),
        ({"payouts": 49}, "payouts must be a whole number from 50 to 10000, not 49"),
        ({"payouts": 101}, "payouts is 101, but its hours have 100"),
        ({"amounts": [5] * 19}, "amounts must be a list of 20 numbers"),
        ({"amounts": "5"}, "amounts must be a list of 20 numbers"),
        ({"amounts": [5] * 19 + [4]}, "amounts must not fall"),
        ({"amounts": [0] * 20}, "amounts must be a whole number from 1"),
        ({"weekday_hours": [5] * 25}, "weekday_hours must be a list of 24 numbers"),
        ({"weekend_hours": [-1] + [0] * 23}, "weekend_hours must be a whole number from 0 to 10000, not -1"),
        ({"timezone": "Mars/Olympus"}, "must be a time zone like Asia/Kolkata"),
        ({"since": "2026-09-21T00:00:00Z"}, "since is after until"),
        ({"until": "2026-09-21T00:00:00"}, "until must be a time in ISO 8601 with its zone"),
        ({"until": "2026-09-21\x1b00:00:00Z"}, "until must be a time in ISO 8601 with its zone"),
        ({"until": "2026-09-21T00:00:00." + "1" * 10_000 + "Z"}, "until must be a time in ISO 8601"),
        ({"until": 5}, "until must be a time in ISO 8601 with its zone, not 5"),
        ({"treshold": 5}, "'treshold' is not known; did you mean 'threshold'?"),
    ],
)  # fmt: skip
def test_a_profile_that_is_not_whole_or_contradicts_itself_is_refused(
    change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem.replace("?", r"\?")):
        read(written_profile(OFFICE) | change)


@pytest.mark.parametrize("missing", AnomalyProfile.__struct_fields__)
def test_no_part_of_a_profile_has_a_default(missing: str) -> None:
    written = written_profile(OFFICE)
    del written[missing]
    with pytest.raises(ValueError, match=f"lacks {missing}: it is measured as a whole"):
        read_profile(written, str)


@pytest.mark.parametrize("value", ["yes", 5, [1]])
def test_a_profile_is_a_mapping(value: object) -> None:
    with pytest.raises(ValueError, match="must be a profile as `streamproc policy calibrate` makes it"):
        read(value)

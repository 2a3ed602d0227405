"""Measures an agent's profile for rule 15 from its own approved payouts. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.anomaly import (
    HOURS,
    PAYOUTS_MAX,
    PAYOUTS_MIN,
    QUANTILES,
    SCALE,
    THRESHOLD_MAX,
    THRESHOLD_MIN,
    AnomalyProfile,
    Score,
    hour_of_week,
    score_of,
)
from streamproc.domain.shown import iso

SHARE_HELD = 10
"""Default share (per mille) of the history that may be above the threshold."""
SHARE_HELD_MAX = 100
WHOLE_WEEK = timedelta(days=7)
"""A history that is shorter has none of some hours of the week, and the rule calls all of them rare."""
PROFILE_AGE_MAX = timedelta(days=90)
"""A profile whose newest payout is older than this is called outdated: prices, vendors and the agent's work change."""
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


class PastPayout(NamedTuple):
    """An approved payout: its amount in paise and when it was received (µs)."""

    payout: str
    amount: int
    received_at: int


class Scored(NamedTuple):
    """A past payout with the score that it would have if it had not been in the history itself."""

    payout: PastPayout
    score: Score


class Calibration(Struct, frozen=True):
    """A profile, and the payouts of its history that are above its threshold, the highest scores first."""

    profile: AnomalyProfile
    above: tuple[Scored, ...]


def calibrated(history: Sequence[PastPayout], *, zone: str, share_held: int = SHARE_HELD) -> Calibration:
    """The profile of a history of PAYOUTS_MIN to PAYOUTS_MAX payouts, with hours in `zone`.

    The threshold is the lowest that at most `share_held` per mille of the history exceed (rounded up to whole payouts,
    each scored as if it had not been there), from THRESHOLD_MIN to THRESHOLD_MAX. The order of the history does not
    matter.
    """
    assert PAYOUTS_MIN <= len(history) <= PAYOUTS_MAX
    assert 0 <= share_held <= SHARE_HELD_MAX
    amounts = sorted(past.amount for past in history)
    hours = [0] * (2 * HOURS)
    for past in history:
        hours[hour_of_week(past.received_at, zone)] += 1
    profile = AnomalyProfile(
        since=iso(min(past.received_at for past in history)),
        until=iso(max(past.received_at for past in history)),
        payouts=len(history),
        threshold=SCALE,
        timezone=zone,
        amounts=tuple(_not_exceeded_by(amounts, step) for step in range(QUANTILES)),
        weekday_hours=tuple(hours[:HOURS]),
        weekend_hours=tuple(hours[HOURS:]),
    )
    by_score = sorted(
        scored(history, profile), key=lambda s: (-s.score.score, -s.payout.amount, s.payout.payout)
    )
    may_exceed = -(-len(history) * share_held // SCALE)
    threshold = min(max(THRESHOLD_MIN, by_score[may_exceed].score.score), THRESHOLD_MAX)
    above = tuple(one for one in by_score if one.score.score > threshold)
    return Calibration(replace(profile, threshold=threshold), above)


def scored(history: Sequence[PastPayout], profile: AnomalyProfile) -> Iterator[Scored]:
    """Each payout's score where the others' hours are the profile's. With its own, no payout is at an hour that was
    never seen, as some of the next ones will be, and the threshold would be too low for these."""
    without: dict[int, AnomalyProfile] = {}
    for past in history:
        hour = hour_of_week(past.received_at, profile.timezone)
        if hour not in without:
            hours = [*profile.weekday_hours, *profile.weekend_hours]
            hours[hour] -= 1
            others = {"weekday_hours": tuple(hours[:HOURS]), "weekend_hours": tuple(hours[HOURS:])}
            without[hour] = replace(profile, **others)
        yield Scored(past, score_of(without[hour], past.amount, past.received_at))


def _not_exceeded_by(amounts: Sequence[int], step: int) -> int:
    """Of sorted amounts the least that so many twentieths of them do not exceed."""
    return amounts[max(0, -(-len(amounts) * step // QUANTILES) - 1)]


def too_short(profile: AnomalyProfile) -> str:
    """What to know of a profile whose history is less than a week; '' of any other."""
    if datetime.fromisoformat(profile.until) - datetime.fromisoformat(profile.since) >= WHOLE_WEEK:
        return ""
    return (
        "these payouts are of less than a week: at hours and days that are not among them, the agent's larger usual"
        " amounts are held too; measure again after a week"
    )


def profile_age(until: str, now_us: int) -> timedelta:
    """How old a profile is: the time since its newest payout, not below 0."""
    age = _BEGIN + timedelta(microseconds=now_us) - datetime.fromisoformat(until)
    return max(age, timedelta())


def is_outdated(effective: Mapping[str, object] | None, now_us: int) -> bool:
    """Whether an agent's policy asks rule 15 of a profile that is older than PROFILE_AGE_MAX."""
    if effective is None or not effective.get("anomaly"):
        return False
    profile = effective.get("anomaly_profile")
    return isinstance(profile, Mapping) and profile_age(str(profile["until"]), now_us) > PROFILE_AGE_MAX


def profile_wanted(agent: str, effective: Mapping[str, object] | None) -> str:
    """What to do where an agent's policy asks rule 15 and has no profile to ask it of; '' where nothing is to be
    done."""
    if effective is None or not effective.get("anomaly") or effective.get("anomaly_profile") is not None:
        return ""
    return (
        f"agent {agent}: anomaly is on, but holds nothing before its payouts are measured:"
        f" streamproc policy calibrate {agent}"
    )

"""Rule 15: how unlike its agent's usual payouts a payout is, as a score of 0 to 1000 per mille. Pure; integers alone.

An agent's profile is measured from its own approved payouts (`calibration.py`) and is a field of its policy. So the
score needs the payout and the policy and nothing else, now and when the log is judged again. It has two parts:

- amount: up to the amount that 95 % of the history do not exceed, half of the payout's rank in the history; above it,
  the rest of the way to 1000 by ratio: at twice that amount half of it, at ten times nine tenths;
- time: how much rarer the local hour is than the typical one, in which, or in busier ones, half of the payouts came;
  weekdays and weekends apart. Neighbouring hours count half, and every hour as if it had been seen once more.

score = (7 x amount + 3 x time) / 10, rounded down.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from streamproc.domain.facts import Evidence
from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.policy_report import shown, unknown

SCALE = 1_000
"""Scores, their parts and the threshold are per mille of this."""
AMOUNT_WEIGHT, TIME_WEIGHT = 7, 3
"""Tenths of the score. So an hour alone, at most 300, never reaches THRESHOLD_MIN."""
QUANTILES = 20
"""Amounts in a profile: what 0, 5, … 95 % of the payouts do not exceed. The last twentieth is left out, so that a few
large payouts do not make others look usual."""
HOURS = 24
PAYOUTS_MIN = 50
"""Fewest payouts of a profile: with less, most hours of a week would be unseen by chance."""
PAYOUTS_MAX = 10_000
"""Most payouts of a profile, of more a sample: the newest ones of a busy agent may all be of one day."""
THRESHOLD_MIN = 500
"""Calibration gives no lower threshold: else, of an agent that always pays the same, a little more would be held."""
THRESHOLD_MAX = 670
"""Calibration gives no higher one: from 700 on no amount would be held in a typical hour. With this, twenty times the
last of the amounts is held at every hour, and of the history a twentieth at most, since an hour alone adds 300."""
PROFILES_MAX = 4_096
"""Profiles whose hours a process keeps as scores, some 2 kB each."""

_PER_DAY = (2, 5)
"""A payout on one of five weekdays, or of two days of the weekend, as so many in ten days of that kind."""
_ONCE_MORE = _PER_DAY[0] * 4
"""What one more payout on a weekday in each hour would add to an hour with its neighbours (1 + 2 + 1)."""
_US = 1_000_000
_MOMENT = re.compile(r"[0-9TWZtz:.,+ -]{1,40}")
"""Python takes any character between date and time, and any number of digits of a second; people are shown it."""


class AnomalyProfile(Struct, frozen=True, kw_only=True):
    """What an agent's usual payouts are like, and the threshold above which one is held."""

    since: str
    until: str
    """When the oldest and the newest payout of the history were received, ISO 8601."""
    payouts: int
    threshold: int
    timezone: str
    """The zone of the hours. It stays with the profile, whatever the policy's becomes."""
    amounts: tuple[int, ...]
    """QUANTILES amounts in paise, rising."""
    weekday_hours: tuple[int, ...]
    weekend_hours: tuple[int, ...]
    """How many payouts were received in each hour of the day."""


class Score(NamedTuple):
    """A payout's score and its parts, per mille."""

    score: int
    amount: int
    time: int


def score_of(profile: AnomalyProfile, amount: int, received_at: int) -> Score:
    """The score of a payout of `amount` paise, received at a time (µs). Of two that differ in amount alone, the larger
    has no lower score."""
    by_amount = _amount_part(profile.amounts, amount)
    by_time = _time_parts(profile)[hour_of_week(received_at, profile.timezone)]
    return Score((AMOUNT_WEIGHT * by_amount + TIME_WEIGHT * by_time) // 10, by_amount, by_time)


def evidence_of_anomaly(profile: AnomalyProfile, amount: int, received_at: int) -> Evidence | None:
    """What shows that a payout is unlike the others, with each part of its score; None if it is not."""
    found = score_of(profile, amount, received_at)
    if found.score <= profile.threshold:
        return None
    return {
        "score": found.score,
        "threshold": profile.threshold,
        "amount_score": found.amount,
        "time_score": found.time,
        "amount": amount,
        "usual_up_to": profile.amounts[-1],
        "received": _local(received_at, profile.timezone).strftime("%a %H:%M"),
        "zone": profile.timezone,
        "payouts": profile.payouts,
    }


def hour_of_week(received_at: int, zone: str) -> int:
    """The local hour of the day, 0 to 23; of a weekend 24 to 47."""
    at = _local(received_at, zone)
    return at.hour + (HOURS if at.weekday() >= 5 else 0)


def _local(received_at: int, zone: str) -> datetime:
    return datetime.fromtimestamp(received_at // _US, ZoneInfo(zone))


def _amount_part(amounts: tuple[int, ...], amount: int) -> int:
    """0 below the least of the history, up to 500 within, and towards 1000 above."""
    most = amounts[-1]
    if amount > most:
        usual = _rank(amounts, most)
        return usual + (SCALE - usual) * (amount - most) // amount
    return _rank(amounts, amount)


def _rank(amounts: tuple[int, ...], amount: int) -> int:
    """Half the rank in per mille of an amount that is at most the last: between two quantiles in proportion; of an
    amount that is several quantiles, their middle."""
    half, steps = SCALE // 2, QUANTILES - 1
    first, behind = bisect_left(amounts, amount), bisect_right(amounts, amount)
    if first < behind:
        return half * (first + behind - 1) // (2 * steps)
    if behind == 0:
        return 0
    below, above = amounts[behind - 1], amounts[behind]
    return (half * (behind - 1) + half * (amount - below) // (above - below)) // steps


@lru_cache(maxsize=PROFILES_MAX)
def _time_parts(profile: AnomalyProfile) -> tuple[int, ...]:
    """The time part of each hour of a week (`hour_of_week`): 0 in the typical one and in those that are busier."""
    often = [
        of_day * (hours[at - 1] + 2 * hours[at] + hours[(at + 1) % HOURS]) + _ONCE_MORE
        for of_day, hours in zip(_PER_DAY, (profile.weekday_hours, profile.weekend_hours), strict=True)
        for at in range(HOURS)
    ]
    typical = _typical(often, (*profile.weekday_hours, *profile.weekend_hours))
    return tuple(SCALE - SCALE * min(here, typical) // typical for here in often)


def _typical(often: list[int], payouts: tuple[int, ...]) -> int:
    """How often the hour is in which, or in rarer ones, half of the payouts came. Not the busiest: of few payouts that
    is a chance, and beside it most hours look rare."""
    rarer = 0
    for here, many in sorted(zip(often, payouts, strict=True)):
        rarer += many
        if 2 * rarer >= sum(payouts):
            return here
    raise AssertionError("half of the payouts came in some hour")


# ---- as a policy has it -----------------------------------------------------------------


def read_profile(value: object, timezone: Callable[[object], object]) -> AnomalyProfile:
    """A profile from the mapping that `written_profile` makes. ValueError says what is wrong with one that is not whole
    or contradicts itself: it is measured, and no field has a default. `timezone` reads a time zone."""
    names = AnomalyProfile.__struct_fields__
    if not isinstance(value, dict):
        raise ValueError(f"must be a profile as `streamproc policy calibrate` makes it, not {shown(value)}")
    for name in value:
        if name not in names:
            raise ValueError(unknown(str(name), names))
    if missing := [name for name in names if name not in value]:
        raise ValueError(
            f"lacks {', '.join(missing)}: it is measured as a whole (`streamproc policy calibrate`)"
        )
    payouts = _number(value["payouts"], "payouts", PAYOUTS_MIN, PAYOUTS_MAX)
    hours = [_numbers(value[name], name, HOURS, 0, PAYOUTS_MAX) for name in names[-2:]]
    if sum(map(sum, hours)) != payouts:
        raise ValueError(f"payouts is {payouts}, but its hours have {sum(map(sum, hours))}")
    amounts = _numbers(value["amounts"], "amounts", QUANTILES, 1, AMOUNT_MAX_PAISE)
    if list(amounts) != sorted(amounts):
        raise ValueError("amounts must not fall")
    since, until = _moment(value["since"], "since"), _moment(value["until"], "until")
    if since > until:
        raise ValueError("since is after until")
    return AnomalyProfile(
        since=str(value["since"]),
        until=str(value["until"]),
        payouts=payouts,
        threshold=_number(value["threshold"], "threshold", 0, SCALE),
        timezone=str(timezone(value["timezone"])),
        amounts=amounts,
        weekday_hours=hours[0],
        weekend_hours=hours[1],
    )


def written_profile(profile: AnomalyProfile) -> dict[str, object]:
    """A profile as a policy file and an event have it."""
    fields = msgspec.structs.asdict(profile)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _number(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def _numbers(value: object, name: str, many: int, least: int, most: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != many:
        raise ValueError(f"{name} must be a list of {many} numbers")
    return tuple(_number(one, name, least, most) for one in value)


def _moment(value: object, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) and _MOMENT.fullmatch(value) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise ValueError(f"{name} must be a time in ISO 8601 with its zone, not {shown(value)}")
    return at

"""Hours, days and windows by the clocks on the wall: to the last microsecond, over midnight, over summer time."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace

from streamproc.domain.budget import Limits, must_be_counted, windows_of
from streamproc.domain.case import Case
from streamproc.domain.governance import decide
from streamproc.domain.policy import Policy, ScopeLimits
from tests.domain.test_governance import bare
from tests.words import ACCOUNT


def at(text: str, zone: str, *, fold: int = 0) -> int:
    """µs since 1970 of a time on a wall; `fold` 1 is the second time that it is so late."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(moment.timestamp() * 1_000_000)


def received(case: Case, at_us: int) -> Case:
    return replace(case, payout=replace(case.payout, received_at=at_us))


@pytest.mark.parametrize(
    ("fields", "zone", "moment", "is_open"),
    [
        ("hours: '09:00-18:00'", "Asia/Kolkata", "2026-09-21T08:59:59.999999", False),
        ("hours: '09:00-18:00'", "Asia/Kolkata", "2026-09-21T09:00:00", True),
        ("hours: '09:00-18:00'", "Asia/Kolkata", "2026-09-21T17:59:59.999999", True),
        ("hours: '09:00-18:00'", "Asia/Kolkata", "2026-09-21T18:00:00", False),
        ("hours: '00:00-24:00'", "Asia/Kolkata", "2026-09-21T23:59:59.999999", True),
        ("hours: '22:00-06:00'", "Asia/Kolkata", "2026-09-21T21:59:59.999999", False),
        ("hours: '22:00-06:00'", "Asia/Kolkata", "2026-09-21T22:00:00", True),
        ("hours: '22:00-06:00'", "Asia/Kolkata", "2026-09-22T00:00:00", True),
        ("hours: '22:00-06:00'", "Asia/Kolkata", "2026-09-22T05:59:59.999999", True),
        ("hours: '22:00-06:00'", "Asia/Kolkata", "2026-09-22T06:00:00", False),
        ("days: [fri]", "Asia/Kolkata", "2026-09-25T23:59:59.999999", True),
        ("days: [fri]", "Asia/Kolkata", "2026-09-26T00:00:00", False),
        # Saturday's part of Friday's night is Saturday.
        ("hours: '22:00-06:00', days: [fri]", "Asia/Kolkata", "2026-09-26T01:00:00", False),
        ("hours: '22:00-06:00', days: [fri, sat]", "Asia/Kolkata", "2026-09-26T01:00:00", True),
        # Summer time begins: 02:00 is 03:00. In UTC that is 01:00.
        ("hours: '03:00-04:00'", "Europe/Berlin", "2026-03-29T01:59:59.999999", False),
        ("hours: '03:00-04:00'", "Europe/Berlin", "2026-03-29T03:00:00", True),
        # A quarter of an hour off, and the day begins in the other year.
        ("days: [thu]", "Asia/Kathmandu", "2025-12-31T23:59:59.999999", False),
        ("days: [thu]", "Asia/Kathmandu", "2026-01-01T00:00:00", True),
    ],
)
def test_a_payout_outside_the_hours_or_days_of_its_zone_is_held(
    fields: str, zone: str, moment: str, is_open: bool
) -> None:
    case = received(bare(f"{fields}, timezone: {zone}"), at(moment, zone))
    verdict = decide(case)
    assert verdict.reason == ("POLICY_OK" if is_open else "OUTSIDE_HOURS")
    if not is_open:
        assert verdict.findings[0].evidence["zone"] == zone


def test_an_hour_that_comes_twice_is_open_both_times() -> None:
    case = bare("hours: '02:00-03:00', timezone: Europe/Berlin")
    for fold in (0, 1):
        moment = at("2026-10-25T02:30:00", "Europe/Berlin", fold=fold)
        assert decide(received(case, moment)).reason == "POLICY_OK"
    twice = at("2026-10-25T02:30:00", "Europe/Berlin", fold=1) - at("2026-10-25T02:30:00", "Europe/Berlin")
    assert twice == 3_600_000_000


def test_a_policy_without_a_zone_has_the_one_of_the_settings() -> None:
    case = received(bare("hours: '09:00-18:00'"), at("2026-09-21T09:00:00", "America/New_York"))
    assert decide(replace(case, zone="America/New_York")).reason == "POLICY_OK"
    assert decide(replace(case, zone="Asia/Kolkata")).reason == "OUTSIDE_HOURS"


def names(policy: Policy, at_us: int, **limits: ScopeLimits) -> list[tuple[str, str]]:
    windows = windows_of(
        Limits(policy, **limits),
        agent="bot",
        account=ACCOUNT,
        vendor="shop.example",
        received_at=at_us,
        zone="Asia/Kolkata",
    )
    return [(window.scope, window.window) for window in windows]


EVERY = {"daily_limit": 1, "weekly_limit": 1, "monthly_limit": 1}


@pytest.mark.parametrize(
    ("zone", "moment", "day", "week", "month"),
    [
        ("Asia/Kolkata", "2026-12-31T23:59:59.999999", "2026-12-31", "2026-W53", "2026-12"),
        ("Asia/Kolkata", "2027-01-01T00:00:00", "2027-01-01", "2026-W53", "2027-01"),
        ("Asia/Kolkata", "2027-01-03T23:59:59.999999", "2027-01-03", "2026-W53", "2027-01"),
        ("Asia/Kolkata", "2027-01-04T00:00:00", "2027-01-04", "2027-W01", "2027-01"),
        ("Europe/Berlin", "2026-03-29T23:59:59.999999", "2026-03-29", "2026-W13", "2026-03"),
        ("Europe/Berlin", "2026-10-25T23:59:59.999999", "2026-10-25", "2026-W43", "2026-10"),
        ("America/New_York", "2028-02-29T23:59:59.999999", "2028-02-29", "2028-W09", "2028-02"),
        ("America/New_York", "2028-03-01T00:00:00", "2028-03-01", "2028-W09", "2028-03"),
    ],
)
def test_day_iso_week_and_month_are_those_on_the_wall_of_the_zone(
    zone: str, moment: str, day: str, week: str, month: str
) -> None:
    policy = Policy(timezone=zone, **EVERY)
    found = names(policy, at(moment, zone))
    assert found == [("agent:bot", day), ("agent:bot", week), ("agent:bot", month)]


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("Asia/Kolkata", "2026-09-21T12:00:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00", 25),
    ],
)
def test_a_window_ends_at_the_next_midnight_however_long_the_day_is(
    zone: str, moment: str, hours: int
) -> None:
    policy = Policy(timezone=zone, **EVERY)
    found = windows_of(
        Limits(policy),
        agent="bot",
        account=ACCOUNT,
        vendor="",
        received_at=at(moment, zone),
        zone="UTC",
    )
    begins = datetime.fromisoformat(moment).replace(hour=0, tzinfo=ZoneInfo(zone)).timestamp()
    assert found[0].ends_at - begins == hours * 3_600
    # The last microsecond is in the window, and the next is in another.
    end_us = found[0].ends_at * 1_000_000
    assert names(policy, end_us - 1)[0] == names(policy, at(moment, zone))[0] != names(policy, end_us)[0]


def test_a_limit_of_nought_is_a_window_and_an_absent_one_is_none() -> None:
    moment = at("2026-09-21T12:00:00", "Asia/Kolkata")
    bare_day = [("agent:bot", "2026-09-21")]
    assert names(Policy(), moment) == bare_day
    assert names(Policy(weekly_limit=0), moment) == [*bare_day, ("agent:bot", "2026-W39")]
    assert names(Policy(vendor_daily_limit=0), moment) == [*bare_day, ("vendor:shop.example", "2026-09-21")]
    every, nothing = ScopeLimits(**dict.fromkeys(EVERY, 0)), ScopeLimits()
    assert names(Policy(team="desk"), moment, team=nothing, account=nothing) == bare_day
    found = names(Policy(team="desk"), moment, team=every, account=every)
    calendar = ("2026-09-21", "2026-W39", "2026-09")
    assert found[1:] == [(scope, name) for scope in ("team:desk", f"account:{ACCOUNT}") for name in calendar]
    # Limits of a team bind who is in it.
    assert names(Policy(), moment, team=every) == bare_day


def test_each_scope_counts_in_its_own_zone() -> None:
    moment = at("2026-09-21T01:00:00", "Asia/Kolkata")
    account = ScopeLimits(daily_limit=1, timezone="America/New_York")
    assert names(Policy(), moment, account=account) == [
        ("agent:bot", "2026-09-21"),
        (f"account:{ACCOUNT}", "2026-09-20"),
    ]


@pytest.mark.parametrize(
    ("window", "end"),
    [
        ("2026-12-31", "2027-01-01"),
        ("2026-W53", "2027-01-04"),
        ("2026-12", "2027-01-01"),
        ("2028-02-29", "2028-03-01"),
    ],
)
def test_a_window_is_counted_until_it_ended_where_days_end_last(window: str, end: str) -> None:
    """At every hour of a day some zone is in it: a counter that is gone is missed at any hour."""
    last = datetime.fromisoformat(f"{end}T00:00:00-12:00").timestamp()
    assert must_be_counted(window, last - 1, 30 * 86_400)
    assert not must_be_counted(window, last, 30 * 86_400)


def test_a_counter_that_may_have_expired_where_its_day_ended_first_is_not_missed() -> None:
    first = datetime.fromisoformat("2026-12-02T00:00:00+14:00").timestamp()
    assert must_be_counted("2026-12-01", first + 59, 60)
    assert not must_be_counted("2026-12-01", first + 60, 60)

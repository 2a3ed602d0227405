"""A length of time as people type it, wherever they type it."""

import pytest

from streamproc.domain.duration import duration_s, exact_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("007d", 7 * 86_400)]
)
def test_a_whole_duration_is_its_seconds(text: str, seconds: int) -> None:
    assert (duration_s(text), exact_duration_s(text)) == (seconds, seconds)


def test_it_stays_exact_however_long() -> None:
    assert duration_s("9" * 12 + "d") == (10**12 - 1) * 86_400


@pytest.mark.parametrize(
    "text", ["", "d", "-1s", "+1s", " 1s", "1 s", "1s\n", "1w", "1H", "1e3", "1_0s", "١s", "9" * 13]
)
def test_anything_else_is_none(text: str) -> None:
    assert duration_s(text, bare=True) is exact_duration_s(text) is None


def test_a_number_without_unit_is_seconds_only_where_that_is_said() -> None:
    assert (duration_s("90"), duration_s("90", bare=True), exact_duration_s("90")) == (None, 90, 90)


def test_only_the_units_that_the_caller_takes_count() -> None:
    assert (duration_s("90s", ("m", "h")), duration_s("90m", ("m", "h"))) == (None, 5_400)


def test_fractions_and_milliseconds_are_for_settings_alone() -> None:
    assert [exact_duration_s(text) for text in ("1.5h", "250ms", "0.1")] == [5_400, 0.25, 0.1]
    assert [duration_s(text, bare=True) for text in ("1.5h", "250ms", "0.1")] == [None] * 3

"""A length of time as people type it: `90s`, `15m`, `24h`, `7d`. One reader for settings, policies, commands. Pure."""

import re
from collections.abc import Collection

UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
"""Seconds in each unit."""
_MS = "ms"
_DURATION = re.compile(r"([0-9]{1,12})(\.[0-9]{1,12})?(ms|[smhd])?")


def duration_s(text: str, units: Collection[str] = UNIT_S.keys(), *, bare: bool = False) -> int | None:
    """A whole number of one of `units`, in seconds; None where the text is something else.

    `bare`: a number without a unit is taken as seconds. The caller checks the limits: twelve digits can be typed.
    """
    found = _DURATION.fullmatch(text)
    if found is None or found[2] or found[3] == _MS:
        return None
    if found[3] is None:
        return int(found[1]) if bare else None
    return int(found[1]) * UNIT_S[found[3]] if found[3] in units else None


def exact_duration_s(text: str) -> float | None:
    """A duration as settings have it, perhaps with a fraction, in `ms` or without a unit (seconds); else None."""
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    number = float(found[1] + (found[2] or ""))
    return number * 0.001 if found[3] == _MS else number * UNIT_S[found[3] or "s"]

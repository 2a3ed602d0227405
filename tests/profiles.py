"""Profiles of rule 15 for tests."""

import json
from typing import Any

from msgspec.structs import replace

from streamproc.domain.anomaly import AnomalyProfile, written_profile

OFFICE = AnomalyProfile(
    since="2026-08-22T04:30:00.000000Z",
    until="2026-09-20T14:15:00.000000Z",
    payouts=100,
    threshold=500,
    timezone="Asia/Kolkata",
    amounts=tuple(range(100, 2_100, 100)),
    weekday_hours=(0,) * 10 + (10,) * 10 + (0,) * 4,
    weekend_hours=(0,) * 24,
)
"""₹1 to ₹20, all alike; ten payouts in each hour from 10:00 to 20:00, on weekdays only."""


def policy_fields(**changes: Any) -> str:
    """The fields of a policy that asks rule 15 of OFFICE, or of what differs from it by `changes`."""
    return f"anomaly: true, anomaly_profile: {json.dumps(written_profile(replace(OFFICE, **changes)))}"

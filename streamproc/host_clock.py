"""This host's clock. What the log records is dated by Redis's instead (`log/clock.py`), which all hosts share."""

import time


def host_clock_us() -> int:
    """µs since 1970 by this host's clock."""
    return time.time_ns() // 1000

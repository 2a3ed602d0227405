"""Ids of log entries, `<ms>-<n>`, as Redis gives and orders them. The log and its archive both have them."""

ZERO = "0-0"
"""Before every entry."""


def id_key(entry: str) -> tuple[int, int]:
    """An entry id as a tuple that compares as Redis orders ids."""
    ms, _, n = entry.partition("-")
    return int(ms), int(n or 0)


def id_before(entry: str) -> str:
    """The id right below `entry`, so that reading after it starts at `entry`."""
    ms, n = id_key(entry)
    if n > 0:
        return f"{ms}-{n - 1}"
    return f"{ms - 1}-{2**64 - 1}" if ms > 0 else ZERO

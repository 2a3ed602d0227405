"""Which resource limited a run: all cores, the core of one process, or neither, in which case it waited."""

from collections.abc import Mapping
from typing import Final

BUSY: Final = 0.9
"""Share of one core, or of all cores, from which on it is the limit."""


def used_up(cores_used: Mapping[str, float], machine: float, cores: int) -> str:
    """The limit in words. `cores_used` is by process of ours; `machine` counts all programs on the machine."""
    ours = sum(cores_used.values())
    if ours >= BUSY * cores:
        return "all cores"
    name, share = max(cores_used.items(), key=lambda item: item[1])
    if share >= BUSY:
        return f"the core of {name}"
    if machine >= BUSY * cores:
        return f"all cores, of which other programs took {machine - ours:.1f}"
    return "waiting: for the disk, or for each other"

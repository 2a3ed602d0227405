"""What was used up while something ran: all cores, the core of one process, or neither, which is waiting."""

from collections.abc import Mapping
from typing import Final

BUSY: Final = 0.9
"""Of a core, or of all: it is the limit."""


def used_up(cores_used: Mapping[str, float], machine: float, cores: int) -> str:
    """In words. `cores_used`: of each process of ours; `machine`: of everything that ran on it."""
    ours = sum(cores_used.values())
    if ours >= BUSY * cores:
        return "all cores"
    name, share = max(cores_used.items(), key=lambda found: found[1])
    if share >= BUSY:
        return f"the core of {name}"
    if machine >= BUSY * cores:
        return f"all cores, of which other programs took {machine - ours:.1f}"
    return "waiting: for the disk, or for each other"

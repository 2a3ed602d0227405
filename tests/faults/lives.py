"""Memory and file descriptors of each process, sampled while it lives."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from tests.faults.stand import Stand

LOOK_S = 2.0
GROWN_UP_S = 20.0
"""A younger process still loads modules and fills its pools, so the comparison starts at this age."""


class Life(Struct):
    """One process. Memory is resident, in kB. `first_` values are from the age GROWN_UP_S; 0 if it never was so old."""

    role: str
    born: float
    age_s: float = 0.0
    first_kb: int = 0
    last_kb: int = 0
    first_fds: int = 0
    last_fds: int = 0
    fds_max: int = 0


async def watch_lives(stand: "Stand") -> None:
    """Measure until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        look(stand)


def look(stand: "Stand") -> None:
    """Record what every role uses now."""
    now = time.monotonic()
    for slot in stand.slots.values():
        if slot.process is None or slot.process.returncode is not None:
            continue
        pid = slot.process.pid
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue  # it has just ended
        life = stand.lives.setdefault(pid, Life(slot.role, now))
        life.age_s, life.last_kb, life.last_fds = now - life.born, pages * 4, fds
        life.fds_max = max(life.fds_max, fds)
        if not life.first_kb and life.age_s >= GROWN_UP_S:
            life.first_kb, life.first_fds = pages * 4, fds


def table(lives: Iterable[Life]) -> list[str]:
    """A line for the longest-lived process of each role: its usage at GROWN_UP_S and at its end."""
    oldest: dict[str, Life] = {}
    for life in lives:
        if life.age_s >= oldest.get(life.role, life).age_s:
            oldest[life.role] = life
    return [
        f"{role}: {life.age_s:.0f} s old, {life.first_kb} to {life.last_kb} kB,"
        f" {life.first_fds} to {life.last_fds} descriptors, {life.fds_max} at most"
        for role, life in sorted(oldest.items())
    ]

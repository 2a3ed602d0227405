"""How much memory there is for the Valkey that `up` starts: a share of the machine's, or of the container's."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

SHARE: Final = 2
"""Valkey may use one part in so many: a rewrite of its file may copy what is written meanwhile, Postgres and the roles
need some too, and beyond the limit writes are refused, while a full machine's kernel would kill Valkey."""
_GROUPS: Final = Path("/sys/fs/cgroup")
_MINE: Final = Path("/proc/self/cgroup")


def valkey_limit(wanted: int | None) -> int:
    """`maxmemory` in bytes, 0 for none: as `wanted`, or where that is None the share."""
    return memory_bytes() // SHARE if wanted is None else wanted


def memory_bytes(groups: Path = _GROUPS, mine: Path = _MINE) -> int:
    """The machine's memory in bytes, or less where a control group allows this process less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(groups, mine)])


def _limits(groups: Path, mine: Path) -> Iterator[int]:
    """The limits of this process's control groups, of version 2 and 1, and of those above them."""
    lines: list[str] = []
    with suppress(OSError):  # no Linux
        lines = mine.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        # A container sees its own group at the root, wherever the host has it.
        for place in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            with suppress(OSError, ValueError):  # it is not there; or there is no limit: "max"
                yield int((place / name).read_text())
            if place == root:
                break

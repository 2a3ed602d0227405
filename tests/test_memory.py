"""How much memory there is: the machine's, or what the control groups of a container or a service leave of it."""

import os
from pathlib import Path

import pytest

from streamproc.memory import memory_bytes, valkey_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NO_LIMIT = "9223372036854771712\n"  # as version 1 says it


@pytest.mark.parametrize(
    ("mine", "limits", "found"),
    [
        ("0::/\n", {"memory.max": "70000000\n"}, 70_000_000),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/memory.max": "50000000\n"}, 50_000_000),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/b.service/memory.max": "max\n", "a.slice/memory.max": "60000000\n"},
            60_000_000,
        ),
        ("0::/../elsewhere\n", {"memory.max": "40000000\n"}, 40_000_000),
        ("5:cpu:/x\n4:memory:/docker/1\n0::/\n", {"memory/memory.limit_in_bytes": "30000000\n"}, 30_000_000),
        ("4:memory:/docker/1\n", {"memory/docker/1/memory.limit_in_bytes": "20000000\n"}, 20_000_000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": NO_LIMIT}, MACHINE),
        ("0::/\n", {}, MACHINE),
        (None, {}, MACHINE),
    ],
)
def test_the_least_of_what_the_machine_has_and_its_groups_allow_is_there(
    tmp_path: Path, mine: str | None, limits: dict[str, str], found: int
) -> None:
    file, groups = tmp_path / "mine", tmp_path / "groups"
    if mine is not None:
        file.write_text(mine)
    for path, limit in limits.items():
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(limit)
    assert memory_bytes(groups, file) == found


def test_a_limit_that_was_set_is_taken_and_half_of_the_memory_where_none_was() -> None:
    assert [valkey_limit(wanted) for wanted in (0, 5, None)] == [0, 5, memory_bytes() // 2]

"""A time zone has a name that means the same on every machine."""

import zoneinfo
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from streamproc.domain.policy import PolicyBook, ScopeState, effective_policy
from streamproc.domain.time_zone import time_zone
from streamproc.errors import InputError

OF_ONE_MACHINE = ("localtime", "posixrules", "Factory", "right/UTC", "posix/Asia/Kolkata", "SystemV/EST5")


@pytest.fixture
def a_machine_with_more(tmp_path: Path) -> Iterator[None]:
    """A machine that has what some have beside the zones, each as UTC."""
    utc = files("tzdata.zoneinfo").joinpath("UTC").read_bytes()
    for name in OF_ONE_MACHINE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(utc)
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    yield
    zoneinfo.reset_tzpath(before)


@pytest.mark.parametrize("name", ["Asia/Kolkata", "UTC", "Etc/GMT+5", "America/Argentina/Buenos_Aires"])
def test_a_zone_is_known_by_its_name(name: str) -> None:
    assert time_zone(name) == name


@pytest.mark.usefixtures("a_machine_with_more")
@pytest.mark.parametrize("name", OF_ONE_MACHINE)
def test_what_other_machines_lack_or_read_otherwise_is_no_zone(name: str) -> None:
    zoneinfo.ZoneInfo(name)
    with pytest.raises(ValueError, match="must be a time zone"):
        time_zone(name)


@pytest.mark.usefixtures("a_machine_with_more")
@pytest.mark.parametrize("name", OF_ONE_MACHINE)
def test_a_policy_in_force_keeps_the_zone_that_an_earlier_version_took(name: str) -> None:
    """Each payout of its agent became a dead letter, those too that were approved and waited for the bank."""
    own: dict[str, object] = {"daily_limit": 1_000, "timezone": name}
    in_force = ScopeState(version=1, own=own, effective=own)
    book = PolicyBook({"agent:bot": in_force, "account:acc": in_force})
    agent, account = book.agent("bot"), book.account("acc")
    assert agent is not None
    assert account is not None
    assert (agent.policy.timezone, account.timezone) == (name, name)
    with pytest.raises(InputError, match="must be a time zone"):
        effective_policy({}, own)


@pytest.mark.parametrize("name", ["", "Asia/Nowhere", "Europe", "../UTC", "/etc/localtime", "UTC\0", "UTC\n"])
def test_anything_else_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="must be a time zone"):
        time_zone(name)

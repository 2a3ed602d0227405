"""Of two changes of policies at once each partition gets one before the other, all of them in the same order."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from streamproc.domain.policy import parse_policy_file
from streamproc.errors import JobFailed
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.log.stream import open_log
from streamproc.operate import change_lease, changes
from streamproc.operate.freezes import freeze
from streamproc.operate.policies import in_force, of_file
from streamproc.operate.site import Site
from tests.operate.words import site_of
from tests.words import attributed

PARTITIONS = 2
Change = Callable[[Site], Awaitable[Any]]


async def opened(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=PARTITIONS, groups=["governance"])


def limits_to(paise: int) -> Change:
    file = parse_policy_file(f"policies: {{bot: {{daily_limit: {paise}}}}}", name="test.yaml")
    plan = of_file(file, attributed("asha"), prune=False)
    return lambda site: changes.make(site, plan, attributed("asha"))


def frozen(yes: bool) -> Change:
    return lambda site: freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=yes)


class Overtaken:
    """Halts the first change between its partitions until the second one is done, or waits for its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redis_url: str, second: Change) -> None:
        self.url, self.second, self.may_go_on = redis_url, second, asyncio.Event()
        self.task: asyncio.Task[Any] | None = None
        self.writes, self.takes = changes.put_in_force, change_lease.ChangeLease.take
        monkeypatch.setattr(changes, "put_in_force", self.write)
        monkeypatch.setattr(change_lease.ChangeLease, "take", self.take_of())

    async def write(self, client: Any, names: Any, *rest: Any, **named: Any) -> Any:
        if self.task is None and names.partition == 1:
            self.task = asyncio.create_task(self.run())
            await self.may_go_on.wait()
        return await self.writes(client, names, *rest, **named)

    def take_of(self) -> Any:
        async def take(one: change_lease.ChangeLease, **named: Any) -> bool:
            if not (taken := await self.takes(one, **named)):
                self.may_go_on.set()
            return taken

        return take

    async def run(self) -> None:
        try:
            async with site_of(self.url) as site:
                await self.second(site)
        finally:
            self.may_go_on.set()


@pytest.mark.parametrize(
    ("before", "first", "second"),
    [
        (limits_to(1_000), limits_to(2_000), limits_to(3_000)),
        (frozen(True), frozen(False), frozen(True)),
    ],
    ids=["two files", "a freeze beside its lifting"],
)
async def test_partitions_agree_after_two_changes_at_once_and_the_later_one_is_in_force(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, before: Change, first: Change, second: Change
) -> None:
    await opened(redis_url)
    async with site_of(redis_url) as site:
        await second(site)
        wanted = {scope: state.own for scope, state in (await in_force(site)).items()}
        await before(site)
        overtaken = Overtaken(monkeypatch, redis_url, second)
        await first(site)
        assert overtaken.task is not None
        await overtaken.task
        assert {scope: state.own for scope, state in (await in_force(site)).items()} == wanted


async def test_a_turn_whose_process_died_is_free_after_its_time_and_no_late_write_of_it_is_made(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(redis_url)
    monkeypatch.setattr(change_lease, "LEASE_S", 0.05)
    async with site_of(redis_url) as site:
        dead = change_lease.ChangeLease(site, "dead")
        assert await dead.take()
        async with change_lease.change_lease(site):
            with pytest.raises(JobFailed, match="partition 1: this change came to a halt for over "):
                await dead.goes_on(1)


@pytest.mark.parametrize("halts_at", ["goes_on", "put_in_force"])
async def test_who_came_to_a_halt_between_partitions_writes_nothing_over_a_change_of_since(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, halts_at: str
) -> None:
    """The later change finds its partition 1 as it wants it, has ended, and was told that its limit is everywhere."""
    await opened(redis_url)
    place: Any = change_lease.ChangeLease if halts_at == "goes_on" else changes
    whole, halted = getattr(place, halts_at), False

    async def halts(*given: Any, **named: Any) -> Any:
        nonlocal halted
        if not halted and (given[1] == 1 if halts_at == "goes_on" else given[1].partition == 1):
            halted = True
            async with site_of(redis_url) as other:
                await other.client.delete(Names(0).lease("policies"))  # LEASE_S are over
                await limits_to(1_000)(other)
        return await whole(*given, **named)

    async with site_of(redis_url) as site:
        await limits_to(1_000)(site)
        monkeypatch.setattr(place, halts_at, halts)
        with pytest.raises(JobFailed, match="not in force from this partition on: run it again"):
            await limits_to(2_000)(site)
        assert halted
        assert (await in_force(site))["agent:bot"].own == {"daily_limit": 1_000}


@pytest.mark.parametrize("words", ["it loops", "it still loops"])
async def test_a_lifting_that_waits_while_somebody_freezes_lifts_only_what_was_frozen_before_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Who froze was told that it is frozen; who lifts knew nothing of that, and is told now."""
    await opened(redis_url)
    whole: Any = change_lease.ChangeLease.take

    async def takes(one: change_lease.ChangeLease, **named: Any) -> bool:
        # The lifting's turn comes after the freeze's.
        monkeypatch.setattr(change_lease.ChangeLease, "take", whole)
        async with site_of(redis_url) as other:
            await freeze(other, "agent:bot", attributed("asha", words), frozen=True)
        return bool(await whole(one, **named))

    async with site_of(redis_url) as site:
        await frozen(True)(site)
        monkeypatch.setattr(change_lease.ChangeLease, "take", takes)
        with pytest.raises(JobFailed, match="partition 0: agent:bot was frozen anew meanwhile, by asha, "):
            await frozen(False)(site)
        assert "freeze:agent:bot" in await in_force(site)
        await frozen(False)(site)  # run again, as it says
        assert "freeze:agent:bot" not in await in_force(site)


async def test_a_lifting_that_waits_for_another_one_has_nothing_to_lift(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(redis_url)
    async with site_of(redis_url) as site:
        await frozen(True)(site)
        one, other = await asyncio.gather(frozen(False)(site), frozen(False)(site))
        assert sorted([one.changed, other.changed]) == [[], [0, 1]]


async def test_a_freeze_goes_before_a_change_that_died_or_does_not_end(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(redis_url)
    monkeypatch.setattr(change_lease, "LEASE_S", 3_600.0)
    monkeypatch.setattr(change_lease, "FREEZE_WAIT_S", 0.0)
    async with site_of(redis_url) as site, change_lease.change_lease(site) as endless:
        await frozen(True)(site)
        assert "freeze:agent:bot" in await in_force(site)
        with pytest.raises(JobFailed, match="or a freeze went first"):
            await endless.goes_on(1)


async def test_a_freeze_lets_a_change_that_is_under_way_end_first_which_takes_milliseconds(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each freeze would leave a change of policies half done."""
    await opened(redis_url)
    monkeypatch.setattr(change_lease, "FREEZE_WAIT_S", 3_600.0)
    monkeypatch.setattr(change_lease, "WAIT_S", 5 * change_lease.LOOK_S)
    async with site_of(redis_url) as site, change_lease.change_lease(site) as under_way:
        with pytest.raises(JobFailed, match="others have been changing policies"):
            await frozen(True)(site)
        await under_way.goes_on(1)


async def test_who_lost_the_turn_passes_no_partition_as_it_is(redis_url: str) -> None:
    """Somebody else may have changed the ones before it, so what the whole comes to is not known."""
    await opened(redis_url)
    async with site_of(redis_url) as site:
        rev, _ = await read_scopes(site.client, Names(1))
        async with change_lease.change_lease(site) as first:
            assert await first.passes(1, rev)
            await site.client.delete(Names(0).lease("policies"))  # LEASE_S is over
            async with change_lease.change_lease(site):
                with pytest.raises(JobFailed, match="partition 1: this change came to a halt"):
                    await first.passes(1, rev)


@pytest.mark.parametrize(
    ("under_way", "second"),
    [(False, limits_to(1_000)), (False, frozen(False)), (True, limits_to(1_000)), (True, frozen(True))],
    ids=["a change, a change", "a change, a lifting", "a freeze, a change", "a freeze, a freeze"],
)
async def test_nothing_else_goes_before_its_turn(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, under_way: bool, second: Change
) -> None:
    await opened(redis_url)
    monkeypatch.setattr(change_lease, "FREEZE_WAIT_S", 0.0)
    async with site_of(redis_url) as site, change_lease.change_lease(site, freezes=under_way) as first:
        waiting = change_lease.FREEZE_WAIT_S + 5 * change_lease.LOOK_S
        monkeypatch.setattr(change_lease, "WAIT_S", waiting)
        with pytest.raises(JobFailed, match="others have been changing policies"):
            await second(site)
        await first.goes_on(1)


async def test_who_gets_no_turn_is_told_how_long_it_was_waited_for(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(redis_url)
    monkeypatch.setattr(change_lease, "WAIT_S", 0.0)
    async with site_of(redis_url) as site, change_lease.change_lease(site):
        with pytest.raises(
            JobFailed, match="others have been changing policies for 0 s; nothing was changed"
        ):
            await limits_to(1_000)(site)
        assert await in_force(site) == {}


def test_a_turn_is_waited_for_past_one_that_died_and_within_an_http_request() -> None:
    from streamproc.operate.policy_service import CHANGE_S_MAX

    assert change_lease.FREEZE_WAIT_S < change_lease.LEASE_S < change_lease.WAIT_S < CHANGE_S_MAX

"""What the API says of a change: which version it left in force, and all that it changed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamproc.api.policies import Made
from streamproc.domain.policy_changes import NONE_YET, Stale
from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.operate import changes, policy_service
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.policy_service import PolicyService
from tests.words import NOON_ZONE, attributed


@pytest.fixture
async def service(redis_url: str) -> AsyncIterator[PolicyService]:
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=["governance"])
    gateway = SiteGateway(redis_url, 2, None)
    yield PolicyService(gateway, zone=NOON_ZONE, account="")
    await gateway.aclose()


async def put(service: PolicyService, daily_limit: int, version: int | None = None) -> Made:
    fields = {"daily_limit": daily_limit}
    return await service.change(
        "bot", fields, attributed("asha", "because", "api:asha"), replaces=True, version=version
    )


async def test_what_changes_nothing_names_the_version_that_it_found_and_not_a_later_one(
    service: PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who asks next for a change of just this version changes one that it never saw."""
    assert (await put(service, 10)).version == 1
    make = policy_service.make

    async def overtaken(*given: Any, **more: Any) -> Any:
        made = await make(*given, **more)
        monkeypatch.setattr(policy_service, "make", make)
        assert (await put(service, 20)).version == 2
        return made

    monkeypatch.setattr(policy_service, "make", overtaken)
    assert await put(service, 10) == Made(version=1)


async def test_what_a_broken_off_change_had_left_behind_is_told_by_the_one_that_finishes_it(
    service: PolicyService, redis_url: str
) -> None:
    await put(service, 10)
    async with connected(redis_url) as client:
        await client.hdel(Names(1).policy, "agent:bot")
    finished = await put(service, 10)
    assert (finished.version, [one["scope"] for one in finished.changes]) == (1, ["agent:bot"])
    assert await put(service, 10) == Made(version=1)


async def test_a_change_of_one_version_may_be_asked_for_again_until_it_is_everywhere(
    service: PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may be lost, or say 503 between two partitions, and the policy is at another version by then."""
    await put(service, 10)
    put_in_force = changes.put_in_force

    async def away(client: Any, names: Names, *given: Any, **more: Any) -> Any:
        if names.partition == 1:
            raise LogUnavailable("away")
        return await put_in_force(client, names, *given, **more)

    monkeypatch.setattr(changes, "put_in_force", away)
    with pytest.raises(LogUnavailable):
        await put(service, 20, version=1)
    monkeypatch.setattr(changes, "put_in_force", put_in_force)
    finished = await put(service, 20, version=1)
    assert (finished.version, len(finished.changes)) == (2, 1)
    assert await put(service, 20, version=1) == Made(version=2)
    with pytest.raises(Stale, match="is at version 2, not 1"):
        await put(service, 30, version=1)
    with pytest.raises(Stale, match="has a policy already"):
        await put(service, 20, version=NONE_YET)

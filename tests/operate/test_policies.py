"""A policy file is put in force once, on every partition, and every change can be looked up."""

import asyncio

import pytest

from streamproc.domain.policy import parse_policy_file
from streamproc.domain.policy_changes import Differ
from streamproc.errors import JobFailed
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from streamproc.operate.changes import make
from streamproc.operate.freezes import freeze, frozen_now
from streamproc.operate.policies import changed_fields, history, in_force, of_file, policy_of
from streamproc.operate.proposals import Applied
from streamproc.operate.site import Site
from tests.operate.words import archive, site_of
from tests.projections.histories import fetch
from tests.words import attributed

ONE = "policies: {bot: {daily_limit: 1_000}, gone: {daily_limit: 5}}"
TWO = "policies: {bot: {daily_limit: 2_000, per_txn_limit: 500}}"


async def put(site: Site, text: str, *, prune: bool = False) -> list[Applied]:
    file = parse_policy_file(text, name="test.yaml")
    who = attributed("asha", "because")
    made = await make(site, of_file(file, who, prune=prune), who)
    assert isinstance(made, list)
    return made


async def made(redis_url: str, partitions: int = 1) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=partitions, groups=["governance"])


async def test_each_field_that_changes_is_told_with_its_value_before_and_after(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, ONE)
        [applied] = await put(site, TWO)
    [change] = applied.changes
    assert (change.scope, change.version, change.by) == ("agent:bot", 2, "asha")
    assert [(f.field, f.before, f.after) for f in changed_fields(change)] == [
        ("daily_limit", 1_000, 2_000),
        ("per_txn_limit", None, 500),
    ]


async def test_applying_a_file_again_changes_nothing(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, ONE)
        [again] = await put(site, ONE)
    assert (again.changes, again.entry) == ([], None)


async def test_every_partition_gets_the_policy(redis_url: str):
    await made(redis_url, partitions=3)
    async with site_of(redis_url) as site:
        applied = await put(site, ONE)
        assert [(one.partition, len(one.changes)) for one in applied] == [(0, 2), (1, 2), (2, 2)]
        assert set(await in_force(site)) >= {"agent:bot", "agent:gone"}


async def test_prune_removes_what_the_file_does_not_name_and_nothing_else_does(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, ONE)
        await put(site, TWO)
        assert "agent:gone" in await in_force(site)
        await put(site, TWO, prune=True)
        assert "agent:gone" not in await in_force(site)
        with pytest.raises(JobFailed, match="agent gone has no policy"):
            await policy_of(site, "gone")


async def test_two_people_who_apply_at_once_both_get_through_with_dense_versions(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as one, site_of(redis_url) as two:
        await asyncio.gather(
            *(put(one, f"policies: {{bot: {{daily_limit: {n}}}}}") for n in (1_000,)),
            *(put(two, f"policies: {{bot: {{daily_limit: {n}}}}}") for n in (2_000,)),
        )
        changes, _ = await history(one, "bot")
    assert [change.version for change in changes] == [1, 2]
    assert {c.after["daily_limit"] for c in changes if c.after} == {1_000, 2_000}


async def test_one_agents_policy_is_shown_with_the_defaults_filled_in(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, "defaults: {weekly_limit: 9_000}\npolicies: {bot: {daily_limit: 1_000}}")
        state = (await policy_of(site, "bot"))["agent:bot"]
    assert state.own == {"daily_limit": 1_000}
    assert state.effective is not None
    assert (state.effective["daily_limit"], state.effective["weekly_limit"]) == (1_000, 9_000)


async def test_history_joins_the_archive_with_what_is_not_archived_yet(redis_url: str, postgres: str):
    await made(redis_url)
    async with site_of(redis_url, postgres) as site:
        await put(site, ONE)
        await archive(redis_url, postgres)
        await put(site, TWO)
        changes, note = await history(site, "bot")
    assert [(change.version, change.after) for change in changes] == [
        (1, {"daily_limit": 1_000}),
        (2, {"daily_limit": 2_000, "per_txn_limit": 500}),
    ]
    assert note == ""


WHOLE = """
defaults: {weekly_limit: 9_000}
policies: {bot: {daily_limit: 1_000, team: red}}
accounts: {acc_1: {daily_limit: 5_000}}
teams: {red: {daily_limit: 5_000}}
reviewers: [asha]
agents: {bot: {owners: [vikram]}}
changes: {loosening: one_person}
"""


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("bot", ["agent:bot 1"]),
        ("agent:bot", ["agent:bot 1"]),
        ("account:acc_1", ["account:acc_1 1", "freeze:account:acc_1 1", "freeze:account:acc_1 2"]),
        ("freeze:account:acc_1", ["freeze:account:acc_1 1", "freeze:account:acc_1 2"]),
        ("team:red", ["team:red 1"]),
        ("defaults", ["defaults 1"]),
        ("reviewers", ["reviewers 1", "reviewers 2"]),
        ("agents", ["agents 1"]),
        ("changes", ["changes 1"]),
    ],
)
async def test_every_scope_has_a_history_with_its_freezes(
    redis_url: str, postgres: str, name: str, changed: list[str]
):
    await made(redis_url)
    async with site_of(redis_url, postgres) as site:
        await put(site, WHOLE)
        await freeze(site, "account:acc_1", attributed("asha", "stop"), frozen=True)
        await archive(redis_url, postgres)
        await freeze(site, "account:acc_1", attributed("asha", "go on"), frozen=False)
        await put(site, "reviewers: [asha, meera]")
        changes, note = await history(site, name)
    assert [f"{change.scope} {change.version}" for change in changes] == changed
    assert note == ""


async def test_before_the_replay_that_an_upgrade_needs_the_history_names_it(redis_url: str, postgres: str):
    """It named `migrate`, which leaves a view that is there as it is."""
    await made(redis_url)
    async with site_of(redis_url, postgres) as site:
        await put(site, ONE)
        await archive(redis_url, postgres)
        await fetch(postgres, "ALTER TABLE policies DROP COLUMN channel")
        with pytest.raises(JobFailed, match=r'column "channel" does not exist.*`streamproc doctor`'):
            await history(site, "bot")
        await fetch(
            postgres, "UPDATE view_heads SET version = version - 1 WHERE view IN ('audit', 'policies')"
        )
        with pytest.raises(JobFailed, match="`streamproc replay audit policies`") as refused:
            await history(site, "bot")
    assert "migrate" not in str(refused.value)


async def test_an_agent_that_is_called_as_a_scope_is_does_not_hide_its_history(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, "policies: {reviewers: {daily_limit: 1}}\nreviewers: [asha]")
        both, _ = await history(site, "reviewers")
        alone, _ = await history(site, "reviewers", of_agent=True)
    assert sorted(change.scope for change in both) == ["agent:reviewers", "reviewers"]
    assert [change.scope for change in alone] == ["agent:reviewers"]


async def test_a_scope_that_was_never_set_is_a_failed_job(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        with pytest.raises(JobFailed, match=r"^team:blue was never set here$"):
            await history(site, "team:blue")


async def test_the_history_of_an_agent_that_never_had_a_policy_is_a_failed_job(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        with pytest.raises(JobFailed, match="agent nobody never had a policy here"):
            await history(site, "nobody")


async def test_partitions_that_do_not_agree_are_named(redis_url: str):
    await made(redis_url, partitions=2)
    async with site_of(redis_url) as site:
        await put(site, ONE)
        await site.client.hdel(site.names_of(1).policy, "agent:gone")
        with pytest.raises(JobFailed, match="partitions 0 and 1 have different policies for agent:gone"):
            await in_force(site)
        with pytest.raises(Differ):
            await policy_of(site, "gone")
        assert "agent:bot" in await policy_of(site, "bot")
        assert await frozen_now(site) == []

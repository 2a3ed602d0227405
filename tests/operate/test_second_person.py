"""What loosens a policy waits for a second person where the policies say so: once, on every partition, for good."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamproc.cli import run as cli
from streamproc.cli.person import shell
from streamproc.domain import proposals as rules
from streamproc.domain.events import PolicyChanged, PolicyProposed, ProposalConfirmed, ProposalWithdrawn
from streamproc.domain.policy import parse_policy_file
from streamproc.domain.proposals import Proposal, Refused, SamePerson
from streamproc.domain.wire import decode_events
from streamproc.errors import InputError, JobFailed
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.proposals import read_proposals
from streamproc.log.stream import LogView, open_log
from streamproc.operate import change_lease, policies, proposals
from streamproc.operate.changes import make
from streamproc.operate.freezes import freeze
from streamproc.operate.policies import in_force
from streamproc.operate.proposals import Applied
from streamproc.operate.site import Site
from tests.operate.recovering import archive, recovered
from tests.operate.test_recover_fork import failed_over, snapshot
from tests.operate.words import site_of
from tests.words import attributed

START = """
policies: {bot: {daily_limit: 1_000, per_txn_limit: 900}}
reviewers: [asha]
changes: {loosening: two_people}
"""
LOOSER = "policies: {bot: {daily_limit: 2_000, per_txn_limit: 100}}"


@asynccontextmanager
async def guarded(redis_url: str, *, partitions: int = 1, postgres: str = "") -> AsyncIterator[Site]:
    """A log whose policies want two people for what loosens."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=partitions, groups=["governance", "execution"])
    async with site_of(redis_url, postgres) as site:
        await put(site, START)
        yield site


async def put(site: Site, text: str, *, by: str = "asha") -> list[Applied] | Proposal:
    plan = policies.of_file(parse_policy_file(text, name="test.yaml"), attributed(by, "season"), prune=False)
    return await make(site, plan, attributed(by, "season", f"cli:{by}@laptop"))


async def proposed(site: Site, text: str = LOOSER, *, by: str = "asha") -> Proposal:
    made = await put(site, text, by=by)
    assert isinstance(made, Proposal)
    return made


async def confirmed(site: Site, name: str, by: str = "vikram") -> proposals.Confirmed:
    return await proposals.confirm(site, name, attributed(by, channel=f"cli:{by}@laptop"))


async def bot(site: Site) -> dict[str, Any]:
    own = (await in_force(site))["agent:bot"].own
    assert own is not None
    return own


async def log_of(site: Site, partition: int = 0) -> list[Any]:
    async with LogView(site.redis_url, partition) as view:
        rows = await view.read("0-0", 10_000, 0)
    return [event for row in rows for event in decode_events(row.e)]


async def told(site: Site, kind: type[Any], partition: int = 0) -> list[Any]:
    return [event for event in await log_of(site, partition) if type(event) is kind]


WAS = {"daily_limit": 1_000, "per_txn_limit": 900}
IS = {"daily_limit": 2_000, "per_txn_limit": 100}


async def test_the_whole_file_waits_and_is_in_force_once_somebody_else_confirms_it(redis_url: str) -> None:
    async with guarded(redis_url, partitions=3) as site:
        proposal = await proposed(site)
        assert [(one.field, one.before, one.after) for one in proposal.loosens] == [
            ("daily_limit", 1_000, 2_000)
        ]
        assert await bot(site) == WAS
        done = await confirmed(site, proposal.id)
        assert await bot(site) == IS
        assert [len(one.changes) for one in done.applied] == [1, 1, 1]
        for partition in range(3):
            change = (await told(site, PolicyChanged, partition))[-1]
            assert (change.by, change.confirmed_by, change.why, change.proposal) == (
                "asha", "vikram", "season", proposal.id,
            )  # fmt: skip
            assert (change.channel, change.confirmed_channel) == ("cli:asha@laptop", "cli:vikram@laptop")


async def test_what_only_tightens_is_in_force_at_once(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        assert isinstance(await put(site, "policies: {bot: {daily_limit: 500, per_txn_limit: 100}}"), list)
        frozen = await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        assert (frozen.changed, frozen.proposal) == ([0], None)
        assert await told(site, PolicyProposed) == []


async def test_lifting_a_freeze_and_turning_the_switch_off_wait_too(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        lifted = await freeze(site, "agent:bot", attributed("asha", "fixed"), frozen=False)
        assert lifted.proposal is not None
        assert "freeze:agent:bot" in await in_force(site)
        await confirmed(site, lifted.proposal.id)
        assert "freeze:agent:bot" not in await in_force(site)
        off = await proposed(site, "changes: {loosening: one_person}")
        await confirmed(site, off.id)
        assert isinstance(await put(site, LOOSER), list)


async def test_without_the_switch_nothing_waits(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["governance"])
    async with site_of(redis_url) as site:
        await put(site, "policies: {bot: {daily_limit: 1_000}}")
        assert isinstance(await put(site, LOOSER), list)


@pytest.mark.parametrize("same", ["asha", "Asha", " ASHA ", "ａｓｈａ"])
async def test_who_proposed_it_cannot_confirm_it_however_the_name_is_written(
    redis_url: str, same: str
) -> None:
    async with guarded(redis_url) as site:
        proposal = await proposed(site)
        for name in (same, " "):
            with pytest.raises(SamePerson):
                await confirmed(site, proposal.id, name)
        assert await told(site, ProposalConfirmed) == []
        assert await bot(site) == WAS


async def test_what_was_proposed_over_http_is_not_confirmed_by_a_claimed_name(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        made = await proposals.propose(site, [], [], attributed("asha", "", "api:asha-laptop"))
        with pytest.raises(SamePerson, match="over HTTP"):
            await confirmed(site, made.id)
        assert (
            await proposals.confirm(site, made.id, attributed("vikram", channel="api:vikram-phone"))
        ).left == []


async def test_after_a_day_it_is_expired_and_withdrawn_it_is_over(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(redis_url) as site:
        gone = await proposed(site)
        await proposals.withdraw(site, gone.id, attributed("meera", "not needed"))
        with pytest.raises(Refused, match="withdrawn by meera"):
            await confirmed(site, gone.id)
        with pytest.raises(Refused, match="withdrawn by meera"):
            await proposals.withdraw(site, gone.id, attributed("asha", ""))
        [event] = await told(site, ProposalWithdrawn)
        assert (event.by, event.why) == ("meera", "not needed")
        old = await proposed(site)
        late_us = old.expires_at

        async def late(_client: Any) -> int:
            return late_us

        monkeypatch.setattr(proposals, "clock_us", late)
        with pytest.raises(Refused, match="expired"):
            await confirmed(site, old.id)
        late_us -= 1
        assert (await confirmed(site, old.id)).left == []
        late_us = old.expires_at + 8 * 86_400 * 1_000_000
        assert await proposals.listed(site) == []


async def test_of_two_who_confirm_at_once_one_wins_and_the_other_is_told_by_whom(redis_url: str) -> None:
    async with guarded(redis_url, partitions=2) as one, site_of(redis_url) as two:
        proposal = await proposed(one)
        answers = await asyncio.gather(
            confirmed(one, proposal.id, "vikram"),
            confirmed(two, proposal.id, "meera"),
            return_exceptions=True,
        )
        [won] = await told(one, ProposalConfirmed)
        [lost] = [answer for answer in answers if isinstance(answer, Refused)]
        assert f"confirmed by {won.by}" in str(lost)
        for partition in range(2):
            assert [c.confirmed_by for c in await told(one, PolicyChanged, partition)][-1:] == [won.by]
            assert len(await told(one, PolicyChanged, partition)) == 4


async def crashed_after_partition_0(site: Site, proposal: Proposal, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = proposals.put_in_force

    async def dies(client: Any, names: Any, *rest: Any, **named: Any) -> Any:
        if names.partition == 1:
            raise ConnectionResetError("crash")
        return await whole(client, names, *rest, **named)

    with monkeypatch.context() as crash:
        crash.setattr(proposals, "put_in_force", dies)
        with pytest.raises(ConnectionResetError):
            await confirmed(site, proposal.id)
    assert [len(await told(site, PolicyChanged, p)) for p in range(site.partitions)] == [4, 3, 3]


async def test_a_crash_between_partitions_is_mended_by_confirming_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(redis_url, partitions=3) as site:
        proposal = await proposed(site)
        await crashed_after_partition_0(site, proposal, monkeypatch)
        again = await confirmed(site, proposal.id)
        assert [len(one.changes) for one in again.applied] == [0, 1, 1]
        assert (again.left, await bot(site)) == ([], IS)
        assert (await confirmed(site, proposal.id)).applied == [Applied(p, None, []) for p in range(3)]


async def test_what_was_taken_back_after_a_crash_between_partitions_is_put_in_force_on_none_of_the_others(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it back touches no partition that had not got it yet."""
    async with guarded(redis_url, partitions=3) as site:
        proposal = await proposed(site)
        await crashed_after_partition_0(site, proposal, monkeypatch)
        lower = policies.of_patch("agent:bot", {"daily_limit": 1_000}, attributed("meera", ""))
        await make(site, lower, attributed("meera", ""))
        again = await confirmed(site, proposal.id)
        assert [len(one.changes) for one in again.applied] == [0, 0, 0]
        assert again.left == [
            f"partition 0: agent:bot was changed after vikram confirmed {proposal.id}, and stays as it is now",
            "partition 1: not put in force there either",
            "partition 2: not put in force there either",
        ]
        for partition in range(3):
            _, scopes = await policies.read_scopes(site.client, site.names_of(partition))
            assert (scopes["agent:bot"].own or {})["daily_limit"] == 1_000


async def test_a_confirmation_that_died_and_was_overtaken_is_not_told_to_be_in_force(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(redis_url) as site:
        proposal = await proposed(site)

        async def dies(*_arguments: Any, **_named: Any) -> Any:
            raise ConnectionResetError("crash")

        with monkeypatch.context() as crash:
            crash.setattr(proposals, "put_in_force", dies)
            with pytest.raises(ConnectionResetError):
                await confirmed(site, proposal.id)
        await put(site, "policies: {bot: {daily_limit: 5, per_txn_limit: 5}}", by="meera")
        again = await confirmed(site, proposal.id)
        assert [one.changes for one in again.applied] == [[]]
        assert again.left == [
            f"partition 0: agent:bot was changed after vikram confirmed {proposal.id}, and stays as it is now"
        ]
        assert await bot(site) == {"daily_limit": 5, "per_txn_limit": 5}


async def test_what_is_in_force_already_is_confirmed_again_without_a_complaint(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        proposal = await proposed(site)
        await confirmed(site, proposal.id)
        assert (await confirmed(site, proposal.id)).left == []


async def test_a_tightening_waits_until_a_confirmation_that_has_begun_is_in_force(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirmation is recorded for policies that the tightening would have changed under it."""
    recorded, waits = proposals.change_proposal, change_lease.ChangeLease.take
    tightening: list[asyncio.Task[Any]] = []
    may_go_on = asyncio.Event()

    async def tighten(other: Site) -> None:
        await put(other, "policies: {bot: {daily_limit: 1_000, per_txn_limit: 5}}", by="meera")
        may_go_on.set()

    async def take(one: change_lease.ChangeLease, **named: Any) -> bool:
        taken = await waits(one, **named)
        if not taken:
            may_go_on.set()
        return taken

    async with guarded(redis_url) as site, site_of(redis_url) as other:
        proposal = await proposed(site)

        async def record(*arguments: Any) -> str | None:
            tightening.append(asyncio.create_task(tighten(other)))
            await may_go_on.wait()
            return await recorded(*arguments)

        monkeypatch.setattr(change_lease.ChangeLease, "take", take)
        monkeypatch.setattr(proposals, "change_proposal", record)
        done = await confirmed(site, proposal.id)
        assert ([len(one.changes) for one in done.applied], done.left) == ([1], [])
        await tightening[0]
        assert await bot(site) == {"daily_limit": 1_000, "per_txn_limit": 5}


async def test_what_is_confirmed_loosens_nothing_that_was_not_told(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        proposal = await proposed(site)
        # As an earlier version writes it, which leaves the proposal waiting.
        rev, scopes = await policies.read_scopes(site.client, site.names_of(0))
        fields = {"daily_limit": 5, "per_txn_limit": 5}
        tighter = policies.of_patch("agent:bot", fields, attributed("meera", ""))(0, scopes, 1)
        assert await proposals.put_in_force(site.client, site.names_of(0), rev, tighter, actor="meera")
        with pytest.raises(Refused, match="no longer fits"):
            await confirmed(site, proposal.id)
        assert await told(site, ProposalConfirmed) == []
        assert await bot(site) == fields


async def test_what_was_changed_and_changed_back_is_not_undone_by_a_proposal_of_before(
    redis_url: str,
) -> None:
    """Two people propose the same, one proposal is confirmed, and somebody takes that back."""
    async with guarded(redis_url) as site:
        first, second = await proposed(site), await proposed(site, by="ravi")
        await confirmed(site, second.id)
        await put(site, f"policies: {{bot: {json.dumps(WAS | {'per_txn_limit': 100})}}}", by="meera")
        with pytest.raises(Refused, match=f"{first.id} is withdrawn by vikram"):
            await confirmed(site, first.id)
        [ended] = await told(site, ProposalWithdrawn)
        assert (ended.proposal, ended.channel) == (first.id, "cli:vikram@laptop")
        assert (await bot(site))["daily_limit"] == 1_000


async def test_a_new_freeze_is_not_lifted_by_a_proposal_of_before_it(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        lifts = [
            (await freeze(site, "agent:bot", attributed(by, "mended"), frozen=False)).proposal
            for by in ("asha", "ravi")
        ]
        first, second = [lift.id for lift in lifts if lift is not None]
        await confirmed(site, second)
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        with pytest.raises(Refused, match=f"{first} is withdrawn by vikram"):
            await confirmed(site, first)
        assert "freeze:agent:bot" in await in_force(site)


@pytest.mark.parametrize(
    ("by", "why", "changed"), [("meera", "it still loops", [0]), ("asha", "it loops", [])]
)
async def test_a_second_freeze_of_what_is_frozen_is_not_lifted_by_what_was_proposed_before_it(
    redis_url: str, by: str, why: str, changed: list[int]
) -> None:
    async with guarded(redis_url) as site:
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        lift = (await freeze(site, "agent:bot", attributed("asha", "mended"), frozen=False)).proposal
        assert lift is not None
        again = await freeze(site, "agent:bot", attributed(by, why), frozen=True)
        assert (again.changed, again.proposal) == (changed, None)
        with pytest.raises(Refused, match=f"{lift.id} is withdrawn by {by}"):
            await confirmed(site, lift.id)
        assert (await in_force(site))["freeze:agent:bot"].own == {"frozen": True, "by": by, "why": why}


@pytest.mark.parametrize(("by", "why"), [("meera", "it still loops"), ("asha", "it loops")])
async def test_a_confirmation_that_died_before_the_first_partition_lifts_no_freeze_of_since(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, by: str, why: str
) -> None:
    async with guarded(redis_url) as site:
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        lift = (await freeze(site, "agent:bot", attributed("asha", "mended"), frozen=False)).proposal
        assert lift is not None

        async def dies(*_arguments: Any, **_named: Any) -> Any:
            raise ConnectionResetError("crash")

        with monkeypatch.context() as crash:
            crash.setattr(proposals, "put_in_force", dies)
            with pytest.raises(ConnectionResetError):
                await confirmed(site, lift.id)
        await freeze(site, "agent:bot", attributed(by, why), frozen=True)
        again = await confirmed(site, lift.id)
        assert again.left == [
            f"partition 0: freeze:agent:bot was changed after vikram confirmed {lift.id}, and stays as it is now"
        ]
        assert "freeze:agent:bot" in await in_force(site)


async def test_a_tightening_ends_what_waits_to_loosen_the_same_and_says_why(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        same, other = (
            await proposed(site),
            await proposed(site, "agents: {bot: {fund_accounts: [fa_00000000000001]}}"),
        )
        await put(site, "policies: {bot: {daily_limit: 500, per_txn_limit: 100}}", by="meera")
        [event] = await told(site, ProposalWithdrawn)
        assert (event.proposal, event.by, event.why) == (
            same.id, "meera", "what it loosens was changed meanwhile; propose it anew",
        )  # fmt: skip
        assert [one["id"] for one in await proposals.listed(site) if one["state"] == "waiting"] == [other.id]


async def test_a_confirmation_that_came_to_a_halt_lifts_no_freeze_of_since(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halted = proposals.put_in_force, False

    async def halts(client: Any, names: Any, *rest: Any, **named: Any) -> Any:
        nonlocal halted
        if names.partition == 1 and not halted:
            halted = True
            async with site_of(redis_url) as other:
                await other.client.delete(Names(0).lease("policies"))  # its turn is over
                await freeze(other, "agent:bot", attributed("asha", "it loops"), frozen=True)
        return await whole(client, names, *rest, **named)

    async with guarded(redis_url, partitions=2) as site:
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        lift = (await freeze(site, "agent:bot", attributed("asha", "mended"), frozen=False)).proposal
        assert lift is not None
        monkeypatch.setattr(proposals, "put_in_force", halts)
        with pytest.raises(JobFailed, match="partition 1: freeze:agent:bot was changed after vikram "):
            await confirmed(site, lift.id)
        assert (await confirmed(site, lift.id)).left != []  # confirmed again, as it says
        for partition in range(2):
            _, scopes = await policies.read_scopes(site.client, site.names_of(partition))
            assert scopes["freeze:agent:bot"].own is not None


async def test_all_that_a_change_ends_is_ended_in_one_commit(redis_url: str) -> None:
    """With a commit for each, a hundred that wait would hold a freeze up."""
    async with guarded(redis_url) as site:
        fields = [f"policies: {{bot: {json.dumps({**WAS, 'daily_limit': 2_000 + n})}}}" for n in range(3)]
        waits = [(await proposed(site, text)).id for text in fields]
        async with LogView(site.redis_url, 0) as view:
            before = await view.read("0-0", 10_000, 0)
            await put(site, "policies: {bot: {daily_limit: 500, per_txn_limit: 100}}", by="meera")
            after = await view.read(before[-1].id, 10_000, 0)
        ended, changed = [decode_events(row.e) for row in after]
        assert [type(event) for event in changed] == [PolicyChanged]
        assert sorted(event.proposal for event in ended if type(event) is ProposalWithdrawn) == sorted(waits)


async def test_what_one_partition_alone_needs_ends_what_waits_to_loosen_it(redis_url: str) -> None:
    async with guarded(redis_url, partitions=2) as site:
        waits = await proposed(site)
        tight = {"daily_limit": 500, "per_txn_limit": 100}
        wanted = {**tight, "vendor_daily_limit": 7}
        rev, scopes = await policies.read_scopes(site.client, site.names_of(0))  # a change that died here
        fields = policies.of_patch("agent:bot", tight, attributed("meera", ""))(0, scopes, 1)
        assert await proposals.put_in_force(site.client, site.names_of(0), rev, fields, actor="meera")
        await put(site, f"policies: {{bot: {json.dumps(wanted)}}}", by="meera")
        assert await bot(site) == wanted
        with pytest.raises(Refused, match=f"{waits.id} is withdrawn by meera"):
            await confirmed(site, waits.id)


async def test_what_changed_beside_it_stays(redis_url: str) -> None:
    async with guarded(redis_url) as site:
        proposal = await proposed(site)
        tighter = {**WAS, "weekly_limit": 1_500}
        await put(site, f"policies: {{bot: {json.dumps(tighter)}}}", by="meera")
        with pytest.raises(InputError, match="daily_limit 2000 is above weekly_limit 1500"):
            await confirmed(site, proposal.id)
        await put(site, f"policies: {{bot: {json.dumps({**WAS, 'vendor_daily_limit': 7})}}}", by="meera")
        waits = await proposals.listed(site)
        for one in waits:  # removing the weekly limit loosens, and waits in its turn
            if one["state"] == "waiting" and one["id"] != proposal.id:
                await confirmed(site, one["id"])
        await confirmed(site, proposal.id)
        assert await bot(site) == {**IS, "vendor_daily_limit": 7}


async def test_what_is_too_much_for_one_proposal_is_refused_with_the_limit(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(redis_url) as site:
        monkeypatch.setattr(proposals, "PROPOSAL_BYTES_MAX", 100)
        with pytest.raises(InputError, match="the limit of what waits"):
            await proposed(site)
        assert await told(site, PolicyProposed) == []
    assert rules.PROPOSAL_BYTES_MAX >= 100_000


async def test_so_many_wait_and_no_more_and_what_is_over_makes_room(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "PROPOSALS_MAX", 2)
    monkeypatch.setattr(rules, "PROPOSALS_MAX", 2)
    async with guarded(redis_url) as site:
        ended = []
        for _ in range(4):
            ended.append((await proposed(site)).id)
            await proposals.withdraw(site, ended[-1], attributed("asha", ""))
        waiting = [(await proposed(site)).id for _ in range(2)]
        with pytest.raises(Refused, match="2 proposals wait, the limit is 2"):
            await proposed(site)
        assert {one["id"] for one in await proposals.listed(site)} == {*ended[-2:], *waiting}


async def test_a_rebuilt_redis_knows_what_waits_and_what_is_over(redis_url: str, postgres: str) -> None:
    async with guarded(redis_url) as site:
        done, gone = [await proposed(site, by=by) for by in ("asha", "meera")]
        waits = await proposed(site, "agents: {bot: {fund_accounts: [fa_00000000000001]}}", by="ravi")
        await proposals.withdraw(site, gone.id, attributed("asha", ""))
        await confirmed(site, done.id)
        before = (await read_proposals(site.client))[1]
        await archive(redis_url, postgres)
        await site.client.flushdb()

        await recovered(redis_url, postgres)

        assert (await read_proposals(site.client))[1] == before
        assert {name: one.state(waits.proposed_at) for name, one in before.items()} == {
            done.id: "confirmed", gone.id: "withdrawn", waits.id: "waiting",
        }  # fmt: skip
        assert await bot(site) == IS
        assert [one.changes for one in (await confirmed(site, done.id)).applied] == [[]]


async def test_what_was_proposed_and_confirmed_on_a_log_that_had_lost_its_tail_is_kept(
    redis_url: str, postgres: str
) -> None:
    async with guarded(redis_url) as site:
        first = await proposed(site)
        replica = await snapshot(site.client)
        await freeze(site, "agent:other", attributed("asha", "lost with the tail"), frozen=True)
        await archive(redis_url, postgres)
        await failed_over(site.client, replica)
        await confirmed(site, first.id)
        second = await proposed(site, "policies: {bot: {daily_limit: 3_000, per_txn_limit: 100}}")

        await recovered(redis_url, postgres)

        found = {one["id"]: one["state"] for one in await proposals.listed(site)}
        assert found == {first.id: "confirmed", second.id: "waiting"}
        assert await bot(site) == IS
        kept = (await told(site, PolicyChanged))[-1]
        assert (kept.by, kept.channel) == ("asha", "cli:asha@laptop")
        assert (kept.confirmed_by, kept.confirmed_channel) == ("vikram", "cli:vikram@laptop")
        assert "freeze:agent:other" in await in_force(site)


async def test_history_names_both_people_from_the_log_and_from_the_archive(
    redis_url: str, postgres: str
) -> None:
    from tests.operate.words import archive as fold_into_views

    async with guarded(redis_url, postgres=postgres) as site:
        await confirmed(site, (await proposed(site)).id)
        async with site_of(redis_url) as without_archive:
            changes, _ = await policies.history(without_archive, "bot")
        await fold_into_views(redis_url, postgres)
        from_views, note = await policies.history(site, "bot")
    both = [("asha", "cli:asha@laptop", "", ""), ("asha", "cli:asha@laptop", "vikram", "cli:vikram@laptop")]
    for told_by in (changes, from_views):
        assert [(c.by, c.channel, c.confirmed_by, c.confirmed_channel) for c in told_by] == both
    assert note == ""


async def test_the_commands_propose_list_confirm_and_withdraw(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    file = tmp_path / "next.yaml"
    file.write_text("{daily_limit: 2_000}")

    async def said(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli, list(arguments))
        out = capsys.readouterr()
        return code, out.out, out.err

    async with guarded(redis_url) as site:
        who = ("--by", "asha", "--why", "season")
        code, out, err = await said("policy", "patch", "bot", str(file), *who, "--dry-run")
        assert (code, "daily_limit: 1000 -> 2000" in out, "would wait" in err) == (0, True, True)
        assert await told(site, PolicyProposed) == []
        code, out, _ = await said("policy", "patch", "bot", str(file), *who)
        [event] = await told(site, PolicyProposed)
        assert code == 0
        assert (
            out.splitlines()[0]
            == f"{event.proposal} waits for a second person; nothing is in force yet. It loosens:"
        )
        assert "  loosens agent:bot daily_limit: 1000 -> 2000 (the limit is raised)" in out.splitlines()
        assert f"{event.proposal}  waiting, until " in (await said("policy", "proposals"))[1]
        code, _, err = await said("policy", "confirm", event.proposal, "--by", "asha")
        assert (code, "somebody else must confirm it" in err) == (1, True)
        code, out, _ = await said("policy", "confirm", event.proposal, "--by", "vikram")
        assert (code, out.splitlines()) == (
            0,
            ["agent:bot changed, version 2", "  daily_limit: 1000 -> 2000"],
        )
        assert await bot(site) == {**WAS, "daily_limit": 2_000} | {"per_txn_limit": 900}
        code, out, _ = await said("policy", "history", "bot")
        assert f"version 2 by asha ({shell()}), confirmed by vikram ({shell()}): season" in out
        await freeze(site, "agent:bot", attributed("asha", "it loops"), frozen=True)
        code, out, _ = await said("unfreeze", "agent", "bot", *who, "--json")
        waits = json.loads(out)["proposal"]
        assert (code, waits["state"], waits["loosens"][0]["scope"]) == (0, "waiting", "freeze:agent:bot")
        code, out, _ = await said("policy", "withdraw", waits["id"], "--by", "meera")
        assert (code, out) == (0, f"{waits['id']} is withdrawn\n")
        rows = json.loads((await said("policy", "proposals", "--json"))[1])["items"]
        assert {row["state"] for row in rows} == {"confirmed", "withdrawn"}
        assert (await said("policy", "confirm", "prop_nothing", "--by", "x"))[0] == 1

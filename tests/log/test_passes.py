"""A handler's passes: what changes under its hands is run again so often and no more, and what it knew ends with its
connections."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.domain.budget import Ask
from streamproc.domain.events import PayoutObserved
from streamproc.domain.payouts import decode_record
from streamproc.domain.policy_events import PolicyChanged
from streamproc.domain.wire import encode_events
from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from streamproc.log import batch, failures, scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.opened import Opener
from streamproc.log.policies import Policies
from streamproc.log.scripts import Raw
from streamproc.log.stream import open_log
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.deadline import DEADLINE_S
from tests.faults.replica import replica_of
from tests.properties.test_fast_path import governance
from tests.words import apply_policies, observed

NAMES = Names(0)
FACTS = {"outputs_are_facts": True}


async def look_at_nothing(*_: object) -> None:
    """A stage that leaves everything as it is."""


async def shown(client: Redis, group: str, payout: str = "pout_1", *, status: str = "pending") -> list[Raw]:
    """All that is new, and then a payout, in the hands of one consumer."""
    e = encode_events([observed(payout, 100, agent="bot", url="", status=status)])
    await client.xadd(NAMES.log, {"e": e, "m": b'{"by":"webhook"}'})
    ((_, entries),) = await client.execute_command(
        "XREADGROUP", "GROUP", group, "me", "STREAMS", NAMES.log, ">"
    )
    return list(entries)


@pytest.mark.parametrize(
    ("kind", "runs"),
    [({}, 4), (FACTS, 1), (FACTS | {"looks_again": True}, 4)],
    ids=["rules", "facts", "looks"],
)
async def test_a_payout_that_changes_in_every_pass_is_put_off_in_the_end(
    client: Redis, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], runs: int
) -> None:
    """Where outputs are facts, whoever called the bank does not call it again: only the commit is tried again. Whoever
    tells people looks at what the payout is now."""
    monkeypatch.setattr(batch, "STALE_MAX", 3)
    ran = 0

    async def look(items: Sequence[Item], _: BatchContext) -> None:
        nonlocal ran
        ran += 1
        for work, _event in items:
            work.looked_at = True

    async def overtaken(*call: object, **options: object) -> list[scripts.Committed]:
        nonlocal commits
        commits += 1
        assert commits <= 4, "it goes on for ever"
        await client.hset(NAMES.payout("pout_1"), "v", commits)
        return await commit(*call, **options)  # type: ignore[arg-type]

    commit, commits = scripts.commit, 0
    monkeypatch.setattr(scripts, "commit", overtaken)
    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,), **kind), Limits())
    await handler.handle(client, await shown(client, "g"), taken=False)
    assert (ran, commits) == (runs, 4)
    assert await client.zcard(NAMES.retries("g")) == 1
    ((tries, count),) = (await client.hgetall(NAMES.tries("g"))).items()
    assert (tries.endswith(b":waits"), count) == (True, b"1")
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 1


@pytest.mark.parametrize(("looks", "runs"), [(True, 2), (False, 1)])
async def test_who_looked_at_a_payout_looks_again_if_it_has_changed_meanwhile_also_where_nothing_is_written(
    client: Redis, looks: bool, runs: int
) -> None:
    """People may have been shown what holds no more. Who did not look at it need not know."""
    ran = 0

    async def look(items: Sequence[Item], _: BatchContext) -> None:
        nonlocal ran
        ran += 1
        for work, _event in items:
            work.looked_at = looks
        await client.hincrby(NAMES.payout("pout_1"), "v", int(ran == 2))

    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    for _ in range(2):  # what is seen twice changes nothing the second time
        await handler.handle(client, await shown(client, "g"), taken=False)
    assert ran == 1 + runs
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_a_timeout_of_one_entry_is_its_own_failure_and_does_not_hold_up_the_others(
    client: Redis,
) -> None:
    """What is late as a whole costs no attempt. An entry that brings a timeout of its own along would come for ever."""

    async def look(items: Sequence[Item], _: BatchContext) -> None:
        if any(work.payout == "pout_2" for work, _event in items):
            raise TimeoutError

    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    entries = [
        *await shown(client, "g"),
        *await shown(client, "g", "pout_2"),
        *await shown(client, "g", "pout_3"),
    ]
    await handler.handle(client, entries, taken=False)
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 1
    assert await client.hgetall(NAMES.tries("g")) == {entries[1][0]: b"1"}


async def test_what_a_stage_said_before_it_failed_is_not_said_twice_when_the_batch_is_tried_one_by_one(
    client: Redis,
) -> None:
    async def emit(items: Sequence[Item], _: BatchContext) -> None:
        for work, event in items:
            work.emit(event)  # type: ignore[arg-type]
            if work.payout == "pout_2":
                raise RuntimeError("nobody named this")

    stage = Stage(name="emit", consumes=frozenset({PayoutObserved}), handle=emit)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    entries = [*await shown(client, "g"), *await shown(client, "g", "pout_2")]
    await handler.handle(client, entries, taken=False)
    rows = await client.execute_command("XRANGE", NAMES.log, "(" + entries[-1][0].decode(), "+")
    assert [fields[1] for _, fields in rows] == [entries[0][1][1]]


async def test_a_batch_that_takes_too_long_as_a_whole_waits_and_costs_none_of_its_entries_an_attempt(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BATCH_TIMEOUT_S", 0.01)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    stage = Stage(name="hang", consumes=frozenset({PayoutObserved}), handle=hang)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    entries = [*await shown(client, "g"), *await shown(client, "g", "pout_2")]
    async with asyncio.timeout(DEADLINE_S):
        await handler.handle(client, entries, taken=False)
    assert await client.hgetall(NAMES.tries("g")) == {entry + b":waits": b"1" for entry, _ in entries}
    assert await client.zcard(NAMES.retries("g")) == 2


async def test_what_waits_for_a_dependency_comes_again_no_sooner_than_it_asked_to(client: Redis) -> None:
    async def refuse(items: Sequence[Item], _: BatchContext) -> None:
        for work, _event in items:
            work.fail(TryAgain("the bank is away", after_s=600.0))

    stage = Stage(name="refuse", consumes=frozenset({PayoutObserved}), handle=refuse)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    (one,) = await shown(client, "g")
    entry, now_us = one[0], (await scripts.load(client, NAMES, []))[0]
    await handler.handle(client, [one], taken=False)
    assert await client.zscore(NAMES.retries("g"), entry) >= now_us + 600_000_000
    assert await client.hgetall(NAMES.tries("g")) == {entry + b":waits": b"1"}


@pytest.mark.parametrize("problem", [TryAgain("the bank is away"), RuntimeError("nobody named this")])
async def test_an_entry_that_fails_by_itself_is_set_aside_without_a_trace_and_one_that_waits_never_is(
    client: Redis, problem: Exception
) -> None:
    async def refuse(items: Sequence[Item], _: BatchContext) -> None:
        for work, _event in items:
            work.fail(problem)

    stage = Stage(name="refuse", consumes=frozenset({PayoutObserved}), handle=refuse)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    entries = await shown(client, "g")
    for n in range(1, failures.ATTEMPTS_MAX + 1):
        assert await client.exists(NAMES.dead) == 0
        await handler.handle(client, entries, taken=n > 1)
    traces = await client.exists(NAMES.retries("g"), NAMES.tries("g"))
    is_set_aside = not isinstance(problem, TryAgain)
    assert (await client.exists(NAMES.dead), traces) == ((1, 0) if is_set_aside else (0, 2))


async def test_what_another_consumer_has_taken_over_meanwhile_is_not_put_off(client: Redis) -> None:
    """It would be taken from that one when it is due."""

    async def overtaken(items: Sequence[Item], _: BatchContext) -> None:
        for work, _event in items:
            await client.execute_command("XCLAIM", NAMES.log, "g", "another", 0, work.entry)
            work.fail(TryAgain("the bank is away"))

    stage = Stage(name="refuse", consumes=frozenset({PayoutObserved}), handle=overtaken)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits(), "me")
    await handler.handle(client, await shown(client, "g"), taken=False)
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_what_happened_in_the_world_is_in_the_log_once_though_the_payout_moved_on_before_the_commit(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank's answer is kept for the next try of the commit, and the bank is not called for it again."""
    calls, commit = 0, scripts.commit

    async def call(items: Sequence[Item], _: BatchContext) -> None:
        nonlocal calls
        calls += 1
        for work, event in items:
            work.emit(event)  # type: ignore[arg-type]

    async def overtaken_once(*args: object, **options: object) -> list[scripts.Committed]:
        monkeypatch.setattr(scripts, "commit", commit)
        await client.hset(NAMES.payout("pout_1"), "v", 7)
        return await commit(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scripts, "commit", overtaken_once)
    stage = Stage(name="call", consumes=frozenset({PayoutObserved}), handle=call)
    handler = Handler(0, Group(name="g", stages=(stage,), outputs_are_facts=True), Limits())
    entries = await shown(client, "g")
    await handler.handle(client, entries, taken=False)
    rows = await client.execute_command("XRANGE", NAMES.log, "-", "+")
    assert [fields[1] for _, fields in rows] == [entries[0][1][1]] * 2
    assert calls == 1
    assert await client.hget(NAMES.payout("pout_1"), "v") == b"8"


async def test_a_log_that_goes_in_the_midst_of_a_batch_is_not_taken_for_the_fault_of_its_entries(
    client: Redis,
) -> None:
    ran = 0

    async def look(items: Sequence[Item], ctx: BatchContext) -> None:
        nonlocal ran
        ran += 1
        await client.rename(NAMES.log, NAMES.rescued)
        try:
            await ctx.admit([Ask(work.payout, 100, 0, None, None) for work, _event in items])
        finally:
            await client.rename(NAMES.rescued, NAMES.log)

    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    entries = [*await shown(client, "g"), *await shown(client, "g", "pout_2")]
    with pytest.raises(LogBroken, match="is gone"):
        await handler.handle(client, entries, taken=False)
    assert (ran, await client.exists(NAMES.tries("g"))) == (1, 0)


async def test_after_a_failover_the_same_revision_may_mean_other_policies(client: Redis) -> None:
    """The new server had lost a change, and another one got its number."""
    chain = replace(governance(), fast_path=None)
    await open_log(client, partitions=1, groups=[chain.name])
    handler, reasons = Handler(0, chain, Limits()), []
    for n, limit in enumerate((1_000, 50)):
        await client.delete(NAMES.policy)
        await apply_policies(client, f"policies: {{bot: {{per_txn_limit: {limit}, daily_limit: 100000}}}}")
        await client.hset(NAMES.policy, "rev", "7")
        handler.forget()
        payout = f"pout_{n}"
        await handler.handle(client, await shown(client, chain.name, payout), taken=False)
        reasons.append(decode_record(await client.hget(NAMES.payout(payout), "s")).reason)
    assert reasons == ["POLICY_OK", "TXN_LIMIT_EXCEEDED"]


async def test_after_a_failover_policies_of_the_same_revision_are_read_anew_before_money_moves(
    client: Redis,
) -> None:
    limits: list[int | None] = []

    async def look(_: Sequence[Item], ctx: BatchContext) -> None:
        agent = (await ctx.book_now()).agent("bot")
        limits.append(agent.policy.per_txn_limit if agent else None)

    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,), outputs_are_facts=True), Limits())
    for limit in (1_000, 50):
        await client.delete(NAMES.policy)
        await apply_policies(client, f"policies: {{bot: {{per_txn_limit: {limit}, daily_limit: 100000}}}}")
        await client.hset(NAMES.policy, "rev", "7")
        handler.forget()
        await handler.handle(client, await shown(client, "g"), taken=False)
    assert limits == [1_000, 50]


async def test_what_was_acknowledged_is_not_acknowledged_again(client: Redis) -> None:
    """Else a group that skips much would send more with each batch."""
    handler = Handler(0, Group(name="g", stages=()), Limits())
    await handler.handle(client, await shown(client, "g"), taken=False)
    assert len(handler.skipped) == 1
    await handler.acknowledge(client)
    assert handler.skipped == []
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_whether_money_may_move_is_not_asked_of_a_server_that_takes_no_writes(
    client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """A connection may outlive a failover. A primary that was demoted answers, and may not know of a freeze."""
    await apply_policies(client, "policies: {bot: {daily_limit: 100000}}")
    assert (await Policies(NAMES).now(client)).agent("bot") is not None
    async with replica_of(redis_url, tmp_path) as replica, connected(replica.url) as demoted:
        assert await demoted.hget(NAMES.policy, "rev") == await client.hget(NAMES.policy, "rev")
        with pytest.raises(LogUnavailable):
            await Policies(NAMES).now(demoted)


async def test_what_a_server_that_is_gone_may_have_delivered_counts_as_taken_and_nothing_after_it(
    client: Redis,
) -> None:
    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=lambda *_: None)  # type: ignore[arg-type,return-value]
    opener = Opener(NAMES, Group(name="g", stages=(stage,)))
    entries = [*await shown(client, "g"), *await shown(client, "g"), *await shown(client, "g")]
    opener.doubt(entries[1][0].decode())
    assert [work.taken for work in opener.open(entries, taken=False).works] == [True, True, False]


async def test_beside_what_is_about_no_payout_each_payout_has_its_own_record(client: Redis) -> None:
    looks: list[tuple[str, str]] = []

    async def look(items: Sequence[Item], _: BatchContext) -> None:
        looks.extend((work.payout, work.loaded.payout if work.loaded else "") for work, _event in items)

    stage = Stage(name="look", consumes=frozenset({PayoutObserved, PolicyChanged}), handle=look)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    for payout in ("pout_1", "pout_2"):
        await handler.handle(client, await shown(client, "g", payout), taken=False)
    looks.clear()
    await apply_policies(client, "policies: {bot: {daily_limit: 100000}}")
    for payout in ("pout_2", "pout_new"):
        await client.xadd(NAMES.log, {"e": encode_events([observed(payout, 100)]), "m": b'{"by":"webhook"}'})
    await handler.handle(client, await shown(client, "g", "pout_1"), taken=False)
    assert [look for look in looks if look[0]] == [
        ("pout_2", "pout_2"),
        ("pout_new", ""),
        ("pout_1", "pout_1"),
    ]
    assert any(not payout for payout, _ in looks)


@pytest.mark.parametrize(("status", "ends"), [("pending", False), ("failed", True)])
async def test_the_record_of_a_payout_that_is_over_goes_after_the_retention_time_and_no_other(
    client: Redis, status: str, ends: bool
) -> None:
    """Else Redis would fill with records that nobody asks for."""
    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=look_at_nothing)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits(retention_s=5_000.0))
    await handler.handle(client, await shown(client, "g", status=status), taken=False)
    ttl_s = await client.ttl(NAMES.payout("pout_1"))
    assert (0 < ttl_s <= 5_000) if ends else ttl_s == -1


@pytest.mark.parametrize("way", ["fast path", "chain"])
async def test_a_budget_is_kept_for_the_retention_time_after_its_window(client: Redis, way: str) -> None:
    """What comes back of a payout goes to the windows that it was charged to."""
    chain = governance() if way == "fast path" else replace(governance(), fast_path=None)
    await open_log(client, partitions=1, groups=[chain.name])
    await apply_policies(client, "policies: {bot: {daily_limit: 100000}}")
    handler = Handler(0, chain, Limits(retention_s=5_000_000.0))
    await handler.handle(client, await shown(client, chain.name), taken=False)
    (budget,) = await client.keys(f"{NAMES.base}:budget:*")
    assert await client.ttl(budget) > 4_999_000


async def test_an_output_says_who_wrote_it_and_which_entry_caused_it(client: Redis) -> None:
    """Else its own writers would handle it again, and nobody could say why a payout was decided."""

    async def emit(items: Sequence[Item], _: BatchContext) -> None:
        for work, event in items:
            work.emit(event)  # type: ignore[arg-type]

    stage = Stage(name="look", consumes=frozenset({PayoutObserved}), handle=emit)
    handler = Handler(0, Group(name="g", stages=(stage,)), Limits())
    (entry,) = await shown(client, "g")
    await handler.handle(client, [entry], taken=False)
    (_, fields), *_ = await client.execute_command("XREVRANGE", NAMES.log, "+", "-", "COUNT", 1)
    assert fields[3] == b'{"by":"g","cause":"%b"}' % entry[0]

"""What `/readyz` asks: a dependency that hangs is named, and does not make the others late."""

import asyncio
import re
from typing import Any

import pytest

import consumers
from streamproc.api.health import Check
from streamproc.archive.pool import opened_pool
from streamproc.archive.store import connection, open_head
from streamproc.errors import WHEN_LOST
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.health import Deferred, deferred, group_states
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.operate import condition, readiness
from streamproc.settings import load
from tests.deadline import DEADLINE_S


async def test_a_postgres_that_hangs_is_named_within_a_single_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
    both = asyncio.Barrier(2)

    async def asked(*_: Any) -> dict[int, str]:
        await both.wait()  # hangs for whoever asks alone
        return {0: "0-0"}

    for module in (readiness, condition):
        monkeypatch.setattr(module, "positions", asked)
    pool: Any = object()
    checks = await readiness.readiness(load({"STREAMPROC_REDIS_URL": redis_url}), pool)()
    assert [check.name for check in checks][-2:] == ["postgres", "archive"]
    assert all(check.ok for check in checks[-2:]), checks


async def test_a_partition_that_no_projector_has_opened_is_named(redis_url: str, prepared: str):
    """Its payouts would wait for the archive for ever, while partition 0 is well."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=3, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_PARTITIONS": "3"})
    async with opened_pool(prepared) as pool, connection(prepared, name="test") as db:
        for partition, (ok, detail) in enumerate(
            [
                (False, "no projector has opened partition 1, 2"),
                (False, "no projector has opened partition 2"),
                (True, "answers; a projector has opened 3 of 3 partitions"),
            ]
        ):
            await open_head(db, partition)
            [check] = [
                check for check in await readiness.readiness(settings, pool)() if check.name == "postgres"
            ]
            assert (check.ok, check.detail, check.required) == (ok, detail, False)


@pytest.mark.parametrize(("oldest_ms", "ok"), [(30_000, True), (30_001, False)])
async def test_decisions_that_the_bank_was_not_told_of_for_long_are_shown_and_webhooks_are_taken_all_the_same(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, oldest_ms: int, ok: bool
):
    async def deferred(*_: Any) -> Deferred:
        return Deferred(3, oldest_ms)

    monkeypatch.setattr(readiness, "deferred", deferred)
    checks = await readiness.readiness(load({"STREAMPROC_REDIS_URL": redis_url}), None)()
    [check] = [check for check in checks if check.name == "payouts"]
    assert (check.ok, check.required) == (ok, False)
    assert check.detail == "3 decisions wait to be told to the bank, the oldest for 30 s"


async def test_what_a_group_has_put_off_is_counted_in_all_partitions(redis_url: str):
    async with connected(redis_url) as client:
        await open_log(client, partitions=3, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
        assert await deferred(client, 3, consumers.EXECUTION) == Deferred(0, 0)
        now_ms = await clock_us(client) // 1000
        for partition, ages_ms in {1: [90_000, 5_000], 2: [20_000]}.items():
            names = Names(partition)
            for age_ms in ages_ms:
                entry = await client.xadd(names.log, {"e": "[]", "m": "{}"}, id=f"{now_ms - age_ms}-0")
                await client.zadd(names.retries(consumers.EXECUTION), {entry: 0})
            await client.xreadgroup(consumers.EXECUTION, "somebody", {names.log: ">"})
        entries, oldest_ms = await deferred(client, 3, consumers.EXECUTION)
        assert entries == 3
        assert 90_000 <= oldest_ms < 90_000 + DEADLINE_S * 1000
        assert await deferred(client, 3, consumers.GOVERNANCE) == Deferred(0, 0)


async def test_what_only_a_later_version_can_read_is_not_counted_as_a_decision(redis_url: str):
    later = '[{"type":"payout.insured","v":1,"at":1}]'
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
        now_ms = await clock_us(client) // 1000
        names = Names(0)

        async def put_off(age_ms: int, e: str) -> None:
            entry = await client.xadd(names.log, {"e": e, "m": "{}"}, id=f"{now_ms - age_ms}-0")
            await client.xreadgroup(consumers.EXECUTION, "somebody", {names.log: ">"})
            await client.zadd(names.retries(consumers.EXECUTION), {entry: 0})

        await put_off(90_000, later)
        assert await deferred(client, 1, consumers.EXECUTION) == Deferred(0, 0)
        await put_off(5_000, "[]")
        entries, oldest_ms = await deferred(client, 1, consumers.EXECUTION)
        assert entries == 1
        assert 5_000 <= oldest_ms < 90_000


async def groups_check(redis_url: str, partitions: int) -> Check:
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_PARTITIONS": str(partitions)})
    [check] = [one for one in await readiness.readiness(settings, None)() if one.name == "groups"]
    return check


async def test_a_group_that_lags_is_named_and_webhooks_are_taken_all_the_same(redis_url: str):
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=consumers.GROUPS)
        log = Names(1).log
        now_ms = await clock_us(client) // 1000
        await client.xadd(log, {"e": "[]", "m": "{}"}, id=f"{now_ms - 3_600_000}-0")
        for group in (consumers.GOVERNANCE, consumers.EXECUTION):
            await client.xreadgroup(group, "somebody", {log: ">"})
        await client.xack(log, consumers.EXECUTION, f"{now_ms - 3_600_000}-0")
        check = await groups_check(redis_url, 2)
        assert (check.ok, check.required) == (False, False)
        said = (
            "an entry waits in governance of partition 1 for 3,6.. s, notification of partition 1 for 3,6.. s"
        )
        assert re.fullmatch(said, check.detail)
        for group in (consumers.GOVERNANCE, consumers.NOTIFICATION):
            await client.xreadgroup(group, "somebody", {log: ">"})
            await client.xack(log, group, f"{now_ms - 3_600_000}-0")
        check = await groups_check(redis_url, 2)
    assert (check.ok, check.detail) == (True, "keep up with the log")


async def test_a_group_lags_too_if_redis_does_not_know_by_how_many_entries(redis_url: str):
    """It does not where an entry that the group has not read yet was deleted."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
        log = Names(0).log
        now_ms = await clock_us(client) // 1000
        for later in range(3):
            await client.xadd(log, {"e": "[]", "m": "{}"}, id=f"{now_ms - 900_000}-{later}")
        await client.xdel(log, f"{now_ms - 900_000}-1")
        [row] = await group_states(client, [0], (consumers.GOVERNANCE,))
        assert row.lag is None
        assert 900_000 <= row.oldest_ms < 900_000 + DEADLINE_S * 1000
        assert (
            "an entry waits in governance of partition 0 for 9" in (await groups_check(redis_url, 1)).detail
        )


async def test_a_group_that_is_gone_is_named(redis_url: str):
    async with connected(redis_url) as client:
        await open_log(client, partitions=7, groups=consumers.GROUPS)
        await client.xgroup_destroy(Names(0).log, consumers.NOTIFICATION)
        await client.hdel(Names(0).groups, consumers.NOTIFICATION)
        assert (await groups_check(redis_url, 7)).ok, "it was never made: the next worker does"
        for partition in range(1, 7):
            await client.xgroup_destroy(Names(partition).log, consumers.GOVERNANCE)
        check = await groups_check(redis_url, 7)
    assert not check.ok
    assert check.detail.startswith("governance of partition 1, governance of partition 2, ")
    assert f"governance of partition 5 and 1 more is gone; {WHEN_LOST}" in check.detail


async def test_a_redis_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "CHECK_S", 0.05)
    kept: list[asyncio.StreamWriter] = []  # one that is forgotten is closed, by Python 3.13
    silent = await asyncio.start_server(lambda _, writer: kept.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    checks = await readiness.readiness(load({"STREAMPROC_REDIS_URL": f"redis://127.0.0.1:{port}"}), None)()
    silent.close()
    assert [(check.name, check.ok, check.required) for check in checks] == [
        ("redis", False, True),
        ("breakers", False, False),
        ("notifications", False, False),
        ("groups", False, False),
        ("payouts", False, False),
    ]
    assert {check.detail for check in checks} == {"no answer within 0.05 s"}

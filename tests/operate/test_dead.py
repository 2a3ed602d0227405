"""Dead letters are listed, shown, given back to their group alone, and discarded."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

import consumers
from consumers.vet import Reputations
from streamproc.domain.events import DeadLetterClosed, PayoutRequested
from streamproc.domain.wire import type_of
from streamproc.errors import InputError, JobFailed, Unprocessable
from streamproc.log import letters, scripts
from streamproc.log.clock import clock_us
from streamproc.log.names import Names
from streamproc.log.work import BatchContext, Group, Item, Stage
from streamproc.operate.dead import discard, list_letters, redrive, show_letter, stream_id
from streamproc.operate.groups import groups
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.words import POLICIES, site_of
from tests.words import ACCOUNT, NOW, Vendors, attributed, observed, requested


async def malformed(engine: Engine, payout: str = "pout_bad", problem: str = "amount is 99") -> None:
    """Rule 1: what cannot be governed becomes a dead letter."""
    from streamproc.domain.events import PayoutMalformed

    event = PayoutMalformed(at=NOW, payout=payout, account=ACCOUNT, source="webhook", problem=problem)
    await engine.append(ACCOUNT, event)
    await engine.settled()


async def test_a_dead_letter_is_listed_with_its_group_payout_and_problem(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = await list_letters(site)
        shown = await show_letter(site, row["id"])
    assert (row["group"], row["payout"]) == ("governance", "pout_bad")
    assert "amount is 99" in row["problem"]
    assert row["id"].startswith("0:")
    assert [event["type"] for event in shown["events"]] == ["payout.malformed"]
    assert shown["events"][0]["id"] == row["entry"] + ":0"


async def test_a_letter_is_closed_by_rediss_clock_and_not_by_that_of_who_closes_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = await list_letters(site)
        before_us = await clock_us(site.client)
        with monkeypatch.context() as wrong:
            wrong.setattr(time, "time_ns", lambda: 0)
            await discard(site, row["id"], attributed("asha"))
        story = await engine.story("pout_bad")
    [closed] = [event for event in story if type(event) is DeadLetterClosed]
    assert closed.at >= before_us


async def test_a_redriven_letter_is_handled_again_by_its_group_and_no_fact_is_told_twice(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.apply(POLICIES)
        await engine.client.hset(engine.names.payout("pout_1"), mapping={"v": "1", "s": "{not json"})
        await engine.deliver(observed("pout_1"))
        [row] = await list_letters(site)
        await engine.client.delete(engine.names.payout("pout_1"))
        await redrive(site, row["id"], attributed("asha"))
        async with asyncio.timeout(DEADLINE_S):
            while (await engine.record("pout_1")).decision is None:
                await asyncio.sleep(0.01)
        await engine.settled()
        assert await list_letters(site) == []
        told = [type_of(event) for event in await engine.story("pout_1")]
    assert told[:3] == ["payout.observed", "entry.set_aside", "dead_letter.closed"]
    assert told[-2:] == ["payout.decided", "beneficiary.noted"]
    assert told.count("payout.observed") == 1


async def test_of_two_who_close_a_letter_at_once_one_does_and_the_other_is_told_who_and_how(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site, site_of(redis_url) as other:
        await malformed(engine)
        [row] = await list_letters(site)
        answers = await asyncio.gather(
            discard(site, row["id"], attributed("asha")),
            redrive(other, row["id"], attributed("vikram")),
            return_exceptions=True,
        )
        [lost] = [answer for answer in answers if isinstance(answer, JobFailed)]
        entries = [event for entry in await engine.entries() for event in entry]
        [closed] = [event for event in entries if isinstance(event, DeadLetterClosed)]
        how = "discarded" if closed.action == "discard" else "given back to its group"
        assert str(lost).startswith(f"dead letter {row['id']} was {how} by {closed.by} at 20")
        with pytest.raises(JobFailed, match=r"there is no dead letter 0:1-1 \(any more\)"):
            await discard(site, "0:1-1", attributed("asha"))


async def test_a_letter_whose_reason_stands_becomes_a_letter_again(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = await list_letters(site)
        await redrive(site, row["id"], attributed("asha"))
        async with asyncio.timeout(DEADLINE_S):
            while not (again := await list_letters(site)):
                await asyncio.sleep(0.01)
    assert again[0]["payout"] == "pout_bad"
    assert again[0]["id"] != row["id"]


async def test_a_letter_whose_entry_has_left_redis_is_not_redriven_and_not_lost(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = await list_letters(site)
        await engine.client.xtrim(engine.names.log, maxlen=0, approximate=False)
        with pytest.raises(Unprocessable, match="has left Redis"):
            await redrive(site, row["id"], attributed("asha"))
        assert await list_letters(site) == [row]


async def test_a_discarded_letter_is_gone_and_the_log_says_who_did_it_and_why(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = await list_letters(site)
        await discard(site, row["id"], attributed("asha", "a load test"))
        assert await list_letters(site) == []
        [closed] = (await engine.entries())[-1]
        assert (type_of(closed), closed.action, closed.by) == ("dead_letter.closed", "discard", "asha")
        assert closed.why == "a load test"
        with pytest.raises(JobFailed, match="was discarded by asha"):
            await show_letter(site, row["id"])
        for gone in (redrive, discard):
            with pytest.raises(JobFailed, match="was discarded by asha"):
                await gone(site, row["id"], attributed("asha"))


def refusing() -> Group:
    """Governance that admits intents, and fails after that."""

    async def refuse(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            work.fail(Unprocessable("it is poison"))

    chain = consumers.governance(Reputations(Vendors()), zone="Asia/Kolkata")
    poison = Stage(name="poison", consumes=frozenset({PayoutRequested}), handle=refuse)
    return Group(name=chain.name, stages=(*chain.stages, poison))


async def test_what_a_discarded_intent_had_reserved_is_free_again(redis_url: str):
    """Its first pass was admitted and failed after that; of an intent nothing else ever comes, so its money stayed
    reserved until the windows' end, and `reconcile` alarmed."""
    async with Engine(redis_url, groups=[refusing()]) as engine, site_of(redis_url) as site:
        await engine.apply(POLICIES)

        async def reserved() -> set[bytes]:
            keys = await engine.client.keys(engine.names.budget("*", "*"))
            return {await engine.client.hget(key, "r") for key in keys}

        now = engine.producer.now_us()
        first, second = requested(300, key="one", at=now), requested(400, key="two", at=now)
        await engine.append(ACCOUNT, first)
        await engine.append(ACCOUNT, second)
        await engine.settled()
        ids = {row["payout"]: row["id"] for row in await list_letters(site)}
        assert await reserved() == {b"700"}
        assert await discard(site, ids[first.payout], attributed("asha")) == 300
        assert await reserved() == {b"400"}
        with pytest.raises(JobFailed, match="was discarded by asha"):
            await discard(site, ids[first.payout], attributed("asha"))
        assert await reserved() == {b"400"}
        assert await engine.client.hget(engine.names.payout(first.payout), "a") is None
        await redrive(site, ids[second.payout], attributed("asha"))
        await engine.settled()
        assert await reserved() == {b"400"}


async def test_a_discard_says_what_it_freed_and_not_what_was_reserved_a_moment_before(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Its payout was decided in between, so nothing was freed, and the answer named the money all the same."""
    read = letters.reserved_for

    async def and_it_moves_on(client: Redis, names: Names, payout: str) -> letters.GivenUp | None:
        found = await read(client, names, payout)
        await client.hset(names.payout(payout), "v", "7")
        return found

    monkeypatch.setattr(letters, "reserved_for", and_it_moves_on)
    async with Engine(redis_url, groups=[refusing()]) as engine, site_of(redis_url) as site:
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, requested(300, at=engine.producer.now_us()))
        await engine.settled()
        [row] = await list_letters(site)
        assert await discard(site, row["id"], attributed("asha")) == 0
        budgets = await engine.client.keys(engine.names.budget("*", "*"))
        assert {await engine.client.hget(key, "r") for key in budgets} == {b"300"}


async def test_a_letter_that_cannot_be_read_is_shown_as_it_is(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        fields = {"entry": "5-0", "group": "governance", "e": '[{"type":"x"}]', "m": "{}", "problem": "boo"}
        letter = (await engine.client.xadd(engine.names.dead, fields)).decode()
        shown = await show_letter(site, f"0:{letter}")
        [row] = await list_letters(site)
    assert (shown["raw"], row["payout"]) == ('[{"type":"x"}]', "")
    assert "'x' is not known here" in shown["unreadable"]


@pytest.mark.parametrize("text", ["", "x", "0", "0:", "0:x-1", "a:1-1", "1-1", "0:1-1-1"])
def test_what_is_no_id_is_wrong_use_and_an_example_is_given(text: str):
    with pytest.raises(InputError, match="0:1700000000000-0"):
        stream_id(text)


async def test_a_partition_that_the_log_does_not_have_is_wrong_use(redis_url: str):
    async with Engine(redis_url), site_of(redis_url) as site:
        with pytest.raises(InputError, match="partition 7: this log has partitions 0 to 0"):
            await redrive(site, "7:1-1", attributed("asha"))


async def test_groups_show_what_was_not_read_and_what_waits_in_a_workers_hands(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.client.xgroup_create(engine.names.log, "execution", id="0")
        await engine.stop()
        await engine.append(ACCOUNT, observed("pout_1"))
        await engine.append(ACCOUNT, observed("pout_2"))
        await engine.client.xreadgroup("governance", "w", {engine.names.log: ">"}, count=1)
        governance, execution, notification = await groups(site)
        assert await scripts.leave(engine.client, engine.names, "governance", "w") is False
    assert (governance["group"], governance["lag"], governance["pending"]) == ("governance", 1, 1)
    assert governance["consumers"] == 1
    assert (execution["group"], execution["lag"], execution["pending"]) == ("execution", 2, 0)
    assert notification == {"partition": 0, "group": "notification", "missing": True}
    assert execution["oldest_ms"] >= governance["oldest_ms"] >= 0


async def test_a_group_that_is_gone_is_a_row_that_says_so(redis_url: str):
    async with Engine(redis_url), site_of(redis_url) as site:
        rows = await groups(site)
    assert [row.get("missing", False) for row in rows] == [False, True, True]

"""What may wait is handled beside the rest: in order, one at a time, by one worker, and nothing else waits for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved
from streamproc.errors import LogUnavailable, TryAgain
from streamproc.log import claims, dead_consumers, failures, scripts, slow_lane, upkeep
from streamproc.log.batch import Limits
from streamproc.log.batch_telemetry import BatchTelemetry
from streamproc.log.claims import TakenUp
from streamproc.log.clock import clock_us
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.scripts import Raw
from streamproc.log.slow_lane import Turns
from streamproc.log.upkeep import DELIVERIES_MAX, SUSPECT_DELIVERIES
from streamproc.log.work import BatchContext, Group, Item, LeaveToSlowLane, Stage, Work
from tests.bank import until
from tests.clients.test_limiter import all_have_run
from tests.deadline import DEADLINE_S
from tests.log.test_left import hold, pay

NAMES = Names(0)
NEVER = Limits(claim_idle_s=3_600.0)
HOLDS = [f"pout_hold_{n:02}" for n in range(40)]
ENDED = [f"pout_hold_over_{n}" for n in range(2)]
"""What is about these is handled soon."""


class Slack:
    """A stage whose holds may wait; it holds each of them until it is let go."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.asked: list[str] = []
        self.told: list[str] = []
        self.asking, self.answers = asyncio.Event(), asyncio.Event()
        self.problems: dict[str, list[Exception]] = {}
        """What fails a payout, once each."""
        stage = Stage(name="tell", consumes=frozenset({PayoutObserved}), handle=self._tell)
        self.group = Group(name="g", stages=(stage,), read_max=8, works_max=8, slow_lane=True)

    async def _tell(self, items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            is_hold = work.payout.startswith("pout_hold")
            if is_hold and ctx.may_wait:
                self.left.append(work.payout)
                work.fail(LeaveToSlowLane(soon=work.payout in ENDED))
                continue
            if is_hold:
                self.asked.append(work.payout)
                self.asking.set()
                await self.answers.wait()
            if problems := self.problems.get(work.payout):
                work.fail(problems.pop(0))
            else:
                self.told.append(work.payout)

    async def told_of(self, payout: str) -> None:
        async def is_told() -> bool:
            return payout in self.told

        await until(is_told, what=f"people are told of {payout}")


@pytest.fixture
def slack() -> Slack:
    return Slack()


@asynccontextmanager
async def telling(
    url: str, slack: Slack, *, name: str = "me", turns: Turns | None = None
) -> AsyncIterator[Consumer]:
    """A worker, which is told to stop at the end while a hold is under way, if there is one."""
    stopping = asyncio.Event()
    consumer = Consumer(url, 0, slack.group, name=name, limits=NEVER, turns=turns)
    running = asyncio.create_task(consumer.run(stopping))
    try:
        yield consumer
    finally:
        stopping.set()

        async def is_finishing() -> bool:
            return running.done() or consumer._slow._end_s is not None or not consumer._slow.tasks

        try:
            await until(is_finishing, what="only what waits is left to do")
        finally:
            slack.answers.set()
            async with asyncio.timeout(DEADLINE_S):
                await running


async def pending(client: Redis) -> list[str]:
    return [row["message_id"].decode() for row in await client.xpending_range(NAMES.log, "g", "-", "+", 99)]


async def are_pending(client: Redis, count: int) -> None:
    async def are() -> bool:
        return len(await pending(client)) == count

    await until(are, what=f"{count} entries are pending")


async def test_what_comes_after_many_holds_does_not_wait_for_them_and_they_stay_in_order(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    await pay(client, *HOLDS, "pout_alert")
    async with telling(redis_url, slack):
        await slack.told_of("pout_alert")
        assert slack.told == ["pout_alert"]
        await are_pending(client, len(HOLDS))
        slack.answers.set()
        await slack.told_of(HOLDS[-1])
        await are_pending(client, 0)
    assert slack.told == ["pout_alert", *HOLDS]


def take_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From consumers that are not connected."""
    monkeypatch.setattr(dead_consumers, "IDLE_MS", 1)
    monkeypatch.setattr(upkeep, "MISSING_S", 0.0)
    monkeypatch.setattr(upkeep, "LOOK_S", 0.0)


async def test_what_a_dead_worker_left_waiting_is_told_in_order_by_the_next_one(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over_at_once(monkeypatch)
    monkeypatch.setattr(upkeep, "CALLED_S", 0.0)
    await hold(client, await pay(client, *HOLDS), 1)
    await pay(client, "pout_alert")
    slack.answers.set()
    async with telling(redis_url, slack):
        await slack.told_of(HOLDS[-1])
        await slack.told_of("pout_alert")
        await are_pending(client, 0)
    assert [one for one in slack.told if one != "pout_alert"] == HOLDS


async def test_who_stops_leaves_what_waits_to_others_and_loses_none(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_lane, "FINISH_S", 0.0)
    await pay(client, *HOLDS)
    async with telling(redis_url, slack):
        await slack.asking.wait()
        await are_pending(client, len(HOLDS))
    assert slack.told == HOLDS[:1]  # that one was under way
    assert len(await pending(client)) == len(HOLDS) - 1


async def test_who_stops_with_little_waiting_finishes_it(client: Redis, redis_url: str, slack: Slack) -> None:
    await pay(client, *HOLDS[:3])
    async with telling(redis_url, slack):
        await slack.asking.wait()
    assert slack.told == HOLDS[:3]
    assert await pending(client) == []


async def test_what_others_took_over_while_it_waited_is_left_to_them(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    ids = await pay(client, *HOLDS[:3])
    async with telling(redis_url, slack):
        await slack.asking.wait()
        await are_pending(client, 3)
        await client.execute_command("XCLAIM", NAMES.log, "g", "other", 0, ids[1], "JUSTID")
    assert slack.told == [HOLDS[0], HOLDS[2]]
    assert await pending(client) == [ids[1].decode()]


async def test_claims_on_what_waits_are_renewed(client: Redis, redis_url: str, slack: Slack) -> None:
    ids = await pay(client, *HOLDS[:3])
    async with telling(redis_url, slack) as consumer:
        await slack.asking.wait()

        async def all_are_claimed() -> bool:
            return set(ids) <= consumer._claims._since.keys()

        await until(all_are_claimed, what="its claims are known")
    assert not consumer._claims._since


async def test_what_could_not_be_told_is_put_off_waits_again_and_is_told(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.01, 0.01, 0.01))
    slack.problems = {HOLDS[0]: [TryAgain("busy"), TryAgain("busy")]}
    slack.answers.set()
    async with telling(redis_url, slack):
        await pay(client, *HOLDS[:3])
        await slack.told_of(HOLDS[0])
        await are_pending(client, 0)
    assert sorted(slack.told) == HOLDS[:3]
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_a_redis_that_is_away_for_what_waits_is_connected_to_anew(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    problems, tell = [LogUnavailable("away")], slack.group.stages[0].handle

    async def loses_redis(items: Sequence[Item], ctx: BatchContext) -> None:
        if problems and not ctx.may_wait:
            raise problems.pop()
        await tell(items, ctx)

    stage = Stage(name="tell", consumes=frozenset({PayoutObserved}), handle=loses_redis)
    slack.group = Group(name="g", stages=(stage,), slow_lane=True)
    slack.answers.set()
    await pay(client, *HOLDS)
    async with telling(redis_url, slack):
        await slack.told_of(HOLDS[-1])
        await are_pending(client, 0)
    assert slack.told == HOLDS


async def test_what_is_under_way_is_not_cut_off_and_told_twice_where_another_connection_is_lost(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    await pay(client, *HOLDS[:3])
    async with telling(redis_url, slack) as consumer:
        await slack.asking.wait()
        await are_pending(client, 3)
        consumer._lost_beside = LogUnavailable("away")

        async def connects_anew() -> bool:
            return consumer._slow._end_s is not None or len(slack.asked) > 1

        await until(connects_anew, what="the consumer connects anew")
        slack.answers.set()
        await slack.told_of(HOLDS[2])
        await are_pending(client, 0)
    assert slack.asked == slack.told == HOLDS[:3]


async def test_when_too_many_wait_the_rest_is_put_off_in_order_and_nothing_waits_for_it(
    client: Redis,
    redis_url: str,
    slack: Slack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was told in its pass, and alerts behind it waited for that."""
    monkeypatch.setattr(slow_lane, "ENTRIES_MAX", 2)
    ids = await pay(client, *HOLDS[:20], "pout_alert")
    async with telling(redis_url, slack):
        await slack.asking.wait()
        await slack.told_of("pout_alert")
        await are_pending(client, 20)

        async def the_rest_is_put_off() -> bool:
            return await client.zcard(NAMES.retries("g")) >= 17  # or 18, if none was in hand yet

        await until(the_rest_is_put_off, what="all are put off that do not wait")
        due_us = dict(await client.zrange(NAMES.retries("g"), 0, -1, withscores=True))
        assert [due_us[entry] for entry in ids if entry in due_us] == sorted(due_us.values())
        assert min(due_us.values()) > await clock_us(client) + 300_000_000
        # It is no failed attempt, of which an entry has few.
        assert {name.rpartition(b":")[2] for name in await client.hkeys(NAMES.tries("g"))} == {
            b"waits",
            b"lane",
        }
        slack.answers.set()

        async def none_is_left() -> bool:
            for entry in await client.zrange(NAMES.retries("g"), 0, -1):
                await client.zadd(NAMES.retries("g"), {entry: 0}, xx=True)
            return not await pending(client)

        await until(none_is_left, what="all find room in the end")
    assert {*slack.told} == {*HOLDS[:20], "pout_alert"}
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0
    lines = [line.getMessage() for line in caplog.records if "no more can" in line.getMessage()]
    assert len(lines) == 1


async def test_what_others_took_over_before_it_was_put_off_is_not_put_off_under_their_hands(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    ours, theirs = await pay(client, *HOLDS[:2])
    await client.xreadgroup("g", "me", {NAMES.log: ">"})
    await client.execute_command("XCLAIM", NAMES.log, "g", "other", 0, theirs, "JUSTID")
    consumer = Consumer(redis_url, 0, slack.group, name="me", limits=NEVER)
    await consumer._put_off(client, [Work(entry, [], HOLDS[0]) for entry in (ours, theirs)])
    assert await client.zrange(NAMES.retries("g"), 0, -1) == [ours]


async def test_to_wait_is_no_delivery_and_the_deaths_of_those_who_had_it_waiting_are_not_of_it(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    await pay(client, *HOLDS)
    async with telling(redis_url, slack):
        await slack.asking.wait()
        await are_pending(client, len(HOLDS))

        async def all_wait() -> bool:
            rows = await client.xpending_range(NAMES.log, "g", "-", "+", 99)
            return [row["times_delivered"] for row in rows] == [1, *[0] * (len(HOLDS) - 1)]

        await until(all_wait, what="only the one that has its turn counts as delivered")
        slack.answers.set()
        await slack.told_of(HOLDS[-1])


async def test_a_suspect_of_killing_its_workers_waits_too_and_nothing_waits_for_it(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over_at_once(monkeypatch)
    ids = await pay(client, *HOLDS[:3])
    await hold(client, ids, SUSPECT_DELIVERIES)
    async with telling(redis_url, slack) as consumer:
        await slack.asking.wait()
        await pay(client, "pout_alert")
        await slack.told_of("pout_alert")
        assert set(ids) <= consumer._claims._since.keys()
        # Nor was it put off, for the time of a pass being over.
        assert {name.rpartition(b":")[2] for name in await client.hkeys(NAMES.tries("g"))} == {b"lane"}
        assert not await client.exists(NAMES.retries("g"))
        slack.answers.set()
        await slack.told_of(HOLDS[2])
    assert slack.told == ["pout_alert", *HOLDS[:3]]


async def test_what_is_put_off_and_comes_back_before_the_answer_to_that_waits_again(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was known to be in hand and did not wait again, nobody renewed the claim on it, and it was told only when the
    claim time was over."""
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    slack.problems = {HOLDS[0]: [ValueError("a failed attempt, tried again at once")]}
    slack.answers.set()
    defer = scripts.defer

    async def slow(*args: Any) -> list[int]:
        times = await defer(*args)

        async def is_back() -> bool:
            return slack.left.count(HOLDS[0]) == 2

        await until(is_back, what="it is due and comes back")
        return times

    monkeypatch.setattr(scripts, "defer", slow)
    await pay(client, HOLDS[0])
    async with telling(redis_url, slack):
        await slack.told_of(HOLDS[0])
        await are_pending(client, 0)
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_of_the_slow_lanes_of_a_process_only_some_have_their_turn_at_once(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    """With one each, ten partitions had ten calls that waited for Slack, and the last was not told there."""
    await pay(client, *ENDED)
    await client.xreadgroup("g", "you", {NAMES.log: ">"})
    await pay(client, *HOLDS)
    turns = Turns(1)
    async with telling(redis_url, slack, turns=turns) as one:
        await slack.asking.wait()
        async with telling(redis_url, slack, name="you", turns=turns) as other:

            async def all_wait() -> bool:
                return len(one._slow) + len(other._slow) == len(HOLDS) + len(ENDED) - 1

            await until(all_wait, what="all but one wait")
            await pay(client, "pout_alert")
            await slack.told_of("pout_alert")
            assert [lane._in_hand is not None for lane in (one._slow, other._slow)] == [True, False]
            assert slack.asked == HOLDS[:1]
            slack.answers.set()
            await are_pending(client, 0)
    assert sorted(slack.told) == sorted([*HOLDS, *ENDED, "pout_alert"])


async def test_what_is_to_be_told_soon_overtakes_the_rest_at_every_second_turn(
    client: Redis, redis_url: str, slack: Slack
) -> None:
    await pay(client, *HOLDS[:4], *ENDED)
    async with telling(redis_url, slack) as consumer:
        await slack.asking.wait()

        async def all_wait() -> bool:
            return len(consumer._slow) == 3 + len(ENDED)

        await until(all_wait, what="all but one wait")
        slack.answers.set()
        await slack.told_of(HOLDS[3])
    assert slack.told == [ENDED[0], HOLDS[0], ENDED[1], *HOLDS[1:4]]


async def test_while_nobody_can_be_told_the_log_says_so_now_and_then_and_not_for_each_hold(
    client: Redis, redis_url: str, slack: Slack, caplog: pytest.LogCaptureFixture
) -> None:
    """With 450 holds it said so 24 times a second."""
    slack.problems = {one: [TryAgain("busy", after_s=3_600.0)] for one in HOLDS}
    slack.answers.set()
    await pay(client, *HOLDS)
    async with telling(redis_url, slack):

        async def all_are_put_off() -> bool:
            return await client.zcard(NAMES.retries("g")) == len(HOLDS)

        await until(all_are_put_off, what="all are put off")
    lines = [line.getMessage() for line in caplog.records if "deferred" in line.getMessage()]
    assert len(lines) < len(HOLDS)
    assert "g/0: 1 entries deferred" in lines[0]


async def test_what_waits_is_never_held_to_kill_its_workers(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspect is delivered when its turn has come; if it waited after that, the deaths of its workers would count."""
    take_over_at_once(monkeypatch)
    ids = await pay(client, *HOLDS[:3])
    await hold(client, ids, DELIVERIES_MAX - 1)
    async with telling(redis_url, slack):
        await slack.asking.wait()
        rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
        assert [row["times_delivered"] for row in rows] == [DELIVERIES_MAX, *[DELIVERIES_MAX - 1] * 2]
        slack.answers.set()
        await slack.told_of(HOLDS[2])
    assert DELIVERIES_MAX - 1 > SUSPECT_DELIVERIES
    assert slack.told == HOLDS[:3]


async def left_waiting(client: Redis, waits: dict[bytes, bool]) -> None:
    """Entries that waited with one who has died; of each, whether it overtakes others."""
    await hold(client, list(waits), 1)
    await claims.not_begun(client, NAMES, "g", "killed", waits)


async def test_what_waited_when_its_worker_died_is_not_opened_before_its_turn(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them may have killed it, and would do so again without being in hand. They overtake as they did."""
    take_over_at_once(monkeypatch)
    monkeypatch.setattr(upkeep, "CALLED_S", 0.0)
    ids = await pay(client, *HOLDS[:4], *ENDED)
    await left_waiting(client, {entry: n > 3 for n, entry in enumerate(ids)})
    slack.answers.set()
    async with telling(redis_url, slack) as consumer:
        await are_pending(client, 0)
        assert consumer._waited == []  # else it would be looked up again and again
    assert slack.left == []
    assert slack.told == [ENDED[0], HOLDS[0], ENDED[1], *HOLDS[1:4]]
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_what_waited_and_was_in_hand_at_two_deaths_has_its_turn_after_the_others(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over_at_once(monkeypatch)
    ids = await pay(client, *HOLDS[:3])
    await left_waiting(client, dict.fromkeys(ids, False))
    claim = ("XCLAIM", NAMES.log, "g", "killed", 0, ids[0], "RETRYCOUNT", SUSPECT_DELIVERIES, "JUSTID")
    await client.execute_command(*claim)
    slack.answers.set()
    async with telling(redis_url, slack):
        await are_pending(client, 0)
    assert slack.told == [HOLDS[1], HOLDS[2], HOLDS[0]]


async def test_where_nothing_can_wait_what_waited_with_another_is_handled_all_the_same(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no slow lane where no channel is set."""
    take_over_at_once(monkeypatch)
    await left_waiting(client, dict.fromkeys(await pay(client, *HOLDS[:3]), False))
    slack.group = replace(slack.group, slow_lane=False)
    async with telling(redis_url, slack):
        await slack.asking.wait()
        rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
        assert {row["times_delivered"] for row in rows} == {1}  # its turn is a delivery: it may kill
        slack.answers.set()
        await are_pending(client, 0)
    assert (slack.left, slack.told) == ([], HOLDS[:3])
    assert await client.exists(NAMES.tries("g")) == 0


async def test_where_the_lane_is_full_what_waited_with_another_is_put_off(
    client: Redis, redis_url: str, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over_at_once(monkeypatch)
    monkeypatch.setattr(slow_lane, "ENTRIES_MAX", 0)
    ids = await pay(client, *HOLDS[:3])
    await left_waiting(client, dict.fromkeys(ids, False))
    async with telling(redis_url, slack):

        async def all_are_put_off() -> bool:
            return await client.zrange(NAMES.retries("g"), 0, -1) == ids

        await until(all_are_put_off, what="all are put off")
    assert slack.told == []


async def test_what_waited_leaves_no_trace_of_that(client: Redis, redis_url: str, slack: Slack) -> None:
    slack.answers.set()
    async with telling(redis_url, slack):
        await pay(client, *HOLDS)
        await slack.told_of(HOLDS[-1])
        await are_pending(client, 0)
    assert slack.left == HOLDS
    assert await client.exists(NAMES.tries("g")) == 0


async def test_a_turn_alone_comes_when_the_others_are_over_and_none_begins_before_it_is() -> None:
    turns, began, over = (
        Turns(2),
        list[str](),
        {name: asyncio.Event() for name in ("a", "b", "alone", "c", "d")},
    )

    async def have(name: str) -> None:
        async with turns.turn(alone=name == "alone"):
            began.append(name)
            await over[name].wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for name in over:
            tasks.create_task(have(name))
        for ends, then in [("a", ["a", "b"]), ("b", ["a", "b"]), ("alone", ["a", "b", "alone"])]:
            await all_have_run()
            assert began == then
            over[ends].set()
        await all_have_run()
        assert began == ["a", "b", "alone", "c", "d"]
        over["c"].set()
        over["d"].set()


async def test_who_gives_up_waiting_for_a_turn_alone_keeps_none() -> None:
    turns = Turns(2)

    async def alone() -> None:
        async with turns.turn(alone=True):
            raise AssertionError("another has a turn")

    async with asyncio.timeout(DEADLINE_S), turns.turn(alone=False):
        waiting = asyncio.create_task(alone())
        await all_have_run()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with turns.turn(alone=False):
            pass
    async with asyncio.timeout(DEADLINE_S), turns.turn(alone=True):
        pass


# ---- the lane by itself ----


class Parts:
    """What a lane has of its consumer. Its handler forgets, and takes as long as it takes."""

    names, group, name = NAMES, "g", "me"

    def __init__(self) -> None:
        self.under_way, self.may_end, self.done_with = asyncio.Event(), asyncio.Event(), list[bytes]()
        self.held = set[bytes]()
        """Entries whose claims are renewed."""
        self.forgot = self.acknowledged = 0
        self.told_taken = dict[bytes, bool]()
        """Of each entry, whether its handler was told that others may have had it."""

    def forget(self) -> None:
        self.forgot += 1

    async def take_up(self, _client: Redis, entries: list[bytes]) -> list[TakenUp]:
        return [TakenUp(1, entry, (entry, {})) for entry in entries]

    async def handle(self, _client: Redis, entries: list[Raw], *, taken: bool) -> None:
        self.told_taken |= {entry: taken for entry, _ in entries}
        self.under_way.set()
        await self.may_end.wait()

    async def acknowledge(self, _client: Redis) -> None:
        self.acknowledged += 1

    def add(self, entries: list[bytes], _since_s: float) -> None:
        self.held.update(entries)

    def done(self, entries: list[bytes]) -> None:
        self.done_with += entries
        self.held.difference_update(entries)


async def test_for_how_long_an_entry_is_in_hand_is_known_while_it_is_and_no_longer(client: Redis) -> None:
    """By this its claim is renewed no more, so that what hangs is taken over."""
    parts, clock = Parts(), asyncio.get_running_loop().time
    lane = slow_lane.SlowLane(parts, parts, parts, Turns(1))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S), lane.running(client):
        assert lane.in_hand_s(clock() + 3_600) == 0
        began_s = clock()
        await lane.add(client, [Work(b"1-1", [], "pout_1")])
        await parts.under_way.wait()
        assert 3_600 <= lane.in_hand_s(clock() + 3_600) <= 3_600 + clock() - began_s
        assert b"1-1" in lane
        parts.may_end.set()
        await lane.finish()
        assert lane.in_hand_s(clock() + 3_600) == 0
        assert b"1-1" not in lane
    assert parts.done_with == [b"1-1"]


async def test_each_time_it_begins_its_handler_forgets_what_redis_said_before(client: Redis) -> None:
    parts = Parts()
    lane = slow_lane.SlowLane(parts, parts, parts, Turns(1))  # type: ignore[arg-type]
    for times in (1, 2):
        async with lane.running(client):
            assert parts.forgot == times


async def test_what_waits_already_is_handled_once_and_acknowledged(client: Redis) -> None:
    parts = Parts()
    lane = slow_lane.SlowLane(parts, parts, parts, Turns(1))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S), lane.running(client):
        await lane.add(client, [Work(b"1-1", [], "pout_1"), Work(b"2-1", [], "pout_2")])
        await parts.under_way.wait()
        await lane.add(client, [Work(b"2-1", [], "pout_2")])
        parts.may_end.set()
        await lane.finish()
    assert (parts.done_with, parts.acknowledged) == ([b"1-1", b"2-1"], 2)


@pytest.mark.parametrize("taken", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("soon", [(False, False), (False, True), (True, False)])
async def test_what_others_may_have_had_is_handled_as_such_however_it_comes_to_wait_once_more(
    client: Redis, taken: tuple[bool, bool], soon: tuple[bool, bool]
) -> None:
    """They may have told people already, and left traces of their attempts."""
    parts, turns = Parts(), Turns(0)
    lane = slow_lane.SlowLane(parts, parts, parts, turns)  # type: ignore[arg-type]
    parts.may_end.set()
    async with asyncio.timeout(DEADLINE_S), lane.running(client):
        for was_taken, is_soon in zip(taken, soon, strict=True):
            work = Work(b"1-1", [], "pout_1", taken=was_taken)
            work.fail(LeaveToSlowLane(soon=is_soon))
            await lane.add(client, [work])
        turns.release()
        await lane.finish()
    assert parts.told_taken == {b"1-1": any(taken)}


async def test_a_lane_that_ends_amid_an_entry_has_no_task_left(client: Redis) -> None:
    parts = Parts()
    lane = slow_lane.SlowLane(parts, parts, parts, Turns(1))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S), lane.running(client):
        await lane.add(client, [Work(b"1-1", [], "pout_1")])
        await parts.under_way.wait()
        [task] = lane.tasks
    assert task.cancelled()
    assert (lane.tasks, lane.has_room) == (set(), False)


async def test_what_waits_again_is_claimed_also_where_it_left_the_hand_meanwhile(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put off, came back before the answer to that, and the answer let go of the claim: nobody renewed it."""
    parts = Parts()
    lane = slow_lane.SlowLane(parts, parts, parts, Turns(1))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S), lane.running(client):
        await lane.add(client, [Work(b"1-1", [], "pout_1")])
        await parts.under_way.wait()

        async def while_it_leaves_the_hand(*_: Any) -> None:
            parts.may_end.set()

            async def is_through() -> bool:
                return b"1-1" not in lane

            await until(is_through, what="the lane is through with it")
            parts.may_end.clear()

        monkeypatch.setattr(slow_lane, "not_begun", while_it_leaves_the_hand)
        await lane.add(client, [Work(b"1-1", [], "pout_1")])
        assert b"1-1" in lane
        assert parts.held == {b"1-1"}


async def test_a_lost_connection_takes_no_delivery_back_from_what_waited(client: Redis) -> None:
    """To take it up again is none. What kills its workers was never a dead letter if a connection was lost in each of
    their lives."""
    parts, nobodys_turn = Parts(), Turns(0)
    lane = slow_lane.SlowLane(parts, parts, parts, nobodys_turn)  # type: ignore[arg-type]
    [entry] = await pay(client, HOLDS[0])
    await client.xreadgroup("g", "me", {NAMES.log: ">"})
    await client.execute_command("XCLAIM", NAMES.log, "g", "me", 0, entry, "RETRYCOUNT", 5, "JUSTID")

    async def deliveries_once_it_waits() -> int:
        await lane.add(client, [Work(entry, [], HOLDS[0])])
        [row] = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
        return row["times_delivered"]

    async with lane.running(client):
        assert await deliveries_once_it_waits() == 4
    async with lane.running(client):
        assert await deliveries_once_it_waits() == 4
        assert await deliveries_once_it_waits() == 3  # as of one that was delivered once more


async def test_what_is_put_off_and_not_logged_yet_is_logged_with_the_oldest_of_it(
    client: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside thirty that were young the line said so of none that had waited for too long."""
    times_s = iter([0.0, 0.0, 1.0, 2.0, 5.0, 5.0])  # asked once more when a line is written
    monkeypatch.setattr(failures, "monotonic", lambda: next(times_s))
    group = Slack().group
    failed = failures.Failures(NAMES, group, "me", BatchTelemetry(group, 0), say_s=5.0)
    for entry in (b"7-1", b"2-1", b"9-1", b"8-1"):
        work = Work(entry, [], "pout_1")
        work.fail(TryAgain("busy"))
        await failed._log_deferred(client, [work])
    said = [record.getMessage().partition(", waits")[0] for record in caplog.records]
    assert said == [
        "ALARM, g/0: 1 entries deferred; the oldest, 0:7-1",
        "ALARM, g/0: 3 entries deferred; the oldest, 0:2-1",
    ]

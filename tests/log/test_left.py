"""What a worker that was killed had in hand: taken over within seconds, however often its holders are killed."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from streamproc.domain.events import EntrySetAside, PayoutObserved
from streamproc.domain.wire import decode_events, encode_events
from streamproc.errors import LogUnavailable
from streamproc.log import dead_consumers, scripts, upkeep
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Deferral
from streamproc.log.upkeep import DELIVERIES_MAX, SUSPECT_DELIVERIES, Found, Upkeep
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.bank import until
from tests.words import observed

NAMES = Names(0)
NEVER = Limits(claim_idle_s=3_600.0)
"""What waits for the claim time waits for ever."""
NOW = Backoff(0.0, 0.0, 0.0)


class Killed(BaseException):
    """What a process does not survive."""


class Doing:
    """A group that says what it was given at once, and dies with one payout."""

    def __init__(self, poison: str = "") -> None:
        self.poison, self.given = poison, list[list[str]]()
        stage = Stage(name="do", consumes=frozenset({PayoutObserved}), handle=self._do)
        self.group = Group(name="g", stages=(stage,))

    async def _do(self, items: Sequence[Item], _: BatchContext) -> None:
        self.given.append([work.payout for work, _ in items])
        if self.poison in self.given[-1]:
            raise Killed


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no connection is gone, and is looked for all the time."""
    monkeypatch.setattr(dead_consumers, "IDLE_MS", 1)
    monkeypatch.setattr(upkeep, "MISSING_S", 0.0)
    monkeypatch.setattr(upkeep, "LOOK_S", 0.0)


async def pay(client: Redis, *payouts: str) -> list[bytes]:
    rows = [
        {"e": encode_events([observed(one, 100, agent="bot")]), "m": b'{"by":"webhook"}'} for one in payouts
    ]
    return [await client.xadd(NAMES.log, row) for row in rows]


async def hold(client: Redis, ids: Sequence[bytes], deliveries: int) -> None:
    """Entries in the hands of one who has no connection."""
    await client.xreadgroup("g", "killed", {NAMES.log: ">"})
    claim = ("XCLAIM", NAMES.log, "g", "killed", 0, *ids, "RETRYCOUNT", deliveries, "JUSTID")
    await client.execute_command(*claim)


async def live(client: Redis, url: str, name: str, group: Group) -> bool:
    """A worker's life: until nothing is left, or until it dies of what it does. Whether it died."""
    stopping = asyncio.Event()
    running = asyncio.create_task(Consumer(url, 0, group, name=name, limits=NEVER).run(stopping))

    async def is_over() -> bool:
        (row,) = await client.xinfo_groups(NAMES.log)
        return running.done() or (row["lag"] == 0 and row["pending"] == 0)

    await until(is_over, what="it died, or nothing is left", deadline_s=60)
    stopping.set()
    (end,) = await asyncio.gather(running, return_exceptions=True)
    assert end is None or isinstance(end, Killed)
    return end is not None


@pytest.mark.parametrize("deliveries", [1, SUSPECT_DELIVERIES, SUSPECT_DELIVERIES + 1, DELIVERIES_MAX - 1])
async def test_what_the_holders_of_were_killed_again_and_again_does_not_wait_for_the_claim_time(
    client: Redis, redis_url: str, at_once: None, deliveries: int
) -> None:
    """With three in a row it did: 74 to 88 s in a run with a kill every five seconds."""
    doing = Doing()
    await hold(client, await pay(client, "pout_1", "pout_2"), deliveries)
    assert not await live(client, redis_url, "me", doing.group)
    together = [["pout_1", "pout_2"]]
    assert doing.given == (together if deliveries <= SUSPECT_DELIVERIES else [["pout_1"], ["pout_2"]])


async def test_what_was_put_off_and_taken_up_again_by_one_who_was_killed_does_not_wait_either(
    client: Redis, redis_url: str, at_once: None
) -> None:
    """It was leased for the claim time."""
    doing = Doing()
    ids = await pay(client, "pout_1")
    await hold(client, ids, 1)
    await scripts.defer(client, NAMES, "g", [Deferral(ids[0], 0.0, False)], NOW)
    assert len((await scripts.due_retries(client, NAMES, "g", "killed", limit=9)).entries) == 1
    assert not await live(client, redis_url, "me", doing.group)
    assert doing.given == [["pout_1"]]
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_what_kills_its_workers_is_set_aside_and_its_neighbours_do_not_wait_for_that(
    client: Redis, redis_url: str, at_once: None
) -> None:
    doing = Doing(poison="pout_2")
    payouts = [f"pout_{n}" for n in range(5)]
    await pay(client, *payouts)
    lives = 0
    while await live(client, redis_url, f"worker-{lives}", doing.group):
        lives += 1
        assert lives <= DELIVERIES_MAX
    assert lives == DELIVERIES_MAX
    together = SUSPECT_DELIVERIES + 1  # times that its neighbours go along,
    assert doing.given[:together] == together * [payouts]
    assert doing.given[together:6] == [["pout_0"], ["pout_1"], ["pout_2"]]  # then each is alone,
    assert doing.given[6:9] == [["pout_3"], ["pout_4"], ["pout_2"]]  # what it kept waiting comes before it,
    assert doing.given[9:] == (DELIVERIES_MAX - 5) * [["pout_2"]]  # and then only it is left
    aside = [
        event
        for _, fields in await client.xrange(NAMES.log)
        for event in decode_events(fields[1])
        if isinstance(event, EntrySetAside)
    ]
    assert [f"taken up {DELIVERIES_MAX + 1} times" in event.problem for event in aside] == [True]
    assert await client.xlen(NAMES.dead) == 1


async def test_what_only_waits_behind_what_kills_its_worker_is_not_held_to_kill_it(
    client: Redis, redis_url: str, at_once: None
) -> None:
    """It was counted as delivered with every takeover, and after enough of them was a dead letter unseen."""
    ids = await pay(client, "pout_0", "pout_1")
    await hold(client, ids, DELIVERIES_MAX - 1)
    doing = Doing(poison="pout_0")
    assert await live(client, redis_url, "worker-1", doing.group)
    rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert [row["times_delivered"] for row in rows] == [DELIVERIES_MAX, DELIVERIES_MAX - 1]


async def test_while_who_is_gone_left_more_what_was_put_off_has_its_turn(
    client: Redis, redis_url: str, at_once: None
) -> None:
    group = Group(name="g", stages=(), works_max=1)
    left = await pay(client, "pout_1", "pout_2")
    await hold(client, left, 1)
    (late,) = await pay(client, "pout_late")
    async with connected(redis_url, name="me") as me:
        await me.execute_command("XREADGROUP", "GROUP", "g", "me", "STREAMS", NAMES.log, ">")
        await scripts.defer(me, NAMES, "g", [Deferral(late, 0.0, False)], NOW)
        looks = Upkeep(NAMES, group, "me", NEVER.claim_idle_s)
        found: list[bytes] = []

        async def is_found() -> bool:
            match await looks.look(me):
                case Found(together, []):
                    found.extend(entry[0] for entry in together)
            return len(found) == 3

        await until(is_found, what="all is found")
    assert found == [left[0], late, left[1]]


async def test_what_a_living_worker_has_taken_over_and_not_begun_is_left_to_it(
    client: Redis, redis_url: str, at_once: None
) -> None:
    """However long it takes with those before: it is connected."""
    await hold(client, await pay(client, "pout_1", "pout_2"), SUSPECT_DELIVERIES + 1)
    group = Group(name="g", stages=())
    async with connected(redis_url, name="one") as one, connected(redis_url, name="two") as two:
        await two.ping()
        first, second = (Upkeep(NAMES, group, name, NEVER.claim_idle_s) for name in ("one", "two"))

        async def found() -> Found | None:
            return await first.look(one)

        assert len((await until(found, what="the first has taken over")).apart) == 2
        assert [await second.look(two) for _ in range(5)] == 5 * [None]


async def test_what_is_put_off_is_not_counted_as_delivered_when_its_holder_was_cut_off(
    client: Redis, redis_url: str
) -> None:
    """It is with the consumer for as long as the bank is away, and after ten lost connections was a suspect."""
    (entry,) = await pay(client, "pout_1")
    await hold(client, [entry], 1)
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 3_600.0, False)], Backoff(0.0, 0.0, 3_600.0))
    consumer = Consumer(redis_url, 0, Doing().group, name="killed", limits=NEVER)
    for _ in range(3):
        await consumer._take_up_own(client)
    (row,) = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert row["times_delivered"] == 1


async def test_what_may_kill_its_worker_is_apart_when_the_connection_was_lost_too(
    client: Redis, redis_url: str
) -> None:
    """It was taken up with all that was in hand, and its neighbours went along with it."""
    ids = await pay(client, "pout_0", "pout_1", "pout_2")
    await hold(client, ids, SUSPECT_DELIVERIES)
    await hold(client, ids[1:2], SUSPECT_DELIVERIES + 1)
    doing = Doing(poison="pout_1")
    consumer = Consumer(redis_url, 0, doing.group, name="killed", limits=NEVER)
    await consumer._take_up_own(client)
    assert doing.given == [["pout_0", "pout_2"]]
    assert consumer._claims._since.keys() == {ids[1]}  # it may wait for long
    with pytest.raises(Killed):
        await consumer._handle_apart(client)
    assert doing.given == [["pout_0", "pout_2"], ["pout_1"]]


@pytest.mark.parametrize("deliveries", [1, SUSPECT_DELIVERIES + 1])
async def test_what_was_in_hand_when_the_connection_was_lost_may_have_been_done_already(
    client: Redis, redis_url: str, deliveries: int
) -> None:
    """The bank is asked what became of it before it is called again."""
    await hold(client, await pay(client, "pout_1"), deliveries)
    taken = list[bool]()

    async def do(items: Sequence[Item], _: BatchContext) -> None:
        taken.extend(work.taken for work, _ in items)

    stage = Stage(name="do", consumes=frozenset({PayoutObserved}), handle=do)
    consumer = Consumer(redis_url, 0, Group(name="g", stages=(stage,)), name="killed", limits=NEVER)
    await consumer._take_up_own(client)
    await consumer._handle_apart(client)
    assert taken == [True]


@pytest.mark.parametrize("are_facts", [True, False])
async def test_what_was_in_the_log_before_this_server_was_met_may_have_been_done_already_outside(
    client: Redis, redis_url: str, *, are_facts: bool
) -> None:
    """A failover may lose that an entry was delivered: it comes as if nobody had called the bank for it."""
    taken, stopping = dict[str, bool](), asyncio.Event()

    async def do(items: Sequence[Item], _: BatchContext) -> None:
        taken.update((work.payout, work.taken) for work, _ in items)

    async def is_done(*payouts: str) -> None:
        async def are_given() -> bool:
            return taken.keys() == {*payouts}

        await until(are_given, what=f"{payouts} are handled")

    stage = Stage(name="do", consumes=frozenset({PayoutObserved}), handle=do)
    group = Group(name="g", stages=(stage,), outputs_are_facts=are_facts)
    await pay(client, "pout_before")
    running = asyncio.create_task(Consumer(redis_url, 0, group, name="me", limits=NEVER).run(stopping))
    await is_done("pout_before")
    await pay(client, "pout_since")
    await is_done("pout_before", "pout_since")
    stopping.set()
    await running
    assert taken == {"pout_before": are_facts, "pout_since": False}


async def test_what_others_had_taken_over_and_is_with_us_again_after_a_lost_connection_is_handled(
    client: Redis, redis_url: str
) -> None:
    [entry] = await pay(client, "pout_1")
    await hold(client, [entry], 1)
    doing = Doing()
    consumer = Consumer(redis_url, 0, doing.group, name="killed", limits=NEVER)
    consumer._claims._lost.add(entry)
    await consumer._take_up_own(client)
    assert doing.given == [["pout_1"]]


async def test_to_lose_the_connection_again_and_again_is_not_to_die_of_what_is_in_hand(
    client: Redis, redis_url: str
) -> None:
    """After ten lost connections, one death was enough to make a dead letter of it, unseen."""
    ids = await pay(client, "pout_1")
    await hold(client, ids, 1)

    async def lose(_: Sequence[Item], __: BatchContext) -> None:
        raise LogUnavailable("Redis is away")

    stage = Stage(name="lose", consumes=frozenset({PayoutObserved}), handle=lose)
    consumer = Consumer(redis_url, 0, Group(name="g", stages=(stage,)), name="killed", limits=NEVER)
    for _ in range(DELIVERIES_MAX):
        with pytest.raises(LogUnavailable):
            await consumer._take_up_own(client)
    (row,) = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert row["times_delivered"] == 1


@pytest.mark.parametrize(
    "fields", [{"e": "no events", "m": "{}"}, {"else": "1"}], ids=["not JSON", "no fields"]
)
async def test_what_cannot_be_read_and_was_delivered_too_often_ends_no_worker(
    client: Redis, redis_url: str, at_once: None, fields: dict[str, str]
) -> None:
    """Who would set it aside unseen looked at it, and ended of that: one worker after the other."""
    entry = await client.xadd(NAMES.log, fields)
    await hold(client, [entry], DELIVERIES_MAX)
    assert not await live(client, redis_url, "me", Doing().group)
    assert await client.xlen(NAMES.dead) == 1


@pytest.mark.parametrize(
    "e",
    ["no events", "{}", '[{"kind":"payout.observed"}]', '[{"v":1,"type":7}]', "[7]", b'[{"kind":"\xff"}]'],
)
async def test_what_nobody_of_ours_can_have_written_is_set_aside_where_people_see_it(
    client: Redis, redis_url: str, e: str | bytes
) -> None:
    """It was acknowledged without a word, and the views stood still of it."""
    await client.xadd(NAMES.log, {"e": e, "m": "{}"})
    assert not await live(client, redis_url, "me", Doing().group)
    assert await client.xlen(NAMES.dead) == 1


@pytest.mark.parametrize(
    "m", ["no metadata", '{"by":"stranger", broken', '{"by":"stranger","cause":5}', b'{"by":"\xff"}']
)
async def test_what_has_metadata_that_nobody_can_read_is_set_aside_where_people_see_it(
    client: Redis, redis_url: str, m: str | bytes
) -> None:
    """Its events were handled, and the views, which read both, stood still of it, and then of what had come of it."""
    await client.xadd(NAMES.log, {"e": encode_events([observed("pout_1")]), "m": m})
    assert not await live(client, redis_url, "me", Doing().group)
    assert await client.xlen(NAMES.dead) == 1


@pytest.mark.parametrize("names", [("x", "y"), ("m", "e")])
async def test_what_has_other_fields_than_ours_is_set_aside(
    client: Redis, redis_url: str, names: tuple[str, str]
) -> None:
    """They were taken by their places, and by their names in the archive, which had another entry than was handled."""
    fields = dict(zip(names, (encode_events([observed("pout_1")]), '{"by":"stranger"}'), strict=True))
    await client.xadd(NAMES.log, fields)
    assert not await live(client, redis_url, "me", Doing().group)
    assert await client.xlen(NAMES.dead) == 1

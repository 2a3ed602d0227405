"""What waits in a living worker's hands is not taken for left behind, and what others have taken is left to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved
from streamproc.domain.wire import encode_events
from streamproc.errors import TryAgain
from streamproc.log import claims
from streamproc.log.batch import Limits
from streamproc.log.claims import Claims
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.scripts import Raw
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.bank import until
from tests.words import observed

NAMES = Names(0)
AN_HOUR_MS = 3_600_000
CLAIM_IDLE_S = 36_000.0
"""Nobody takes over what is in hand for an hour."""


async def pay(client: Redis, *payouts: str) -> list[bytes]:
    rows = [
        {"e": encode_events([observed(one, 100, agent="bot")]), "m": b'{"by":"webhook"}'} for one in payouts
    ]
    return [await client.xadd(NAMES.log, row) for row in rows]


async def read(client: Redis) -> list[Raw]:
    reply = await client.execute_command("XREADGROUP", "GROUP", "g", "me", "STREAMS", NAMES.log, ">")
    entries: list[Raw] = reply[0][1]
    return entries


async def give(client: Redis, consumer: str, *ids: bytes) -> None:
    """Entries into a consumer's hands, where they seem to be for an hour."""
    await client.execute_command("XCLAIM", NAMES.log, "g", consumer, 0, *ids, "IDLE", AN_HOUR_MS, "JUSTID")


async def held(client: Redis) -> list[bytes]:
    """What `me` has and was heard of, of that, within the hour."""
    rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9, "me")
    assert all(row["times_delivered"] == 1 for row in rows)
    return [row["message_id"] for row in rows if row["time_since_delivered"] < AN_HOUR_MS]


async def test_of_what_is_in_hand_for_long_it_is_said_that_it_is_there_and_of_nothing_else(
    client: Redis,
) -> None:
    first, second, finished = await pay(client, "pout_1", "pout_2", "pout_3")
    await read(client)
    await give(client, "me", first, second, finished)
    long, lately = Claims(NAMES, "g", "me", 0.0), Claims(NAMES, "g", "me", 3_600.0)
    now_s = asyncio.get_running_loop().time()
    lately.add([first], now_s)
    await lately.renew(client)
    assert await held(client) == []
    long.add([first, finished], now_s)
    long.done([finished])
    await long.renew(client)
    assert await held(client) == [first]


async def test_what_others_have_taken_over_or_finished_is_not_ours(client: Redis) -> None:
    ours, theirs, finished = await pay(client, "pout_1", "pout_2", "pout_3")
    entries = await read(client)
    hands = Claims(NAMES, "g", "me", 0.0)
    hands.add([ours, theirs, finished], asyncio.get_running_loop().time())
    await give(client, "other", theirs)
    await client.xack(NAMES.log, "g", finished)
    assert [entry for entry, _ in await hands.ours(client, entries)] == [ours]
    (row,) = await client.xpending_range(NAMES.log, "g", "-", "+", 9, "other")
    assert row["message_id"] == theirs


async def test_what_others_took_over_is_ours_again_when_it_comes_back(client: Redis) -> None:
    """Else nobody would handle it until this worker's connections end: it is pending with us and we leave it out."""
    (entry,) = await pay(client, "pout_1")
    entries = await read(client)
    hands = Claims(NAMES, "g", "me", 0.0)
    for consumer, ours in (("other", []), ("me", [entry])):
        await give(client, consumer, entry)
        hands.add([entry], asyncio.get_running_loop().time())
        assert [one for one, _ in await hands.ours(client, entries)] == ours
        hands.done([entry])


# ---- what is asked of Redis, by a Redis that knows only that ----


class Asked:
    """Renewals that were asked for, and what is done at each; the entries `others` have are not ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renewed: list[list[bytes]] = []
        self.others: set[bytes] = set()
        self.meanwhile: Callable[[], None] = lambda: None
        monkeypatch.setattr(claims, "renew", self._hold)

    async def _hold(self, *args: Any) -> list[bytes]:
        entries = list(args[-1])
        self.renewed.append(entries)
        self.meanwhile()
        return [entry for entry in entries if entry not in self.others]

    def take_renewed(self) -> list[list[bytes]]:
        """What was renewed since the last call."""
        renewed, self.renewed = self.renewed, []
        return renewed


INTERVAL_S = 900.0
"""Of a claim time of an hour: renewals are due a quarter of it apart."""
ANY: Any = None
"""No Redis is asked."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def in_hand(**ages: float) -> Claims:
    """Entries in hand, each for so many renewal intervals."""
    hands, now_s = Claims(NAMES, "g", "me", 4 * INTERVAL_S), asyncio.get_running_loop().time()
    for entry, age in ages.items():
        hands.add([entry.encode()], now_s - age * INTERVAL_S)
    return hands


async def test_a_hold_is_renewed_after_a_quarter_of_the_claim_time_and_then_only_after_another(
    asked: Asked,
) -> None:
    hands = in_hand(due=1.01, not_yet=0.99)
    await hands.renew(ANY)
    assert asked.take_renewed() == [[b"due"]]
    await hands.renew(ANY)
    assert asked.take_renewed() == []


async def test_before_entries_are_handled_only_what_missed_a_renewal_is_asked_about(asked: Asked) -> None:
    """A renewal that is merely due is on its way; one that was missed says that this process may have stood still."""
    entries: list[Raw] = [(b"due", []), (b"missed", [])]
    asked.others = {b"due", b"missed"}
    assert await in_hand(due=1.99, missed=2.01).ours(ANY, entries) == [(b"due", [])]
    assert asked.take_renewed() == [[b"missed"]]


async def test_more_than_one_command_takes_is_renewed_in_parts_and_nothing_else_is_taken_for_lost(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BATCH_MAX", 2)
    hands = in_hand(a=5, b=5, c=5, fresh=0, d=5, e=5)
    asked.others = {b"fresh"}
    entries: list[Raw] = [(entry, []) for entry in (b"a", b"fresh", b"e")]
    assert list(await hands.ours(ANY, entries)) == entries
    assert asked.take_renewed() == [[b"a", b"b"], [b"c", b"d"], [b"e"]]


async def test_what_is_finished_while_its_hold_is_renewed_stays_finished(asked: Asked) -> None:
    hands = in_hand(finished=5, open=5)
    asked.meanwhile = lambda: hands.done([b"finished"])
    await hands.renew(ANY)
    assert hands._since.keys() == {b"open"}
    asked.others = {b"finished"}
    assert await hands.ours(ANY, [(b"finished", [])]) == [(b"finished", [])]


async def test_what_others_have_is_not_asked_for_again(asked: Asked) -> None:
    hands = in_hand(theirs=5)
    asked.others = {b"theirs"}
    for renewed in ([[b"theirs"]], []):
        await hands.renew(ANY)
        assert asked.take_renewed() == renewed


async def test_after_a_connection_was_lost_nothing_is_known_of_what_was_in_hand(asked: Asked) -> None:
    """It is asked for anew, also what others had before: they may have given it back."""
    hands = in_hand(theirs=5)
    asked.others = {b"theirs"}
    await hands.renew(ANY)
    hands.add([b"ours"], 0.0)
    hands.clear()
    asked.take_renewed()
    entries: list[Raw] = [(b"theirs", []), (b"ours", [])]
    assert list(await hands.ours(ANY, entries)) == entries
    assert asked.take_renewed() == []


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said after a third of a second that an entry is there."""
    monkeypatch.setattr(claims, "PART", 100_000)


class Bank:
    """A stage that holds each batch until it is let go, and says which payouts it was given."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem
        """Why each entry is to be put off, if it is."""
        self.called, self.answers = asyncio.Event(), asyncio.Event()
        self.payouts: list[str] = []
        stage = Stage(name="call", consumes=frozenset({PayoutObserved}), handle=self._call)
        self.group = Group(name="g", stages=(stage,), outputs_are_facts=True, read_max=1)

    async def _call(self, items: Sequence[Item], _: BatchContext) -> None:
        self.payouts += [work.payout for work, _ in items]
        self.called.set()
        await self.answers.wait()
        if self.problem is not None:
            for work, _ in items:
                work.fail(self.problem)


@asynccontextmanager
async def busy(client: Redis, url: str, bank: Bank) -> AsyncIterator[tuple[Consumer, list[bytes]]]:
    """A worker with one entry at the bank and the next one read."""
    ids = await pay(client, "pout_1", "pout_2")
    stopping = asyncio.Event()
    consumer = Consumer(url, 0, bank.group, name="me", limits=Limits(claim_idle_s=CLAIM_IDLE_S))
    running = asyncio.create_task(consumer.run(stopping))
    try:
        await bank.called.wait()

        async def are_read() -> bool:
            return len(await client.xpending_range(NAMES.log, "g", "-", "+", 9, "me")) == 2

        await until(are_read, what="the next one is read")
        yield consumer, ids
    finally:
        bank.answers.set()
        stopping.set()
        await running


async def test_what_is_at_the_bank_and_what_waits_behind_it_is_held_until_it_is_finished(
    client: Redis, redis_url: str, often: None
) -> None:
    """What waited behind two batches of 25 s was told to people twice, with a claim time that was shorter."""
    bank = Bank()
    async with busy(client, redis_url, bank) as (_, ids):
        await give(client, "me", *ids)

        async def are_held() -> bool:
            return await held(client) == ids

        await until(are_held, what="both are held")
    assert bank.payouts == ["pout_1", "pout_2"]
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_what_others_took_while_a_worker_stood_still_is_left_to_them(
    client: Redis, redis_url: str, often: None
) -> None:
    bank = Bank()
    async with connected(redis_url, name="other") as other, busy(client, redis_url, bank) as (worker, ids):
        await give(other, "other", ids[1])

        async def is_seen() -> bool:
            return ids[1] in worker._claims._lost

        await until(is_seen, what="it is seen that it is another's")
    assert bank.payouts == ["pout_1"]
    (row,) = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert (row["message_id"], row["consumer"]) == (ids[1], b"other")


def stand_still(client: redis.Redis, payout: str, seconds: float) -> bool:
    """This process stands still, as one that was stopped; whether the server gave it an entry at its first moment,
    which others have taken over and finished before its last one."""
    end = time.monotonic() + seconds
    event = encode_events([observed(payout, 100, agent="bot")])
    entry = client.xadd(NAMES.log, {"e": event, "m": b'{"by":"webhook"}'})
    was_given = bool(client.xpending_range(NAMES.log, "g", entry, entry, 1, "me"))
    client.xclaim(NAMES.log, "g", "other", 0, [entry])
    client.xack(NAMES.log, "g", entry)
    time.sleep(max(0.0, end - time.monotonic()))
    return was_given


async def test_what_came_when_a_worker_stood_still_already_is_left_to_those_who_took_it(
    client: Redis, redis_url: str
) -> None:
    """Its read was answered by the server at once, and by its own clock only when it went on."""
    bank, stopping = Bank(), asyncio.Event()
    bank.answers.set()
    limits = Limits(claim_idle_s=1.0)
    consumer = Consumer(redis_url, 0, bank.group, name="me", limits=limits)
    running = asyncio.create_task(consumer.run(stopping))
    try:
        with redis.Redis.from_url(redis_url) as other:
            still = map("pout_still_{}".format, range(100))

            async def is_reading() -> bool:
                return any(row["name"] == "me" and "b" in row["flags"] for row in await client.client_list())

            async def was_given() -> str:
                # On a busy machine it needs a while to read again after each standstill.
                await until(is_reading, what="it waits for entries")
                payout = next(still)
                return payout if stand_still(other, payout, limits.claim_idle_s) else ""

            payout = await until(was_given, what="it is given an entry while it reads")
        await pay(client, "pout_last")

        async def is_told() -> bool:
            return "pout_last" in bank.payouts

        await until(is_told, what="it goes on")
    finally:
        stopping.set()
        await running
    assert payout not in bank.payouts


async def test_what_others_took_while_it_was_at_the_bank_is_not_put_off_under_their_hands(
    client: Redis, redis_url: str
) -> None:
    """A pass that outlives a standstill is too late, so all of it was put off: a second later somebody took up again
    what others had at the bank."""
    bank = Bank(problem=TryAgain("the batch took too long", after_s=0.0))
    async with busy(client, redis_url, bank) as (_, ids):
        await give(client, "other", ids[0])
        bank.answers.set()

        async def is_put_off() -> bool:
            return await client.hexists(NAMES.tries("g"), ids[1].decode() + ":waits")

        await until(is_put_off, what="what is still its own is put off")
    assert not await client.hexists(NAMES.tries("g"), ids[0].decode() + ":waits")
    assert bank.payouts.count("pout_1") == 1
    (row,) = await client.xpending_range(NAMES.log, "g", ids[0], ids[0], 1)
    assert row["consumer"] == b"other"

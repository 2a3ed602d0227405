"""Redis is lost and rebuilt from the archive: what it held is there again, and the same inputs get the same answers."""

from collections import Counter

import pytest

from projections.schema import prepare
from streamproc.domain import events as e
from streamproc.log import scripts
from streamproc.log.cursor import Requested
from streamproc.log.names import META
from streamproc.log.restore import Restorer
from streamproc.log.scripts import Committed
from streamproc.operate.bank import bank_unasked
from tests.operate.recovering import archive, dump, polled, recovered, settings_of
from tests.operate.twins import POLICIES, Twin, handled, lived, lived_on, twins
from tests.words import ACCOUNT, delivery, reviewed


async def test_a_rebuilt_redis_holds_what_the_lost_one_held_and_decides_what_it_would_have(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, control):
        await lived(mine)
        await lived(control)
        assert await mine.outcome() == await control.outcome()
        await mine.engine.stop()
        before = await dump(mine.engine.client)
        assert all(
            before[kind] for kind in ("payouts", "budgets", "rates", "seen", "timers", "policies", "dead")
        )
        await archive(redis_url, postgres)

        await mine.engine.client.flushdb()
        await recovered(redis_url, postgres)

        after = await dump(mine.engine.client)
        assert after["timers"].items() <= before["timers"].items()
        for kind in before.keys() - {"timers"}:
            assert after[kind] == before[kind], kind
        assert b"recovering" not in await mine.engine.client.hgetall(META)
        marks = await mine.engine.client.hgetall(mine.engine.names.groups)
        assert marks[b"notification"] == b"late"  # nothing comes again to it: what is held is looked for

        await handled(mine)
        again = [await mine.again(event) for event in mine.delivered]
        assert [(found.new, found.entry) for found in again if found.new] == []
        await lived_on(mine)
        await lived_on(control)
        assert await mine.outcome() == await control.outcome()


async def in_flight(twin: Twin) -> None:
    """Decisions that the bank was not told of, and inputs that nobody has looked at."""
    await twin.engine.apply(POLICIES)
    await twin.pays("done_0", 100_000, "bot")
    await twin.pays("over_0", 1_000, "bot")
    await twin.shows("over_0", "processed")
    twin.is_open = False
    for n in range(3):
        await twin.pays(f"bot_{n}", 200_000, "bot")
    await twin.pays("careful_0", 200_000, "careful")
    await twin.pays("careful_1", 200_000, "careful")
    await twin.pays("careful_2", 200_000, "careful")
    await twin.pays("small_0", 101, "small")
    await twin.engine.stop()
    waiting = [
        twin.event("bot_3", 200_000, "bot"),
        twin.event("bot_4", 200_000, "bot"),  # one too many for the day
        twin.event("careful_2", 200_000, "careful", status="queued"),  # held, and would now pay itself
        twin.event("done_0", 100_000, "bot", status="processed"),
        twin.event("careful_1", 200_000, "careful", status="cancelled"),
    ]
    for event in waiting:
        await twin.engine.producer.append(delivery(event))
    twin.bank.statuses |= {"careful_2": "queued", "done_0": "processed", "careful_1": "cancelled"}
    malformed = e.PayoutMalformed(
        at=twin.base_us, payout="bad_0", account=ACCOUNT, source="webhook", problem="its amount is 7"
    )
    await twin.engine.append(ACCOUNT, malformed)
    for payout in ("careful_0", "careful_1", "over_0"):
        answer = reviewed(payout, at=twin.engine.producer.now_us(), why="ok")
        await twin.engine.append(ACCOUNT, answer)


async def test_what_was_in_flight_is_decided_once_and_executed_once(redis_url: str, postgres: str) -> None:
    async with twins(redis_url) as (mine, control):
        for twin in (mine, control):
            await in_flight(twin)
        before = await dump(mine.engine.client)
        await archive(redis_url, postgres)

        await mine.engine.client.flushdb()
        done = await recovered(redis_url, postgres)

        assert done.partitions[0].pending["execution"] >= 3
        assert done.partitions[0].pending["governance"] >= 8
        after = await dump(mine.engine.client)
        assert (after["budgets"], after["number"]) == (before["budgets"], before["number"])
        for twin in (mine, control):
            await handled(twin)
        assert await mine.outcome() == await control.outcome()
        assert set(Counter(payout for payout, _ in mine.bank.told).values()) == {1}
        assert ("careful_2", "cancel") in mine.bank.told
        refused = [
            ev.payout for entry in await mine.engine.entries() for ev in entry if type(ev) is e.ReviewRefused
        ]
        assert "over_0" in refused, "a person waits for an answer, also where nothing is left to decide"


async def test_what_was_not_archived_yet_is_lost_from_here_and_taken_when_it_comes_again(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, control):
        for twin in (mine, control):
            await twin.engine.apply(POLICIES)
            await twin.pays("bot_0", 600_000, "bot")
        await mine.engine.settled()
        await archive(redis_url, postgres)
        for twin in (mine, control):
            await twin.pays("bot_1", 400_000, "bot")
            await twin.pays("bot_2", 1, "bot")
        await mine.engine.stop()

        await mine.engine.client.flushdb()
        await recovered(redis_url, postgres)
        await handled(mine)

        assert "bot_1" not in (await mine.outcome())["payouts"]
        [_, lost, late] = mine.delivered
        # The barrier holds the others back.
        mine.bank.told = [told for told in mine.bank.told if told[0] == "bot_0"]
        mine.bank.statuses = {"bot_0": "processing"}
        for event in (lost, late):
            assert (await mine.again(event)).new
            await mine.engine.settled()
        assert await mine.outcome() == await control.outcome()


async def test_a_worker_that_was_frozen_through_it_all_cannot_commit_what_it_had_in_hand(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await mine.engine.apply(POLICIES)
        await mine.pays("bot_0", 900_000, "bot")
        await mine.engine.stop()
        client, names = mine.engine.client, mine.engine.names
        waiting = [
            mine.event("bot_1", 100_000, "bot"),
            mine.event("bot_0", 900_000, "bot", status="processed"),
        ]
        for event in waiting:
            await mine.engine.producer.append(delivery(event))
        reply = await client.execute_command(
            "XREADGROUP", "GROUP", "governance", "frozen", "STREAMS", names.log, ">"
        )
        [first, second] = [row[0] for row in reply[0][1]]
        _, rev, rows, _ = await scripts.load(client, names, ["bot_1", "bot_0"])
        await archive(redis_url, postgres)
        await client.flushdb()
        await recovered(redis_url, postgres)

        # The entries are pending again under their own ids, so nothing but version and revision stands in its way.
        decided = scripts.Handover(entry=first, payout="bot_1", version=b"0", record=b"{}", e=b"[1]", m=b"{")
        version = scripts.loaded(rows[1]).version
        settled = scripts.Handover(
            entry=second, payout="bot_0", version=version, record=b"{}", e=b"[2]", m=b"{"
        )
        assert await scripts.commit(client, names, "governance", [decided], rev=rev) == [Committed.STALE]
        assert await scripts.commit(client, names, "governance", [settled]) == [Committed.STALE]


async def test_a_lost_group_is_made_again_where_it_was_and_the_log_that_went_on_is_archived_first(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, control):
        for twin in (mine, control):
            await in_flight(twin)
        await prepare(postgres)
        await archive(redis_url, postgres)
        late = [twin.event("bot_9", 1_000, "bot") for twin in (mine, control)]
        for twin, event in zip((mine, control), late, strict=True):
            await twin.engine.producer.append(delivery(event))
        await mine.engine.client.xgroup_destroy(mine.engine.names.log, "execution")

        done = await recovered(redis_url, postgres)

        assert (done.partitions[0].rescued, done.partitions[0].dropped) == (0, 0)
        for twin in (mine, control):
            await handled(twin)
        assert await mine.outcome() == await control.outcome()


async def test_an_old_hold_does_not_cancel_what_the_policy_of_now_allows(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await mine.engine.apply(POLICIES)
        await mine.pays("careful_0", 200_000, "careful")
        await mine.engine.apply(POLICIES.replace("hold_ttl: 1h", "hold_ttl: 1h, queued_hold: allow"))
        await mine.shows("careful_0", "queued", 200_000, "careful")
        await mine.engine.stop()
        await archive(redis_url, postgres)

        await mine.engine.client.flushdb()
        done = await recovered(redis_url, postgres)

        assert "execution" not in done.partitions[0].pending
        await handled(mine)
        assert mine.bank.told == []
        assert (await mine.record("careful_0")).bank_status == "queued"


async def test_from_its_beginning_on_the_bank_counts_as_not_asked(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was not stopped goes on with a partition as soon as that is in place, before the whole is done."""
    async with twins(redis_url) as (mine, _):
        await in_flight(mine)
        await archive(redis_url, postgres)
        await mine.engine.stop()
        await mine.engine.client.flushdb()
        settings, told = settings_of(redis_url, postgres), list[bool]()
        put_in_place = Restorer.put_in_place

        async def looked_at(self: Restorer, *, keep_rescued_s: float) -> None:
            await put_in_place(self, keep_rescued_s=keep_rescued_s)
            await polled(redis_url, ACCOUNT)  # by a pass that had begun before
            requested = Requested("spi_new", mine.engine.producer.now_us(), b"0")
            told.append(await bank_unasked(settings, ACCOUNT, requested))

        monkeypatch.setattr(Restorer, "put_in_place", looked_at)
        await recovered(redis_url, postgres)
        assert told == [True]

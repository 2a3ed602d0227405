"""How far a poller has read and how it goes: kept in Redis, account by account, for whoever polls or looks next."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from streamproc.domain.entry_ids import id_key
from streamproc.errors import LogUnavailable, TryAgain
from streamproc.log import scripts
from streamproc.log.connection import connected
from streamproc.log.cursor import LETTERS_MAX, Covered, PollCursor, PollState, ReconcileState, Requested
from streamproc.log.names import META, UNRECONCILED, Names
from streamproc.log.scripts import Handover
from tests import servers
from tests.restartable import restartable

NOBODY = "redis://127.0.0.1:1/0"
HANDLED_S = 60


def cursor(url: str, account: str = "acc_1") -> PollCursor:
    return PollCursor(url, account=account, partitions=1)


async def test_a_list_that_was_never_read_has_no_position(redis_url: str) -> None:
    assert await cursor(redis_url).load() is None


async def test_the_next_poller_of_the_account_goes_on_where_the_last_one_was(redis_url: str) -> None:
    await cursor(redis_url).save(1_760_000_000, after=None)
    await cursor(redis_url).save(1_760_000_060, after=1_760_000_000)
    assert await cursor(redis_url).load() == 1_760_000_060
    assert await cursor(redis_url, "acc_2").load() is None


@pytest.mark.parametrize(
    ("found", "after", "position", "moves"),
    [
        (None, None, 100, True),
        (100, 100, 200, True),
        (150, 100, 120, True),
        (200, 200, 100, True),
        (99, 100, 200, False),
        (None, 100, 200, False),
        (50, None, 200, False),
    ],
    ids=[
        "the first time",
        "as always",
        "another poller was faster",
        "the clock went back",
        "it was set back",
        "it is gone",
        "it was set where there was none",
    ],
)
async def test_it_moves_on_from_where_the_poller_knew_it_unless_it_was_set_back_since(
    redis_url: str, found: int | None, after: int | None, position: int, moves: bool
) -> None:
    one = cursor(redis_url)
    if found is not None:
        await one.save(found, after=None)
    if moves:
        await one.save(position, after=after)
        assert await one.load() == position
    else:
        with pytest.raises(TryAgain, match="was set back meanwhile"):
            await one.save(position, after=after)
        assert await one.load() == found


async def test_what_a_poller_did_last_is_read_as_it_was_written(redis_url: str) -> None:
    state = PollState(
        holder="host:1", term=2, pass_at=3, next_at=4, good_at=5, failures=6, failing_since=7, problem="500",
        listed=8, new=9, malformed=10, looked_at=11, unknown=("pout_1: no such id",),
    )  # fmt: skip
    assert await cursor(redis_url).state() is None
    await cursor(redis_url).save_state(state)
    assert await cursor(redis_url).state() == state
    assert await cursor(redis_url, "acc_2").state() is None


async def test_what_an_older_version_left_out_is_nought(redis_url: str) -> None:
    one = cursor(redis_url)
    async with connected(redis_url) as client:
        await client.set(one._state, b'{"holder": "host:1", "term": 2, "pass_at": 3, "next_at": 4}')
    assert await one.state() == PollState(
        holder="host:1", term=2, pass_at=3, next_at=4, good_at=0, failures=0, failing_since=0, problem="",
        listed=0, new=0, malformed=0, looked_at=0, unknown=(),
    )  # fmt: skip


async def test_a_run_that_began_keeps_what_the_last_one_that_ended_found(redis_url: str) -> None:
    never = ReconcileState(tried_at=0, done_at=0, mismatches=0)
    assert await cursor(redis_url).reconciled() == never
    await cursor(redis_url).save_reconciled(tried_at=1, done_at=2, mismatches=3)
    await cursor(redis_url).save_reconciled(tried_at=9)
    assert await cursor(redis_url).reconciled() == ReconcileState(tried_at=9, done_at=2, mismatches=3)
    assert await cursor(redis_url, "acc_2").reconciled() == never


async def test_position_state_and_reconciliation_are_kept_apart(redis_url: str) -> None:
    await cursor(redis_url).save(1_760_000_000, after=None)
    assert await cursor(redis_url).state() is None
    assert await cursor(redis_url).reconciled() == ReconcileState()


@pytest.mark.parametrize(
    "use",
    [
        PollCursor.load,
        PollCursor.state,
        PollCursor.server,
        lambda one: one.knows_what_came_before(Requested("spi_1", 0, b"0"), "g", HANDLED_S),
        PollCursor.reconciled,
        lambda one: one.save(1, after=None),
        lambda one: one.save_state(PollState(holder="", term=0, pass_at=0, next_at=0)),
        lambda one: one.save_reconciled(tried_at=1),
    ],
)
async def test_while_redis_is_away_that_is_the_error(use: Callable[[PollCursor], Awaitable[object]]) -> None:
    with pytest.raises(LogUnavailable):
        await use(cursor(NOBODY))


def reading(server: str = "a", since: int = 1_000, until: int = 2_000) -> Covered:
    return Covered(server, since, until)


@pytest.mark.parametrize(
    ("covered", "server", "now_s", "asked_s", "knows"),
    [
        (reading(), "a", 1_500, 1_000 + HANDLED_S, True),
        (reading(), "b", 1_500, 1_400, False),
        (reading(), "a", 1_500, 999 + HANDLED_S, False),
        (reading(), "a", 2_000, 1_990, True),
        (reading(), "a", 2_001, 1_990, False),
        (Covered(), "", 0, HANDLED_S, False),
    ],
    ids=[
        "as always",
        "another server, or one that was started since",
        "what the first pass found may still be in a worker's hands",
        "the next pass is not late yet",
        "nobody reads the list any more",
        "it was never read",
    ],
)
def test_what_the_bank_had_is_known_while_its_list_is_read_into_this_log(
    covered: Covered, server: str, now_s: int, asked_s: int, knows: bool
) -> None:
    assert covered.knows(server, now_s, asked_s, HANDLED_S) is knows


@pytest.mark.parametrize(
    ("before", "now_s", "since"),
    [
        (reading(), 1_500, 1_000),
        (reading("b"), 1_500, 1_501),
        (reading(), 2_001, 2_002),
        (reading(), 900, 901),
        (Covered(), 1_500, 1_501),
    ],
    ids=["it goes on", "into another log", "after a gap", "by a clock that went back", "the first pass"],
)
def test_what_is_known_begins_anew_where_the_list_was_not_read_without_a_gap(
    before: Covered, now_s: int, since: int
) -> None:
    assert before.by_pass("a", now_s, now_s + 100) == Covered("a", since, now_s + 100)


async def test_what_a_pass_has_appended_is_known_once_its_group_has_handled_it_and_the_record_in_hand_says_so(
    redis_url: str,
) -> None:
    one, names = cursor(redis_url), Names(0)
    covered = Covered(await one.server(), since=0, until=int(time.time()) + 3_600)
    await one.save_state(PollState(holder="host:1", term=1, pass_at=0, next_at=0, covered=covered))
    async with connected(redis_url) as client:
        entry = await client.xadd(names.log, {"e": "[]", "m": "{}"})
        await client.xgroup_create(names.log, "g", id="0")
        await client.xreadgroup("g", "c", {names.log: ">"})
        written_ms, _ = id_key(entry.decode())

        async def knows(after_s: float, version: bytes) -> bool:
            asked = Requested("spi_1", written_ms * 1_000 + int(after_s * 1e6), version)
            return await one.knows_what_came_before(asked, "g", HANDLED_S)

        assert not await knows(HANDLED_S + 1, b"0"), "the group has it in hand for too long"
        assert await knows(HANDLED_S - 1, b"0"), "it has it in hand as always"
        await client.xack(names.log, "g", entry)
        assert await knows(HANDLED_S + 1, b"0")
        await client.hset(names.payout("spi_1"), "v", 1)
        assert not await knows(HANDLED_S + 1, b"0"), "the record has changed since it was loaded"
        assert await knows(HANDLED_S + 1, b"1")


@pytest.mark.parametrize(
    ("letters", "knows"),
    [(["g"], False), (["other"], True), (["other"] * LETTERS_MAX, False), ([], True)],
    ids=["of the group", "of another group", "too many to look at", "none"],
)
async def test_what_the_group_has_made_a_dead_letter_of_is_not_in_the_record(
    redis_url: str, letters: list[str], *, knows: bool
) -> None:
    """It is not in the group's hands any more, so what the list had shown was taken for known, and might be paid again
    after a set-back."""
    one, names = cursor(redis_url), Names(0)
    covered = Covered(await one.server(), since=0, until=int(time.time()) + 3_600)
    await one.save_state(PollState(holder="host:1", term=1, pass_at=0, next_at=0, covered=covered))
    async with connected(redis_url) as client:
        for group in ("g", "other"):
            await client.xgroup_create(names.log, group, id="0", mkstream=True)
        for group in letters:
            entry = await client.xadd(names.log, {"e": "[]", "m": "{}"})
            await client.execute_command("XCLAIM", names.log, group, "c", 0, entry, "FORCE", "JUSTID")
            await scripts.commit(client, names, group, [Handover(entry, taken=True, problem="why")])
    asked = Requested("spi_1", int(time.time() + HANDLED_S) * 1_000_000, b"0")
    assert await one.knows_what_came_before(asked, "g", HANDLED_S) is knows


async def test_a_pass_that_began_before_a_recovery_was_complete_says_nothing_of_what_the_recovery_adds(
    redis_url: str,
) -> None:
    """What the recovery had appended last was not handled yet when its end was marked. A pass of two minutes before was
    enough to take it for known, and it was paid again."""
    one = cursor(redis_url)
    asked = Requested("spi_1", 10_000 * 1_000_000, b"0")

    async def poll(covered: Covered, now_s: int) -> Covered:
        covered = covered.by_pass(await one.server(), now_s, 2**33)
        state = PollState(holder="host:1", term=1, pass_at=now_s, next_at=now_s, covered=covered)
        await one.save_state(state)
        return covered

    async with connected(redis_url) as client:
        await client.xgroup_create(Names(0).log, "g", id="0", mkstream=True)
        await client.hset(META, UNRECONCILED, "1")
        covered = await poll(Covered(), 1_000)
        await client.hdel(META, UNRECONCILED)
        assert not await one.knows_what_came_before(asked, "g", HANDLED_S)
        await poll(covered, 2_000)
        assert await one.knows_what_came_before(asked, "g", HANDLED_S)


async def test_a_server_is_another_one_after_a_start_and_after_it_was_a_replica(tmp_path: Path) -> None:
    async with restartable(lambda: servers.redis(tmp_path)) as redis:
        first = await cursor(await redis.up()).server()
        await redis.down()
        url = await redis.up()
        started = await cursor(url).server()
        async with connected(url) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            await client.execute_command("REPLICAOF", "NO", "ONE")
        assert len({first, started, await cursor(url).server()}) == 3

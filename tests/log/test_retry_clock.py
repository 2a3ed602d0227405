"""What is put off waits for as long as was asked for, also where Redis's clock goes back meanwhile.

The scripts are the real ones, but for the line that asks for the time: that is the test's.
"""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.log.scripts import DEFERRED_S_MAX, Backoff, Deferral
from tests.log.test_grant import pending

NAMES = Names(0)
NO_BACKOFF = Backoff(0.0, 0.0, 0.0)
BEGIN_S = 1_790_000_000
BACK_S = [5 * 60, 20 * 60, 40 * 60]
TIME = b"local function now_us()\n"


class Clock:
    """Redis's clock, which stands still until a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = BEGIN_S
        for name in ("_defer", "_due_retries"):
            monkeypatch.setattr(scripts, name, self._by_this_clock(getattr(scripts, name)))

    def _by_this_clock(self, script: Script) -> Any:
        assert TIME in script.text

        async def call(client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
            mine = copy.copy(script)
            mine.text = script.text.replace(TIME, TIME + b"  if true then return %d end\n" % self.now_us)
            mine.sha = hashlib.sha1(mine.text, usedforsecurity=False).hexdigest()
            return await mine(client, keys, args)

        return call

    @property
    def now_us(self) -> int:
        return self.now_s * 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def put_off(client: Redis, delay_s: float) -> bytes:
    entry = await pending(client)
    await scripts.defer(client, NAMES, "g", [Deferral(entry, delay_s, False)], NO_BACKOFF)
    return entry


async def due(client: Redis) -> list[bytes]:
    found = await scripts.due_retries(client, NAMES, "g", "d", limit=9)
    return [entry for entry, _ in found.entries]


@pytest.mark.parametrize("back_s", [0, *BACK_S])
@pytest.mark.parametrize("delay_s", [10, 600, int(DEFERRED_S_MAX)])
async def test_what_was_put_off_is_due_after_its_own_delay_however_far_the_clock_went_back(
    client: Redis, clock: Clock, back_s: int, delay_s: int
) -> None:
    """What was put off for ten seconds waited until the clock was there again, if that was within half an hour."""
    entry = await put_off(client, delay_s)
    clock.now_s -= back_s
    assert await due(client) == []
    clock.now_s += delay_s - 1
    assert await due(client) == []
    clock.now_s += 1
    assert await due(client) == [entry]


@pytest.mark.parametrize("back_s", BACK_S)
async def test_what_is_put_off_after_the_clock_went_back_waits_neither_longer_nor_less(
    client: Redis, clock: Clock, back_s: int
) -> None:
    before = await put_off(client, 10)
    clock.now_s -= back_s
    after = await put_off(client, 20)
    found = {}
    for _ in range(21):
        found |= dict.fromkeys(await due(client), clock.now_s - BEGIN_S + back_s)
        clock.now_s += 1
    assert found == {before: 10, after: 20}


@pytest.mark.parametrize("back_s", BACK_S)
async def test_where_nothing_was_put_off_for_long_when_the_clock_went_back_none_waits_for_longer_than_its_delay(
    client: Redis, clock: Clock, back_s: int
) -> None:
    entry = await put_off(client, DEFERRED_S_MAX)
    clock.now_s += int(DEFERRED_S_MAX) - 1
    assert await due(client) == []
    clock.now_s -= back_s
    assert await due(client) == []
    clock.now_s += int(DEFERRED_S_MAX)
    assert await due(client) == [entry]


async def test_a_clock_that_went_back_twice_delays_what_waits_by_no_more_than_once(
    client: Redis, clock: Clock
) -> None:
    entry = await put_off(client, 10)
    for back_s in BACK_S:
        clock.now_s -= back_s
        assert await due(client) == []
    clock.now_s += 10
    assert await due(client) == [entry]


@pytest.mark.parametrize("ahead_s", BACK_S)
async def test_what_was_put_off_while_the_clock_was_ahead_does_not_wait_until_it_is_there_again(
    client: Redis, clock: Clock, ahead_s: int
) -> None:
    first = await put_off(client, 10)
    clock.now_s += ahead_s
    assert await due(client) == [first]
    entry = await put_off(client, 10)
    clock.now_s -= ahead_s
    clock.now_s += 9
    assert await due(client) == []
    clock.now_s += 10
    assert await due(client) == [entry]


async def test_once_nothing_waits_any_more_what_is_put_off_is_due_by_the_clock_of_redis(
    client: Redis, clock: Clock
) -> None:
    await put_off(client, 0)
    clock.now_s -= 300
    assert len(await due(client)) == 1
    entry = await put_off(client, 10)
    assert await client.zscore(NAMES.retries("g"), entry) == clock.now_us + 10_000_000
    clock.now_s += 9
    assert await due(client) == []
    clock.now_s += 1
    assert await due(client) == [entry]


async def test_a_look_writes_nothing_unless_the_clock_went_back(client: Redis, clock: Clock) -> None:
    """There are five a second by each worker, and each would wait for the disk."""

    async def written_by_a_look() -> int:
        before = (await client.info("persistence"))["rdb_changes_since_last_save"]
        assert await due(client) == []
        return int((await client.info("persistence"))["rdb_changes_since_last_save"]) - before

    await put_off(client, 10)
    assert await written_by_a_look() == 0
    clock.now_s -= 300
    assert await written_by_a_look() == 1
    assert await written_by_a_look() == 0

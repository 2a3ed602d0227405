"""A Redis that is there and refuses: nothing is lost, a line says why, nothing is done outside again and again, and it
goes on by itself once the cause is gone."""

import asyncio
import itertools
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.domain.events import PayoutObserved
from streamproc.log import group as loop
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.log.work import BatchContext, Group, Item, LeaveToSlowLane, Stage
from tests import servers
from tests.bank import until
from tests.log.test_left import pay

NAMES = Names(0)
ATTEMPTS = 5
"""Times that a worker connects anew while it is refused: more than anything may be done outside."""
_homes = itertools.count()

Trouble = Callable[[Redis], AbstractAsyncContextManager[None]]


class People:
    """A group that tells people, in its pass or in its slow lane, and holds each message until it may be sent."""

    def __init__(self, *, slow_lane: bool) -> None:
        self.told: list[str] = []
        self.telling, self.may_go_on = asyncio.Event(), asyncio.Event()
        stage = Stage(name="tell", consumes=frozenset({PayoutObserved}), handle=self._tell)
        self.group = Group(name="g", stages=(stage,), outputs_are_facts=True, slow_lane=slow_lane)

    async def _tell(self, items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            if ctx.may_wait:
                work.fail(LeaveToSlowLane())
                continue
            self.told.append(work.payout)
            self.telling.set()
            await self.may_go_on.wait()


@pytest.fixture
async def store(public_dir: Path) -> AsyncIterator[str]:
    """URL of a server of this test's own, which may be spoilt, with the log."""
    async with servers.redis(public_dir / f"refusing-{next(_homes)}") as store:
        async with connected(store.url) as client:
            await open_log(client, partitions=1, groups=["g"])
        yield store.url


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker connects anew soon."""
    monkeypatch.setattr(loop, "RECONNECT_BASE_S", 0.01)


@asynccontextmanager
async def working(url: str, group: Group) -> AsyncIterator[None]:
    """One life of a worker."""
    stopping = asyncio.Event()
    running = asyncio.create_task(Consumer(url, 0, group, name="me", limits=Limits()).run(stopping))
    try:
        yield
        assert not running.done(), "it ended"
    finally:
        stopping.set()
        await running


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the worker said of why it connects anew."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if line.startswith("g/0: ") and "; again in " in line]


async def is_refused(caplog: pytest.LogCaptureFixture, times: int) -> None:
    async def said() -> bool:
        return len(refusals(caplog)) >= times

    await until(said, what=f"it is refused {times} times")


async def is_finished(client: Redis) -> None:
    async def is_so() -> bool:
        (row,) = await client.xinfo_groups(NAMES.log)
        return (row["lag"], row["pending"]) == (0, 0)

    await until(is_so, what="everything is handled")


def setting(name: str, value: str) -> Trouble:
    @asynccontextmanager
    async def changed(client: Redis) -> AsyncIterator[None]:
        await client.config_set(name, value)
        yield
        await client.config_set(name, "0")

    return changed


@asynccontextmanager
async def demoted(client: Redis) -> AsyncIterator[None]:
    """A replica, as after a failover."""
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    await client.execute_command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def demoted_and_alone(client: Redis) -> AsyncIterator[None]:
    """A replica that says nothing without its primary."""
    await client.config_set("replica-serve-stale-data", "no")
    async with demoted(client):
        yield


@asynccontextmanager
async def without_disk(client: Redis) -> AsyncIterator[None]:
    """A snapshot has failed, for there is no place for it."""
    await client.config_set("save", "3600 1")
    await client.config_set("stop-writes-on-bgsave-error", "yes")
    shutil.rmtree((await client.config_get("dir"))["dir"])
    await client.bgsave()

    async def has_failed() -> bool:
        return (await client.info("persistence"))["rdb_last_bgsave_status"] == "err"

    await until(has_failed, what="the snapshot failed")
    yield
    await client.config_set("stop-writes-on-bgsave-error", "no")
    await client.config_set("save", "")  # else it would not end without a snapshot


@asynccontextmanager
async def busy(client: Redis) -> AsyncIterator[None]:
    """It runs somebody's script, which does not end by itself."""
    await client.config_set("busy-reply-threshold", 1)

    async def run() -> None:
        with pytest.raises(ResponseError, match="killed"):
            await client.eval("while true do end", 0)

    async def is_busy() -> bool:
        try:
            await client.get("anything")
        except ResponseError as problem:
            return "BUSY" in str(problem)
        return False

    running = asyncio.create_task(run())
    await until(is_busy, what="it is busy")
    yield
    await client.script_kill()
    await running


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("slow_lane", [False, True], ids=["in a pass", "in the slow lane"])
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (setting("maxmemory", "1"), "used memory > 'maxmemory'"),
        (setting("min-replicas-to-write", "1"), "NOREPLICAS"),
        (demoted, "it is a replica, which takes no writes"),
        (demoted_and_alone, "it is a replica"),
        (without_disk, "unable to persist to disk"),
        (busy, "BUSY"),
    ],
    ids=["no memory", "no replica", "a replica", "a replica alone", "no disk", "busy"],
)
async def test_what_is_in_hand_when_redis_begins_to_refuse_is_finished_once_it_does_no_more(
    store: str, caplog: pytest.LogCaptureFixture, trouble: Trouble, said: str, *, slow_lane: bool
) -> None:
    people = People(slow_lane=slow_lane)
    async with Redis.from_url(store) as client, working(store, people.group):
        await pay(client, "pout_1")
        await people.telling.wait()
        async with trouble(client):
            people.may_go_on.set()
            await is_refused(caplog, 3)
            assert people.told == ["pout_1"]
        await is_finished(client)
        assert people.told == ["pout_1"] * 2  # as after any commit that did not happen
        assert await client.xlen(NAMES.dead) == 0
    assert any(said in line for line in refusals(caplog)), refusals(caplog)


@pytest.fixture
async def limited(client: Redis, redis_url: str) -> AsyncIterator[str]:
    """URL of a user who may do everything, until a test takes something away."""
    await client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">x", "~*", "+@all")
    yield redis_url.replace(f":{urlsplit(redis_url).password}@", "limited:x@")
    await client.execute_command("ACL", "DELUSER", "limited")


async def take_away(client: Redis, command: str) -> None:
    await client.execute_command("ACL", "SETUSER", "limited", f"-{command}")


async def give_back(client: Redis, command: str) -> None:
    await client.execute_command("ACL", "SETUSER", "limited", f"+{command}")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("slow_lane", [False, True], ids=["in a pass", "in the slow lane"])
@pytest.mark.parametrize("command", ["xack", "xadd", "evalsha"])
async def test_people_are_not_told_again_and_again_while_that_they_were_may_not_be_recorded(
    client: Redis, limited: str, caplog: pytest.LogCaptureFixture, command: str, *, slow_lane: bool
) -> None:
    """It connected ten times a second and told them each time."""
    people = People(slow_lane=slow_lane)
    async with working(limited, people.group):
        await pay(client, "pout_1")
        await people.telling.wait()
        await take_away(client, command)
        people.may_go_on.set()
        await is_refused(caplog, ATTEMPTS)
        assert people.told == ["pout_1"]
        await give_back(client, command)
        await is_finished(client)
        assert people.told == ["pout_1"] * 2
    assert f"no permissions to run the '{command}' command" in refusals(caplog)[0]


@pytest.mark.parametrize("command", ["xreadgroup", "xclaim", "xautoclaim", "xinfo", "eval", "client|id"])
async def test_what_a_worker_may_not_do_is_named_tried_ever_more_rarely_and_done_once_it_may(
    client: Redis, limited: str, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    """It was tried ten times a second, with a line each time."""
    people = People(slow_lane=False)
    people.may_go_on.set()
    await take_away(client, command)
    await client.script_flush()
    async with working(limited, people.group):
        await pay(client, "pout_1")
        await is_refused(caplog, 4)
        await give_back(client, command)
        await is_finished(client)
    lines = refusals(caplog)[:4]
    assert all(f"run the '{command}" in line for line in lines), lines
    assert [re.findall(r"again in (\S+) s", line) for line in lines] == [["0.1"], ["0.2"], ["0.4"], ["0.8"]]

"""A question hears its own answer or none: a connection on which that could go wrong is not used again."""

import asyncio
import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc.log.connection import connected, is_quiet
from tests.bank import until

MANY_BYTES = 3_000_000
"""More than a connection reads at once."""
IMPATIENT_S = 0.1
ANSWER_MAX_S = 30.0


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with connected(redis_url) as client:
        yield client


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Redis]:
    async with connected(redis_url) as other:
        yield other


@contextmanager
def impatient(client: Redis) -> Iterator[Any]:
    """Its connection, which is open already, waits so long for an answer. Opening takes longer on a busy machine."""
    connection = client.connection
    patient, connection.socket_timeout = connection.socket_timeout, IMPATIENT_S
    yield connection
    connection.socket_timeout = patient


async def test_an_answer_of_any_length_is_whole(client: Redis) -> None:
    texts = [b"x" * MANY_BYTES, b"", b"\r\n$5\r\n"]
    await client.rpush("texts", *texts)
    assert await client.lrange("texts", 0, -1) == texts
    assert await client.execute_command("MGET", "no", "none") == [None, None]


async def test_an_error_reply_has_redis_pys_class_and_the_connection_stays(client: Redis) -> None:
    before = await client.client_id()
    await client.set("text", "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await client.execute_command("LPUSH", "text", "y")
    with pytest.raises(NoScriptError):
        await client.execute_command("EVALSHA", "0" * 40, 0)
    assert await client.client_id() == before


async def test_a_name_of_two_words_and_what_is_no_text_are_sent_as_redis_py_does(client: Redis) -> None:
    await client.execute_command("CONFIG SET", "slowlog-max-len", 77)
    assert await client.config_get("slowlog-max-len") == {"slowlog-max-len": "77"}
    # The default, for other tests of this server.
    await client.execute_command("CONFIG SET", "slowlog-max-len", 128)
    await client.execute_command(b"SET", b"\x00\xff", 1.5)
    assert await client.get(b"\x00\xff") == b"1.5"


async def test_what_comes_too_late_is_not_taken_for_the_next_answer(client: Redis, other: Redis) -> None:
    before = await client.client_id()
    with impatient(client), pytest.raises(RedisTimeoutError):
        await client.execute_command("BLPOP", "list", 0)
    await other.rpush("list", "late")
    assert await client.echo("now") == b"now"
    assert await client.client_id() != before


async def test_an_answer_that_came_while_the_loop_stood_still_is_not_late(
    client: Redis,
) -> None:
    before = await client.client_id()
    with impatient(client) as connection:
        asking = asyncio.create_task(client.echo("now"))
        await asyncio.sleep(0)  # it is asked
        socket = connection._writer.get_extra_info("socket")
        assert select.select([socket.fileno()], [], [], ANSWER_MAX_S)[0]
        time.sleep(2 * IMPATIENT_S)  # noqa: ASYNC251  # the answer and the deadline come in one turn of the loop
        assert await asking == b"now"
    assert await client.client_id() == before


async def test_who_is_cancelled_leaves_no_answer_behind(client: Redis, other: Redis) -> None:
    before = await client.client_id()
    asking = asyncio.create_task(client.execute_command("BLPOP", "list", 0))

    async def is_waiting() -> bool:
        return any(row["cmd"] == "blpop" for row in await other.client_list())

    await until(is_waiting, what="the question is asked")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()
    await other.rpush("list", "late")
    assert await client.echo("now") == b"now"
    assert await client.client_id() != before


async def test_after_what_nobody_asked_for_nothing_is_asked_any_more(client: Redis, other: Redis) -> None:
    before = await client.client_id()
    await client.execute_command("SUBSCRIBE", "room")
    assert await is_quiet(client)
    await other.publish("room", "unasked")

    async def is_closed() -> bool:
        return not await is_quiet(client)

    await until(is_closed, what="the connection is closed")
    with pytest.raises(RedisConnectionError, match="nobody was waiting for"):
        await client.ping()
    assert await client.client_id() != before


async def test_an_answer_with_more_behind_it_is_none(client: Redis) -> None:
    with pytest.raises(RedisConnectionError, match="more than it was asked"):
        await client.execute_command("SUBSCRIBE", "room", "hall")
    assert await client.echo("now") == b"now"


async def test_who_waits_hears_at_once_that_the_connection_is_closed(client: Redis, other: Redis) -> None:
    number = await client.client_id()
    asking = asyncio.create_task(client.execute_command("BLPOP", "list", 0))

    async def is_waiting() -> bool:
        return any(row["cmd"] == "blpop" for row in await other.client_list())

    await until(is_waiting, what="the question is asked")
    await other.client_kill_filter(_id=str(number))
    with pytest.raises(RedisConnectionError):
        await asking
    assert await client.echo("now") == b"now"


async def test_those_who_share_a_client_are_answered_in_turn(client: Redis) -> None:
    asked = [str(n).encode() for n in range(50)]
    assert await asyncio.gather(*(client.echo(text) for text in asked)) == asked

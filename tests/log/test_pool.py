"""Connections are kept for the next question, and no question hears another's answer or a closed connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
from redis.exceptions import RedisError

from streamproc.log.connection import connected
from streamproc.log.pool import KEPT_MAX, ClientPool
from tests.bank import until
from tests.faults.proxy import Proxy


async def identity(kept: ClientPool) -> int:
    async with kept.acquire() as client:
        return int(await client.client_id())


@asynccontextmanager
async def counting(redis_url: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """How many connections the server has besides those it has now: another test's may still end."""
    async with connected(redis_url) as other:
        before = {row["id"] for row in await other.client_list()}

        async def how_many() -> int:
            return len({row["id"] for row in await other.client_list()} - before)

        yield how_many


async def test_one_question_after_another_has_the_same_connection(redis_url: str) -> None:
    kept = ClientPool(redis_url)
    assert await identity(kept) == await identity(kept)
    await kept.aclose()


async def test_a_connection_that_only_had_pipelines_is_kept_too_and_not_after_it_was_closed(
    redis_url: str,
) -> None:
    kept = ClientPool(redis_url)

    async def ask() -> int:
        async with kept.acquire() as client, client.pipeline(transaction=False) as pipe:
            pipe.client_id()
            return int((await pipe.execute())[0])

    first = await ask()
    assert await ask() == first
    async with connected(redis_url) as other:
        await other.client_kill_filter(_id=str(first))

        async def is_another() -> bool:  # as soon as the end is heard of here; until then a question may fail
            with suppress(RedisError):
                return await ask() != first
            return False

        await until(is_another, what="the closed connection is not lent any more")
    await kept.aclose()


async def test_two_questions_at_once_share_none(redis_url: str) -> None:
    kept = ClientPool(redis_url)
    async with kept.acquire() as one, kept.acquire() as other:
        assert await one.client_id() != await other.client_id()
    await kept.aclose()


async def test_what_a_burst_left_is_closed_when_nobody_needed_it_for_a_while(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ClientPool(redis_url)
    async with counting(redis_url) as how_many:
        async with AsyncExitStack() as burst:
            for _ in range(4):
                client = await burst.enter_async_context(kept.acquire())
                await client.ping()
        assert await how_many() == 4
        last = await identity(kept)
        assert await how_many() == 4  # it was only a moment ago
        monkeypatch.setattr("streamproc.log.pool.KEPT_S", 0.0)

        async def one_is_left() -> bool:
            assert await identity(kept) == last
            return await how_many() == 1

        await until(one_is_left, what="those that nobody needed are closed")
    await kept.aclose()


async def test_a_connection_whose_answer_was_not_waited_for_is_not_lent_again(redis_url: str) -> None:
    kept = ClientPool(redis_url)
    first = await identity(kept)

    async def ask() -> None:
        async with kept.acquire() as client:
            asking.set()
            await client.blpop(["nothing"], timeout=0)

    asking = asyncio.Event()
    task = asyncio.create_task(ask())
    await asking.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await identity(kept) != first
    with pytest.raises(ValueError, match="a question of ours"):
        async with kept.acquire():
            raise ValueError("a question of ours")
    await kept.aclose()


async def test_a_connection_that_the_server_closed_is_not_lent_again(redis_url: str) -> None:
    kept = ClientPool(redis_url)
    first = await identity(kept)
    async with connected(redis_url) as other:
        await other.client_kill_filter(_id=str(first))

        async def is_closed() -> bool:
            return str(first) not in {row["id"] for row in await other.client_list()}

        await until(is_closed, what="the server has closed it")
    assert await identity(kept) != first
    await kept.aclose()


async def test_a_connection_that_was_reset_is_not_lent_again(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Proxy(parts.hostname, parts.port).listening() as wire:
        kept = ClientPool(redis_url.replace(f":{parts.port}", f":{wire.port}"))
        first = await identity(kept)
        wire.reset()
        async with connected(redis_url) as other:

            async def is_closed() -> bool:
                return str(first) not in {row["id"] for row in await other.client_list()}

            await until(is_closed, what="the server has heard of it")
        assert await identity(kept) != first
        await kept.aclose()


async def test_only_so_many_are_kept(redis_url: str) -> None:
    kept, many = ClientPool(redis_url), KEPT_MAX + 4
    begun, go_on = asyncio.Barrier(many + 1), asyncio.Event()

    async def ask() -> None:
        async with kept.acquire() as client:
            await client.client_id()
            await begun.wait()
            await go_on.wait()

    async with counting(redis_url) as how_many:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(many):
                tasks.create_task(ask())
            await begun.wait()
            assert await how_many() == many
            go_on.set()

        async def so_many() -> bool:
            return await how_many() == KEPT_MAX

        await until(so_many, what=f"{KEPT_MAX} are kept")
    await kept.aclose()

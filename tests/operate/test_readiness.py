"""What `/readyz` asks: a dependency that hangs is named, and does not make the others late."""

import asyncio
from typing import Any

import pytest

import consumers
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from streamproc.operate import readiness
from streamproc.settings import load


async def test_a_postgres_that_hangs_is_named_within_a_single_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END)
    both = asyncio.Barrier(2)

    async def asked(*_: Any) -> str:
        await both.wait()  # hangs for whoever asks alone
        return "0-0"

    monkeypatch.setattr(readiness, "archived_upto", asked)
    pool: Any = object()
    checks = await readiness.readiness(load({"STREAMPROC_REDIS_URL": redis_url}), pool)()
    assert [check.name for check in checks][-2:] == ["postgres", "archive"]
    assert all(check.ok for check in checks[-2:]), checks


async def test_a_redis_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "CHECK_S", 0.05)
    async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        checks = await readiness.readiness(
            load({"STREAMPROC_REDIS_URL": f"redis://127.0.0.1:{port}"}), None
        )()
    assert [(check.name, check.ok, check.required) for check in checks] == [
        ("redis", False, True),
        ("breakers", False, False),
        ("notifications", False, False),
    ]
    assert {check.detail for check in checks} == {"no answer within 0.05 s"}

"""`server.lua`: what lay in the log when a server, or its present run, was met may have been delivered before."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from streamproc.errors import LogBroken
from streamproc.log.names import Names
from streamproc.log.scripts import delivered_before
from tests.bank import until
from tests.faults.replica import replica_of

NAMES = Names(0)


async def append(client: Redis) -> str:
    entry: bytes = await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
    return entry.decode()


async def test_what_came_before_a_server_was_met_is_told_of_as_long_as_it_runs(client: Redis) -> None:
    before = await append(client)
    assert await delivered_before(client, NAMES) == before
    await append(client)
    assert await delivered_before(client, NAMES) == before


async def test_another_run_of_a_server_is_another_server(client: Redis) -> None:
    """After a failover the new one has what the old one wrote here; after a restart the run is another."""
    await append(client)
    await delivered_before(client, NAMES)
    await client.hset(NAMES.server, "run", "0123456789abcdef")
    since = await append(client)
    assert await delivered_before(client, NAMES) == since
    await append(client)
    assert await delivered_before(client, NAMES) == since


async def test_a_server_that_was_a_replica_meanwhile_is_another_server(
    client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """It has what the primary of that time had, who may have lacked what was delivered here before."""
    await delivered_before(client, NAMES)
    since = await append(client)
    async with replica_of(redis_url, tmp_path) as replica:
        await replica.promote()
        await client.config_set("masterauth", urlsplit(redis_url).password)

        async def in_step() -> bool:
            return (await client.info("replication")).get("master_link_status") == "up"

        try:
            await client.execute_command("REPLICAOF", "127.0.0.1", replica.port)
            await until(in_step, what="the old primary follows the new one")
        finally:  # other tests have this server too
            await client.execute_command("REPLICAOF", "NO", "ONE")
        assert await delivered_before(client, NAMES) == since
        await append(client)
        assert await delivered_before(client, NAMES) == since


async def test_in_a_log_that_is_new_nothing_was_given_to_anybody(client: Redis) -> None:
    assert await delivered_before(client, NAMES) == "0-0"
    await append(client)
    assert await delivered_before(client, NAMES) == "0-0"


async def test_an_entry_that_was_removed_since_still_counts_as_given(client: Redis) -> None:
    entry = await append(client)
    await client.xtrim(NAMES.log, maxlen=0, approximate=False)
    assert await delivered_before(client, NAMES) == entry


async def test_without_a_log_no_server_is_met(client: Redis) -> None:
    await client.delete(NAMES.log)
    with pytest.raises(LogBroken, match="is gone"):
        await delivered_before(client, NAMES)
    assert await client.keys("*server*") == []

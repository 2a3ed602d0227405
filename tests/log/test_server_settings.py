"""What `doctor` and `/readyz` say of the server's settings."""

from urllib.parse import urlsplit

from redis.asyncio import Redis

from streamproc.log.connection import connected
from streamproc.log.health import server_settings


async def test_the_embedded_server_is_as_the_log_needs_it(client: Redis) -> None:
    assert await server_settings(client) == []


async def test_where_nobody_may_ask_for_settings_they_are_unknown_and_all_else_is_told(
    client: Redis, redis_url: str
) -> None:
    at = urlsplit(redis_url)
    await client.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~*", "&*", "+@all", "-config")
    try:
        async with connected(f"redis://some:pw@{at.hostname}:{at.port}") as user:
            problems = await server_settings(user)
    finally:
        await client.execute_command("ACL", "DELUSER", "some")
    assert [problem.partition(",")[0] for problem in problems] == [
        "appendonly is unknown",
        "appendfsync is unknown",
        "maxmemory-policy is unknown",
    ]
    assert all("CONFIG GET is refused to the user of STREAMPROC_REDIS_URL" in problem for problem in problems)

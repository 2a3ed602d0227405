"""Connections do what their owners say: a command that is cancelled is cancelled, whenever that comes."""

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc.errors import LogBroken, LogUnavailable
from streamproc.log.connection import connect, connected, named_errors
from tests.deadline import DEADLINE_S

TURNS_MAX = 12
"""Turns of the loop in which a command is written and answered."""


async def test_a_task_that_is_cancelled_while_it_writes_a_command_ends(redis_url: str) -> None:
    failed = asyncio.Event()

    async def forever() -> None:
        async with connected(redis_url) as client:
            while not failed.is_set():
                await client.ping()

    for n in range(20 * TURNS_MAX):
        task = asyncio.create_task(forever())
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_S)
        if not done:
            failed.set()
            await task
        assert done, f"cancelled after {n} turns of the loop, and it went on"
        assert task.cancelled()


@pytest.mark.parametrize(
    ("url", "scheme"), [("redis://h", "redis"), ("rediss://h", "rediss"), ("unix:///tmp/s", "unix")]
)
async def test_every_scheme_gets_a_connection_that_can_be_cancelled(url: str, scheme: str) -> None:
    client = connect(url)
    assert client.connection_pool.connection_class.__doc__ == f"{scheme}://"
    await client.aclose()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for a socket, whose path may have 107 bytes: that of a test may have more."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


async def test_a_unix_socket_serves_as_well(redis_url: str, short_path: Path) -> None:
    parts, socket = urlsplit(redis_url), short_path / "s"

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(1024):
            writer.write(some)
        writer.close()

    async with (
        await asyncio.start_unix_server(pass_on, socket),
        connected(f"unix://:{parts.password}@{socket}", name="over-a-socket") as client,
    ):
        assert await client.client_getname() in ("over-a-socket", b"over-a-socket")


SECRET = "no permissions to tell"
"""A value that must not get into an error, though it looks like its reason."""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (lambda client: client.set("mine", SECRET), "no permissions to run the 'set' command"),
        (
            lambda client: client.pipeline().set("mine", SECRET).execute(),
            "no permissions to run the 'set' command",
        ),
        (
            lambda client: client.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "mine", SECRET),
            "no permissions to run the 'set' command",
        ),
        (lambda client: client.get("another's"), "no permissions to access a key"),
        (lambda client: client.execute_command("SAT", SECRET), "unknown command 'sat'"),
    ],
    ids=["alone", "in a pipeline", "in a script", "a key", "unknown"],
)
async def test_a_command_that_the_server_refuses_us_is_named_without_its_values(
    redis_url: str, command: Callable[[Any], Awaitable[object]], reason: str
) -> None:
    async with connected(redis_url) as client:
        await client.execute_command("ACL", "SETUSER", "small", "on", "nopass", "~mine", "+@all", "-set")
    try:
        async with connected(redis_url.replace(f":{urlsplit(redis_url).password}@", "small:x@")) as client:
            with pytest.raises(LogUnavailable) as refused, named_errors():
                await command(client)
    finally:
        async with connected(redis_url) as client:
            await client.execute_command("ACL", "DELUSER", "small")
    assert reason in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("min-replicas-to-write", 1, "NOREPLICAS"), ("maxmemory", 1, "command not allowed when used memory")],
)
async def test_an_error_in_a_pipeline_has_its_name_and_no_value(
    redis_url: str, setting: str, value: int, said: str, *, transaction: bool
) -> None:
    async with connected(redis_url) as client:
        await client.config_set(setting, value)
        try:
            with pytest.raises(LogUnavailable, match=f"Redis refuses writes: {said}"):
                await in_a_pipeline(client, "SET", "key", "value", transaction=transaction)
        finally:
            await client.config_set(setting, 0)
        await client.rpush("some", "value")
        with pytest.raises(LogBroken, match="not what it must be: WRONGTYPE"):
            await in_a_pipeline(client, "HGET", "some", "field", transaction=transaction)


async def in_a_pipeline(client: Redis, *command: str, transaction: bool) -> None:
    with named_errors():
        async with client.pipeline(transaction=transaction) as pipe:
            pipe.execute_command(*command)
            await pipe.execute()


@asynccontextmanager
async def over_tls(redis_url: str, place: Path) -> AsyncIterator[str]:
    """The URL of a TLS proxy before a server. It hangs after each PING: it hears nothing more on that connection."""
    parts, tls, closing = urlsplit(redis_url), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), asyncio.Event()
    key, name, now = generate_private_key(SECP256R1()), x509.Name([]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pem = made.sign(key, SHA256()).public_bytes(Encoding.PEM)
    place.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    tls.load_cert_chain(place)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        while asked := await reader.read(65_536):
            back.write(asked)
            writer.write(await there.read(65_536))
            if b"PING" in asked:
                cast("asyncio.Transport", writer.transport).pause_reading()
                await closing.wait()
        back.close()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"rediss://:{parts.password}@127.0.0.1:{port}?ssl_cert_reqs=none&ssl_check_hostname=false"
    finally:
        closing.set()
        server.close()  # not waited for: Python 3.13 would wait for the goodbyes of those that were cut off


async def test_closing_a_tls_connection_to_a_server_that_hangs_is_no_error(
    redis_url: str, tmp_path: Path
) -> None:
    """TLS says goodbye and waits for an answer. What was asked was answered before; or it failed, and says how."""
    async with over_tls(redis_url, tmp_path / "server.pem") as url:
        async with connected(url) as client:
            assert await client.ping()
            hurry(client)

        async def loses_one_of_two() -> None:
            async with connected(url) as idle, connected(url) as asking:
                assert await idle.ping()
                assert await asking.ping()
                hurry(idle)
                hurry(asking)
                with named_errors():
                    await asking.ping()

        with pytest.raises(LogUnavailable):
            await loses_one_of_two()


def hurry(client: Redis) -> None:
    """Wait for nothing that the server would have to say from now on."""
    assert client.connection is not None
    client.connection.socket_timeout = client.connection.socket_connect_timeout = 0.01


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[str]:
    """The URL of one that answers the first command, or hangs up if that is empty."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(answer)
        await writer.drain()
        if answer:
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"


async def refusal(url: str) -> str:
    async with connected(url) as client:
        with pytest.raises(LogUnavailable) as refused, named_errors():
            await client.ping()
    return str(refused.value)


async def test_a_redis_that_is_away_is_told_of_in_words(short_path: Path) -> None:
    assert await refusal("redis://127.0.0.1:1/0") == "Redis is away: connection refused"
    assert await refusal(f"unix://{short_path}/no.sock") == "Redis is away: no such file or directory"
    async with server(b"") as url:
        assert await refusal(url) == "Redis is away: the connection was lost"
    async with server(b"-LOADING Redis is loading the dataset in memory\r\n") as url:
        assert await refusal(url) == "Redis is away: it is still loading its data"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (RedisTimeoutError("Timeout reading from 127.0.0.1:6379"), "no answer in time"),
        (
            ReadOnlyError("You can't write against a read only replica."),
            "it is a replica, which takes no writes",
        ),
        (ssl.SSLError(1, "certificate verify failed"), "certificate verify failed"),
        (OSError(113, "Connect call failed ('10.0.0.1', 6379)"), "no route to host"),
    ],
)
def test_the_kind_of_trouble_is_named_and_not_the_address(problem: Exception, said: str) -> None:
    with pytest.raises(LogUnavailable) as refused, named_errors():
        raise problem
    assert str(refused.value) == f"Redis is away: {said}"

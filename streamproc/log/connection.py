"""Connections to Redis or Valkey, with the client's unsafe defaults switched off.

redis-py retries every command on its own and times out reads earlier than a blocking read ends; one lost reply
then appends twice. Here nothing is retried behind our back, every connection has its own timeout, and what
goes wrong has two names: LogUnavailable (try again later) and LogBroken (stop).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc.errors import WHEN_LOST, LogBroken, LogUnavailable
from streamproc.log.names import META
from streamproc.log.nodes import ClusterClient, is_cluster

T = TypeVar("T")

COMMAND_TIMEOUT_S = 3.0
"""No command takes this long; well under the 5 s in which the bank wants its 2xx."""
BLOCK_MS_MAX = 1000
"""Longest blocking read. Short, so that a stop is noticed and a dead peer too."""
BLOCK_MARGIN_S = 3.0
"""A blocking read's socket timeout is its block time and this."""
KEEPALIVE = True

_RAW = ("XREAD", "XREADGROUP", "XRANGE", "XREVRANGE", "XCLAIM", "XAUTOCLAIM")
"""Answered as they are on the wire, [id, [field, value, ...]]: redis-py would build a dict for each entry."""
_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    TryAgainError,
    OSError,
)
_AWAY_CODES = ("OOM", "BUSY", "NOREPLICAS", "MISCONF", "LOADING", "READONLY", "UNBLOCKED")
_BROKEN_CODES = ("NOGROUP", "WRONGTYPE")
_NO_LOG = "NOLOG "
"""How our scripts begin when they find no log."""


class _Ours(AbstractConnection):
    """What we do otherwise than redis-py: packing in C, and writes that can be cancelled.

    redis-py packs in Python, about 2 µs for each argument. And it writes under `asyncio.wait_for`, which in Python 3.11
    swallows a cancellation that comes as the write ends: a worker that should stop went on for ever.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command's bytes. A name of two words, as `XGROUP CREATE`, goes as two arguments."""
        name = args[0].encode() if isinstance(args[0], str) else args[0]
        return [hiredis.pack_command((*name.split(), *args[1:]))]

    async def is_quiet(self) -> bool:
        """Whether the server is there and has said nothing since its last answer, as far as it is known here."""
        reader = self._reader
        return reader is not None and reader.exception() is None and not await self.can_read()

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Write a command; a connection on which it could not be written whole is never used again."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        whole = command.encode() if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([whole] if isinstance(whole, bytes) else whole)
        except TimeoutError as problem:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from problem
        except (OSError, RuntimeError) as problem:
            # RuntimeError: uvloop's word for a transport that its peer has reset since the last answer.
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"{type(problem).__name__} while writing to socket") from problem
        except BaseException:
            await self.disconnect(nowait=True)
            raise


class _Tcp(_Ours, Connection):
    """redis://"""


class _Tls(_Ours, SSLConnection):
    """rediss://"""


class _Unix(_Ours, UnixDomainSocketConnection):
    """unix://"""


_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def connect(url: str, *, blocking: bool = False, home: str = META, name: str | None = None) -> Redis:
    """A client with one connection of its own (in a cluster, to each node). Close it with `aclose()`.

    `blocking` gives the read timeout that a blocking read of BLOCK_MS_MAX needs. `home`: a key whose node commands
    without a key go to, where there are several. `name` is what the server lists the connection under.
    """
    if is_cluster(url):
        return ClusterClient(url, partial(_connect_node, blocking=blocking, name=name), home)
    return _connect_node(url, blocking=blocking, name=name)


def _connect_node(url: str, *, blocking: bool, name: str | None) -> Redis:
    timeout = BLOCK_MS_MAX / 1000 + BLOCK_MARGIN_S if blocking else COMMAND_TIMEOUT_S
    client = Redis.from_url(
        url,
        single_connection_client=True,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        health_check_interval=0,
        decode_responses=False,
        client_name=name,
        **(
            {} if url.startswith("unix:") else {"socket_keepalive": KEEPALIVE}
        ),  # no word of a socket in a file
    )
    # A URL's scheme brings a class of its own, which is not an argument.
    client.connection_pool.connection_class = _CLASSES[client.connection_pool.connection_class]
    for command in _RAW:
        client.response_callbacks.pop(command, None)
    return client


async def is_quiet(client: Redis) -> bool:
    """Whether a client of `connect` that was used is connected, and the server has said nothing since its last answer.

    In a cluster: each node that it has used.
    """
    if isinstance(client, ClusterClient):
        return all([await is_quiet(node) for node in client.connected_nodes])
    connection: Any = client.connection
    if connection is None:  # it only had pipelines, whose connections redis-py looks at itself before each
        return True
    return isinstance(connection, _Ours) and await connection.is_quiet()


@asynccontextmanager
async def connected(
    url: str, *, blocking: bool = False, home: str = META, name: str | None = None
) -> AsyncIterator[Redis]:
    """`connect`, closed at the end."""
    client = connect(url, blocking=blocking, home=home, name=name)
    try:
        yield client
    finally:
        await client.aclose()


async def whole(sending: Awaitable[T]) -> T:
    """What is sent is never cut off half way: who is cancelled meanwhile waits for the answer first."""
    task = asyncio.ensure_future(sending)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


@contextmanager
def named_errors() -> Iterator[None]:
    """Give Redis's errors the names that callers act on. The message never holds a URL or a key's value."""
    try:
        yield
    except AskError as problem:  # MOVED is one
        raise LogUnavailable(
            "this partition is on another node of a Redis Cluster, or on its way there; a cluster is named as"
            " redis+cluster://host:port,host:port"
        ) from problem
    except _AWAY as problem:
        raise LogUnavailable(f"Redis is away: {type(problem).__name__}") from problem
    except ResponseError as problem:
        text = str(problem)
        if text.startswith(_AWAY_CODES) or " OOM " in text or "command not allowed when used memory" in text:
            raise LogUnavailable(f"Redis refuses writes: {text[:120]}") from problem
        if text.startswith(_NO_LOG):
            raise LogBroken(f"{text.removeprefix(_NO_LOG)}; {WHEN_LOST}") from problem
        if text.startswith(_BROKEN_CODES):
            problem_text = (
                f"the log is not what it must be: {text[:200]}; `streamproc doctor` says what to do"
            )
            raise LogBroken(problem_text) from problem
        raise
    except RedisError as problem:
        raise LogUnavailable(f"Redis failed: {type(problem).__name__}") from problem
    except TimeoutError as problem:
        raise LogUnavailable("Redis did not answer in time") from problem

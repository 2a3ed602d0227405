"""Connections to Redis or Valkey, without redis-py's unsafe defaults.

redis-py retries every command by itself, and its read timeout is shorter than a blocking read; after one lost reply it
would append twice. Here nothing is retried silently, every connection has timeouts that fit, and errors have two names:
LogUnavailable (try again later) and LogBroken (stop).
"""

import asyncio
import errno
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

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
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import (
    AskError,
    AuthenticationError,
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

from streamproc.errors import WHEN_LOST, ConfigError, LogBroken, LogUnavailable, StreamprocError
from streamproc.log.exchange import Exchange
from streamproc.log.names import META
from streamproc.log.nodes import ClusterClient, is_cluster

T = TypeVar("T")


class CommandRefused(LogUnavailable):
    """The server does not know a command, or its access list forbids it to us."""


COMMAND_TIMEOUT_S = 3.0
"""Limit of a command; well under the 5 s in which the bank wants its 2xx."""
BLOCK_MS_MAX = 1000
"""Longest blocking read. Short, so that a stop and a dead peer are noticed soon."""
BLOCK_MARGIN_S = 3.0
"""A blocking read's socket timeout is its block time plus this."""

_RAW = ("XREAD", "XREADGROUP", "XRANGE", "XREVRANGE", "XCLAIM", "XAUTOCLAIM")
"""Commands whose replies stay as on the wire, [id, [field, value, ...]]; redis-py would build a dict for each entry."""
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
_AWAY_WORDS = (
    (RedisTimeoutError, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (BusyLoadingError, "it is still loading its data"),
    (ReadOnlyError, "it is a replica, which takes no writes"),
    (MasterDownError, "it is a replica, and its primary is down"),
    (ClusterDownError, "its cluster is down"),
    (TryAgainError, "its cluster moves a partition between nodes"),
)
_AWAY_CODES = ("OOM", "BUSY", "NOREPLICAS", "MISCONF", "LOADING", "READONLY", "UNBLOCKED")
_BROKEN_CODES = ("NOGROUP", "WRONGTYPE")
_NO_DATABASE = "DB index is out of range"
_REFUSED = re.compile(
    r".*(no permissions to (?:run the '[^']{1,60}' command|access (?:a|one of the) \w+)"
    r"|unknown .{0,8}command(?: '[^']{1,60}')?)",
    re.DOTALL | re.IGNORECASE,
)
"""A command that the server's access list forbids, or that it does not know. A pipeline's error has the values too."""
_PIPED, _CAUSED = "Command # ", " of pipeline caused error: ("
"""What redis-py puts before an error of a pipeline, with the command and its values in between."""
_NO_LOG = "NOLOG "
"""How our scripts' error begins when there is no log."""


class _Ours(AbstractConnection):
    """A connection that differs from redis-py's: it packs commands in C, its writes can be cancelled, closing it is no
    error, and the commands of a client that has it alone go through an `Exchange`.

    redis-py packs in Python, some 2 µs for each argument. It writes under `asyncio.wait_for`, which in Python 3.11
    loses a cancellation that comes as the write ends; then a worker that should stop went on for ever.
    """

    _exchange: Exchange | None = None

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command's bytes. A name of two words, such as `XGROUP CREATE`, becomes two arguments."""
        return [_packed(args)]

    async def is_quiet(self) -> bool:
        """Whether the connection is open and the server has sent nothing since its last answer, as far as is known
        here."""
        if self._exchange is not None and self._is_on(self._exchange):
            return self._exchange.is_quiet
        reader = self._reader
        return reader is not None and reader.exception() is None and not await self.can_read()

    async def ask(self, args: Sequence[Any]) -> Any:
        """A command's answer, as on the wire. Raises redis's errors. Without an answer the connection is closed, and
        the next command opens another one."""
        try:
            exchange = self._exchange
            if exchange is None or not self._is_on(exchange):
                exchange = await self._opened()
            reply = await exchange.ask(_packed(args), self.socket_timeout)
            if isinstance(reply, RedisConnectionError):  # LOADING is one
                raise reply
        except BaseException:
            await self.disconnect(nowait=True)
            raise
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def _is_on(self, exchange: Exchange) -> bool:
        """Whether the exchange belongs to the connection that is open now."""
        return self._writer is not None and self._writer.transport is exchange.transport

    async def _opened(self) -> Exchange:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        assert self._writer is not None
        self._exchange = Exchange(cast("asyncio.Transport", self._writer.transport))
        return self._exchange

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection. That never fails: a server that does not answer the goodbye of TLS is given up."""
        writer = self._writer
        try:
            await super().disconnect(*args, **options)
        except RedisTimeoutError:
            if writer is not None:
                writer.transport.abort()

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Write a command. If it could not be written completely, the connection is closed for good."""
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


def _packed(args: Sequence[Any]) -> bytes:
    name = args[0] if isinstance(args[0], bytes) else args[0].encode()
    packed: bytes = hiredis.pack_command((*name.split(), *args[1:]) if b" " in name else tuple(args))
    return packed


class _Client(Redis):
    """A client with one connection. redis-py's own path costs 100 µs a command, most of it for retries and callbacks
    that are not used here."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """The command's answer, converted as redis-py's methods do."""
        if self.connection is None:
            await self.initialize()
        connection: Any = self.connection  # of a class of ours, which redis-py does not know
        async with self._single_conn_lock:
            reply = await connection.ask(args)
        callback = self.response_callbacks.get(args[0])
        if callback is None:
            return reply
        for meant_for_redis_py in ("keys", NEVER_DECODE, EMPTY_RESPONSE):
            options.pop(meant_for_redis_py, None)
        return callback(reply, **options)


_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def connect(url: str, *, blocking: bool = False, home: str = META, name: str | None = None) -> Redis:
    """A client with one connection of its own (in a cluster, one to each node). Close it with `aclose()`.

    `blocking`: with the read timeout that a blocking read of BLOCK_MS_MAX needs. `home`: in a cluster, a key to whose
    node commands without a key are sent. `name`: the connection's name in the server's list.
    """
    if is_cluster(url):
        return ClusterClient(url, partial(_connect_node, blocking=blocking, name=name), home)
    return _connect_node(url, blocking=blocking, name=name)


def _connect_node(url: str, *, blocking: bool, name: str | None) -> Redis:
    timeout = BLOCK_MS_MAX / 1000 + BLOCK_MARGIN_S if blocking else COMMAND_TIMEOUT_S
    client = _Client.from_url(
        url,
        single_connection_client=True,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        health_check_interval=0,
        decode_responses=False,
        client_name=name,
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
    )
    # A URL's scheme brings a class of its own, which is not an argument.
    client.connection_pool.connection_class = _CLASSES[client.connection_pool.connection_class]
    for command in _RAW:
        client.response_callbacks.pop(command, None)
    return client


async def is_quiet(client: Redis) -> bool:
    """Whether a used client is connected, and the server has sent nothing since its last answer; in a cluster, to
    each node that it has used."""
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


@asynccontextmanager
async def session(url: str, *, home: str = META) -> AsyncIterator[Redis]:
    """`connected`, for commands of Redis alone: its errors are turned into those that callers act on."""
    async with connected(url, home=home) as client:
        with named_errors():
            yield client


async def shielded(sending: Awaitable[T], meanwhile: Callable[[], None] | None = None) -> T:
    """Await what is being sent, even if the caller is cancelled meanwhile: no command is cut off half way.

    `meanwhile` runs once it is sent, and must not raise.
    """
    task = asyncio.ensure_future(sending)
    try:
        if meanwhile is not None:
            await asyncio.sleep(0)
            meanwhile()
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


class _Named:
    """Turns Redis's errors into those that callers act on."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(problem, Exception) and (named := _name_of(problem)) is not None:
            raise named from problem


_NAMED = _Named()


def named_errors() -> _Named:
    """Turn Redis's errors into those that callers act on. The message never has a URL or a key's value."""
    return _NAMED


def _name_of(problem: Exception) -> StreamprocError | None:
    match problem:
        case AskError():  # MOVED is one
            return LogUnavailable(
                "this partition is on another node of a Redis Cluster, or on its way there; a cluster is named as"
                " redis+cluster://host:port,host:port"
            )
        case AuthenticationError():  # for redis-py a kind of lost connection
            return LogUnavailable("Redis refuses the user or the password of STREAMPROC_REDIS_URL")
        case _ if isinstance(problem, _AWAY):
            return LogUnavailable(f"Redis is away: {_away_words(problem)}")
        case ResponseError():
            return _name_of_reply(str(problem))
        case RedisError():
            return LogUnavailable(f"Redis failed: {type(problem).__name__}")
    return None


def _away_words(problem: Exception) -> str:
    """Why Redis cannot be used now, in words; redis-py's own may have the address and more."""
    for kind, words in _AWAY_WORDS:
        if isinstance(problem, kind):
            return words
    cause = problem if isinstance(problem, OSError) else problem.__cause__ or problem.__context__
    if isinstance(cause, OSError) and cause.errno and cause.strerror:
        # asyncio's words have the address; a TLS or a resolver's error has a number of its own, and good words.
        is_system = cause.errno in errno.errorcode and not isinstance(cause, ssl.SSLError)
        return (os.strerror(cause.errno) if is_system else cause.strerror).lower()
    return "the connection was lost" if isinstance(problem, RedisConnectionError) else type(problem).__name__


def _name_of_reply(text: str) -> StreamprocError | None:
    """What an error reply means; None for one that the caller must handle itself."""
    if text.startswith(_PIPED):
        text = text.rpartition(_CAUSED)[2].strip("'\",)")
    if (
        text.partition(" ")[0] in _AWAY_CODES
        or " OOM " in text
        or "command not allowed when used memory" in text
    ):
        return LogUnavailable(f"Redis refuses writes: {text[:120]}")
    if text.startswith(_NO_LOG):
        return LogBroken(f"{text.removeprefix(_NO_LOG)}; {WHEN_LOST}")
    if text.startswith(_BROKEN_CODES):
        return LogBroken(f"the log is not what it must be: {text[:200]}; `streamproc doctor` says what to do")
    if text.startswith(_NO_DATABASE):
        return ConfigError("STREAMPROC_REDIS_URL names a database that the server does not have")
    if found := _REFUSED.match(text):
        return CommandRefused(
            f"Redis refuses a command of ours: {found[1].lower()}; is it renamed, or not granted to the user of"
            " STREAMPROC_REDIS_URL?"
        )
    return None

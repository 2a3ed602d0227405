"""Redis Cluster: which node has a partition, and a client that sends each command there (ADR 26).

A partition's keys share a hash tag, so they are on one node, and a script works there as on a single server. redis-py's
own cluster client repeats commands on its own; this one repeats a command only after MOVED, when no node has executed
it. When a node is lost, or a slot has left the node that answered for it, the caller gets LogUnavailable, as from a
single server: the node that has the slot now may know less than the caller was told. The next command asks who that is.
While slots are being moved to another node (ASK), their partition waits.
"""

import asyncio
import random
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ClusterDownError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc.setting_urls import parts_of

T = TypeVar("T")

SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
SLOTS = 16_384
PORT = 6379
MOVES_MAX = 3
"""Times that one command follows MOVED; more would mean that nodes send us round in circles."""
NODES_ASKED_MAX = 6
"""Nodes that are asked for the slots before the cluster counts as away."""
ASK_S = 1.0
"""Limit for each of them: a node that hangs must not delay those that answer."""
GIVEN_UP_S = 1.0
"""A node counts as lost once its answer was waited for this long and then given up. Some callers give up before the
connection's own limit is over: by that alone a node that hangs would be asked for ever."""
_KEYLESS = (
    "CLIENT",
    "CLUSTER",
    "COMMAND",
    "CONFIG",
    "DBSIZE",
    "FLUSH",
    "INFO",
    "PING",
    "SCRIPT",
    "TIME",
    "WAIT",
)
_TWO_WORDS = ("MEMORY", "OBJECT", "XGROUP", "XINFO")
"""Commands whose key is the third argument, unless both words are given as one, as redis-py does."""
_GONE = (RedisConnectionError, RedisTimeoutError, ClusterDownError, OSError)


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int


Connect: TypeAlias = Callable[[str], Redis]
"""Makes a client of one node, by its URL, with one connection of its own."""


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster's nodes."""
    return parts_of(url).scheme in SCHEMES


class Cluster:
    """What a process knows of a cluster, shared by all of its clients with the same URL.

    `redis+cluster://user:password@host:port,host:port,…`. Raises ValueError for any other URL.
    """

    def __init__(self, url: str) -> None:
        parts = parts_of(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"must start with {'://, '.join(SCHEMES)}://")
        if parts.path not in ("", "/", "/0"):
            raise ValueError("must name no database: a cluster has only number 0")
        who, at, hosts = parts.netloc.rpartition("@")
        self.seeds = tuple(_address(host) for host in hosts.split(","))
        self._prefix = f"{SCHEMES[parts.scheme]}://{who}{at}"
        self._suffix = f"/0?{parts.query}" if parts.query else "/0"
        self._ranges: list[tuple[int, int, Address]] = []
        self._moved: dict[int, Address] = {}
        self._known: tuple[Address, ...] = ()

    def url_of(self, node: Address) -> str:
        """The URL of one node; user, password and options as in the cluster's."""
        host = f"[{node.host}]" if ":" in node.host else node.host
        return f"{self._prefix}{host}:{node.port}{self._suffix}"

    async def owner(self, slot: int, connect: Connect) -> Address:
        """The node that has a slot, as far as is known. Raises redis's ConnectionError if no node tells."""
        if not self._ranges:
            await self._learn(connect)
        found = self._moved.get(slot) or next(
            (a for low, high, a in self._ranges if low <= slot <= high), None
        )
        if found is None:
            self.forget()
            raise RedisConnectionError(f"no node has slot {slot}")
        return found

    async def primaries(self, connect: Connect) -> list[Address]:
        """Every node that has slots."""
        if not self._ranges:
            await self._learn(connect)
        return sorted({address for _, _, address in self._ranges})

    def moved(self, slot: int, to: Address) -> None:
        """Note that another node has a slot now."""
        self._moved[slot] = to

    def forget(self) -> None:
        """Forget what is known, which was wrong; the next command asks again."""
        self._ranges, self._moved = [], {}

    async def _learn(self, connect: Connect) -> None:
        others = list({*self._known, *self.seeds})
        random.shuffle(others)
        for asked in others[:NODES_ASKED_MAX]:
            client = connect(self.url_of(asked))
            client.response_callbacks.pop("CLUSTER SLOTS", None)
            try:
                async with asyncio.timeout(ASK_S):
                    rows = await client.execute_command("CLUSTER SLOTS")
            except ResponseError as problem:
                raise RedisConnectionError(
                    f"{asked.host}:{asked.port} is no node of a cluster: {problem}"
                ) from problem
            except (RedisError, OSError):  # TimeoutError is one of them
                continue
            finally:
                await client.aclose()
            ranges = [(int(row[0]), int(row[1]), _reported_address(row[2], asked)) for row in rows]
            if ranges:
                self._ranges, self._moved = ranges, {}
                self._known = tuple({_reported_address(node, asked) for row in rows for node in row[2:]})
                return
        raise RedisConnectionError("no node of the cluster says who has which slots")


@lru_cache(maxsize=16)
def cluster_of(url: str) -> Cluster:
    """The Cluster of a URL."""
    return Cluster(url)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":") if not text.endswith("]") and ":" in text else (text, "", str(PORT))
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError("must name each node as host:port, with commas between them")
    return Address(host, int(port))


def _reported_address(node: Sequence[Any], by: Address) -> Address:
    """A node's address as told by another one; a node that does not know its own address is where it was asked."""
    host = node[0].decode() if node[0] else ""
    return Address(host if host not in ("", "?") else by.host, int(node[1]))


@lru_cache(maxsize=4096)
def slot_of(key: str) -> int:
    """The slot of a key, by the text in its first braces, if there is any."""
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else key).encode(), 0) % SLOTS


def key_of(args: Sequence[Any]) -> str | None:
    """The first key of a command, which decides where it is sent; None for a command without a key.

    For SCAN, its pattern: it is sent where the keys are that it looks for.
    """
    name = text_of(args[0]).upper()
    if name.startswith(_KEYLESS):
        return None
    if name in ("EVAL", "EVALSHA"):
        return text_of(args[3]) if int(args[2]) else None
    if name in ("XREAD", "XREADGROUP"):
        return text_of(args[list(args).index("STREAMS") + 1])
    if name == "SCAN":
        return text_of(args[list(args).index(b"MATCH" if b"MATCH" in args else "MATCH") + 1])
    return text_of(args[2 if name in _TWO_WORDS else 1])


def text_of(value: Any) -> str:
    """A name or number that Redis gave as bytes, or a client as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


class ClusterClient(Redis):
    """One connection to each node that is needed, used as a client of one server.

    Commands without a key go to the node of `home`.
    """

    def __init__(self, url: str, connect: Connect, home: str) -> None:
        super().__init__()
        self._cluster, self._connect, self._home = cluster_of(url), connect, home
        self._nodes: dict[Address, Redis] = {}
        self._answered: dict[int, Address] = {}
        """Slot -> the node that has answered for it. It is asked until it says MOVED or is lost."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node that has its key."""
        if text_of(args[0]).upper() == "SCAN":
            return await self._scan(args, options)
        key = key_of(args)
        slot = slot_of(key or self._home)
        for _ in range(MOVES_MAX):
            with suppress(MovedError):
                return await self._ask(
                    slot, lambda node: node.execute_command(*args, **options), keyed=key is not None
                )
        self._cluster.forget()
        raise RedisConnectionError(f"slot {slot} was moved {MOVES_MAX} times")

    async def _scan(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """One step of a SCAN, on the node that has the slot.

        SCAN itself never answers MOVED: a node that lost the slot finds nothing, and one that is losing it finds a
        part. So EXISTS of a key of that slot is sent with it in one transaction. A scan that has begun cannot go on at
        another node.
        """
        asked = key_of(args)
        assert asked is not None
        commands: list[tuple[Any, dict[str, Any]]] = [(args, options), (("EXISTS", asked), {})]
        for _ in range(MOVES_MAX):
            try:
                found, _there = await self.send(commands, transaction=True)
            except MovedError:
                if int(args[1]) == 0:
                    continue
                raise
            return found
        self._cluster.forget()
        raise RedisConnectionError(f"the slot of {asked} was moved {MOVES_MAX} times")

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":  # type: ignore[override]
        """Commands that are sent together, each to its node; a transaction must be of one partition."""
        return ClusterPipeline(self, transaction)

    @property
    def connected_nodes(self) -> list[Redis]:
        """The clients of nodes that were used so far."""
        return list(self._nodes.values())

    async def nodes(self) -> list[Redis]:
        """A client of each node that has slots; closed together with this one."""
        return [self._client(node) for node in await self._cluster.primaries(self._connect)]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection."""
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(client.aclose() for client in nodes.values()), return_exceptions=True)
        await super().aclose(close_connection_pool)

    async def send(self, commands: Sequence[tuple[Any, dict[str, Any]]], *, transaction: bool) -> list[Any]:
        """Answers in the order of the commands. MOVED is not followed, since some commands were executed already."""
        parts: dict[int, list[int]] = {}
        for place, (args, _) in enumerate(commands):
            parts.setdefault(slot_of(key_of(args) or self._home), []).append(place)
        if transaction and len(parts) > 1:
            raise ValueError("a transaction is of one partition")
        answers: list[Any] = [None] * len(commands)
        for slot, places in parts.items():
            part = [commands[place] for place in places]
            keyed = any(key_of(args) is not None for args, _ in part)
            question = partial(_piped, commands=part, transaction=transaction)
            found = await self._ask(slot, question, keyed=keyed)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    async def _ask(self, slot: int, question: Callable[[Redis], Awaitable[T]], *, keyed: bool) -> T:
        """The answer of the slot's node. `keyed`: the question names a key, so that only this node answers it.

        Raises MovedError where another node has the slot, and RedisConnectionError where this one answered for it
        before: what it said, as the version of a payout, may not hold at the other one.
        """
        node = self._answered.get(slot) or await self._cluster.owner(slot, self._connect)
        clock = asyncio.get_running_loop().time
        asked_s = clock()
        try:
            answer = await question(self._client(node))
        except MovedError as problem:
            self._follow(problem)
            if slot in self._answered:
                self._answered.clear()
                raise RedisConnectionError(f"slot {slot} has left its node") from problem
            raise
        except _GONE:
            self._lose()
            raise
        except asyncio.CancelledError:
            if clock() >= asked_s + GIVEN_UP_S:
                self._lose()
            raise
        if keyed:
            self._answered[slot] = node
        return answer

    def _lose(self) -> None:
        """Forget who has which slot: the next command asks anew."""
        self._answered.clear()
        self._cluster.forget()

    def _client(self, node: Address) -> Redis:
        known = self._nodes.get(node)
        if known is None:
            known = self._nodes[node] = self._connect(self._cluster.url_of(node))
        return known

    def _follow(self, problem: MovedError) -> None:
        if problem.host:
            self._cluster.moved(problem.slot_id, Address(problem.host, problem.port))
        else:
            self._cluster.forget()


async def _piped(
    node: Redis, commands: Sequence[tuple[Any, dict[str, Any]]], *, transaction: bool
) -> list[Any]:
    pipe = node.pipeline(transaction=transaction)
    for args, options in commands:
        pipe.execute_command(*args, **options)
    return list(await pipe.execute())


class ClusterPipeline(Redis):
    """Collects commands and sends them together."""

    def __init__(self, client: ClusterClient, transaction: bool) -> None:
        self.connection = None  # what redis-py looks for when it ends
        self._client, self._transaction = client, transaction
        self._commands: list[tuple[Any, dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands.clear()

    def execute_command(self, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """Collect a command."""
        self._commands.append((args, options))
        return self

    async def execute(self) -> list[Any]:
        """Send the collected commands."""
        commands, self._commands = self._commands, []
        return await self._client.send(commands, transaction=self._transaction) if commands else []


async def every_node(client: Redis) -> list[Redis]:
    """The servers that hold the log: one, or a cluster's primaries."""
    return await client.nodes() if isinstance(client, ClusterClient) else [client]

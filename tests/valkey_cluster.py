"""A real Valkey Cluster from the embedded binary: three primaries, and a replica for each that is to be killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from redis.asyncio import Redis

from streamproc import embedded
from streamproc.log.connection import connected
from streamproc.log.nodes import SLOTS, slot_of
from tests.bank import free_port, until
from tests.restartable import Restartable, restartable
from tests.servers import started_as

PRIMARIES = 3
FORMED_MAX_S = 60.0
PASSWORD = "of-every-node"
NODE_TIMEOUT_MS = 1_500
"""A primary that is silent for so long is failed over. A shorter time would cause failovers on a busy machine."""


@dataclass
class Node:
    """One server. `slots` are its first and its last slot; a replica has none."""

    store: Restartable
    url: str
    """URL of this node alone."""
    port: int
    bus: int
    slots: tuple[int, int] | None = None
    id: str = ""


@dataclass
class ValkeyCluster:
    """The running cluster; `replica` follows `primaries[1]`."""

    primaries: list[Node]
    replica: Node

    @property
    def url(self) -> str:
        """The URL for the product. It names all nodes, so that any may be away."""
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in [*self.primaries, self.replica])
        return f"redis+cluster://:{PASSWORD}@{nodes}"

    def home_of(self, key: str) -> Node:
        """The primary that has the key's slot."""
        slot = slot_of(key)
        return next(node for node in self.primaries if node.slots and node.slots[0] <= slot <= node.slots[1])

    async def in_step(self) -> None:
        """Wait until the replica has what its primary has."""
        async with connected(self.primaries[1].url) as client:
            assert await client.execute_command("WAIT", 1, 3000) == 1

    async def took_over(self) -> None:
        """Wait until the replica is a primary and the cluster is healthy."""

        async def there() -> bool:
            async with connected(self.replica.url) as client:
                role = (await client.info("replication"))["role"]
                return role == "master" and b"cluster_state:ok" in await _info(client)

        await until(there, what="the replica took over", deadline_s=FORMED_MAX_S)


@asynccontextmanager
async def valkey_cluster(home: Path) -> AsyncIterator[ValkeyCluster]:
    """Start and form a cluster, with its data below `home`."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(_node(home / f"node-{n}")) for n in range(PRIMARIES + 1)]
        cluster = ValkeyCluster(nodes[:PRIMARIES], nodes[PRIMARIES])
        await _form(cluster)
        yield cluster


@asynccontextmanager
async def _node(place: Path) -> AsyncIterator[Node]:
    place.mkdir(parents=True)
    port, bus = free_port(), free_port()
    (place / "valkey.password").write_text(PASSWORD)  # the same for all, since replicas use it too
    plain = embedded._valkey_config
    more = (
        f"cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout {NODE_TIMEOUT_MS}\n"
        f"masterauth {PASSWORD}\n"
        "cluster-require-full-coverage no\ncluster-replica-validity-factor 0\nrepl-diskless-sync-delay 0\n"
    )

    def start() -> AbstractAsyncContextManager[embedded.Store]:
        config = patch.object(embedded, "_valkey_config", lambda *given: plain(*given) + more)
        return started_as(partial(embedded.valkey, place, port=port), config)

    async with restartable(start) as store:
        yield Node(store, await store.up(), port, bus)


async def _form(cluster: ValkeyCluster) -> None:
    everyone = [*cluster.primaries, cluster.replica]
    share = SLOTS // PRIMARIES + 1
    for number, node in enumerate(cluster.primaries):
        node.slots = (number * share, min(SLOTS, (number + 1) * share) - 1)
    for node in everyone:
        async with connected(node.url) as client:
            node.id = (await client.execute_command("CLUSTER MYID")).decode()
            if node.slots:
                await client.execute_command("CLUSTER ADDSLOTSRANGE", *node.slots)
            for other in everyone:
                if other is not node:
                    await client.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other.bus)

    async def known() -> bool:
        return all([await _knows(node, [other.id for other in everyone]) for node in everyone])

    await until(known, what="all nodes know all others", deadline_s=FORMED_MAX_S)
    async with connected(cluster.replica.url) as client:
        await client.execute_command("CLUSTER REPLICATE", cluster.primaries[1].id)

        async def follows() -> bool:
            return (await client.info("replication")).get("master_link_status") == "up"

        await until(follows, what="the replica follows its primary", deadline_s=FORMED_MAX_S)

    async def well() -> bool:
        return all(await asyncio.gather(*(_is_well(node) for node in everyone)))

    await until(well, what="the cluster is healthy", deadline_s=FORMED_MAX_S)


async def _knows(node: Node, ids: list[str]) -> bool:
    """Whether it knows all nodes by their final ids; during the handshake they have others."""
    async with connected(node.url) as client:
        client.response_callbacks.pop("CLUSTER NODES", None)
        nodes = await client.execute_command("CLUSTER NODES")
    return all(node_id.encode() in nodes for node_id in ids)


async def _is_well(node: Node) -> bool:
    async with connected(node.url) as client:
        info = await _info(client)
    return b"cluster_state:ok" in info and f"cluster_size:{PRIMARIES}".encode() in info


async def _info(client: Redis) -> bytes:
    client.response_callbacks.pop("CLUSTER INFO", None)
    info = await client.execute_command("CLUSTER INFO")
    return info if isinstance(info, bytes) else str(info).encode()

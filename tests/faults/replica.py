"""A second Valkey that follows the first over a connection that can be made to lag."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from streamproc import embedded
from streamproc.log.connection import connected
from tests.bank import free_port, until
from tests.faults.proxy import Proxy
from tests.restartable import Restartable, restartable

IN_STEP_MAX_S = 30.0


@dataclass
class Replica:
    """A running replica, and the proxy through which it follows."""

    store: Restartable
    url: str
    port: int
    wire: Proxy

    async def last(self, log: str) -> str:
        """The newest entry of its log."""
        async with connected(self.url) as client:
            rows = await client.execute_command("XREVRANGE", log, "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else "0-0"

    async def promote(self) -> None:
        """Make it a primary, which accepts writes."""
        async with connected(self.url) as client:
            await client.execute_command("REPLICAOF", "NO", "ONE")
        self.wire.flow()


@asynccontextmanager
async def replica_of(url: str, home: Path) -> AsyncIterator[Replica]:
    """A replica of the server at `url`, in step with it, with its data below `home`.

    It has the same password, since roles are led from one to the other.
    """
    place, primary = home / "replica", urlsplit(url)
    assert primary.port is not None
    assert primary.password is not None
    place.mkdir()
    (place / "valkey.password").write_text(primary.password)
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Proxy("127.0.0.1", primary.port).listening())
        async with connected(url) as client:
            await client.config_set("repl-diskless-sync-delay", 0)
        mine = free_port()
        store = await stack.enter_async_context(restartable(lambda: embedded.valkey(place, port=mine)))
        replica = Replica(store, await store.up(), mine, wire)
        async with connected(replica.url) as client:
            await client.config_set("masterauth", primary.password)  # Redis's name, which Valkey accepts too
            await client.execute_command("REPLICAOF", "127.0.0.1", wire.port)

            async def in_step() -> bool:
                return (await client.info("replication"))["master_link_status"] == "up"

            await until(in_step, what="the replica has what the primary has", deadline_s=IN_STEP_MAX_S)
        yield replica

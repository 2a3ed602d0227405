"""`EXECUTE_AFTER=replicated`: a weaker barrier, for operators who run without waiting for Postgres."""

from streamproc.errors import TryAgain
from streamproc.log.connection import session
from streamproc.log.names import Names

REPLICAS = 1
WAIT_MS = 1000


class ReplicaBarrier:
    """Waits until a replica has what this server has now. Best effort, as Redis documents WAIT."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        """Write a marker and wait for it: replication is in order, so the entry before it is there too.

        If the server has the entry, that is: one that took over since the entry was read may lack it, and have another
        under its id. `e` are the bytes of its events. Raises TryAgain and LogUnavailable.
        """
        names = Names(partition)
        marker = names.cursor("replicated")
        async with session(self._url, home=marker) as client:
            await client.set(marker, entry)
            found = await client.execute_command("XRANGE", names.log, entry, entry)
            reached = int(await client.execute_command("WAIT", REPLICAS, WAIT_MS))
        if not found or found[0][1][1:2] != [e]:
            raise TryAgain(f"decision {partition}:{entry} is not in this Redis; was it lost in a failover?")
        if reached < REPLICAS:
            raise TryAgain(f"no replica has decision {partition}:{entry} after {WAIT_MS} ms", after_s=1.0)

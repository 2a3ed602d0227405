"""Entries that another server may have delivered: after a failover they may come as if nobody had had them."""

from redis.asyncio import Redis

from streamproc.log.names import Names
from streamproc.log.scripts import Script

_server = Script("server")


async def delivered_before(client: Redis, names: Names) -> str:
    """The id up to which entries may have been delivered by an earlier server, or an earlier run of this one."""
    upto: bytes = await _server(client, [names.log, names.server], [])
    return upto.decode()

"""Where a polling producer is: kept in Redis, so that the next poller goes on from there."""

from streamproc.log.connection import connected, named_errors
from streamproc.log.names import Names, partition_of


def poll_cursor_name(account: str) -> str:
    """What the cursor of an account's poller is called."""
    return f"poll:{account}"


class PollCursor:
    """The Unix second up to which the bank's list of an account was read."""

    def __init__(self, url: str, *, account: str, partitions: int) -> None:
        self._url = url
        self._key = Names(partition_of(account, partitions)).cursor(poll_cursor_name(account))

    async def load(self) -> int | None:
        """None where it was never read."""
        async with connected(self._url) as client:
            with named_errors():
                value = await client.get(self._key)
        return int(value) if value else None

    async def save(self, position: int) -> None:
        """The list was read up to `position`."""
        async with connected(self._url) as client:
            with named_errors():
                await client.set(self._key, position)

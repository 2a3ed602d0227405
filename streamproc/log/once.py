"""What is to be done, or recorded, only once, by whichever process comes first."""

from streamproc.domain.events import Event
from streamproc.domain.wire import encode_events, written_by
from streamproc.log import scripts
from streamproc.log.connection import connected, session
from streamproc.log.names import SHARED_PARTITION, Names


async def first_time(url: str, key: str, *, remembered_s: int) -> bool:
    """Whether this is the first time within `remembered_s` that anybody asks for this key.

    Raises LogUnavailable: the key may have been recorded then, though nobody was answered yes.
    """
    async with session(url) as client:
        return bool(await client.set(Names(SHARED_PARTITION).once(key), "1", nx=True, ex=remembered_s))


async def record_once(url: str, partition: int, key: str, writer: str, event: Event) -> None:
    """Append an event unless one with this key is there. Raises LogUnavailable."""
    m = written_by(writer) + b"}"
    async with connected(url) as client:
        delivery = scripts.Delivery([key], encode_events([event]), m)
        await scripts.append_once(client, Names(partition), [delivery])

"""What may be done once within some time, by whichever process: the first to ask may."""

from streamproc.log.connection import connected, named_errors
from streamproc.log.names import Names
from streamproc.log.pace import HOME


async def first_time(url: str, key: str, *, remembered_s: int) -> bool:
    """Whether nobody asked for this key within `remembered_s` seconds; whoever asks is remembered.

    Raises LogUnavailable: then the key may be known from now on, and nobody was told yes.
    """
    async with connected(url) as client:
        with named_errors():
            return bool(await client.set(Names(HOME).once(key), "1", nx=True, ex=remembered_s))

"""What is to be done only once within some time, by whichever process asks first."""

from streamproc.log.connection import session
from streamproc.log.names import SHARED_PARTITION, Names


async def first_time(url: str, key: str, *, remembered_s: int) -> bool:
    """Whether this is the first time within `remembered_s` that anybody asks for this key.

    Raises LogUnavailable: the key may have been recorded then, though nobody was answered yes.
    """
    async with session(url) as client:
        return bool(await client.set(Names(SHARED_PARTITION).once(key), "1", nx=True, ex=remembered_s))

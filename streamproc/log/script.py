"""One Lua script of ours: its text, made of files, and the call."""

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from streamproc.log.connection import named_errors

_COMMAND = re.compile(rb"\bcall\(('[A-Z]+'(?:, '[A-Z]+')?)")
"""A command in a script, with its second word if it has two, as `XGROUP SETID`."""


class Script:
    """One Lua file, called by EVALSHA, and by EVAL where the server does not know it.

    `parts` are files that several scripts share; they are put before it, below its first line. Beginning with `checks`,
    which has what a script that writes asks first: whether its user may run each of its commands.
    """

    def __init__(self, name: str, *parts: str) -> None:
        first, own = _read(name)
        shared = [_read(part)[1] for part in parts]
        is_asked = shared and b"no-writes" not in first
        rights = _rights(b"".join((*shared[1:], own))) if is_asked else b""
        self.text = b"\n".join((first, *shared, rights, own))
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    async def __call__(self, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        with named_errors():
            try:
                return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await client.execute_command("EVAL", self.text, len(keys), *keys, *args)


def _read(file: str) -> tuple[bytes, bytes]:
    """The first line of a file, and the rest."""
    first, _, rest = files("streamproc.log").joinpath(f"lua/{file}.lua").read_bytes().partition(b"\n")
    return first, rest


def _rights(text: bytes) -> bytes:
    """A line of Lua that asks for the right to run each command in `text`.

    Redis does not roll back: where its access list let a commit acknowledge its input and not append its output, a
    payout was lost.
    """
    return b" ".join(b"may_run(%b)" % command for command in sorted({*_COMMAND.findall(text)}))

"""Policies as the log's Redis holds them: read by every batch, changed in one commit with their event."""

from typing import cast

import msgspec
from redis.asyncio import Redis

from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import PolicyBook, ScopeState
from streamproc.domain.wire import encode_events
from streamproc.errors import LogUnavailable
from streamproc.log import scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.script import Script

POLICY_WRITER = "policy"
"""Who writes changes of policies, by their entries' metadata."""
CHANGES_MAX = 10
"""Times a change is planned again because somebody else changed a policy meanwhile."""

_in_force = Script("in_force")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ScopeState).decode


async def read_scopes(client: Redis, names: Names) -> tuple[bytes, dict[str, ScopeState]]:
    """The revision and every scope's state."""
    with named_errors():
        rows = cast("dict[bytes, bytes]", await client.hgetall(names.policy))
    rev = rows.pop(b"rev", b"0")
    return rev, {scope.decode(): _decode(state) for scope, state in rows.items()}


class Policies:
    """The policy book of one partition, built again only when the revision moves."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._rev = b""
        self.book: PolicyBook = PolicyBook({})

    async def refresh(self, client: Redis, rev: bytes) -> PolicyBook:
        """The book at `rev` or newer."""
        if rev != self._rev:
            rev, scopes = await read_scopes(client, self._names)
            self._rev, self.book = rev, PolicyBook(scopes)
        return self.book

    async def now(self, client: Redis) -> PolicyBook:
        """The book in force at this moment. Reads the revision, and the policies only where it has changed.

        Raises LogUnavailable also where the server answers but takes no writes, as one that was demoted.
        """
        return await self.refresh(client, await _in_force(client, [self._names.policy], []))

    def forget(self) -> None:
        """Read everything anew: after a failover the same revision may mean other policies."""
        self._rev = b""

    @property
    def rev(self) -> bytes:
        """The revision that `book` was built from."""
        return self._rev


async def still_in_force(client: Redis, names: Names, rev: bytes) -> bool:
    """Whether `rev` is current; then it moves, so that what others planned on it before is planned anew."""
    moved = await scripts.change_state(client, names, names.policy, rev=rev, e=b"", m=b"", fields=[])
    return moved is not None


async def put_in_force(
    client: Redis, names: Names, rev: bytes, changes: list[PolicyChanged], *, actor: str
) -> str | None:
    """Append `changes`, planned on `rev`, and put them in force; None when `rev` is no longer current."""
    states = [
        (c.scope, _encode(ScopeState(version=c.version, own=c.after, effective=c.effective))) for c in changes
    ]
    meta = _encode({"by": POLICY_WRITER, "actor": actor})
    try:
        return await scripts.change_state(
            client, names, names.policy, rev=rev, e=encode_events(changes), m=meta, fields=states
        )
    except LogUnavailable as problem:
        raise LogUnavailable(
            f"{problem}; whether the policy changed is not known: apply it again"
        ) from problem

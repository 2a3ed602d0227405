"""Tokens in Redis: found by their hash, and changed in one commit with their event.

They belong to no account, so all of them are in partition 0. Nothing is cached, so a revocation counts at the next
request.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis

from streamproc.domain.events import TokenCreated, TokenRevoked
from streamproc.domain.tokens import Token, tokens_after
from streamproc.domain.wire import encode_events
from streamproc.errors import LogUnavailable
from streamproc.log import scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.script import Script

TOKEN_WRITER = "token"  # noqa: S105  # a name in entries' metadata
"""The writer of token changes, in their entries' metadata."""
RATE_WINDOW_S = 60
"""STREAMPROC_API_RATE is the number of requests in this time."""

_take_request = Script("take_request", "checks")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Token).decode


async def token_of(client: Redis, digest: str) -> Token | None:
    """The token with this hash, whether or not it is still valid."""
    with named_errors():
        found = await client.hget(Names(SHARED_PARTITION).tokens, digest)
    return None if found is None else _decode(found)


async def take_request(client: Redis, token: str, *, per_min: int, reads: bool) -> int:
    """Take one request of a token's rate of reads or of changes, a sliding window: 0, or the µs until there is one."""
    key = Names(SHARED_PARTITION).asked(token, reads=reads)
    return int(await _take_request(client, [key], [per_min, RATE_WINDOW_S * 1_000_000]))


async def read_tokens(client: Redis) -> tuple[bytes, dict[str, Token]]:
    """The revision, and every token by its name."""
    with named_errors():
        rows = cast("dict[bytes, bytes]", await client.hgetall(Names(SHARED_PARTITION).tokens))
    rev = rows.pop(b"rev", b"0")
    return rev, {token.name: token for token in map(_decode, rows.values())}


async def change_token(
    client: Redis, rev: bytes, tokens: Mapping[str, Token], event: TokenCreated | TokenRevoked
) -> str | None:
    """Append the event, planned on `tokens` at `rev`, and put it in force; None when `rev` is no longer current."""
    token, names = tokens_after(tokens, [event])[event.name], Names(SHARED_PARTITION)
    meta = _encode({"by": TOKEN_WRITER, "actor": event.by})
    try:
        return await scripts.change_state(
            client,
            names,
            names.tokens,
            rev=rev,
            e=encode_events([event]),
            m=meta,
            fields=token_fields([token]),
        )
    except LogUnavailable as problem:
        raise LogUnavailable(
            f"{problem}; whether the token changed is not known: `streamproc token list` tells"
        ) from problem


def token_fields(tokens: Sequence[Token]) -> list[tuple[str, bytes]]:
    """Each token's field and value in Redis."""
    return [(token.digest, _encode(token)) for token in tokens]

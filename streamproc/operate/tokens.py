"""Tokens: making, listing and revoking them. The token itself is shown once and stored nowhere."""

import secrets
from typing import Any

from msgspec import Struct

from streamproc.domain.attribution import Attribution
from streamproc.domain.budget import US
from streamproc.domain.duration import duration_s
from streamproc.domain.events import TokenCreated, TokenScope
from streamproc.domain.shown import iso, iso_or_none
from streamproc.domain.tokens import PREFIX, Token, digest_of, plan_creation, plan_revocation
from streamproc.errors import InputError, JobFailed
from streamproc.log.clock import clock_us
from streamproc.log.tokens import change_token, read_tokens
from streamproc.operate.site import Site

TOKEN_BYTES = 32
"""256 random bits."""
CHANGES_MAX = 10
"""How often a change is planned again because somebody else changed a token meanwhile."""
EXPIRES_S_MAX = 3_650 * 86_400
EXPIRES_UNITS = ("m", "h", "d")


class TokenSpec(Struct, frozen=True, kw_only=True):
    """A token that is wanted. One of scope agent is for one agent of one account, and no other is for any."""

    name: str
    scope: TokenScope
    agent: str = ""
    account: str = ""
    reviewer: str = ""
    expires_s: int


class NewToken(Struct, frozen=True):
    """A new token, with its secret."""

    secret: str
    event: TokenCreated


def validity_s(text: str) -> int:
    """How long a token is to be valid, typed as `30m`, `12h` or `90d`, in seconds. Raises InputError for anything else,
    and for more than EXPIRES_S_MAX."""
    seconds = duration_s(text, EXPIRES_UNITS) or 0
    if not 0 < seconds <= EXPIRES_S_MAX:
        raise InputError(
            f"--expires {text[:40]}: give minutes, hours or days, such as 30m, 12h or 90d; 3650d at most"
        )
    return seconds


async def create(site: Site, spec: TokenSpec, attribution: Attribution, *, pays_from: str = "") -> NewToken:
    """Make a token. `pays_from`: the account that this installation pays from, if that is known.

    Raises InputError if it may not be made, JobFailed if others keep changing tokens.
    """
    if pays_from and spec.account and spec.account != pays_from:
        raise InputError(f"--account {spec.account[:64]}: this installation pays from {pays_from} alone")
    secret = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    for _ in range(CHANGES_MAX):
        rev, tokens = await read_tokens(site.client)
        at = await clock_us(site.client)
        wanted = TokenCreated(
            at=at,
            name=spec.name,
            scope=spec.scope,
            agent=spec.agent,
            account=spec.account,
            digest=digest_of(secret),
            expires_at=at + spec.expires_s * US,
            by=attribution.by,
            reviewer=spec.reviewer,
            channel=attribution.channel,
        )
        event = plan_creation(tokens, wanted)
        if await change_token(site.client, rev, tokens, event) is not None:
            return NewToken(secret, event)
    raise JobFailed(f"others changed tokens {CHANGES_MAX} times meanwhile; nothing was made, try again")


async def revoke(site: Site, name: str, attribution: Attribution) -> bool:
    """Revoke a token: the next request with it is refused. False if it was revoked already."""
    for _ in range(CHANGES_MAX):
        rev, tokens = await read_tokens(site.client)
        at = await clock_us(site.client)
        event = plan_revocation(tokens, name, attribution, at=at)
        if event is None:
            return False
        if await change_token(site.client, rev, tokens, event) is not None:
            return True
    raise JobFailed(f"others changed tokens {CHANGES_MAX} times meanwhile; {name} is not revoked, try again")


async def listed(site: Site) -> list[tuple[Token, str]]:
    """Every token with its state: `good`, `expired` or `revoked`."""
    _, tokens = await read_tokens(site.client)
    now = await clock_us(site.client)
    return [
        (token, "revoked" if token.revoked_at else "good" if token.opens(now) else "expired")
        for token in sorted(tokens.values(), key=lambda token: token.name)
    ]


def token_json(token: Token, what: str) -> dict[str, Any]:
    """A token as scripts see it, without anything secret."""
    return {
        "name": token.name,
        "scope": token.scope,
        "agent": token.agent or None,
        "account": token.account or None,
        "reviewer": token.person if token.may("review") else None,
        "state": what,
        "created_at": iso(token.created_at),
        "expires_at": iso_or_none(token.expires_at),
        "revoked_at": iso_or_none(token.revoked_at),
        "by": token.by,
    }

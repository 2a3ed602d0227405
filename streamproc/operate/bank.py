"""Opens the bank's client for every process and command: with one pace for all and one OAuth token, both in Redis."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from consumers.inputs import GOVERNANCE
from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient
from streamproc.clients.limiter import Limiter, SharedLimiter
from streamproc.clients.oauth import TokenKeeper, vault_name
from streamproc.clients.razorpay import Razorpay, open_razorpay
from streamproc.log.batch import BATCH_TIMEOUT_S
from streamproc.log.cursor import PollCursor, Requested
from streamproc.log.pace import Pace
from streamproc.log.vault import Vault
from streamproc.settings import Settings

PACE = "razorpay"
"""Name of the pace in Redis. One for an installation, which has one key, since the bank limits by key."""
AUTH_TIMEOUT_S = 8.0
"""Limit for getting a new token; less than the vault's turn lasts."""


@asynccontextmanager
async def opened_bank(settings: Settings) -> AsyncIterator[Razorpay]:
    """The bank's client. Without a Redis in the settings, pace and token are this process's own."""
    async with AsyncExitStack() as stack:
        limiter = tokens = None
        if settings.redis_url:
            per_s = settings.razorpay_calls_per_s
            pace = Pace(settings.redis_url, name=PACE, per_s=per_s, burst=per_s)
            stack.push_async_callback(pace.aclose)
            limiter = SharedLimiter(pace.reserve, per_s)
            tokens = _tokens(settings, stack)
        bank = open_razorpay(
            settings.razorpay_base_url,
            key_id=settings.razorpay_key_id,
            key_secret=settings.razorpay_key_secret.reveal(),
            oauth_token=settings.razorpay_oauth_token.reveal(),
            limiter=limiter,
            tokens=tokens,
        )
        stack.push_async_callback(bank.aclose)
        yield bank


async def bank_unasked(settings: Settings, account: str, requested: Requested) -> bool:
    """Whether the bank may have what the record in hand does not know, from before its account's request.

    So it is from a recovery until the bank was asked about every account, and from each start of Redis, which may have
    been set back together with Postgres, until the poller has read the bank's list and governance has handled what that
    showed. Raises LogUnavailable.
    """
    cursor = PollCursor(settings.redis_url, account=account, partitions=settings.partitions)
    return not await cursor.knows_what_came_before(requested, GOVERNANCE, handled_s(settings))


def handled_s(settings: Settings) -> float:
    """After how long what was appended is handled although a worker stood still with it: once CLAIM_IDLE is over, for
    which others look at each quarter of it, another one handles it with a batch."""
    return 1.5 * settings.claim_idle_s + BATCH_TIMEOUT_S


def _tokens(settings: Settings, stack: AsyncExitStack) -> TokenKeeper | None:
    """Keeps the OAuth token fresh; None if no refresh token is configured: then the token is used as long as it
    lasts."""
    refresh_token = settings.razorpay_oauth_refresh_token.reveal()
    if not refresh_token:
        return None
    http = OutboundClient(
        "razorpay-auth",
        settings.razorpay_auth_url,
        timeout_s=AUTH_TIMEOUT_S,
        limiter=Limiter(1.0, burst=2),
        breaker=Breaker(),
    )
    stack.push_async_callback(http.aclose)
    owner = f"{os.getpid()}-{secrets.token_hex(4)}"
    return TokenKeeper(
        http,
        Vault(settings.redis_url, name=vault_name(refresh_token), owner=owner),
        client_id=settings.razorpay_oauth_client_id,
        client_secret=settings.razorpay_oauth_client_secret.reveal(),
        refresh_token=refresh_token,
        first=settings.razorpay_oauth_token.reveal(),
    )

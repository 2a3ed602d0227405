"""The bank's client as every process and command opens it: one pace for all of them, counted in the log's Redis."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from streamproc.clients.limiter import SharedLimiter
from streamproc.clients.razorpay import Razorpay, open_razorpay
from streamproc.log.pace import Pace
from streamproc.settings import Settings

PACE = "razorpay"
"""What the pace is called in Redis. One installation has one key, and the bank limits by key."""


@asynccontextmanager
async def opened_bank(settings: Settings) -> AsyncIterator[Razorpay]:
    """The bank. Without a Redis in the settings this process keeps the pace for itself."""
    async with AsyncExitStack() as stack:
        turns = None
        if settings.redis_url:
            per_s = settings.razorpay_calls_per_s
            pace = Pace(settings.redis_url, name=PACE, per_s=per_s, burst=per_s)
            stack.push_async_callback(pace.aclose)
            turns = SharedLimiter(pace.reserve, per_s)
        bank = open_razorpay(
            settings.razorpay_base_url,
            key_id=settings.razorpay_key_id,
            key_secret=settings.razorpay_key_secret.reveal(),
            oauth_token=settings.razorpay_oauth_token.reveal(),
            turns=turns,
        )
        stack.push_async_callback(bank.aclose)
        yield bank

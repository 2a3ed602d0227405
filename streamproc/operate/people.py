"""How people are reached, by the settings: Slack, ntfy, both or nobody; and how many holds nobody was told of."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

from consumers.channels import Channels
from consumers.digest import send_digests
from consumers.inputs import NOTIFICATION
from consumers.notify import notification
from streamproc.clients.breaker import Breaker
from streamproc.clients.limiter import SharedLimiter
from streamproc.clients.ntfy import open_ntfy
from streamproc.clients.slack import CALLS_BURST, CALLS_PER_S, WAIT_S_MAX, open_slack
from streamproc.clients.slack_room import SlackRoom
from streamproc.domain.events import Event
from streamproc.domain.shown import iso
from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.digests import Digests
from streamproc.log.once import record_once
from streamproc.log.pace import Pace
from streamproc.log.untold import Untold, look_for_held, note_untold, untold
from streamproc.log.work import Group
from streamproc.settings import Settings
from streamproc.waiting import set_within

log = logging.getLogger(__name__)

PACE = "slack"
"""Name of the pace in Redis. One for an installation, which has one channel, since Slack limits by channel."""
LOOK_AGAIN_S = 1.0
"""Between two attempts while Redis is away."""
NO_CHANNEL = "neither Slack nor ntfy is set: nobody is told of holds and alerts"
SET_A_CHANNEL = (
    "set STREAMPROC_SLACK_BOT_TOKEN and STREAMPROC_SLACK_CHANNEL_ID, or STREAMPROC_NTFY_TOPIC, or both;"
    " `streamproc hold list` shows what waits"
)


def opened_channels(settings: Settings, stack: AsyncExitStack, breakers: dict[str, Breaker]) -> Channels:
    """The channels that are set; the stack closes them. Their breakers are added under `slack` and `ntfy`. Without a
    Redis in the settings the pace at Slack is this process's own."""
    room, topic = None, None
    if settings.slack_bot_token and settings.slack_channel_id:
        limiter = None
        if settings.redis_url:
            pace = Pace(settings.redis_url, name=PACE, per_s=CALLS_PER_S, burst=CALLS_BURST)
            stack.push_async_callback(pace.aclose)
            limiter = SharedLimiter(pace.reserve, CALLS_PER_S, pauses=pace, patience_s=WAIT_S_MAX)
        token = settings.slack_bot_token.reveal()
        slack = open_slack(settings.slack_base_url, token, wait_s_max=WAIT_S_MAX, limiter=limiter)
        stack.push_async_callback(slack.aclose)
        breakers["slack"] = slack.breaker
        room = SlackRoom(slack, settings.slack_channel_id, settings.slack_signing_secret.reveal())
    if settings.ntfy_topic:
        topic = open_ntfy(settings.ntfy_url, topic=settings.ntfy_topic, token=settings.ntfy_token.reveal())
        stack.push_async_callback(topic.aclose)
        breakers["ntfy"] = topic.breaker
    return Channels(slack=room, ntfy=topic, public_url=settings.public_url)


def notification_over(redis_url: str, channels: Channels, digests: Digests) -> Group:
    """The group that tells people, with what it keeps in Redis."""

    async def once(partition: int, key: str, event: Event) -> None:
        await record_once(redis_url, partition, key, NOTIFICATION, event)

    async def note(partition: int, held: Sequence[tuple[str, int]]) -> None:
        await note_untold(redis_url, partition, held)

    return notification(channels, digests, once, note)


async def people_until(settings: Settings, channels: Channels, stopping: asyncio.Event) -> None:
    """What the group does beside its entries, until `stopping`: take up holds that are older than it, send digests."""
    if not channels.any:
        log.warning("%s; %s", NO_CHANNEL, SET_A_CHANNEL)
    await _look_for_held(settings, stopping)
    if channels.any:
        await send_digests(Digests(settings.redis_url), channels, settings.partitions, stopping)


async def _look_for_held(settings: Settings, stopping: asyncio.Event) -> None:
    for partition in range(settings.partitions):
        while not stopping.is_set():
            try:
                if found := await look_for_held(settings.redis_url, partition, NOTIFICATION):
                    log.info(
                        "partition %d: %d held payouts were looked at and have their timers", partition, found
                    )
                break
            except LogUnavailable as problem:
                log.warning("held payouts cannot be looked up, it is tried again: %s", problem)
                await set_within(stopping, LOOK_AGAIN_S)


async def untold_holds(settings: Settings) -> Untold:
    """The held payouts that nobody could be told of, and since when the oldest is held. Raises LogUnavailable."""
    async with connected(settings.redis_url) as client:
        return await untold(client, settings.partitions)


def untold_text(found: Untold) -> str:
    """The untold holds as a phrase for people; '' if there are none."""
    if not found.count:
        return ""
    held = "1 held payout" if found.count == 1 else f"{found.count} held payouts"
    return f"{held} that nobody could be told of, the oldest since {iso(found.oldest_at)}"

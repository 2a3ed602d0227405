"""Tells digests that are due, from whichever worker comes first; if that dies, another one tells its digest."""

import asyncio
import logging

from consumers.channels import Channels, Undeliverable, deliver, notice_message
from consumers.inputs import NOTIFICATION
from streamproc.domain.events import NotificationSent
from streamproc.domain.notice import digest_notice
from streamproc.errors import LogUnavailable
from streamproc.log.digests import Digest, Digests
from streamproc.telemetry import watch
from streamproc.waiting import set_within

LOOK_S = 1.0
"""Interval between looks for digests that are due: a digest is at most this late."""

log = logging.getLogger(__name__)


async def send_digests(
    digests: Digests, channels: Channels, partitions: int, stopping: asyncio.Event, *, look_s: float = LOOK_S
) -> None:
    """Tell digests until `stopping`. One that no channel takes is due again when its lease is over."""
    while not stopping.is_set():
        try:
            for digest in await digests.take(partitions):
                await send_one(digests, channels, digest)
        except LogUnavailable as problem:
            log.warning("digests of alerts wait, they are sent later: %s", problem)
        await set_within(stopping, look_s)


async def send_one(digests: Digests, channels: Channels, digest: Digest) -> None:
    """Tell one digest and record it. If recording fails it is told again: at least once."""
    notice = digest_notice(
        digest.about, count=digest.count, paise=digest.paise, more=digest.more, examples=digest.examples
    )
    try:
        channel, ref = await deliver(notice_message(channels, notice))
    except Undeliverable as problem:
        log.warning("a digest of %d alerts was not sent, it is tried again: %s", digest.count, problem)
        return
    event = NotificationSent(
        at=digest.at, kind="digest", channel=channel, ref=ref, count=digest.count, about=digest.about
    )
    watch.notified(event.kind, event.channel)
    if not await digests.close(digest, event, NOTIFICATION):
        log.warning("a digest of %d alerts took longer than its lease and may be sent twice", digest.count)

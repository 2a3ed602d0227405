"""People in a test: Slack and ntfy as the sandbox's process, our own clients, and the engine that tells them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import consumers
from consumers.telling import Channels
from consumers.vet import Reputations
from streamproc.clients.breaker import Breaker
from streamproc.domain.events import Event, NotificationFailed, NotificationSent
from streamproc.log.digests import Digests
from streamproc.log.work import Group
from streamproc.operate.people import notification_over, opened_channels
from streamproc.settings import Secret, Settings
from tests.bank import Sandbox, running_sandbox, until
from tests.engine import ZONE, Engine
from tests.words import Vendors

CHANNEL = "C0PAYOUTS"
SECRET = "slack_signing_secret_of_a_test"
TOPIC = "payouts-of-a-test"


@dataclass
class People:
    """Who can be told, and what they were."""

    sandbox: Sandbox
    settings: Settings
    channels: Channels
    breakers: dict[str, Breaker] = field(default_factory=dict)

    def group(self, redis_url: str, *, gather_s: float = 3_600.0) -> Group:
        """The group that tells them. Digests are not due in a test that does not want them."""
        return notification_over(redis_url, self.channels, Digests(redis_url, gather_s=gather_s))

    async def slack(self, *methods: str) -> list[dict[str, Any]]:
        """What Slack was sent, by these methods or any."""
        sent = await self.sandbox.messages("slack")
        return [message for message in sent if not methods or message["method"] in methods]

    async def ntfy(self) -> list[dict[str, Any]]:
        """What ntfy was sent: the bodies."""
        return [message["body"] for message in await self.sandbox.messages("ntfy")]

    async def mood(self, **knobs: Any) -> None:
        """`slack=`, `ntfy=`: ok, timeout, 500 or 429; `slack_error=`."""
        await self.sandbox.control("messaging", **knobs)

    async def slack_has(self, count: int, *methods: str) -> list[dict[str, Any]]:
        """Wait for so many calls at least."""

        async def there() -> list[dict[str, Any]] | None:
            found = await self.slack(*methods)
            return found if len(found) >= count else None

        return await until(there, what=f"Slack got {count} of {methods or 'anything'}") or []

    async def ntfy_has(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many messages at least."""

        async def there() -> list[dict[str, Any]] | None:
            found = await self.ntfy()
            return found if len(found) >= count else None

        return await until(there, what=f"ntfy got {count} messages") or []


@asynccontextmanager
async def people(**changes: Any) -> AsyncIterator[People]:
    """A running sandbox, and Slack and ntfy as the settings say. `changes` are fields of Settings."""
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(running_sandbox())
        given: dict[str, Any] = {
            "slack_bot_token": Secret("xoxb-test"),
            "slack_signing_secret": Secret(SECRET),
            "slack_channel_id": CHANNEL,
            "slack_base_url": f"{sandbox.url}/slack/api",
            "ntfy_url": f"{sandbox.url}/ntfy",
            "ntfy_topic": TOPIC,
            "public_url": "https://pay.example.com",
        }
        settings = Settings(**{**given, **changes})
        breakers: dict[str, Breaker] = {}
        channels = opened_channels(settings, stack, breakers)
        yield People(sandbox, settings, channels, breakers)


def telling_engine(
    redis_url: str, told: People, *, vendors: Vendors | None = None, workers: int = 1, **more: Any
) -> Engine:
    """Governance and notification."""
    known = vendors or Vendors()
    gather = {"gather_s": more.pop("gather_s")} if "gather_s" in more else {}
    groups = [consumers.governance(Reputations(known), zone=ZONE), told.group(redis_url, **gather)]
    return Engine(redis_url, vendors=known, groups=groups, workers=workers, **more)


def sent(story: list[Event]) -> list[tuple[str, str]]:
    """Kind and channel of what was told, in order."""
    return [(event.kind, event.channel) for event in story if type(event) is NotificationSent]


def failed(story: list[Event]) -> list[NotificationFailed]:
    """What could not be told."""
    return [event for event in story if type(event) is NotificationFailed]


def texts(block: Any) -> list[dict[str, Any]]:
    """Every text object in a message, wherever it is."""
    if isinstance(block, list):
        return [text for one in block for text in texts(one)]
    if isinstance(block, dict):
        own = [block] if block.get("type") in ("plain_text", "mrkdwn") else []
        return own + [text for one in block.values() for text in texts(one)]
    return []

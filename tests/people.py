"""People in a test: Slack and ntfy in the sandbox, our clients for them, and the engine that sends them messages."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import consumers
from consumers.channels import Channels
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
    """The channels to people, and the messages that these got."""

    sandbox: Sandbox
    settings: Settings
    channels: Channels
    breakers: dict[str, Breaker] = field(default_factory=dict)

    def group(self, redis_url: str, *, gather_s: float = 3_600.0) -> Group:
        """The notification group. Digests are due only in a test that sets `gather_s`."""
        return notification_over(redis_url, self.channels, Digests(redis_url, gather_s=gather_s))

    async def slack(self, *methods: str) -> list[dict[str, Any]]:
        """Calls that Slack got, of these methods or all."""
        sent = await self.sandbox.messages("slack")
        return [message for message in sent if not methods or message["method"] in methods]

    async def ntfy(self) -> list[dict[str, Any]]:
        """Bodies of the messages that ntfy got."""
        return [message["body"] for message in await self.sandbox.messages("ntfy")]

    async def mood(self, **knobs: Any) -> None:
        """Set how they answer: `slack=`, `ntfy=` (ok, timeout, 500 or 429), `slack_error=`."""
        await self.sandbox.control("messaging", **knobs)

    async def slack_has(self, count: int, *methods: str) -> list[dict[str, Any]]:
        """Wait for at least so many calls."""

        async def there() -> list[dict[str, Any]] | None:
            calls = await self.slack(*methods)
            return calls if len(calls) >= count else None

        return await until(there, what=f"Slack got {count} of {methods or 'anything'}") or []

    async def ntfy_has(self, count: int) -> list[dict[str, Any]]:
        """Wait for at least so many messages."""

        async def there() -> list[dict[str, Any]] | None:
            messages = await self.ntfy()
            return messages if len(messages) >= count else None

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
    """An engine with the groups governance and notification."""
    known = vendors or Vendors()
    gather = {"gather_s": more.pop("gather_s")} if "gather_s" in more else {}
    groups = [consumers.governance(Reputations(known), zone=ZONE), told.group(redis_url, **gather)]
    return Engine(redis_url, vendors=known, groups=groups, workers=workers, **more)


def sent(story: list[Event]) -> list[tuple[str, str]]:
    """Kind and channel of each message that was sent, in order."""
    return [(event.kind, event.channel) for event in story if type(event) is NotificationSent]


def failed(story: list[Event]) -> list[NotificationFailed]:
    """The messages that could not be sent."""
    return [event for event in story if type(event) is NotificationFailed]


def texts(block: Any) -> list[dict[str, Any]]:
    """All text objects in a message, at any depth."""
    if isinstance(block, list):
        return [text for part in block for text in texts(part)]
    if isinstance(block, dict):
        own = [block] if block.get("type") in ("plain_text", "mrkdwn") else []
        return own + [text for part in block.values() for text in texts(part)]
    return []

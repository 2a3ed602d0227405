"""ntfy: a message to a topic, with title, priority, tags and a link. On a public server the topic is a secret."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient, OverHttp
from streamproc.clients.json_text import NotJson, decode_json
from streamproc.clients.limiter import Limiter
from streamproc.domain.plain import cut_bytes
from streamproc.errors import TryAgain

TIMEOUT_S = 5.0
"""For a call, from its turn on. After that the other channel is used, since a payout waits."""
CALLS_PER_S = 1.0
"""A public server takes some dozens at once, then one every few seconds; a 429 says when to go on."""
CALLS_BURST = 20
WAIT_S_MAX = 8.0
"""Longest wait for a turn, as for Slack."""
MESSAGE_BYTES_MAX = 4_000
"""Beyond 4,096 bytes ntfy turns a message into an attachment."""
TITLE_BYTES_MAX = 200
ID_CHARS_MAX = 64
PRIORITY_DEFAULT, PRIORITY_HIGH, PRIORITY_MAX = 3, 4, 5


class Push(Struct, frozen=True, omit_defaults=True):
    """A message. `message` is shown as it is, not as Markdown; `click` is a URL, or empty. `overtakes`: it is sent
    before others that wait for their turn."""

    title: str
    message: str
    priority: int = PRIORITY_DEFAULT
    tags: Sequence[str] = ()
    click: str = ""
    overtakes: bool = False


def open_ntfy(url: str, *, topic: str, token: str = "") -> "Ntfy":
    """The topic on the server at `url`. `token` is an access token, or empty. Close it with `aclose`."""
    http = OutboundClient(
        "ntfy",
        url.rstrip("/") + "/",
        timeout_s=TIMEOUT_S,
        limiter=Limiter(CALLS_PER_S, CALLS_BURST),
        breaker=Breaker(),
        wait_s_max=WAIT_S_MAX,
    )
    return Ntfy(http, topic, token)


class Ntfy(OverHttp):
    """One topic. Publishing is not idempotent: a message whose answer was lost comes twice."""

    def __init__(self, http: OutboundClient, topic: str, token: str) -> None:
        super().__init__(http)
        self._topic = topic
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    async def publish(self, push: Push) -> str:
        """Publish, and return the message's id. Raises TryAgain if the server does not take it, for a 4xx too: a wrong
        topic or token can be corrected while the message waits."""
        body = {
            "topic": self._topic,
            "title": cut_bytes(push.title, TITLE_BYTES_MAX),
            "message": cut_bytes(push.message, MESSAGE_BYTES_MAX),
            "priority": push.priority,
            "tags": list(push.tags),
        }
        if push.click:
            body["click"] = push.click
        content = msgspec.json.encode(body)
        answer = await self._http.call(
            "POST", "", headers=self._headers, content=content, urgent=push.overtakes
        )
        if answer.status >= 300:
            raise TryAgain(f"ntfy answered {answer.status}", after_s=5.0)
        return _id_in(answer.body)


def _id_in(body: bytes) -> str:
    """The id in an answer, or empty: the message was taken, even if its answer cannot be read."""
    try:
        said = decode_json(body)
    except NotJson:
        return ""
    found = said.get("id") if isinstance(said, dict) else None
    return found[:ID_CHARS_MAX] if isinstance(found, str) and found.isascii() and found.isprintable() else ""

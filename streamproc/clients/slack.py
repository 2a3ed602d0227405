"""Slack's Web API: one call, and failures named by what to do next.

    the answer       Slack did it: `ok: true`
    SlackRefused     Slack refuses, `ok: false` with its own error code (`channel_not_found`, `expired_trigger_id`)
    TryAgain         nothing was done: 429 (Retry-After is in `after_s`), no connection, the breaker is open
    OutcomeUnknown   it may have been done: no answer in time, 5xx, or Slack's own `internal_error` (a TryAgain)

No call is repeated here, and posting is not idempotent: whoever repeats a post may show a message twice.
The token is in a header; no error shows it, nor the text of a message.
"""

import json
import re
from collections.abc import Mapping

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import BACKOFF_BASE_S, Answer, OutboundClient, OutcomeUnknown, OverHttp
from streamproc.clients.json_text import NotJson, decode_json
from streamproc.clients.limiter import Limiter, RateLimiter
from streamproc.errors import StreamprocError, TryAgain

TIMEOUT_S = 5.0
"""For a worker's call, from its turn on; no person waits for it."""
WAIT_S_MAX = 8.0
"""Longest wait for a turn: more than the concurrent calls of one worker, or one call of each of eight, need. It is
apart from TIMEOUT_S, since waiting is not Slack's failure: a hold that waits for longer is put off."""
CALLS_PER_S = 1.0
"""Slack's limit for posting to a channel."""
CALLS_BURST = 20
"""Slack lets short bursts pass; beyond them it answers 429, which is honoured."""
BODY_BYTES_MAX = 1024 * 1024
"""An answer repeats the message that was sent, which Slack limits to some 50 kB."""

_NOT_DONE = frozenset(
    {"ratelimited", "rate_limited", "service_unavailable", "request_timeout", "team_added_to_org"}
)
"""Errors after which the same call may succeed later."""
_PERHAPS_DONE = frozenset({"internal_error", "fatal_error"})
"""Errors that, by Slack's documentation, may come after a part was done."""
_METHOD = re.compile(r"[a-z]+(\.[A-Za-z]+)+")
_WORD = re.compile(r"[a-z0-9_]{1,64}")


class SlackRefused(StreamprocError):
    """Slack refuses. `error` is its own code for why; the same call again gets the same answer."""

    def __init__(self, method: str, error: str) -> None:
        super().__init__(f"slack {method}: refused, {error}")
        self.error = error


def open_slack(
    base_url: str,
    token: str,
    *,
    timeout_s: float = TIMEOUT_S,
    wait_s_max: float | None = None,
    limiter: RateLimiter | None = None,
) -> "Slack":
    """A client with this API's limits; `base_url` ends with `/api`. Close it with `aclose`. Without `wait_s_max`,
    `timeout_s` includes the wait for a turn. `limiter` limits the calls of all processes together; without it this
    client alone keeps CALLS_PER_S."""
    http = OutboundClient(
        "slack",
        base_url,
        timeout_s=timeout_s,
        limiter=limiter or Limiter(CALLS_PER_S, CALLS_BURST),
        breaker=Breaker(),
        body_bytes_max=BODY_BYTES_MAX,
        wait_s_max=wait_s_max,
    )
    return Slack(http, token)


class Slack(OverHttp):
    """Calls the Web API as one app."""

    def __init__(self, http: OutboundClient, token: str) -> None:
        super().__init__(http)
        self._headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json; charset=utf-8",
        }

    async def call(
        self, method: str, body: Mapping[str, object], *, urgent: bool = False
    ) -> dict[str, object]:
        """Call `method` (`chat.postMessage`); Slack's answer. `urgent` goes before calls that wait for their turn.

        Raises SlackRefused, TryAgain, OutcomeUnknown.
        """
        if not _METHOD.fullmatch(method):
            raise ValueError(f"{method!r} is no method of the Web API")
        # Escaped as ASCII: a lone surrogate cannot be encoded otherwise.
        content = json.dumps(body, separators=(",", ":")).encode("ascii")
        answer = await self._http.call(
            "POST", f"/{method}", headers=self._headers, content=content, urgent=urgent
        )
        return _read(method, answer)

    async def open_view(self, trigger: str, view: Mapping[str, object]) -> None:
        """Show a modal to whoever clicked; the trigger is valid once, for 3 s."""
        await self.call("views.open", {"trigger_id": trigger, "view": view})


def _read(method: str, answer: Answer) -> dict[str, object]:
    if answer.status >= 400:
        raise SlackRefused(method, f"http_{answer.status}")
    try:
        said = decode_json(answer.body)
    except NotJson as problem:
        raise OutcomeUnknown(f"slack {method}: the answer cannot be read, {problem}") from problem
    if not isinstance(said, dict) or not isinstance(said.get("ok"), bool):
        raise OutcomeUnknown(f"slack {method}: the answer does not say whether it is ok")
    if said["ok"]:
        return said
    error = said.get("error")
    word = error if isinstance(error, str) and _WORD.fullmatch(error) else "no word that can be shown"
    if word in _NOT_DONE:
        raise TryAgain(f"slack {method}: {word}", after_s=BACKOFF_BASE_S)
    if word in _PERHAPS_DONE:
        raise OutcomeUnknown(f"slack {method}: {word}", after_s=BACKOFF_BASE_S)
    raise SlackRefused(method, word)

"""The parts of Slack's Web API and ntfy that streamproc uses; everything sent is kept to be read."""

import json
from collections import deque
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.sandbox.neighbours import Availability, fault_response
from ops.sandbox.slack_people import People

MESSAGES_MAX = 50_000
SLACK_NEEDS = {
    "chat.postMessage": ("channel",),
    "chat.update": ("channel", "ts"),
    "chat.postEphemeral": ("channel", "user"),
    "views.open": ("trigger_id", "view"),
    "auth.test": (),
}
SLACK_COMPLAINT = {
    "channel": "channel_not_found",
    "ts": "message_not_found",
    "user": "user_not_in_channel",
    "trigger_id": "invalid_trigger_id",
    "view": "invalid_arguments",
}
NTFY_HEADERS = ("title", "priority", "tags", "click", "actions", "markdown")


class MessagingKnobs(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /_control/messaging`; what is not given stays as it is."""

    slack: Availability | None = None
    slack_error: str | None = None
    """Slack answers 200 with `ok: false` and this; empty ends it."""
    ntfy: Availability | None = None
    slow_ms: int | None = None


class Messages:
    """What was sent, oldest first."""

    def __init__(self, slack_token: str, people: People) -> None:
        self.sent: deque[dict[str, Any]] = deque(maxlen=MESSAGES_MAX)
        self.slack_availability: Availability = "ok"
        self.slack_error = ""
        self.ntfy_availability: Availability = "ok"
        self.slow_ms = 0
        self._slack_token = slack_token
        self._people = people
        self._number = 0

    def apply(self, knobs: MessagingKnobs) -> None:
        """Change what the knobs name."""
        self.slack_availability = knobs.slack or self.slack_availability
        self.slack_error = self.slack_error if knobs.slack_error is None else knobs.slack_error
        self.ntfy_availability = knobs.ntfy or self.ntfy_availability
        self.slow_ms = self.slow_ms if knobs.slow_ms is None else knobs.slow_ms

    async def slack(self, request: Request, now: float) -> Response:
        """`POST /slack/api/{method}`, JSON or form."""
        method = str(request.path_params["method"])
        if (down := await fault_response(self.slack_availability, self.slow_ms)) is not None:
            down.headers.setdefault("Retry-After", "1")
            return down
        body = await _slack_body(request)
        if error := self._slack_refusal(method, request.headers.get("Authorization", ""), body):
            return JSONResponse({"ok": False, "error": error})
        view_id = ""
        if method == "views.open":
            view_id, error = self._people.open_view(str(body["trigger_id"]), _view_in(body), now)
            if error:
                return JSONResponse({"ok": False, "error": error})
        self._number += 1
        ts = str(body.get("ts") or f"{int(now)}.{self._number:06d}")
        if method != "auth.test":
            self.sent.append({"at": now, "to": "slack", "method": method, "ts": ts, "body": body})
        return JSONResponse(_slack_answer(method, body, ts, view_id))

    def _slack_refusal(self, method: str, authorization: str, body: dict[str, Any]) -> str:
        if not authorization.startswith("Bearer "):
            return "not_authed"
        if self._slack_token not in ("", authorization.removeprefix("Bearer ")):
            return "invalid_auth"
        if method not in SLACK_NEEDS:
            return "unknown_method"
        if missing := next((name for name in SLACK_NEEDS[method] if not body.get(name)), ""):
            return SLACK_COMPLAINT[missing]
        if method.startswith("chat.") and not (body.get("text") or body.get("blocks")):
            return "no_text"
        return self.slack_error

    async def ntfy(self, request: Request, now: float) -> Response:
        """`POST /ntfy/{topic}` with the text as body, or `POST /ntfy/` with JSON."""
        if (down := await fault_response(self.ntfy_availability, self.slow_ms)) is not None:
            return down
        raw = (await request.body()).decode("utf-8", "replace")
        message: dict[str, Any]
        if topic := request.path_params.get("topic", ""):
            headers = {name: request.headers[name] for name in NTFY_HEADERS if name in request.headers}
            message = {"topic": topic, "message": raw, **headers}
        else:
            try:
                message = json.loads(raw)
                topic = message["topic"]
            except (ValueError, TypeError, KeyError):
                return JSONResponse({"code": 40024, "http": 400, "error": "invalid request: body"}, 400)
        self._number += 1
        self.sent.append({"at": now, "to": "ntfy", "topic": topic, "body": message})
        given = {"id": f"sandbox{self._number:05d}", "time": int(now), "event": "message"}
        return JSONResponse({**given, "topic": topic, "message": message.get("message", "")})


async def _slack_body(request: Request) -> dict[str, Any]:
    raw = await request.body()
    if "json" in request.headers.get("Content-Type", ""):
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}
    return {key: str(value) for key, value in (await request.form()).items()} if raw else {}


def _view_in(body: dict[str, Any]) -> Any:
    """The view: an object in a JSON body, JSON text in a form."""
    if not isinstance(body["view"], str):
        return body["view"]
    try:
        return json.loads(body["view"])
    except ValueError:
        return None


def _slack_answer(method: str, body: dict[str, Any], ts: str, view_id: str) -> dict[str, Any]:
    if method == "auth.test":
        who = {"team": "Sandbox", "user": "streamproc", "team_id": "T0SANDBOX", "user_id": "U0SANDBOX"}
        return {"ok": True, "url": "https://sandbox.slack.com/", **who, "bot_id": "B0SANDBOX"}
    if method == "views.open":
        return {"ok": True, "view": {"id": view_id, "type": "modal"}}
    if method == "chat.postEphemeral":
        return {"ok": True, "message_ts": ts}
    shown = {"type": "message", "text": body.get("text", ""), "ts": ts}
    return {"ok": True, "channel": body["channel"], "ts": ts, "message": shown}

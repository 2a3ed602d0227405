"""People in Slack who click: what is posted to the app's request URL, in Slack's shapes and signed as Slack signs.

A click finds its button in a message that the sandbox holds; a modal that the app opens for it can be submitted.
"""

import asyncio
import hashlib
import hmac
import json
import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

import httpx
from msgspec import Struct

from ops.sandbox.config import SandboxConfig
from ops.sandbox.entities import Json
from ops.sandbox.refusals import Refused

ANSWER_S_MAX = 3.0
"""After this Slack shows an error to whoever clicked; a trigger is valid for as long."""
KEPT_MAX = 1_000
"""Triggers and views kept; the oldest go first."""
TEAM = {"id": "T0SANDBOX", "domain": "sandbox"}


class SlackClick(Struct, kw_only=True, forbid_unknown_fields=True):
    """A click on the button `action_id` of the message `ts`. To test forgeries: `value` replaces the button's own, and
    `age_s` shifts the signed time."""

    user: str
    ts: str
    action_id: str
    value: str | None = None
    age_s: float = 0.0
    url: str = ""
    """Where to post, if not to the configured URL."""


class SlackSubmit(Struct, kw_only=True, forbid_unknown_fields=True):
    """A modal `view` is submitted; `values` are texts by block id, each for the block's only field."""

    user: str
    view: str
    values: dict[str, str | None]
    age_s: float = 0.0
    url: str = ""


class People:
    """The people who click, and the modals that they see."""

    def __init__(self, config: SandboxConfig, rng: random.Random) -> None:
        self._url, self._secret, self._rng = config.slack_webhook_url, config.slack_signing_secret, rng
        self._triggers: OrderedDict[str, float] = OrderedDict()
        self._views: OrderedDict[str, Json] = OrderedDict()
        self._view_of: OrderedDict[str, str] = OrderedDict()

    async def click(self, body: SlackClick, sent: Iterable[dict[str, Any]], now: float) -> Json:
        """Post a click; the answer, and the modal that was opened for it."""
        message = _message(sent, body.ts)
        action = _button(message["blocks"], body.action_id)
        trigger = self._trigger(now)
        payload: Json = {
            "type": "block_actions",
            "user": _user(body.user),
            "api_app_id": "A0SANDBOX",
            "token": "sandbox",
            "container": {
                "type": "message",
                "message_ts": body.ts,
                "channel_id": message["channel"],
                "is_ephemeral": False,
            },
            "trigger_id": trigger,
            "team": TEAM,
            "enterprise": None,
            "is_enterprise_install": False,
            "channel": {"id": message["channel"], "name": "sandbox"},
            "message": {
                "type": "message",
                "ts": body.ts,
                "text": message["text"],
                "blocks": message["blocks"],
            },
            "state": {"values": {}},
            "response_url": "https://hooks.slack.com/actions/T0SANDBOX/1/sandbox",
            "actions": [{**action, "action_ts": f"{now:.6f}", **_given(value=body.value)}],
        }
        answer = await self._post(body.url or self._url, payload, now + body.age_s)
        return {**answer, "trigger_id": trigger, "view": self._view_of.get(trigger)}

    async def submit(self, body: SlackSubmit, now: float) -> Json:
        """Post the values of a modal."""
        view = self._views.get(body.view)
        if view is None:
            raise Refused(f"no modal {body.view} was opened", field="view")
        fields = {block["block_id"]: block["element"] for block in view["blocks"] if block["type"] == "input"}
        if set(fields) != set(body.values):
            raise Refused(f"the modal asks for {sorted(fields)}", field="values")
        values = {
            block: {fields[block]["action_id"]: {"type": fields[block]["type"], "value": text}}
            for block, text in body.values.items()
        }
        payload = {
            "type": "view_submission",
            "team": TEAM,
            "user": _user(body.user),
            "api_app_id": "A0SANDBOX",
            "token": "sandbox",
            "trigger_id": self._trigger(now),
            "view": {**view, "id": body.view, "team_id": TEAM["id"], "state": {"values": values}},
            "response_urls": [],
            "is_enterprise_install": False,
            "enterprise": None,
        }
        return await self._post(body.url or self._url, payload, now + body.age_s)

    def open_view(self, trigger: str, view: Any, now: float) -> tuple[str, str]:
        """The id of the view that the app opens, or Slack's error; the other one is empty."""
        issued_at = self._triggers.pop(trigger, None)
        if issued_at is None:
            return "", "exchanged_trigger_id" if trigger in self._view_of else "invalid_trigger_id"
        if now - issued_at > ANSWER_S_MAX:
            return "", "expired_trigger_id"
        if not isinstance(view, dict) or view.get("type") != "modal" or not view.get("blocks"):
            return "", "invalid_arguments"
        view_id = f"V{self._rng.randrange(10**10):010d}"
        _keep(self._views, view_id, view)
        _keep(self._view_of, trigger, view_id)
        return view_id, ""

    def _trigger(self, now: float) -> str:
        trigger = (
            f"{self._rng.randrange(10**13)}.{self._rng.randrange(10**12)}.{self._rng.randbytes(16).hex()}"
        )
        _keep(self._triggers, trigger, now)
        return trigger

    async def _post(self, url: str, payload: Json, at: float) -> Json:
        if not url:
            raise Refused("SANDBOX_SLACK_WEBHOOK_URL is not set: there is nowhere to post a click")
        body = urlencode({"payload": json.dumps(payload)}).encode()
        timestamp = str(int(at))
        signed = hmac.new(self._secret.encode(), f"v0:{timestamp}:".encode() + body, hashlib.sha256)
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "user-agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
            "x-slack-request-timestamp": timestamp,
            "x-slack-signature": f"v0={signed.hexdigest()}",
        }
        try:
            async with (
                asyncio.timeout(ANSWER_S_MAX),
                httpx.AsyncClient(trust_env=False, timeout=ANSWER_S_MAX) as client,
            ):
                answer = await client.post(url, content=body, headers=headers)
        except (TimeoutError, httpx.HTTPError) as problem:
            return {"status": None, "body": "", "error": str(problem) or f"no answer within {ANSWER_S_MAX} s"}
        return {"status": answer.status_code, "body": answer.text, "error": ""}


def _user(user: str) -> Json:
    return {"id": user, "username": user.lower(), "name": user.lower(), "team_id": TEAM["id"]}


def _given(**values: object) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    while len(kept) > KEPT_MAX:
        kept.popitem(last=False)


def _message(sent: Iterable[dict[str, Any]], ts: str) -> Json:
    """The message as it was last posted or updated."""
    latest: Json | None = None
    for each in sent:
        if (
            each["to"] == "slack"
            and each["ts"] == ts
            and each["method"] in ("chat.postMessage", "chat.update")
        ):
            latest = each["body"]
    if latest is None:
        raise Refused(f"there is no message {ts}", field="ts")
    blocks = latest.get("blocks") or []
    blocks = json.loads(blocks) if isinstance(blocks, str) else blocks
    return {"channel": latest["channel"], "text": latest.get("text", ""), "blocks": blocks}


def _button(blocks: list[Json], action_id: str) -> Json:
    for block in blocks:
        elements = [*block.get("elements", []), *filter(None, [block.get("accessory")])]
        for element in elements:
            if element.get("action_id") == action_id:
                shown = {name: element[name] for name in ("text", "value", "style") if name in element}
                kind = {
                    "type": element["type"],
                    "action_id": action_id,
                    "block_id": block.get("block_id", "b1"),
                }
                return {**kind, **shown}
    raise Refused(f"the message has no button {action_id}", field="action_id")

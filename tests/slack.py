"""Requests as Slack sends them for a click, with shapes and signatures from its documentation, and without our code."""

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlencode

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
TRIGGER = "13345224609.738474920.8088930838d88f008e0"


def block_actions(user: str, action_id: str, value: str, **changes: Any) -> dict[str, Any]:
    """A click on a button of a message."""
    return {
        "type": "block_actions",
        "user": {"id": user, "username": "somebody", "name": "somebody", "team_id": "T0TEAM"},
        "api_app_id": "A0APP",
        "token": "verification-token-of-old",
        "container": {
            "type": "message",
            "message_ts": "1790000000.000100",
            "channel_id": "C0HOLDS",
            "is_ephemeral": False,
        },
        "trigger_id": TRIGGER,
        "team": {"id": "T0TEAM", "domain": "example"},
        "enterprise": None,
        "is_enterprise_install": False,
        "channel": {"id": "C0HOLDS", "name": "holds"},
        "message": {"type": "message", "ts": "1790000000.000100", "text": "A payout is held", "blocks": []},
        "state": {"values": {}},
        "response_url": "https://hooks.slack.com/actions/T0TEAM/1/x",
        "actions": [
            {
                "action_id": action_id,
                "block_id": "answer",
                "text": {"type": "plain_text", "text": "Approve", "emoji": False},
                "value": value,
                "type": "button",
                "action_ts": "1790000001.000000",
            }
        ],
        **changes,
    }


def view_submission(user: str, value: str, reason: object, **changes: Any) -> dict[str, Any]:
    """The submission of the modal that a click on Reject opens."""
    field = {"reason": {"type": "plain_text_input", "value": reason}}
    return {
        "type": "view_submission",
        "team": {"id": "T0TEAM", "domain": "example"},
        "user": {"id": user, "username": "somebody", "name": "somebody", "team_id": "T0TEAM"},
        "api_app_id": "A0APP",
        "token": "verification-token-of-old",
        "trigger_id": TRIGGER,
        "view": {
            "id": "V0VIEW",
            "team_id": "T0TEAM",
            "type": "modal",
            "blocks": [],
            "private_metadata": value,
            "callback_id": "hold.reject",
            "state": {"values": {"reason": field}},
            "hash": "1790000002.abc",
            "title": {"type": "plain_text", "text": "Reject a payout", "emoji": False},
        },
        "response_urls": [],
        "is_enterprise_install": False,
        "enterprise": None,
        **changes,
    }


def form(payload: Any) -> bytes:
    """The request body with this payload."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return urlencode({"payload": text}).encode()


def signature(body: bytes, timestamp: str, secret: str = SECRET) -> str:
    """The signature as documented."""
    base = f"v0:{timestamp}:".encode() + body
    return "v0=" + hmac.new(secret.encode(), base, hashlib.sha256).hexdigest()


def headers(body: bytes, now_s: float, secret: str = SECRET) -> dict[str, str]:
    """The headers that Slack sends with a body."""
    timestamp = str(int(now_s))
    return {
        "content-type": "application/x-www-form-urlencoded",
        "user-agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
        "x-slack-request-timestamp": timestamp,
        "x-slack-signature": signature(body, timestamp, secret),
    }

"""Parses what Slack posts when somebody clicks: form bytes to a click, a submitted reason, or nothing for us. Pure.

Only Slack's signature was checked: whose account it is, and which payout is meant, is decided elsewhere.
"""

from typing import TypeAlias
from urllib.parse import parse_qsl

from msgspec import Struct

from streamproc.clients.json_text import NotJson, decode_json
from streamproc.clients.slack_modal import REASON
from streamproc.domain.button import APPROVE, REJECT, VALUE_CHARS_MAX
from streamproc.domain.reviewers import SLACK_USER
from streamproc.errors import InputError

FIELDS_MAX = 8
"""Fields of the form; Slack sends one."""
TRIGGER_CHARS_MAX = 256
"""Slack's are some 60 characters."""

Object: TypeAlias = dict[str, object]


class ApproveClick(Struct, frozen=True):
    """Somebody clicked Approve. `user` is a Slack id, `value` the button's."""

    user: str
    value: str


class RejectClick(Struct, frozen=True):
    """Somebody clicked Reject; `trigger` opens a modal, for 3 s."""

    user: str
    value: str
    trigger: str


class Rejection(Struct, frozen=True):
    """Somebody submitted the modal; the reason is as it was typed."""

    user: str
    value: str
    reason: str


class NotForUs(Struct, frozen=True):
    """Genuine and well formed, but nothing to do: a link was clicked, a modal closed. `what` is one word of ours."""

    user: str
    what: str


Interaction: TypeAlias = ApproveClick | RejectClick | Rejection | NotForUs


def read_payload(body: bytes) -> Interaction:
    """What the request means. Raises InputError, which repeats nothing of the request."""
    payload = _object(_decoded(body), "payload")
    user = _object(payload.get("user"), "user").get("id")
    if not isinstance(user, str) or not SLACK_USER.fullmatch(user):
        raise InputError("user.id is no Slack user id")
    match payload.get("type"):
        case "block_actions":
            return _clicked(payload, user)
        case "view_submission":
            return _submitted(payload, user)
        case str():
            return NotForUs(user, "another kind of interaction")
        case _:
            raise InputError("type is missing")


def _decoded(body: bytes) -> object:
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX
        )
        [text] = [value for name, value in fields if name == "payload"]
        return decode_json(text.encode("utf-8"))
    except NotJson as problem:
        raise InputError(f"payload: {problem}") from problem
    except ValueError as problem:  # UnicodeError too
        raise InputError("the body is no form with one field `payload`") from problem


def _object(value: object, what: str) -> Object:
    if not isinstance(value, dict):
        raise InputError(f"{what} is not an object")
    return value


def _text(value: object, what: str, chars_max: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max:
        raise InputError(f"{what} is no text of at most {chars_max} characters")
    return value


def _clicked(payload: Object, user: str) -> Interaction:
    actions = payload.get("actions")
    if not isinstance(actions, list) or len(actions) != 1:
        raise InputError("actions is not a list of one")
    action = _object(actions[0], "actions[0]")
    kind = action.get("action_id")
    if kind not in (APPROVE, REJECT):
        return NotForUs(user, "another button")
    value = _text(action.get("value"), "value", VALUE_CHARS_MAX)
    if kind == APPROVE:
        return ApproveClick(user, value)
    return RejectClick(user, value, _text(payload.get("trigger_id"), "trigger_id", TRIGGER_CHARS_MAX))


def _submitted(payload: Object, user: str) -> Interaction:
    view = _object(payload.get("view"), "view")
    if view.get("callback_id") != REJECT:
        return NotForUs(user, "another modal")
    value = _text(view.get("private_metadata"), "private_metadata", VALUE_CHARS_MAX)
    values = _object(_object(view.get("state"), "state").get("values"), "state.values")
    field = _object(_object(values.get(REASON), "the reason's block").get(REASON), "the reason's field")
    written = field.get("value")  # null where nothing was written
    if written is not None and not isinstance(written, str):
        raise InputError("the reason is no text")
    return Rejection(user, value, written or "")

"""Notices as Slack's Block Kit. Text of strangers is `plain_text`, in which no markup, mention or link works.

`mrkdwn` is used only for a time and for a link to us, which hold no text of others. Slack's limits count `&`, `<` and
`>` as the entities that are sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from streamproc.domain.budget import US
from streamproc.domain.button import APPROVE, REJECT
from streamproc.domain.notice import HoldNotice, HoldOutcome, Notice
from streamproc.domain.plain import cut
from streamproc.domain.shown import moment

Block: TypeAlias = dict[str, Any]

HEADER_MAX, SECTION_MAX, FIELD_MAX, TEXT_MAX = 150, 3_000, 2_000, 3_000
"""Characters (UTF-16 units) of a header, a section, a section's field, and the text shown instead of the blocks."""
BLOCKS_MAX = 50
FIELDS_MAX = 10
_QUOTED = {"&": "&amp;", "<": "%3C", ">": "%3E", "|": "%7C", " ": "%20"}
"""Characters that would end a link or a part of it."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str, units_max: int) -> str:
    """The text with entities, cut to `units_max` UTF-16 units; a cut ends with `…` and never within an entity."""
    return cut([_ENTITIES.get(char, char) for char in text], units_max)


def hold_message(notice: HoldNotice, *, value: str, heading: str) -> Mapping[str, Any]:
    """Text and blocks that ask for a decision. `value` is the buttons'; empty: no buttons, since no click could be
    verified."""
    asks = [_buttons(notice, value)] if value else [_plain(_by_command(notice))]
    title = f"{heading} {notice.amount} for {notice.agent}?"
    return _message(title, [*_facts(notice), *asks])


def outcome_message(notice: HoldNotice, outcome: HoldOutcome) -> Mapping[str, Any]:
    """The same message after the decision: the outcome instead of buttons."""
    title = f"{outcome.decision}: {notice.amount} for {notice.agent}"
    return _message(title, [_plain(outcome.text), *_facts(notice)])


def notice_message(notice: Notice) -> Mapping[str, Any]:
    """An alert, or a digest."""
    link = [_markup(_link(notice.link))] if notice.link else []
    return _message(notice.title, [_plain("\n".join(notice.lines)), *link])


def _message(title: str, blocks: Sequence[Block]) -> Mapping[str, Any]:
    """`text` is shown where blocks are not, as in a phone's notification. No names or links in it are expanded."""
    header = {"type": "header", "text": _plain_text(title, HEADER_MAX)}
    return {
        "text": escaped(title, TEXT_MAX),
        "blocks": [header, *blocks][:BLOCKS_MAX],
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _facts(notice: HoldNotice) -> list[Block]:
    fields = [
        ("Amount", notice.amount),
        ("Agent", f"{notice.agent} ({notice.identity})"),
        ("Vendor host", notice.host or "none"),
        ("To", notice.payee or "-"),
        ("Policy version", str(notice.policy_version or "-")),
        ("Payout", notice.payout),
    ]
    if notice.approvals:
        fields.append(("Approvals", notice.approvals))
    reasons = "\n".join(f"• {code}{': ' if meaning else ''}{meaning}" for code, meaning in notice.reasons)
    shown = [_plain_text(f"{label}\n{text}", FIELD_MAX) for label, text in fields][:FIELDS_MAX]
    return [
        {"type": "section", "fields": shown},
        _plain(f"Held because\n{reasons or '-'}"),
        _expiry(notice),
        *_untrusted(notice),
    ]


def _untrusted(notice: HoldNotice) -> list[Block]:
    if not notice.untrusted:
        return []
    lines = "\n".join(f"{said.label}: {said.text}" for said in notice.untrusted)
    return [{"type": "divider"}, _plain(f"Untrusted, as the agent wrote it\n{lines}")]


def _expiry(notice: HoldNotice) -> Block:
    iso, seconds = moment(notice.expires_at), notice.expires_at // US
    shown = f"Expires <!date^{seconds}^{{date_short_pretty}} {{time}}|{iso}> ({iso})"
    return _markup(f"{shown} {_link(notice.link)}".rstrip())


def _link(url: str) -> str:
    """A link as text, not as a button: a click on a button, even with a URL, is sent to the app as well."""
    quoted = "".join(_QUOTED.get(char, char) for char in url)
    return f"<{quoted}|Details>" if url else ""


def _markup(text: str) -> Block:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _by_command(notice: HoldNotice) -> str:
    return f"streamproc hold approve {notice.payout} --by NAME --reason TEXT\n(or: hold reject)"


def _buttons(notice: HoldNotice, value: str) -> Block:
    question = f"{notice.amount} will be paid for {notice.agent}, unless something stands against it by now."
    confirm = {
        "title": _plain_text("Approve this payout?", 100),
        "text": _plain_text(question, 300),
        "confirm": _plain_text("Approve", 30),
        "deny": _plain_text("Back", 30),
    }
    return {
        "type": "actions",
        "block_id": "hold",
        "elements": [
            _button("Approve", APPROVE, value, "primary") | {"confirm": confirm},
            _button("Reject", REJECT, value, "danger"),
        ],
    }


def _button(label: str, action: str, value: str, style: str) -> Block:
    return {
        "type": "button",
        "text": _plain_text(label, 75),
        "action_id": action,
        "value": value,
        "style": style,
    }


def _plain(text: str) -> Block:
    return {"type": "section", "text": _plain_text(text, SECTION_MAX)}


def _plain_text(text: str, units_max: int) -> Block:
    return {"type": "plain_text", "text": escaped(text, units_max), "emoji": False}

"""The modal that asks a reviewer for the reason of a rejection, as Block Kit. Pure.

It carries the button's value, so that the answer can only be about the payout that was clicked.
"""

from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.button import REJECT
from streamproc.domain.money import rupees

REASON = "reason"
"""`block_id` and `action_id` of the reason's field, and `REJECT` the modal's `callback_id`."""


def reject_modal(value: str, payout: str, amount: int) -> dict[str, object]:
    """The view for `views.open`; `value` is the clicked button's."""
    field = {
        "type": "plain_text_input",
        "action_id": REASON,
        "multiline": True,
        "min_length": 1,
        "max_length": WHY_CHARS_MAX,
    }
    return {
        "type": "modal",
        "callback_id": REJECT,
        "private_metadata": value,
        "title": _plain("Reject a payout"),
        "submit": _plain("Reject"),
        "close": _plain("Cancel"),
        "blocks": [
            {"type": "section", "text": _plain(f"{payout}, {rupees(amount)}")},
            {"type": "input", "block_id": REASON, "label": _plain("Reason"), "element": field},
        ],
    }


def _plain(text: str) -> dict[str, object]:
    return {"type": "plain_text", "text": text, "emoji": False}

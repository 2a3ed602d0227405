"""`POST /webhooks/razorpay` and `/webhooks/slack` in the route table. `streamproc/ingress` handles them.

They need no token: who calls them signs the body.
"""

from typing import Literal

from msgspec import Struct
from starlette.types import ASGIApp

from streamproc.api.answers import JSON
from streamproc.api.operations import Operation, Says
from streamproc.ingress.slack_review import PATH


class Taken(Struct, frozen=True):
    """The outcome of a webhook."""

    status: Literal["accepted", "duplicate", "ignored"]
    entry: str


def razorpay_operation(app: ASGIApp) -> Operation:
    """The route for the bank's deliveries."""
    return Operation(
        method="POST", path="/webhooks/razorpay", name="deliverWebhook", summary="The bank tells of a payout",
        action=None, raw=app,
        says={
            200: Says("It is in the log, or need not be", Taken),
            400: Says("Signed, but no payload"),
            401: Says("`X-Razorpay-Signature` is missing or is not this body's"),
            408: Says("The body did not arrive in time"),
            413: Says("The body is over the limit"),
            503: Says("The log cannot be written now; deliver again", headers={"Retry-After": "Seconds"}),
        },
    )  # fmt: skip


def slack_operation(app: ASGIApp) -> Operation:
    """The route for clicks in Slack."""
    return Operation(
        method="POST", path=PATH, name="deliverClick", summary="Slack tells of a click on a hold's message",
        action=None, raw=app,
        says={
            200: Says(
                "Taken, or nothing for us: empty text. Or as JSON a `response_action`: the reason cannot be taken", {},
                media=("text/plain", JSON),
            ),
            400: Says("Signed, but it cannot be read"),
            401: Says("The signature is missing or is not this request's, or its time is too far from now"),
            403: Says("Not a button of ours"),
            404: Says("The button's payout is not known here"),
            408: Says("The body did not arrive in time"),
            409: Says("The same request came before"),
            413: Says("The body is over the limit"),
            429: Says("An answer that cannot count came again"),
            502: Says("Slack did not open the form for the reason"),
            503: Says("It cannot be recorded now, or Slack is not configured; click again"),
        },
    )  # fmt: skip

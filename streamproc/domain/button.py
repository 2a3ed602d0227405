"""The value of a button in Slack: a payout's id with a MAC, so that a click can only name what we offered. Pure.

Slack signs what it sends us, also a value that was changed on the way to Slack; only the MAC tells that it is ours.
"""

import hmac
import re

APPROVE = "hold.approve"
REJECT = "hold.reject"
"""The buttons' `action_id`s."""
VALUE_CHARS_MAX = 2_000
"""What Slack allows for a button's value; ours are far shorter."""

_LABEL = b"streamproc button v1"
_VALUE = re.compile(r"v1\.([0-9a-f]{64})\.([A-Za-z0-9_-]{1,64})")


def button_value(payout: str, secret: str) -> str:
    """`v1.<mac>.<payout>`. `secret` is Slack's signing secret; the key of the MAC is derived from it."""
    return f"v1.{_mac(payout, secret)}.{payout}"


def payout_of(value: str, secret: str) -> str | None:
    """The payout that a button of ours is about; None for any other value. Compared in constant time."""
    found = _VALUE.fullmatch(value) if len(value) <= VALUE_CHARS_MAX else None
    if found is None or not secret:
        return None
    mac, payout = found.groups()
    return payout if hmac.compare_digest(mac, _mac(payout, secret)) else None


def _mac(payout: str, secret: str) -> str:
    key = hmac.digest(secret.encode(), _LABEL, "sha256")
    return hmac.digest(key, payout.encode(), "sha256").hex()

"""`X-Payout-Idempotency`: one key, one body, one payout, for at least seven days."""

import hashlib
import re

from msgspec import Struct

from ops.sandbox.refusals import Refused

HEADER = "X-Payout-Idempotency"
KEY = re.compile(r"[A-Za-z0-9\-_ ]{4,36}")
KEEP_S = 7 * 86_400
"""The bank promises seven days and does not publish what comes after. Here the key is then forgotten."""


class Used(Struct, frozen=True, kw_only=True):
    """A key that made a payout."""

    key: str
    body_sha256: str
    payout: str
    at: float


class IdempotencyKeys:
    """The keys of the last seven days, oldest first."""

    def __init__(self) -> None:
        self._used: dict[str, Used] = {}
        self.changed: dict[str, Used] = {}

    def load(self, used: list[Used]) -> None:
        """Take over what an earlier process kept."""
        self._used = {each.key: each for each in sorted(used, key=lambda each: each.at)}

    def payout_for(self, key: str, body: bytes, now: float) -> str | None:
        """The payout that this key made, or None for a new key.

        Raises Refused if the key is missing, malformed, or was used with other bytes. Whether the bank
        compares bytes or values is not published: bytes are stricter.
        """
        if not key:
            words = "Idempotency key is missing. Include idempotency header and key in the request."
            raise Refused(words, reason=None, field=HEADER)
        if not KEY.fullmatch(key):
            words = "Idempotency key must have 4 to 36 letters, digits, hyphens, underscores or spaces."
            raise Refused(words, field=HEADER)
        self._forget(now)
        used = self._used.get(key)
        if used is None:
            return None
        if used.body_sha256 != _digest(body):
            raise Refused("Different request body sent for the same Idempotency Header", field=HEADER)
        return used.payout

    def remember(self, key: str, body: bytes, payout_id: str, now: float) -> None:
        """Bind a new key to the payout that it made."""
        used = Used(key=key, body_sha256=_digest(body), payout=payout_id, at=now)
        self._used[key] = self.changed[key] = used

    def _forget(self, now: float) -> None:
        while self._used and (oldest := next(iter(self._used.values()))).at < now - KEEP_S:
            del self._used[oldest.key]


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()

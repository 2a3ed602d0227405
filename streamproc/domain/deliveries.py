"""Idempotency keys of deliveries, so that each counts once. Pure.

Nearly all of them follow from what is delivered; then its entry does not repeat them, and a recovery derives them again
(`derived_keys`). So a key's form must never change: in another form it would be another key.
"""

from collections.abc import Sequence
from hashlib import sha256

from streamproc.domain.events import (
    BankDowntimeReported,
    BankEventIgnored,
    BankPayout,
    Event,
    PayoutMalformed,
    PayoutObserved,
    PayoutRequested,
)

UPDATED = "payout.updated"
KEY_HASH_CHARS = 16
"""64 bits of SHA-256: enough to distinguish one payout's updates, or two bodies under one event id."""


def body_digest(body: bytes) -> str:
    """The digest of a webhook's raw body."""
    return sha256(body).hexdigest()[:KEY_HASH_CHARS]


def delivery_key(delivery: str, digest: str) -> str:
    """The key of one delivery of the bank: its event id, and the body that the signature covers."""
    return f"wh:{delivery}:{digest}"


def body_key(digest: str) -> str:
    """The key of a delivery that is not about a payout's state. By the body alone, since the signature does not
    cover the event id."""
    return f"body:{digest}"


def observation_key(payout: BankPayout, bank_event: str = "") -> str:
    """The key of a sighting: payout and status; for `payout.updated` also the fields that an update may change."""
    if bank_event != UPDATED:
        return f"st:{payout.id}:{payout.status}"
    changed = (payout.status, payout.utr, str(payout.fees), str(payout.tax), payout.reason)
    return f"up:{payout.id}:{_hash(*changed)}"


def request_key(payout: str) -> str:
    """The key of a request: the intent's id, which is made of account, agent and Idempotency-Key."""
    return f"in:{payout}"


def malformed_key(payout: str, problem: str) -> str:
    """The key of one problem of one payout, so that there is one dead letter of it, however often it is seen."""
    return f"bad:{payout}:{_hash(problem)}"


def derived_keys(events: Sequence[Event], digest: str = "") -> tuple[str, ...]:
    """The keys that follow from a delivery's events, and from its body's digest if that is known.

    They are the keys of an entry whose metadata names none.
    """
    keys: list[str] = []
    for event in events:
        if digest and (delivery := getattr(event, "delivery", "")):
            keys.append(delivery_key(delivery, digest))
        if type(event) is PayoutObserved:
            keys.append(observation_key(event.facts, event.bank_event))
        elif type(event) is PayoutRequested:
            keys.append(request_key(event.payout))
        elif type(event) is PayoutMalformed and event.payout:
            keys.append(malformed_key(event.payout, event.problem))
        elif digest and type(event) in (BankEventIgnored, BankDowntimeReported):
            keys.append(body_key(digest))
    return tuple(keys)


def _hash(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()[:KEY_HASH_CHARS]

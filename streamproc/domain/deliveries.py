"""The keys by which a delivery is known again, so that it counts once. Pure.

Nearly all follow from what is delivered; then its entry does not repeat them, and a recovery makes them anew
(`told_keys`). So a key has its form for good: another form of the same key is another key.
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
"""64 bits of SHA-256: enough to tell one payout's updates apart, or two bodies under one event id."""


def body_digest(body: bytes) -> str:
    """What is told of a webhook's raw body."""
    return sha256(body).hexdigest()[:KEY_HASH_CHARS]


def delivery_key(delivery: str, digest: str) -> str:
    """One delivery of the bank: its event id, and the body that the signature covers."""
    return f"wh:{delivery}:{digest}"


def body_key(digest: str) -> str:
    """What makes two deliveries one that are not about a payout's state: the signature does not cover the event id."""
    return f"body:{digest}"


def observation_key(payout: BankPayout, bank_event: str = "") -> str:
    """What makes two sightings one: payout and status; for `payout.updated` also what an update may change."""
    if bank_event != UPDATED:
        return f"st:{payout.id}:{payout.status}"
    changed = (payout.status, payout.utr, str(payout.fees), str(payout.tax), payout.reason)
    return f"up:{payout.id}:{_hash(*changed)}"


def request_key(payout: str) -> str:
    """What makes two requests one: the payout's id, which account, agent and Idempotency-Key make."""
    return f"in:{payout}"


def malformed_key(payout: str, problem: str) -> str:
    """One payout, one problem: one dead letter, however often it is seen."""
    return f"bad:{payout}:{_hash(problem)}"


def told_keys(events: Sequence[Event], digest: str = "") -> tuple[str, ...]:
    """The keys that a delivery's events tell, with its body's digest where that is known.

    The keys of an entry whose metadata names none.
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

"""Signed notes: how an agent proves that a payout at the bank is its own. Pure.

A payout seen at the bank only claims its agent in `notes.agent_id`, which whoever made it could write. An agent that
holds an Ed25519 key signs what the payout is and puts the signature beside it, as `notes.agent_sig`. The policy file
has its public key, so the log, where policies are, holds no secret. Amount, currency, fund account and reference are
what the agent meant: the signature on a payout with others is worth nothing.
"""

import re
from base64 import urlsafe_b64decode
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NOTE = "agent_sig"
"""The note's name; the bank takes 256 characters, it has 89."""
SUBJECT = "streamproc agent note v1"
"""The first line of what is signed, so that no signature for something else can be taken for it."""
VERIFIED_MAX = 4_096
"""Signatures whose check is remembered, some 300 bytes each: six stages and a replay ask for the same one."""

_PUBLIC_KEY = re.compile(r"ed25519:([A-Za-z0-9_-]{43})")
_SIGNATURE = re.compile(r"v1\.([A-Za-z0-9_-]{86})")


def message(*, agent: str, amount: int, currency: str, fund_account: str, reference_id: str) -> bytes:
    """What is signed: six lines, joined by line feeds, without one at the end, in UTF-8. `amount` is in paise."""
    return "\n".join((SUBJECT, agent, str(amount), currency, fund_account, reference_id)).encode()


def public_key(value: object) -> str:
    """A public key as a policy file has it. ValueError says what is wrong with it."""
    match = _PUBLIC_KEY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a public key is `ed25519:` and its 32 bytes in 43 characters of base64url")
    return match[0]


@lru_cache(maxsize=VERIFIED_MAX)
def is_signed(key: str, signed: bytes, signature: str) -> bool:
    """Whether `signature`, a note's text, is by the holder of `key`, over `signed`."""
    text, public = _SIGNATURE.fullmatch(signature), _PUBLIC_KEY.fullmatch(key)
    if text is None or public is None:
        return False
    try:
        verifier = Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(public[1] + "="))
        verifier.verify(urlsafe_b64decode(text[1] + "=="), signed)
    except (InvalidSignature, ValueError):  # base64's error is a ValueError
        return False
    return True

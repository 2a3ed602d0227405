"""Values that must not be shown: what holds them, and how a signing key is written."""

import base64
import binascii

SEED_BYTES = 32
"""Of an Ed25519 key."""


class Secret:
    """A value that no repr, log line or traceback shows; `reveal` gives it to the call that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Call it where it is sent, not earlier, so that nothing else holds it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(set)" if self._value else "Secret(empty)"


def header_secret(text: str) -> Secret:
    """A secret that is sent as it is in a header. Raises ValueError, never with the value, if no header can hold it."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be one line of ASCII characters, because it is sent in a header")
    return Secret(text)


def seed_of(text: str) -> bytes:
    """The seed of a signing key, written in base64. Raises ValueError, never with the value, for anything else."""
    try:
        seed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ValueError("must be the base64 of 32 bytes, as `streamproc audit key --new FILE` writes it")
    return seed

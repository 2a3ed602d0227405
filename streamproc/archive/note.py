"""Signed notes (C2SP signed-note): a text, a blank line, and a line for each signature. Ed25519.

    text ...\n
    \n
    — <key name> base64(key id || signature)\n

A key's id is the start of sha256(name, newline, 0x01, public key); `name+id+base64(0x01 || public key)` is a public key
as one word, a vkey. Tools for transparency logs read both.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterable
from functools import cache
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from streamproc.secret import SEED_BYTES, seed_of

KEY_NAME = "streamproc"
"""The name has no partition, since one key signs all; the origin line says whose checkpoint it is."""
NOTE_CHARS_MAX = 16_384
"""Ours have about 450; a witness adds some 150 for each signature."""
ED25519 = b"\x01"
"""The signature type's byte."""
SIGNATURE_BYTES = 4 + 64
"""The id of its key, and Ed25519's signature. A witness's has a time besides."""

_VKEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class BadNote(Exception):
    """What is wrong with a note, worded as the end of a sentence about it."""


class PublicKey(Struct, frozen=True):
    """A key whose signatures can be checked. `raw` is the 32 bytes of RFC 8032."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """The first 4 bytes of its hash, by which signature lines name it."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.raw).digest()[:4]

    @property
    def vkey(self) -> str:
        """The key as one word."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self.raw).decode()}"

    @classmethod
    def parse(cls, vkey: str) -> "PublicKey":
        """Read a vkey. Raises ValueError, with what it must be, for anything else."""
        found = _VKEY.fullmatch(vkey)
        if found is not None:
            kind, raw = base64.b64decode(found[3])[:1], base64.b64decode(found[3])[1:]
            key = cls(found[1], raw)
            if kind == ED25519 and len(raw) == SEED_BYTES and key.id.hex() == found[2]:
                return key
        raise ValueError("must be a public key as `streamproc audit key` prints it: name+8 hex digits+base64")


class Signer:
    """A private key, which is never shown."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(KEY_NAME, self._key.public_key().public_bytes_raw())

    @classmethod
    def of_text(cls, text: str) -> "Signer":
        """The key whose seed is this text (see `seed_of`). Raises ValueError."""
        return cls(seed_of(text))

    def sign(self, text: str) -> str:
        """A signed note of the text, which must end with a newline."""
        signature = base64.b64encode(self.public.id + self._key.sign(text.encode())).decode()
        return f"{text}\n— {self.public.name} {signature}\n"


def new_seed() -> str:
    """A new private key as text."""
    return base64.b64encode(os.urandom(SEED_BYTES)).decode()


class Trusted:
    """The public keys whose signatures count: the one in use, and earlier ones."""

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self.keys = tuple(keys)
        self._known = {(key.name, key.id): key for key in self.keys}

    def open(self, note: str) -> tuple[str, PublicKey]:
        """The text of a note, and a trusted key that signed it.

        Raises BadNote if none did, or if a signature that names a trusted key is not that key's.
        """
        text, signatures = _split(note)
        signed_by = None
        for name, raw in signatures:
            key = self._known.get((name, raw[:4]))
            if key is None:
                continue  # a witness's, or an unknown key's
            try:
                _loaded(key.raw).verify(raw[4:], text.encode())
            except InvalidSignature:
                raise BadNote(
                    f"its signature is not that of key {name}+{key.id.hex()}: it was forged or changed"
                ) from None
            signed_by = key
        if signed_by is None:
            by = ", ".join(f"{name}+{raw[:4].hex()}" for name, raw in signatures)
            raise BadNote(f"it is signed by {by}, which is none of the keys that are trusted")
        return text, signed_by


@cache
def _loaded(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def unchecked(note: str) -> str:
    """The text of a note that is whole, whoever signed it: no signature is verified. Raises BadNote."""
    text, signatures = _split(note)
    if any(len(raw) < SIGNATURE_BYTES for _, raw in signatures):
        raise BadNote("one of its signatures is cut off")
    return text


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text and the signatures by key name."""
    body, gap, tail = note.rpartition("\n\n")
    if not gap or not tail.endswith("\n") or len(note) > NOTE_CHARS_MAX:
        raise BadNote("it is no signed note")
    signatures = []
    for line in tail[:-1].split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            raise BadNote("one of its signature lines is malformed")
        try:
            signatures.append((found[1], base64.b64decode(found[2], validate=True)))
        except binascii.Error:
            raise BadNote("it has a signature that is not base64") from None
    return body + "\n", signatures

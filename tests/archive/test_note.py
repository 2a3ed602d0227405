"""Checkpoints are signed notes that other tools read, and nothing counts that a trusted key did not sign."""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from streamproc.archive.checkpoint import Checkpoint, opened, read
from streamproc.archive.note import BadNote, PublicKey, Signer, Trusted, new_seed

SEED = bytes(range(32))
CHECKPOINT = Checkpoint(
    "24e51180-6416-47b1-bcdf-ffb323f35a5f",
    3,
    1_200,
    bytes(32),
    "1795632440916-0",
    b"\xff" * 32,
    datetime(2026, 11, 25, 18, 47, 21, 15_000, UTC),
)


def signer(n: int = 0) -> Signer:
    return Signer(bytes([*SEED[:-1], n]))


def trusting(*signers: Signer) -> Trusted:
    return Trusted([one.public for one in signers])


def test_a_note_is_written_as_the_specification_says() -> None:
    """Put together here once more, by the specification's words and not by our code."""
    text = CHECKPOINT.text()
    assert text == (
        "streamproc/24e51180-6416-47b1-bcdf-ffb323f35a5f/3\n"
        "1200\n"
        f"{43 * 'A'}=\n"
        "entry 1795632440916-0\n"
        f"chain {42 * '/'}8=\n"
        "time 2026-11-25T18:47:21.015Z\n"
    )
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    public = key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(b"streamproc\n\x01" + public).digest()[:4]
    signature = base64.b64encode(key_id + key.sign(text.encode())).decode()
    assert Signer(SEED).sign(text) == f"{text}\n— streamproc {signature}\n"
    vkey = f"streamproc+{key_id.hex()}+{base64.b64encode(bytes([1]) + public).decode()}"
    assert Signer(SEED).public.vkey == vkey
    assert PublicKey.parse(vkey) == Signer(SEED).public


def test_a_signed_checkpoint_is_read_back_with_who_signed_it() -> None:
    note = signer().sign(CHECKPOINT.text())
    assert opened(note, trusting(signer(1), signer())) == (CHECKPOINT, signer().public)


def test_a_checkpoint_of_an_earlier_key_counts_while_that_key_is_trusted() -> None:
    note = signer(1).sign(CHECKPOINT.text())
    assert opened(note, trusting(signer(2), signer(1)))[0] == CHECKPOINT
    with pytest.raises(BadNote, match="none of the keys that are trusted"):
        opened(note, trusting(signer(2)))


def test_a_witness_beside_our_signature_does_no_harm() -> None:
    note = signer().sign(CHECKPOINT.text()) + "— witness.example/w AAAAAAAA\n"
    assert opened(note, trusting(signer()))[0] == CHECKPOINT


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda note: note.replace("\n1200\n", "\n1201\n"), "not that of key"),
        (lambda note: note.replace("— streamproc ", "— streamprox "), "none of the keys"),
        (lambda note: note[:-5] + "AAA=\n", "not that of key"),
        (lambda note: note.replace("— ", "- "), "signature lines is malformed"),
        (lambda note: note[:-1], "no signed note"),
        (lambda note: note.partition("\n\n")[0] + "\n", "no signed note"),
        (lambda note: "x" * 20_000 + note, "no signed note"),
        (lambda note: "", "no signed note"),
    ],
    ids=["text", "key name", "signature", "dash", "cut off", "no signature", "too long", "empty"],
)
def test_a_note_that_was_changed_is_refused(change, problem: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadNote, match=problem):
        opened(change(signer().sign(CHECKPOINT.text())), trusting(signer()))


@pytest.mark.parametrize(
    "text",
    [
        "example.com/log\n12\nAAAA\n",
        CHECKPOINT.text().replace("\n1200\n", "\n01200\n"),
        CHECKPOINT.text().replace("entry ", "entri "),
        CHECKPOINT.text() + "more\n",
        CHECKPOINT.text().replace("2026-11-25T", "2026-99-25T"),
    ],
)
def test_a_signed_text_that_is_no_checkpoint_of_ours_is_refused(text: str) -> None:
    with pytest.raises(BadNote):
        opened(signer().sign(text), trusting(signer()))


def test_when_it_was_signed_does_not_make_two_histories() -> None:
    later = replace(CHECKPOINT, at=datetime(2027, 1, 1, tzinfo=UTC))
    assert later.says_the_same_as(CHECKPOINT)
    assert read(later.text()) == later


@pytest.mark.parametrize(
    "other",
    [{"size": 1}, {"root": b"1" * 32}, {"entry": "1-1"}, {"hash": b"1" * 32}],
    ids=lambda other: next(iter(other)),
)
def test_checkpoints_that_differ_in_anything_but_their_time_are_of_two_histories(
    other: dict[str, Any],
) -> None:
    """Signed over, such a contradiction would be lost."""
    assert not replace(CHECKPOINT, **other).says_the_same_as(CHECKPOINT)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "streamproc",
        signer().public.vkey[:-1],
        signer().public.vkey.replace("+", "-", 1),
        "a+00000000+AQ==",
    ],
)
def test_what_is_no_public_key_is_refused(vkey: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        PublicKey.parse(vkey)


def test_a_public_key_under_another_keys_id_is_refused() -> None:
    name, _, raw = signer().public.vkey.split("+", 2)
    with pytest.raises(ValueError, match="public key"):
        PublicKey.parse(f"{name}+00000000+{raw}")


def test_a_new_private_key_is_each_time_another_and_no_error_shows_one() -> None:
    assert new_seed() != new_seed()
    assert Signer.of_text(new_seed()).public.vkey.startswith("streamproc+")
    with pytest.raises(ValueError, match="32 bytes") as refused:
        Signer.of_text("c2VjcmV0")
    assert "c2VjcmV0" not in str(refused.value)
    assert repr(SEED) not in repr(Signer(SEED))

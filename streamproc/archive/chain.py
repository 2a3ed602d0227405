"""The hash chain over the archive. Pure.

    hash = sha256(TAG, previous hash, then each of: partition, seq, entry id, e, m, prefixed by its length)

A length is 8 bytes, big-endian; partition and seq are decimal text. Length prefixes keep two different entries
from giving the same input. Only bytes are hashed: no time stamp, whose precision the database could change.
The chain catches an edited, lost, added or swapped row. It cannot catch a cut tail or a whole new chain:
that takes a checkpoint which is kept elsewhere (attest.py).
"""

from hashlib import sha256
from struct import Struct as Layout

TAG = b"streamproc/archive/v1"
GENESIS = bytes(32)
"""The previous hash of a partition's first entry."""
_length = Layout(">Q").pack


def link_hash(previous: bytes, partition: int, seq: int, entry: str, e: bytes, m: bytes) -> bytes:
    """The hash of an entry, chained to the hash of the entry before it."""
    one, two, three = b"%d" % partition, b"%d" % seq, entry.encode()
    # Written out for speed: computed twice for every entry, when it is archived and when it is signed.
    whole = (
        TAG, previous,
        _length(len(one)), one, _length(len(two)), two, _length(len(three)), three,
        _length(len(e)), e, _length(len(m)), m,
    )  # fmt: skip
    return sha256(b"".join(whole)).digest()

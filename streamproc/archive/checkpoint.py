"""What a checkpoint says, and how it is written (C2SP tlog-checkpoint). Pure.

streamproc/<archive>/<partition>      origin: which archive, which partition
<size>                                the first `size` entries of the partition
<base64>                              the Merkle root over their chain hashes (RFC 6962)
entry <id>                            the last of them, its link in the chain, and when this was signed
chain <base64>
time <ISO 8601>
"""

import base64
import re
from datetime import UTC, datetime

from msgspec import Struct

from streamproc.archive.note import BadNote, PublicKey, Trusted

_B64 = r"([A-Za-z0-9+/]{43}=)"
_TEXT = re.compile(
    r"streamproc/([0-9a-f-]{36})/([0-9]{1,9})\n([1-9][0-9]{0,18})\n" + _B64 + r"\n"
    r"entry ([0-9]{1,20}-[0-9]{1,20})\nchain " + _B64 + r"\ntime ([0-9T:.-]{19,26}Z)\n"
)


class Checkpoint(Struct, frozen=True):
    """The first `size` entries of a partition, in 32 bytes. `entry` and `hash` are those of the last one."""

    archive: str
    partition: int
    size: int
    root: bytes
    entry: str
    hash: bytes
    at: datetime

    @property
    def origin(self) -> str:
        """Whose checkpoint it is."""
        return f"streamproc/{self.archive}/{self.partition}"

    def text(self) -> str:
        """The text that is signed."""
        at = self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        root, link = base64.b64encode(self.root).decode(), base64.b64encode(self.hash).decode()
        return f"{self.origin}\n{self.size}\n{root}\nentry {self.entry}\nchain {link}\ntime {at}\n"

    def says_the_same_as(self, other: "Checkpoint") -> bool:
        """Whether both state one history; when they were signed does not matter."""
        return (self.size, self.root, self.entry, self.hash) == (
            other.size,
            other.root,
            other.entry,
            other.hash,
        )


def opened(note: str, trusted: Trusted) -> tuple[Checkpoint, PublicKey]:
    """The checkpoint in a note, and who signed it. Raises BadNote."""
    text, key = trusted.open(note)
    return read(text), key


def read(text: str) -> Checkpoint:
    """The checkpoint that a note's text states, whoever signed it. Raises BadNote."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise BadNote("it is no checkpoint of a streamproc archive")
    archive, partition, size, root, entry, link, at = found.groups()
    try:
        when = datetime.fromisoformat(at)
    except ValueError:
        raise BadNote(f"its time {at} cannot be read") from None
    return Checkpoint(
        archive, int(partition), int(size), base64.b64decode(root), entry, base64.b64decode(link), when
    )

"""Merkle trees of RFC 6962 over the archive's chain hashes. Pure.

    leaf i = sha256(0x00 || chain hash of the entry with seq i + 1)        node = sha256(0x01 || left || right)

The chain says that nothing between two rows was changed; the tree says the same of the whole in 32 bytes, and lets
one row be shown to be among them by log2(n) hashes, without the others. A frontier is the few roots of complete
subtrees from which the tree grows on, so neither making nor proving ever holds the tree.
"""

from collections.abc import Iterable
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """The tree's hash of one leaf."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The tree's hash of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that only grows: the roots of its complete subtrees, the largest first."""

    __slots__ = ("_roots", "size")

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    @classmethod
    def unpacked(cls, size: int, packed: bytes) -> "Frontier":
        """The frontier that `packed` gave for a tree of `size` leaves. Raises ValueError where it cannot be."""
        if len(packed) != HASH_BYTES * size.bit_count():
            raise ValueError(
                f"a frontier of {size} leaves has {size.bit_count()} hashes, not {len(packed)} bytes"
            )
        frontier = cls()
        frontier.size = size
        frontier._roots = [packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)]
        return frontier

    def packed(self) -> bytes:
        """The subtrees' roots, one after the other."""
        return b"".join(self._roots)

    def append(self, leaf: bytes) -> None:
        """Add a leaf: it is merged with one subtree for each 1 at the end of the size in binary."""
        node, size, roots = sha256(b"\x00" + leaf).digest(), self.size, self._roots
        while size & 1:
            node = sha256(b"\x01" + roots.pop() + node).digest()
            size >>= 1
        roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The hash of the whole tree."""
        if not self._roots:
            return EMPTY_ROOT
        *rest, node = self._roots
        for left in reversed(rest):
            node = node_hash(left, node)
        return node


class Prover:
    """Makes inclusion proofs of some leaves in one pass over all leaves.

    It keeps the frontier and the wanted paths: (wanted leaves) * log2(size) hashes, most of them shared.
    """

    def __init__(self, wanted: Iterable[int]) -> None:
        self._paths: dict[int, list[bytes]] = {index: [] for index in wanted}
        self._stack: list[tuple[bytes, list[list[bytes]]]] = []
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Take in the next leaf."""
        path = self._paths.get(self.size)
        top = leaf_hash(leaf), [] if path is None else [path]
        size = self.size
        while size & 1:
            top = _joined(self._stack.pop(), top)
            size >>= 1
        self._stack.append(top)
        self.size += 1

    def finish(self) -> tuple[bytes, dict[int, list[bytes]]]:
        """The root of all leaves, and the path of each wanted one among them, from the leaf up."""
        if not self._stack:
            return EMPTY_ROOT, {}
        top = self._stack.pop()
        while self._stack:
            top = _joined(self._stack.pop(), top)
        return top[0], {index: path for index, path in self._paths.items() if index < self.size}


def _joined(
    left: tuple[bytes, list[list[bytes]]], right: tuple[bytes, list[list[bytes]]]
) -> tuple[bytes, list[list[bytes]]]:
    """Two subtrees as one; the paths of wanted leaves below each get the other's root as their next step."""
    for path in left[1]:
        path.append(right[0])
    for path in right[1]:
        path.append(left[0])
    return node_hash(left[0], right[0]), left[1] + right[1]

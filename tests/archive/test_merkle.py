"""The tree is the one of RFC 6962, whichever way it is grown, and a proof proves one leaf at one place."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.archive.merkle import EMPTY_ROOT, Frontier, Prover
from streamproc.operate.bundle.verify import tree_root

SIZE_MAX = 300


def leaves(size: int) -> list[bytes]:
    return [sha256(b"%d" % n).digest() for n in range(size)]


def naive_root(of: list[bytes]) -> bytes:
    """The definition, word for word (RFC 6962, 2.1)."""
    if not of:
        return sha256(b"").digest()
    if len(of) == 1:
        return sha256(b"\x00" + of[0]).digest()
    k = 1
    while k * 2 < len(of):
        k *= 2
    return sha256(b"\x01" + naive_root(of[:k]) + naive_root(of[k:])).digest()


def naive_path(index: int, of: list[bytes]) -> list[bytes]:
    """The definition of an audit path (RFC 6962, 2.1.1)."""
    if len(of) == 1:
        return []
    k = 1
    while k * 2 < len(of):
        k *= 2
    if index < k:
        return [*naive_path(index, of[:k]), naive_root(of[k:])]
    return [*naive_path(index - k, of[k:]), naive_root(of[:k])]


def grown(of: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in of:
        frontier.append(leaf)
    return frontier


def test_the_root_is_the_definitions_for_every_size() -> None:
    everything, frontier = leaves(SIZE_MAX), Frontier()
    assert frontier.root() == EMPTY_ROOT == naive_root([])
    for size, leaf in enumerate(everything, 1):
        frontier.append(leaf)
        assert frontier.size == size
        assert frontier.root() == naive_root(everything[:size])


@given(size=st.integers(0, SIZE_MAX), more=st.integers(0, 20))
def test_a_frontier_that_was_put_away_grows_on_to_the_same_root(size: int, more: int) -> None:
    everything = leaves(size + more)
    frontier = Frontier.unpacked(size, grown(everything[:size]).packed())
    for leaf in everything[size:]:
        frontier.append(leaf)
    assert frontier.root() == naive_root(everything)


@pytest.mark.parametrize(("size", "hashes"), [(0, 1), (3, 1), (4, 2), (7, 2)])
def test_a_frontier_of_another_size_is_refused(size: int, hashes: int) -> None:
    with pytest.raises(ValueError, match=f"of {size} leaves"):
        Frontier.unpacked(size, bytes(32 * hashes))


@given(size=st.integers(1, SIZE_MAX), data=st.data())
def test_paths_made_in_one_pass_are_the_definitions_and_give_the_root(size: int, data: st.DataObject) -> None:
    everything = leaves(size)
    wanted = data.draw(st.sets(st.integers(0, size + 5), max_size=20))
    prover = Prover(wanted)
    for leaf in everything:
        prover.append(leaf)
    root, paths = prover.finish()
    assert root == naive_root(everything)
    assert paths.keys() == {index for index in wanted if index < size}
    for index, path in paths.items():
        assert path == naive_path(index, everything)
        assert tree_root(everything[index], index, size, path) == root


@given(size=st.integers(1, 80), data=st.data())
def test_a_path_proves_nothing_about_another_leaf_place_size_or_path(size: int, data: st.DataObject) -> None:
    everything = leaves(size)
    root, index = naive_root(everything), data.draw(st.integers(0, size - 1))
    path = naive_path(index, everything)
    assert tree_root(sha256(b"other").digest(), index, size, path) != root
    other = data.draw(st.integers(0, size + 1).filter(lambda n: n != index))
    assert tree_root(everything[index], other, size, path) != root
    assert tree_root(everything[index], index, size, [*path, bytes(32)]) != root
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert tree_root(everything[index], index, size, path[:at] + path[at + 1 :]) != root
        assert tree_root(everything[index], index, size, [*path[:at], bytes(32), *path[at + 1 :]]) != root


def test_a_path_of_another_size_is_none_at_all() -> None:
    everything = leaves(4)
    path = naive_path(0, everything)
    assert tree_root(everything[0], 0, 4, path) == naive_root(everything)
    assert tree_root(everything[0], 0, 8, path) is None
    assert tree_root(everything[0], 0, 2, path) is None
    assert tree_root(everything[0], -1, 4, path) is tree_root(everything[0], 4, 4, path) is None

"""The chain names the first wrong link, whatever was done to the archive."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.load import chained
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.store import Head
from streamproc.domain.entry_ids import id_before, id_key
from streamproc.errors import LogBroken
from tests.chained import BrokenLink, Position, verify
from tests.projections.histories import Stored


def archive(n: int = 5) -> list[ArchivedEntry]:
    entries = [Stored(f"{ms}-0", b"[%d]" % ms, b"{}") for ms in range(1, n + 1)]
    rows, _, _ = chained(0, Head(), entries)
    return rows


def rehashed(rows: list[ArchivedEntry], seq: int) -> list[ArchivedEntry]:
    """Row `seq` with another content and the hash that goes with it."""
    row, before = rows[seq - 1], rows[seq - 2].hash if seq > 1 else GENESIS
    forged = replace(row, e=b"forged", hash=link_hash(before, 0, seq, row.id, b"forged", row.m))
    return [*rows[: seq - 1], forged, *rows[seq:]]


def test_an_untouched_archive_verifies_from_the_start_and_from_the_middle():
    rows = archive()
    assert verify(rows) == Position(5, rows[-1].hash)
    assert verify(rows[2:], Position(2, rows[1].hash)) == verify(rows)


def test_nothing_verifies_to_where_it_started():
    assert verify([]) == Position(0, GENESIS)


@pytest.mark.parametrize(
    ("tamper", "seq"),
    [
        (lambda rows: [*rows[:2], replace(rows[2], e=b"[4]"), *rows[3:]], 3),
        (lambda rows: [*rows[:2], replace(rows[2], m=b"{ }"), *rows[3:]], 3),
        (lambda rows: [*rows[:2], replace(rows[2], id="3-1"), *rows[3:]], 3),
        (lambda rows: [*rows[:2], replace(rows[2], partition=1), *rows[3:]], 3),
        (lambda rows: [*rows[:2], replace(rows[2], hash=bytes(32)), *rows[3:]], 3),
        (lambda rows: rows[1:], 2),
        (lambda rows: [*rows[:2], *rows[3:]], 4),
        (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], 3),
        (lambda rows: [rows[0], replace(rows[2], seq=2), replace(rows[1], seq=3), *rows[3:]], 2),
        (lambda rows: [*rows[:2], rows[1], *rows[2:]], 2),
        (lambda rows: rehashed(rows, 3), 4),
    ],
    ids=[
        "byte of e", "byte of m", "id", "partition", "hash", "first deleted", "middle deleted", "swapped",
        "swapped and renumbered", "doubled", "rewritten with its hash",
    ],
)  # fmt: skip
def test_the_first_wrong_link_is_named(
    tamper: Callable[[list[ArchivedEntry]], list[ArchivedEntry]], seq: int
):
    found = verify(tamper(archive()))
    assert isinstance(found, BrokenLink)
    assert found.seq == seq


def test_the_chain_alone_does_not_catch_a_cut_tail():
    """Why checkpoints are to be kept elsewhere."""
    assert verify(archive()[:-1]) == Position(4, archive()[3].hash)


parts = st.tuples(st.text(max_size=4), st.binary(max_size=4), st.binary(max_size=4))


@given(one=parts, other=parts)
def test_where_a_field_ends_is_part_of_the_hash(
    one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]
):
    assert (link_hash(GENESIS, 0, 1, *one) == link_hash(GENESIS, 0, 1, *other)) == (one == other)


def test_the_hash_is_this_one_for_ever():
    assert (
        link_hash(GENESIS, 0, 1, "1-0", b"[]", b"{}").hex()
        == "2e3b6ba4aa9ef29a093137b4a343114d4b96ca5a82b55bd972cd50833c26ac28"
    )


def test_an_entry_that_does_not_come_after_the_one_before_it_is_refused():
    for second in ("5-1", "5-0", "4-9"):
        with pytest.raises(LogBroken, match=f"{second} comes after entry 5-1"):
            chained(0, Head(), [Stored("5-1", b"[]"), Stored(second, b"[]")])


def test_entry_ids_compare_as_numbers():
    assert id_key("9-10") > id_key("9-9") > id_key("8-11")


@pytest.mark.parametrize(("entry", "before"), [("5-1", "5-0"), ("5-0", f"4-{2**64 - 1}"), ("0-0", "0-0")])
def test_the_id_before_leaves_no_room_for_an_entry(entry: str, before: str):
    assert id_before(entry) == before

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamproc.clients.json_text import NESTING_MAX, NotJson, decode_json, names_are_unique


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"nope", b"{", b'{"a":1}}', b"NaN", b'{"a":NaN}', b"[Infinity]", b"-Infinity", b"{'a':1}",
        b"\xff\xfe", b'"\xff"', '{"a":1}'.encode("utf-16"), b"[" + b"9" * 5_000 + b"]", b"[" * 100_000, b"<html>",
    ],
)  # fmt: skip
def test_what_is_not_json_is_said_to_be_so(body: bytes) -> None:
    with pytest.raises(NotJson):
        decode_json(body)


def test_a_number_that_nobody_can_hold_is_refused_as_such_and_one_of_the_last_length_is_taken() -> None:
    with pytest.raises(NotJson, match="it holds a number with too many digits"):
        decode_json(b"[" + b"9" * 4_301 + b"]")
    assert names_are_unique(b"[" + b"9" * 4_300 + b"]")
    assert decode_json(b"[" + b"9" * 4_300 + b"]") == [10**4_300 - 1]


def test_nesting_at_the_limit_is_taken_and_one_level_more_is_not() -> None:
    assert decode_json(b"[" * NESTING_MAX + b"]" * NESTING_MAX)
    with pytest.raises(NotJson, match="deeper"):
        decode_json(b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1))


def test_many_flat_objects_are_not_deep() -> None:
    assert decode_json(b"[" + b",".join([b"{}"] * 1_000) + b"]") == [{}] * 1_000


def test_a_lone_surrogate_is_legal_json() -> None:
    assert decode_json(b'{"a":"\\ud83d"}') == {"a": "\ud83d"}


def test_a_long_integer_stays_an_integer() -> None:
    assert decode_json(b"[100000000000000000000000000000001]") == [100000000000000000000000000000001]


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    assert decode_json(b'{"a":1,"a":2}') == {"a": 2}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values.map(lambda value: json.dumps(value).encode()))
def test_it_agrees_with_the_standard_library(body: bytes) -> None:
    assume(body.count(b"[") + body.count(b"{") <= NESTING_MAX)
    assert decode_json(body) == json.loads(body)


@given(st.binary())
def test_any_bytes_are_either_decoded_or_refused(body: bytes) -> None:
    try:
        value = decode_json(body)
    except NotJson:
        return
    assert type(value) in (dict, list, str, int, float, bool, type(None))

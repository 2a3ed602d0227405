"""The shape of each event is that of its version: its readers wait for a later version, and stop at another shape.

`shapes.json` has the newest version of every event: its fields, with the words that each may hold.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect

from streamproc.domain.events import Fact
from streamproc.domain.wire import EVENT_KINDS, NEWEST, decode_events, tag_of
from streamproc.errors import Unprocessable

SHAPES: dict[str, str] = json.loads((Path(__file__).parent / "shapes.json").read_text(encoding="utf-8"))
TO_DO = (
    "give the event the next version `v` where it is defined, a step in UPCASTERS of streamproc/domain/wire.py,"
    " a sample in tests/domain/golden, and in tests/domain/shapes.json instead of its line"
)


def shape(kind: Any) -> str:
    """A type as text."""
    match kind:
        case inspect.StructType():
            return "{" + ", ".join(f"{each.encode_name} {shape(each.type)}" for each in kind.fields) + "}"
        case inspect.LiteralType():
            return "|".join(sorted(map(str, kind.values)))
        case inspect.UnionType():
            return " or ".join(sorted(map(shape, kind.types)))
        case inspect.ListType():
            return f"[{shape(kind.item_type)}]"
        case inspect.DictType():
            return f"[{shape(kind.key_type)}: {shape(kind.value_type)}]"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=tag_of)
def test_another_shape_is_another_version(kind: type[Fact]) -> None:
    name = f"{tag_of(kind)}.v{NEWEST[tag_of(kind)]}"
    now = shape(inspect.type_info(kind))
    assert SHAPES.get(name) == now, f"{name}: {TO_DO}\n {json.dumps(name)}: {json.dumps(now)},"


def test_a_shape_is_that_of_an_event() -> None:
    assert SHAPES.keys() == {f"{kind}.v{newest}" for kind, newest in NEWEST.items()}, TO_DO


def test_a_word_that_a_version_did_not_have_stops_its_readers() -> None:
    wire = b'[{"type":"timer.fired","v":1,"at":1,"payout":"p","timer":"lunch"}]'
    with pytest.raises(Unprocessable) as caught:
        decode_events(wire)
    assert type(caught.value) is Unprocessable  # and not Newer, for which they would wait

"""Samples of every version of every event, as bytes that were once written: they are read for ever, and mean the same.

A file holds `wire`, which nobody may change, and `means`, the event in its newest version. Who gives an event a new
version adds a file for it, and updates `means` of the older ones to what the upcaster makes of them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from streamproc.domain.shown import event_fields
from streamproc.domain.wire import NEWEST, decode_events, encode_events, type_of

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = [
    (path.name.removesuffix(".json"), sample)
    for path in sorted(GOLDEN.glob("*.json"))
    for sample in json.loads(path.read_text(encoding="utf-8"))
]


def test_every_version_of_every_event_has_a_sample() -> None:
    wanted = {f"{kind}.v{version}" for kind, newest in NEWEST.items() for version in range(1, newest + 1)}
    wrong = sorted({name for name, _ in SAMPLES} ^ wanted)
    assert not wrong, (
        f"{wrong}: of each event's each version one file NAME.json in tests/domain/golden, and no other"
    )


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_a_sample_of_then_is_read_as_what_it_means(name: str, sample: dict[str, Any]) -> None:
    raw = json.loads(sample["wire"])
    assert f"{raw[0]['type']}.v{raw[0]['v']}" == name
    (event,) = decode_events(sample["wire"].encode())
    assert {"type": type_of(event)} | event_fields(event) == sample["means"]


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_what_is_written_today_are_the_bytes_of_the_newest_sample(name: str, sample: dict[str, Any]) -> None:
    kind, _, version = name.rpartition(".v")
    if int(version) == NEWEST[kind]:
        now = encode_events(decode_events(sample["wire"].encode())).decode()
        assert now == sample["wire"], (
            f"{name} is written otherwise: it needs a new version, and a sample of that"
        )

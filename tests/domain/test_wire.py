"""What is on the wire can be read again, and what cannot be understood is refused by name."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain.shown import event_json
from streamproc.domain.wire import (
    EVENT_KINDS,
    NEWEST,
    decode_events,
    encode_events,
    payout_of,
    type_of,
    upcast,
)
from streamproc.errors import Unprocessable

FIRED = e.TimerFired(at=7, payout="pout_1", timer="hold_expiry")
OBSERVED = e.PayoutObserved(
    at=5,
    payout="pout_1",
    account="acc_1",
    source="webhook",
    bank_event="payout.pending",
    facts=e.BankPayout(id="pout_1", amount=100, currency="INR", status="pending", notes={"agent_id": "a ₹"}),
)


def wire(**changes: object) -> bytes:
    return json.dumps(
        [{"type": "timer.fired", "v": 1, "at": 7, "payout": "p", "timer": "hold_expiry"} | changes]
    ).encode()


def test_events_are_read_back_as_they_were_written_and_in_order():
    assert decode_events(encode_events([OBSERVED, FIRED])) == [OBSERVED, FIRED]


def test_every_event_says_its_type_and_version_on_the_wire():
    assert json.loads(encode_events([FIRED]))[0].items() >= {"type": "timer.fired", "v": 1, "at": 7}.items()


DECIDED = e.PayoutDecided(
    at=7, payout="p", account="acc_1", agent="bot", amount=100, decision="APPROVED", reason="POLICY_OK",
    policy_version=1, bank_status="pending",
)  # fmt: skip
LEAVING_OUT = [kind for kind in EVENT_KINDS if kind.__struct_config__.omit_defaults]


@pytest.mark.parametrize("kind", LEAVING_OUT, ids=lambda kind: kind.__name__)
def test_an_event_that_leaves_out_its_defaults_still_says_its_version(kind: type[e.Fact]):
    [version] = [field for field in msgspec.structs.fields(kind) if field.name == "v"]
    assert version.default is msgspec.NODEFAULT


def test_what_only_repeats_its_default_is_not_on_the_wire_and_is_there_again_when_it_is_read():
    assert encode_events([DECIDED]) == (
        b'[{"type":"payout.decided","v":3,"at":7,"payout":"p","account":"acc_1","agent":"bot","amount":100,'
        b'"decision":"APPROVED","reason":"POLICY_OK","policy_version":1,"bank_status":"pending"}]'
    )
    (read,) = decode_events(encode_events([DECIDED]))
    assert read == DECIDED
    assert encode_events([read]) == encode_events([DECIDED])


CHECKED = e.VelocityChecked(at=7, payout="p", number=1, used=0, limit=0, window_s=0)


def test_an_observation_says_neither_the_banks_id_nor_its_event_twice():
    assert b'"facts":{"amount":100,"currency":"INR",' in encode_events([OBSERVED])
    others = [
        replace(OBSERVED, bank_event="payout.updated"),
        replace(OBSERVED, payout="spi_1"),
        replace(OBSERVED, source="poll", bank_event=""),
    ]
    for seen in others:
        (read,) = decode_events(encode_events([seen]))
        assert read == seen
        assert encode_events([read]) == encode_events([seen])


def test_an_entry_says_the_time_and_the_payout_of_a_decision_once():
    later, of_another = replace(CHECKED, at=8), replace(CHECKED, payout="q")
    events = [CHECKED, DECIDED, later, of_another, FIRED, replace(FIRED, at=7, payout="p")]
    wire = encode_events(events)
    assert decode_events(wire) == events
    said = [{"at", "payout"} & one.keys() for one in json.loads(wire)]
    assert said == [{"at", "payout"}, set(), *[{"at", "payout"}] * 4]
    assert encode_events(decode_events(wire)) == wire


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ('"at":7', ""),
        ('"payout":"p"', ""),
        ('"at":0,"payout":"p"', ""),
        ('"at":7,"payout":""', ""),
        ('"at":7,"payout":"p"', '"at":7'),
        ('"at":7,"payout":"p"', '"payout":"p"'),
    ],
)
def test_an_event_of_a_decision_whose_time_or_payout_nothing_says_is_refused(first: str, then: str):
    said = '"type":"payout.velocity_checked","v":4,"number":1,"used":0,"limit":0,"window_s":0'
    entry = (
        "["
        + ",".join("{" + ",".join(part for part in (said, one) if part) + "}" for one in (first, then))
        + "]"
    )
    with pytest.raises(
        Unprocessable, match=r"'payout.velocity_checked' v4: nothing says its time or its payout"
    ):
        decode_events(entry.encode())


def test_a_decision_without_an_event_of_a_payout_before_it_names_its_own():
    about_none = e.BankEventIgnored(at=7, account="acc_1", bank_event="x")
    assert decode_events(encode_events([about_none, DECIDED])) == [about_none, DECIDED]
    with pytest.raises(Unprocessable, match="nothing says its time or its payout"):
        decode_events(encode_events([about_none, DECIDED]).replace(b'"at":7,"payout":"p",', b""))


def test_what_is_left_out_on_the_wire_is_shown_all_the_same():
    data = event_json("0:1-1:0", DECIDED)["data"]
    assert data.keys() == {name for name in DECIDED.__struct_fields__ if name != "at"}
    assert (data["reasons"], data["findings"], data["by"], data["v"]) == (["POLICY_OK"], [], "", 3)


def test_an_old_version_that_reads_like_the_newest_is_the_newest_when_it_is_read():
    wire = encode_events([DECIDED, FIRED]).replace(b'decided","v":3', b'decided","v":1')
    assert decode_events(wire) == [DECIDED, FIRED]


def test_every_kind_of_event_has_its_own_type():
    assert len(NEWEST) == len(EVENT_KINDS) > 0


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(Unprocessable, match=r"payout\.teleported"):
        decode_events(wire(type="payout.teleported"))


def test_a_newer_version_is_refused_by_name_although_its_fields_would_fit():
    with pytest.raises(Unprocessable, match=r"timer\.fired.*version 2"):
        decode_events(wire(v=2))


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.0])
def test_a_version_that_is_none_is_refused(version: object):
    with pytest.raises(Unprocessable, match="version"):
        decode_events(wire(v=version))


def test_one_unknown_event_among_known_ones_refuses_the_whole_entry():
    known = json.loads(encode_events([OBSERVED]))
    with pytest.raises(Unprocessable, match="nothing"):
        decode_events(json.dumps([*known, {"type": "nothing", "v": 1, "at": 1}]).encode())


def test_a_known_event_of_the_wrong_shape_is_refused_with_its_field():
    with pytest.raises(Unprocessable, match=r"timer\.fired.*timer"):
        decode_events(wire(timer="lunch"))


@pytest.mark.parametrize("e_field", [b"", b"{}", b"[1]", b"\xff", b"[{}]"])
def test_bytes_that_are_not_a_list_of_events_are_refused(e_field: bytes):
    with pytest.raises(Unprocessable):
        decode_events(e_field)


def test_a_field_that_a_later_writer_added_is_ignored():
    assert decode_events(wire(colour="blue")) == [e.TimerFired(at=7, payout="p", timer="hold_expiry")]


def test_an_old_version_goes_through_each_upcaster_in_turn():
    steps = {
        ("x", 1): lambda raw: raw | {"a": 1},
        ("x", 2): lambda raw: raw | {"b": raw["a"]},
    }
    assert upcast({"type": "x", "v": 1}, steps, {"x": 3}) == {"type": "x", "v": 3, "a": 1, "b": 1}
    assert upcast({"type": "x", "v": 3}, steps, {"x": 3}) == {"type": "x", "v": 3}


def test_an_old_version_without_an_upcaster_is_refused():
    with pytest.raises(Unprocessable, match="no upcaster to 2"):
        upcast({"type": "x", "v": 1}, {}, {"x": 2})


def test_an_event_names_its_payout_and_its_type():
    assert (payout_of(FIRED), type_of(FIRED)) == ("pout_1", "timer.fired")
    assert payout_of(e.BankEventIgnored(at=1, account="acc_1", bank_event="x")) == ""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.clients.json_text import NESTING_MAX
from streamproc.clients.razorpay_entities import read_payout
from streamproc.domain.deliveries import derived_keys
from streamproc.domain.events import (
    BankDowntimeReported,
    BankEventIgnored,
    BankPayout,
    Event,
    PayoutMalformed,
    PayoutObserved,
)
from streamproc.domain.wire import decode_events, decode_meta
from streamproc.errors import InputError
from streamproc.ingress.translate import PAYOUT_STATE_EVENTS, Translation, append_of, translate

NOW_US = 1_760_000_000_000_000
PAYOUT = "pout_Lq3vD0pZ8m2XkA"


def entity(**changes: object) -> dict[str, object]:
    plain = {
        "id": PAYOUT,
        "entity": "payout",
        "amount": 250_000,
        "currency": "INR",
        "status": "pending",
        "notes": [],
    }
    return plain | changes


def envelope(event: object = "payout.pending", payout: object = None, **changes: object) -> dict[str, object]:
    plain = {
        "entity": "event",
        "account_id": "acc_Kt5wJ2xPq8RmZn",
        "event": event,
        "contains": ["payout"],
        "payload": {"payout": {"entity": entity() if payout is None else payout}},
        "created_at": 1_760_000_000,
    }
    return plain | changes


def translated(body: Any, delivery: str = "Rp71ZiqdEWusLa") -> Translation:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return translate(raw, delivery=delivery, fallback_account="acc_fallback", now_us=NOW_US)


def event_of(body: Any, delivery: str = "Rp71ZiqdEWusLa") -> Event:
    (event,) = translated(body, delivery).append.events
    return event


def malformed(body: Any) -> PayoutMalformed:
    event = event_of(body)
    assert isinstance(event, PayoutMalformed)
    return event


def observed(body: Any) -> PayoutObserved:
    event = event_of(body)
    assert isinstance(event, PayoutObserved)
    return event


def test_a_pending_webhook_is_an_observation_with_everything_that_the_log_needs() -> None:
    assert translated(envelope()).ignored is False
    assert observed(envelope()) == PayoutObserved(
        at=NOW_US,
        payout=PAYOUT,
        account="acc_Kt5wJ2xPq8RmZn",
        source="webhook",
        bank_event="payout.pending",
        delivery="Rp71ZiqdEWusLa",
        facts=BankPayout(id=PAYOUT, amount=250_000, currency="INR", status="pending"),
    )


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ("payout.pending", "pending"),
        ("payout.rejected", "rejected"),
        ("payout.queued", "queued"),
        ("payout.initiated", "processing"),
        ("payout.processed", "processed"),
        ("payout.updated", "processed"),
        ("payout.reversed", "reversed"),
        ("payout.failed", "failed"),
    ],
)
def test_the_status_is_the_entitys_not_the_event_names(event: str, status: str) -> None:
    seen = observed(envelope(event, entity(status=status)))
    assert (seen.bank_event, seen.facts.status) == (event, status)


def test_php_style_escapes_are_read() -> None:
    body = (
        json.dumps(envelope(payout=entity(notes={"vendor_url": "https://v.example/é"})))
        .replace("/", "\\/")
        .encode()
    )
    assert observed(body).facts.notes == {"vendor_url": "https://v.example/é"}


def test_an_entity_that_is_not_wrapped_is_read() -> None:
    assert observed(envelope(payload={"payout": entity()})).facts.id == PAYOUT


def test_fields_beside_the_entity_are_read_and_the_entitys_own_count_first() -> None:
    inner = {"id": PAYOUT, "amount": 500, "currency": "INR"}
    wrapper = {"entity": inner, "amount": 999, "status": "pending", "notes": {"agent_id": "a"}}
    facts = observed(envelope(payload={"payout": wrapper})).facts
    assert (facts.amount, facts.status, facts.notes) == (500, "pending", {"agent_id": "a"})


@pytest.mark.parametrize("account", [None, "", 7, "acc/../x", "a" * 65, ["acc_1"]])
def test_without_a_usable_account_the_fallback_is_used(account: object) -> None:
    delivery = translated(envelope(account_id=account))
    assert delivery.append.account == "acc_fallback"


def test_a_payout_that_cannot_be_governed_is_recorded_with_its_id_and_the_problem() -> None:
    event = malformed(envelope(payout=entity(amount="250000")))
    assert (event.payout, event.problem) == (PAYOUT, 'amount "250000" is not an integer of paise')


@pytest.mark.parametrize(
    "payload", [{}, {"payout": None}, {"payout": []}, {"payout": {}}, {"payout": {"entity": {}}}]
)
def test_a_payout_event_without_a_payout_is_recorded_as_malformed(payload: object) -> None:
    assert malformed(envelope(payload=payload)).payout == ""


@pytest.mark.parametrize(
    "event",
    [
        "payment.captured",
        "order.paid",
        "transaction.created",
        "payout_link.issued",
        "payout.cancelled",
        "x" * 500,
    ],
)
def test_every_other_event_is_recorded_as_ignored(event: str) -> None:
    fact = event_of(envelope(event))
    assert isinstance(fact, BankEventIgnored)
    assert (fact.bank_event, fact.account) == (event[:64], "acc_Kt5wJ2xPq8RmZn")
    assert translated(envelope(event)).ignored


def test_a_downtime_says_which_rails_and_since_when() -> None:
    fields = {"method": ["IMPS", "NEFT", 7], "begin": 1_591_935_238, "end": None, "status": "started"}
    body = envelope("payout.downtime.started", payload={"payout.downtime": {"entity": fields}})
    assert event_of(body) == BankDowntimeReported(
        at=NOW_US,
        account="acc_Kt5wJ2xPq8RmZn",
        bank_event="payout.downtime.started",
        delivery="Rp71ZiqdEWusLa",
        methods=["IMPS", "NEFT"],
        begin=1_591_935_238,
    )


def test_a_resolved_downtime_may_lack_account_contains_and_time() -> None:
    fields = {"method": "IMPS", "begin": 1, "end": 2}
    body = {
        "entity": "event",
        "event": "payout.downtime.resolved",
        "payload": {"payout.downtime": {"entity": fields}},
    }
    fact = event_of(body)
    assert isinstance(fact, BankDowntimeReported)
    assert (fact.account, fact.methods, fact.begin, fact.end) == ("acc_fallback", ["IMPS"], 1, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"7", b'"payout.pending"', b"{}", b"not json", b"<xml/>", b"\xff\xfe", b"{} {}",
        {"event": "payout.pending"}, {"event": None, "payload": {}}, {"event": 7, "payload": {}},
        {"event": "", "payload": {}}, {"event": " ", "payload": {}}, {"payload": {}},
        {"event": "payout.pending", "payload": []}, {"event": "payout.pending", "payload": None},
        b'{"event":"payout.pending","payload":{"x":NaN}}', b'{"event":"payout.pending","payload":{"x":-Infinity}}',
    ],
)  # fmt: skip
def test_what_is_no_payload_is_refused(body: Any) -> None:
    with pytest.raises(InputError, match="not a payload"):
        translated(body)


def test_a_body_that_nests_too_deeply_is_refused() -> None:
    deep: object = "x"
    for _ in range(NESTING_MAX):
        deep = [deep]
    with pytest.raises(InputError, match="deeper"):
        translated(envelope(payout=entity(notes={"deep": deep})))


def test_a_key_that_is_there_twice_does_no_harm() -> None:
    raw = json.dumps(envelope()).replace('"amount": 250000', '"amount": 1, "amount": 250000').encode()
    assert observed(raw).facts.amount == 250_000


# ---- keys -------------------------------------------------------------------------------


def keys(body: Any, delivery: str = "") -> tuple[str, ...]:
    return translated(body, delivery).append.keys


def test_an_observation_is_keyed_by_delivery_and_by_payout_and_status() -> None:
    first, second = keys(envelope(), "Rp71ZiqdEWusLa")
    assert first.startswith("wh:Rp71ZiqdEWusLa:")
    assert second == f"st:{PAYOUT}:pending"


def test_without_an_event_id_payout_and_status_are_the_key() -> None:
    assert keys(envelope()) == (f"st:{PAYOUT}:pending",)


def test_another_body_under_the_same_event_id_is_another_delivery() -> None:
    one, other = keys(envelope(), "id1")[0], keys(envelope(created_at=1), "id1")[0]
    assert one != other


@pytest.mark.parametrize(
    "changed",
    [
        {"utr": "523223155921"},
        {"fees": 590},
        {"tax": 90},
        {"status": "processing"},
        {"status_details": {"reason": "x"}},
    ],
)
def test_two_updates_that_say_something_different_are_two(changed: dict[str, object]) -> None:
    plain = entity(status="processed")
    assert keys(envelope("payout.updated", plain)) != keys(envelope("payout.updated", plain | changed))


def test_the_same_update_again_is_the_same() -> None:
    plain = entity(status="processed", utr="1")
    assert keys(envelope("payout.updated", plain)) == keys(envelope("payout.updated", plain, created_at=5))


def test_an_update_never_hides_the_first_sight_of_a_status() -> None:
    assert not set(keys(envelope("payout.updated"))) & set(keys(envelope("payout.pending")))


@pytest.mark.parametrize("payout", [entity(), entity(amount=1), entity(id=None)])
def test_a_payout_has_the_same_key_by_webhook_and_by_poll(payout: dict[str, object]) -> None:
    polled = append_of(read_payout(payout), account="acc_1", source="poll", now_us=NOW_US)
    assert polled.keys == keys(envelope(payout=payout))


def test_the_same_malformed_payout_is_one_dead_letter_and_another_problem_another() -> None:
    assert keys(envelope(payout=entity(amount=1))) == keys(envelope(payout=entity(amount=1), created_at=2))
    assert keys(envelope(payout=entity(amount=1))) != keys(envelope(payout=entity(currency=None)))


def test_two_malformed_payouts_without_ids_are_two() -> None:
    assert keys(envelope(payout=entity(id=None))) != keys(envelope(payout=entity(id=None, amount=300)))


def test_an_ignored_body_replayed_under_a_new_event_id_shares_a_key() -> None:
    """The signature does not cover the event id, so anybody who saw a body can send it under another."""
    assert set(keys(envelope("order.paid"), "id1")) & set(keys(envelope("order.paid"), "id2"))


# ---- whatever comes ---------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
events = st.sampled_from([*sorted(PAYOUT_STATE_EVENTS), "payout.downtime.started", "order.paid"])


def stored(delivery: Translation) -> None:
    """Every delivery can be written to the log, under short plain keys, which its entry gives again."""
    sent = delivery.append.delivery(b'{"by":"webhook"}')
    assert delivery.append.keys
    if sent.keys_derived:
        assert derived_keys(decode_events(sent.e), decode_meta(sent.m).body) == delivery.append.keys
    else:
        assert delivery.append.keys[-1].startswith("bad:"), "only a payout without an id"
    for key in delivery.append.keys:
        assert key.isascii()
        assert len(key) < 160


@given(events, st.sampled_from(["payload", "account_id", "event", "contains", "created_at"]), anything)
def test_whatever_stands_in_the_envelope_it_is_recorded_or_refused(
    event: str, field: str, value: object
) -> None:
    try:
        delivery = translated(envelope(event, **{field: value}) if field != "event" else envelope(value))
    except InputError:
        return
    stored(delivery)


@given(events, st.sampled_from(sorted(entity())), anything)
def test_whatever_stands_in_the_payout_it_is_recorded(event: str, field: str, value: object) -> None:
    body = json.dumps(envelope(event, entity(**{field: value})))
    if "NaN" not in body and "Infinity" not in body:
        stored(translated(body.encode()))


@given(st.binary(max_size=200))
def test_any_bytes_are_recorded_or_refused(body: bytes) -> None:
    try:
        stored(translated(body))
    except InputError:
        return

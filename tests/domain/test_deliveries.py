"""Idempotency keys, byte for byte: in another form, what was delivered before an upgrade would count again after it."""

import pytest
from msgspec.structs import replace

from streamproc.domain.deliveries import (
    UPDATED,
    body_digest,
    body_key,
    delivery_key,
    derived_keys,
    malformed_key,
    observation_key,
    request_key,
)
from streamproc.domain.events import (
    BankDowntimeReported,
    BankEventIgnored,
    BankPayout,
    Event,
    PayoutMalformed,
    PayoutObserved,
)
from tests.words import ACCOUNT, NOW, requested

PAYOUT = BankPayout(
    id="pout_1", amount=100, currency="INR", status="processed", utr="U1", fees=118, tax=18, reason="x"
)
DIGEST = "2cf24dba5fb0a30e"


def test_the_form_of_every_key_is_what_it_always_was() -> None:
    assert body_digest(b"hello") == DIGEST
    assert delivery_key("evt_1", DIGEST) == "wh:evt_1:2cf24dba5fb0a30e"
    assert body_key(DIGEST) == "body:2cf24dba5fb0a30e"
    assert observation_key(PAYOUT) == observation_key(PAYOUT, "payout.processed") == "st:pout_1:processed"
    assert observation_key(PAYOUT, UPDATED) == "up:pout_1:e91ba6443c898773"
    assert request_key("spi_1") == "in:spi_1"
    assert malformed_key("pout_1", "amount 99") == "bad:pout_1:2da2884880dcca2f"


@pytest.mark.parametrize(
    "changed", [{"status": "reversed"}, {"utr": "U2"}, {"fees": 119}, {"tax": 19}, {"reason": "y"}]
)
def test_an_update_is_another_one_if_any_field_that_an_update_may_change_differs(
    changed: dict[str, object],
) -> None:
    assert observation_key(replace(PAYOUT, **changed), UPDATED) != observation_key(PAYOUT, UPDATED)  # type: ignore[arg-type]


OBSERVED = PayoutObserved(
    at=NOW, payout="pout_1", account=ACCOUNT, source="webhook", delivery="evt_1", facts=PAYOUT
)
ASKED = requested()


@pytest.mark.parametrize(
    ("event", "digest", "keys"),
    [
        (OBSERVED, DIGEST, (f"wh:evt_1:{DIGEST}", "st:pout_1:processed")),
        (OBSERVED, "", ("st:pout_1:processed",)),
        (replace(OBSERVED, delivery=""), DIGEST, ("st:pout_1:processed",)),
        (ASKED, "", (f"in:{ASKED.payout}",)),
        (
            PayoutMalformed(
                at=NOW,
                payout="pout_1",
                account=ACCOUNT,
                source="webhook",
                delivery="evt_1",
                problem="amount 99",
            ),
            DIGEST,
            (f"wh:evt_1:{DIGEST}", "bad:pout_1:2da2884880dcca2f"),
        ),
        (PayoutMalformed(at=NOW, payout="", account=ACCOUNT, source="poll", problem="no id"), DIGEST, ()),
        (
            BankEventIgnored(at=NOW, account=ACCOUNT, bank_event="order.paid", delivery="evt_1"),
            DIGEST,
            (f"wh:evt_1:{DIGEST}", f"body:{DIGEST}"),
        ),
        (
            BankDowntimeReported(at=NOW, account=ACCOUNT, bank_event="payout.downtime.started"),
            DIGEST,
            (f"body:{DIGEST}",),
        ),
        (BankEventIgnored(at=NOW, account=ACCOUNT, bank_event="order.paid"), "", ()),
    ],
)
def test_a_recovery_derives_from_an_entry_the_keys_that_its_delivery_had(
    event: Event, digest: str, keys: tuple[str, ...]
) -> None:
    assert derived_keys([event], digest) == keys

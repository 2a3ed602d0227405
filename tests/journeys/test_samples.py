"""Every documented webhook event, and odd but legitimate ones, through the real server to the right state.

The payouts are not known to the sandbox: what the bank is told about them is refused and becomes a dead letter.
"""

import json
from pathlib import Path

import pytest

from streamproc.domain import events as e
from tests.bank import until
from tests.journeys.system import System, kinds, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLES = Path(__file__).with_name("samples")
STATES = {
    "pending": "rejected",  # of an agent nobody named: NO_POLICY
    "pending-expanded-fund-account": "rejected",
    "pending-notes-empty-list": "rejected",
    "pending-notes-with-numbers": "rejected",
    "pending-no-fund-account": "rejected",
    "pending-extra-keys": "rejected",
    "pending-unknown-words": "rejected",
    "queued": "rejected",
    "initiated": "bypassed",
    "processed": "bypassed",
    "processed-without-utr": "bypassed",
    "updated": "bypassed",
    "reversed": "reversed",
    "failed": "failed",
    "rejected": "declined",
}
DOWNTIMES = ("downtime-started", "downtime-resolved")


def body(name: str) -> bytes:
    """A sample as it is stored."""
    return (SAMPLES / f"{name}.json").read_bytes()


def changed(name: str, payout: str, **fields: object) -> bytes:
    """A sample about another payout, with some fields changed."""
    envelope = json.loads(body(name))
    envelope["payload"]["payout"]["entity"] |= {"id": payout, **fields}
    return json.dumps(envelope).encode()


async def test_every_sample_is_used() -> None:
    assert {path.stem for path in SAMPLES.glob("*.json")} == {*STATES, *DOWNTIMES}


@pytest.mark.parametrize(("name", "state"), STATES.items())
async def test_a_documented_payload_is_taken_and_leads_to_its_state(
    system: System, name: str, state: str
) -> None:
    payout = json.loads(body(name))["payload"]["payout"]["entity"]["id"]

    answer = await system.post(body(name), event_id=f"Sample{name}"[:64])

    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    record = await system.reaches(payout, state)
    assert record.amount == 125_000
    if state == "rejected":
        assert record.reason == "NO_POLICY"


@pytest.mark.parametrize("name", DOWNTIMES)
async def test_a_downtime_is_recorded_and_decides_nothing(system: System, name: str) -> None:
    before = kinds(await system.events())

    answer = await system.post(body(name))

    assert answer.status_code == 200
    gained = kinds(await system.events()) - before
    assert gained["bank.downtime_reported"] == 1
    assert gained["payout.decided"] == 0


async def test_an_agent_that_is_written_as_a_number_is_that_agent(system: System) -> None:
    await system.apply("policies: {'4712': {per_txn_limit: 1}}")  # the sample's own has no policy

    await system.post(changed("pending-notes-with-numbers", "pout_JrnyNumbers002", notes={"agent_id": 4712}))

    record = await system.reaches("pout_JrnyNumbers002", "rejected")
    assert (record.agent, record.reason) == ("4712", "TXN_LIMIT_EXCEEDED")


async def test_processed_before_its_pending_is_one_payout_that_went_past_us(system: System) -> None:
    payout = "pout_JrnyReorder001"
    await system.post(changed("processed", payout))
    await system.reaches(payout, "bypassed")

    answer = await system.post(changed("pending", payout))

    assert answer.status_code == 200
    await system.settled()
    assert kinds(await system.story(payout)) == {"payout.observed": 2, "governance.bypassed": 1}


async def test_a_webhook_delivered_again_is_a_duplicate_and_adds_nothing(system: System) -> None:
    again = changed("pending", "pout_JrnyAgain00001")
    first = await system.post(again, event_id="AgainAgain0001")
    await system.reaches("pout_JrnyAgain00001", "rejected")
    await system.settled()
    entries = len(await system.entries())

    answers = [
        await system.post(again, event_id="AgainAgain0001"),
        await system.post(again, event_id="AnotherId00001"),
        await system.post(again),
    ]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.json()["status"] for answer in answers} == {"duplicate"}
    assert {answer.json()["entry"] for answer in answers} == {first.json()["entry"]}
    assert len(await system.entries()) == entries


@pytest.mark.parametrize("signature", ["", "0" * 64, "ff", "unsigned"])
async def test_a_wrong_signature_is_401_and_changes_nothing(system: System, signature: str) -> None:
    entries = len(await system.entries())

    answer = await system.post(
        changed("pending", "pout_JrnyForged0001"),
        headers={"x-razorpay-signature": signature},
    )

    assert answer.status_code == 401
    assert len(await system.entries()) == entries


async def test_a_signed_body_that_changed_by_one_byte_is_401(system: System) -> None:
    signature = signed(changed("pending", "pout_JrnyForged0002"))

    answer = await system.post(
        changed("pending", "pout_JrnyForged0002") + b" ", headers={"x-razorpay-signature": signature}
    )

    assert answer.status_code == 401


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"pending", b'{"event": "payout.pending"}', b"\xff\xfe", b"{" * 5_000],
)
async def test_a_signed_body_that_is_no_payload_is_400_and_changes_nothing(
    system: System, text: bytes
) -> None:
    entries = len(await system.entries())

    answer = await system.post(text)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(await system.entries()) == entries


async def test_a_payout_without_a_usable_amount_becomes_a_dead_letter_and_is_never_charged(
    system: System,
) -> None:
    dead = await system.dead()

    answer = await system.post(changed("pending", "pout_JrnyBroken0001", amount="12.50"))

    assert answer.status_code == 200

    async def aside() -> bool:
        return await system.dead() > dead

    await until(aside, what="a dead letter")
    await system.settled()
    malformed = [event for event in await system.events() if isinstance(event, e.PayoutMalformed)]
    assert [event.payout for event in malformed] == ["pout_JrnyBroken0001"]

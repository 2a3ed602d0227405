"""The decision table end to end: a delivery in, a decision with its reason out; boundaries in pairs."""

import asyncio

import pytest
from msgspec.structs import replace

from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.shown import evidence_texts
from tests.engine import Engine
from tests.profiles import policy_fields
from tests.words import ACCOUNT, Vendors, observed

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot:
    daily_limit: 1000000
    per_txn_limit: 500000
    require_approval_above: 400000
    blocked_domains: ["*.xyz", "evil.com"]
  strict: {allowed_domains: ["vendor.example.com"], daily_limit: 1000000}
  frozen: {frozen: true}
  verified: {require_verified_identity: true}
  rated: {rate_limit: {count: 2, window: 60}}
  rated-hold: {rate_limit: {count: 1, window: 60}, on_rate_limit: hold}
  careful: {on_reputation_unavailable: reject}
  zero: {require_approval_above: 0}
  none-per-txn: {per_txn_limit: 0}
  nine-to-six: {hours: "09:00-19:43"}
  nine-to-later: {hours: "09:00-19:44"}
  night: {hours: "19:43-06:00"}
  not-monday: {days: [tue, wed]}
  monday: {days: [mon]}
  any-host: {allowed_domains: ["*"]}
  weekly: {daily_limit: 500, weekly_limit: 600}
  steady: {OF_HABIT}
accounts:
  acc_Frozen: {frozen: true}
agents:
  verified: {fund_accounts: [fa_bound]}
reviewers: [asha, vikram]
""".replace("OF_HABIT", policy_fields())

GOOD = "https://vendor.example.com/invoice"


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ("APPROVED POLICY_OK", {"amount": 400_000, "url": GOOD}),
        ("HELD APPROVAL_REQUIRED", {"amount": 400_001, "url": GOOD}),
        ("HELD APPROVAL_REQUIRED", {"amount": 500_000}),
        ("REJECTED TXN_LIMIT_EXCEEDED", {"amount": 500_001}),
        ("REJECTED NO_POLICY", {"agent": "stranger"}),
        ("REJECTED NO_POLICY", {"agent": None}),
        ("REJECTED CURRENCY_NOT_ALLOWED", {"currency": "USD"}),
        ("REJECTED FROZEN", {"agent": "frozen"}),
        ("REJECTED FROZEN", {"account": "acc_Frozen"}),
        ("REJECTED FROZEN", {"account": "acc_Frozen", "agent": "stranger"}),
        ("HELD IDENTITY_UNVERIFIED", {"agent": "verified"}),
        ("APPROVED POLICY_OK", {"agent": "verified", "fund_account": "fa_bound"}),
        ("REJECTED VENDOR_URL_INVALID", {"url": "vendor.example.com"}),
        ("REJECTED VENDOR_URL_INVALID", {"url": "ftp://vendor.example.com"}),
        ("REJECTED VENDOR_URL_INVALID", {"url": "http://0x7f.1/"}),
        ("REJECTED VENDOR_URL_INVALID", {"url": "http://localhost/"}),
        ("REJECTED VENDOR_URL_REQUIRED", {"agent": "strict"}),
        ("APPROVED POLICY_OK", {"agent": "strict", "url": GOOD}),
        ("REJECTED DOMAIN_BLOCKED", {"agent": "strict", "url": "https://example.com"}),
        ("REJECTED DOMAIN_BLOCKED", {"url": "https://shop.xyz/"}),
        ("REJECTED DOMAIN_BLOCKED", {"url": "https://EVIL.com.:443/"}),
        ("APPROVED POLICY_OK", {"url": "https://notevil.com/"}),
        ("HELD OUTSIDE_HOURS", {"agent": "nine-to-six"}),
        ("APPROVED POLICY_OK", {"agent": "nine-to-later"}),
        ("APPROVED POLICY_OK", {"agent": "night"}),
        ("HELD OUTSIDE_HOURS", {"agent": "not-monday"}),
        ("APPROVED POLICY_OK", {"agent": "monday"}),
        ("HELD VENDOR_URL_SUSPICIOUS", {"url": "https://p\u0430ypal.example.com/"}),
        ("REJECTED VENDOR_URL_INVALID", {"agent": "any-host", "url": "http://127.0.0.1/"}),
        ("REJECTED RISK_HIGH", {"url": "https://malware.example.net/"}),
        ("HELD REPUTATION_UNAVAILABLE", {"url": "https://unknown.example.net/"}),
        ("REJECTED REPUTATION_UNAVAILABLE", {"agent": "careful", "url": "https://unknown.example.net/"}),
        ("APPROVED POLICY_OK", {"agent": "steady", "amount": 2_500}),
        ("HELD ANOMALY_DETECTED", {"agent": "steady", "amount": 3_000}),
        ("HELD APPROVAL_REQUIRED", {"agent": "zero", "amount": 100}),
        ("REJECTED TXN_LIMIT_EXCEEDED", {"agent": "none-per-txn", "amount": 100}),
    ],
)
async def test_the_decision_table(redis_url: str, expected: str, facts: dict) -> None:  # type: ignore[type-arg]
    vendors = Vendors({"malware": "threat", "unknown": "unavailable"})
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", **facts))
        record = await engine.record("pout_1")
    assert f"{record.decision} {record.reason}" == expected


async def test_a_hold_goes_on_and_a_later_rule_can_still_reject(redis_url: str) -> None:
    async with Engine(redis_url, vendors=Vendors({"malware": "threat"})) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", agent="verified", url="https://malware.example.net/"))
        record = await engine.record("pout_1")
    assert (record.decision, record.reasons) == ("REJECTED", ["RISK_HIGH", "IDENTITY_UNVERIFIED"])
    assert record.reservation is None


async def test_a_vendor_who_is_known_to_be_a_threat_takes_no_room(redis_url: str) -> None:
    """Nor does one who was looked up for this payout: the second is told of what the first look-up found."""
    async with Engine(redis_url, vendors=Vendors({"malware": "threat"})) as engine:
        await engine.apply(POLICIES)
        for payout in ("pout_1", "pout_2"):
            await engine.deliver(observed(payout, url="https://malware.example.net/"))
            record = await engine.record(payout)
            assert (record.decision, record.reason, record.reservation) == ("REJECTED", "RISK_HIGH", None)
        assert await engine.client.keys(f"{engine.names.base}:budget:*") == []
    assert len(engine.vendors.asked) == 1


async def test_all_reasons_to_hold_are_kept_and_the_first_is_primary(redis_url: str) -> None:
    async with Engine(redis_url, vendors=Vendors({"unknown": "unavailable"})) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 450_000, url="https://unknown.example.net/"))
        record = await engine.record("pout_1")
    assert (record.decision, record.reasons) == ("HELD", ["REPUTATION_UNAVAILABLE", "APPROVAL_REQUIRED"])
    assert record.reservation is not None
    assert record.reservation.state == "reserved"


async def test_the_payout_that_exactly_fills_the_day_passes_and_one_more_rupee_does_not(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 400_000))
        await engine.deliver(observed("pout_2", 400_000))
        await engine.deliver(observed("pout_3", 200_001))
        await engine.deliver(observed("pout_4", 200_000))
        await engine.deliver(observed("pout_5", 100))
        records = await engine.records()
    assert [records[f"pout_{i}"].reason for i in range(1, 6)] == [
        "POLICY_OK",
        "POLICY_OK",
        "LIMIT_EXCEEDED",
        "POLICY_OK",
        "LIMIT_EXCEEDED",
    ]
    evidence = records["pout_3"].findings[-1].evidence
    assert (evidence["scope"], evidence["limit"], evidence["used"]) == ("agent:bot", 1_000_000, 800_000)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_day_that_nobody_limits_ends_where_its_sum_would_not_be_exact(
    redis_url: str, at_once: bool
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {boundless: {rate_limit: {count: 0}}}")
        seen = [observed(f"pout_{i}", AMOUNT_MAX_PAISE, agent="boundless") for i in range(11)]
        for some in [seen] if at_once else [[one] for one in seen]:
            await engine.deliver(*some)
        records = await engine.records()
    reasons = [record.reason for record in records.values()]
    assert (reasons.count("POLICY_OK"), reasons.count("LIMIT_EXCEEDED")) == (9, 2)
    full = next(record for record in records.values() if record.reason == "LIMIT_EXCEEDED").findings[-1]
    assert (full.evidence["limit"], full.evidence["used"]) == (None, 9 * AMOUNT_MAX_PAISE)
    assert "limit none" in evidence_texts(full)


async def test_the_first_full_window_is_named(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 500, agent="weekly"))
        await engine.deliver(observed("pout_2", 101, agent="weekly"))
        record = await engine.record("pout_2")
    assert record.findings[-1].evidence["window"] == "2026-09-21"


async def test_the_rate_limit_counts_payouts_in_the_window_before_this_one(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"pout_{i}", agent="rated") for i in range(2)))
        await engine.deliver(observed("pout_2", agent="rated"))
        await engine.deliver(*(observed(f"pout_h{i}", agent="rated-hold") for i in range(2)))
        records = await engine.records()
    assert [records[f"pout_{i}"].reason for i in range(3)] == ["POLICY_OK", "POLICY_OK", "RATE_LIMITED"]
    assert records["pout_2"].decision == "REJECTED"
    assert sorted(records[f"pout_h{i}"].decision or "" for i in range(2)) == ["APPROVED", "HELD"]


@pytest.mark.parametrize("workers", [1, 3])
async def test_of_fifty_at_once_against_room_for_ten_exactly_ten_are_approved(
    redis_url: str, workers: int
) -> None:
    async with Engine(redis_url, workers=workers) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"pout_{i}", 100_000) for i in range(50)))
        records = await engine.records()
    reasons = [record.reason for record in records.values()]
    assert (reasons.count("POLICY_OK"), reasons.count("LIMIT_EXCEEDED")) == (10, 40)


async def test_the_same_payout_by_webhook_and_poller_is_decided_once(redis_url: str) -> None:
    async with Engine(redis_url, workers=2) as engine:
        await engine.apply(POLICIES)
        await asyncio.gather(*(engine.append(ACCOUNT, observed("pout_1")) for _ in range(20)))
        await engine.append(ACCOUNT, observed("pout_1", status="queued"))
        await engine.settled()
        story = await engine.story("pout_1")
    assert sum(type(event).__name__ == "PayoutDecided" for event in story) == 1


async def test_a_clean_vendor_is_asked_about_once_while_it_is_fresh(redis_url: str) -> None:
    vendors = Vendors()
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", url=GOOD))
        await engine.deliver(observed("pout_2", url=GOOD))
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.deliver(observed("pout_3", url=GOOD))
        assert (await engine.record("pout_3")).reason == "POLICY_OK"
    assert vendors.asked == [GOOD]


async def test_a_malformed_payout_becomes_a_dead_letter_with_its_reason(redis_url: str) -> None:
    from streamproc.domain.events import EntrySetAside, PayoutMalformed

    async with Engine(redis_url) as engine:
        bad = PayoutMalformed(
            at=1, payout="pout_1", account=ACCOUNT, source="webhook", problem="amount 99 is too small"
        )
        await engine.append(ACCOUNT, bad)
        await engine.settled()
        letters = await engine.client.xrange(engine.names.dead)
        story = await engine.story("pout_1")
    assert len(letters) == 1
    assert b"amount 99 is too small" in repr(letters).encode()
    assert isinstance(story[-1], EntrySetAside)


async def test_a_signed_note_verifies_its_own_payout_and_not_the_next_of_the_same_agent(
    redis_url: str,
) -> None:
    from tests.domain.test_agent_note import BOT, FACTS, paid

    facts = FACTS | {"agent": "verified"}
    notes = BOT["agent_notes"](**facts)
    good, stolen = paid(notes), paid(notes, amount_paise=250_001)
    stolen = replace(stolen, payout="pout_2", facts=replace(stolen.facts, id="pout_2"))
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.apply(f'agents: {{verified: {{public_keys: ["{BOT["public_key"]}"]}}}}')
        await engine.deliver(good, stolen)
        records = await engine.records()
    assert [(records[p].identity, records[p].reason) for p in ("pout_1", "pout_2")] == [
        ("verified", "POLICY_OK"),
        ("claimed", "IDENTITY_UNVERIFIED"),
    ]
    assert records["pout_2"].findings[0].evidence == {"identity": "claimed", "agent_sig": "does not verify"}

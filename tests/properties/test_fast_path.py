"""The fast path and the chain record the same of every payout, byte for byte but for the clock."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import consumers
from consumers import fast_path
from consumers.entities import Entities
from consumers.vet import Reputations
from streamproc.domain.events import PayoutObserved, PayoutRequested
from streamproc.domain.governance import RULES
from streamproc.domain.payouts import decode_record, encode_record, fold
from streamproc.domain.wire import decode_events, decode_meta, encode_events
from streamproc.log import grants
from streamproc.log.connection import connected
from streamproc.log.templates import OfferFate
from streamproc.log.work import Group
from tests.engine import ZONE, Engine
from tests.profiles import policy_fields
from tests.words import ACCOUNT, NOW, Payees, Register, Vendors, contact, delivery, observed, requested

POLICIES = f"""
defaults: {{rate_limit: {{count: 3, window: 60}}, blocked_domains: [bad.example]}}
policies:
  bot: {{daily_limit: 1000, weekly_limit: 1500, require_approval_above: 400}}
  free: {{rate_limit: {{count: 0}}, count_fees: true, vendor_daily_limit: 700}}
  wary: {{new_beneficiary: hold, changed_beneficiary: hold, on_rate_limit: hold, team: ops, dual_approval_above: 400}}
  night: {{hours: "00:00-00:01", currencies: [USD], require_verified_identity: true}}
  ice: {{frozen: true}}
  strict: {{require_entity: true, rate_limit: {{count: 0}}}}
  steady: {{{policy_fields(amounts=(300,) * 20, threshold=420)}, daily_limit: 5000, rate_limit: {{count: 9}}}}
accounts:
  {ACCOUNT}: {{daily_limit: 2500}}
teams:
  ops: {{daily_limit: 900}}
reviewers: [asha]
"""
URLS = [
    None,
    "https://shop.example/100%25?%d",
    "https://other.example/",
    "https://bad.example/",
    "https://malware.example/",
    "https://unknown.example/",
    "not a url",
]
payouts = st.builds(
    observed,
    st.integers(0, 9).map("pout_{}".format),
    st.sampled_from([100, 300, 400, 401, 700, 1000]),
    agent=st.sampled_from(
        ["bot", "bot", "free", "free", "wary", "steady", "steady", "night", "ice", "strict", "stranger", None]
    ),
    url=st.sampled_from(URLS),
    status=st.sampled_from(
        ["pending", "pending", "pending", "queued", "scheduled", "processing", "processed"]
    ),
    currency=st.sampled_from(["INR", "INR", "INR", "USD"]),
    fund_account=st.sampled_from(["fa_1", "fa_2", "fa_3", ""]),
)
intents = st.builds(
    requested,
    st.sampled_from([100, 300, 401]),
    key=st.sampled_from(["k1", "k2", "k3"]),
    agent=st.sampled_from(["bot", "free", "wary", "strict", "steady"]),
    url=st.sampled_from(["", "https://shop.example/%", "https://bad.example/"]),
    payee=st.sampled_from(
        [None, *map(contact, ("Verified Ltd", "Lapsed Ltd", "Nobody Ltd", "Away Ltd", "...,"))]
    ),
    notes=st.sampled_from([{}, {}, {"lei": "no LEI"}, {"lei": "506700GE1G29325QX363"}]),
)
histories = st.lists(payouts | intents, min_size=1, max_size=10)


def governance() -> Group:
    """With nothing in its memory: a vendor who has to be asked for takes two numbers, one who is known takes one."""
    return consumers.governance(
        Reputations(Vendors({"malware": "threat", "unknown": "unavailable"})),
        zone=ZONE,
        entities=Entities(
            Register({"Verified Ltd": "verified", "Lapsed Ltd": "not_issued", "Away Ltd": "unavailable"}),
            Payees({"fa_1": "Verified Ltd", "fa_2": "Lapsed Ltd"}),
        ),
    )


def blank(e: bytes) -> bytes:
    """Without what the clock says: µs since 1970 have 16 digits, and no amount here has."""
    return re.sub(rb"\b1[78]\d{14}\b", b"0", e)


async def recorded(
    redis_url: str, history: list[PayoutObserved | PayoutRequested], group: Group
) -> tuple[list[Any], dict[str, Any]]:
    """The log, and what else is in Redis, by which every later payout is decided."""
    async with connected(redis_url) as client:
        await client.flushdb()
    async with Engine(redis_url, groups=[group]) as engine:
        await engine.apply(POLICIES)
        for event in history:
            if isinstance(event, PayoutObserved):
                await engine.producer.append(delivery(event))
            else:
                await engine.append(event.account, event)
            await engine.settled()
        rows = await engine.client.execute_command("XRANGE", engine.names.log, "-", "+")
        state = await kept(engine)
    entries = [decode_events(fields[1]) for _, fields in rows]
    assert [encode_events(events) for events in entries] == [fields[1] for _, fields in rows]
    places = {row[0].decode(): place for place, row in enumerate(rows)}
    metas = [decode_meta(fields[3]) for _, fields in rows]
    causes = [(meta.by, places.get(meta.cause)) for meta in metas]
    return [*zip(causes, [blank(fields[1]) for _, fields in rows], strict=True)], state


async def kept(engine: Engine) -> dict[str, Any]:
    """Admissions, counters, records, who is known, and timers."""
    client, names, state = engine.client, engine.names, {}
    for key in map(bytes.decode, await client.keys(f"{names.base}:*")):
        kind = key.removeprefix(names.base + ":").partition(":")[0]
        if kind == "payout":
            row: Mapping[bytes, bytes] = await client.hgetall(key)
            record = decode_record(row[b"s"])
            assert encode_record(record) == row[b"s"]
            assert fold(await engine.story(record.payout)) == record
            state[key] = {field: value for field, value in row.items() if field != b"s"}
        elif kind == "budget":
            state[key] = await client.hgetall(key)
        elif kind == "rate":
            state[key] = await client.zrange(key, 0, -1, withscores=True)
        elif kind == "paid":
            state[key] = sorted(await client.hkeys(key))
        elif kind == "number":
            state[key] = await client.get(key)
        elif kind == "timers":
            due = await client.zrange(key, 0, -1, withscores=True)
            assert all(decode_events(member)[0].at == score for member, score in due)
            state[key] = sorted(blank(member) for member, _ in due)
    return state


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=histories)
async def test_by_the_fast_path_or_the_chain_the_same_is_recorded(
    redis_url: str, history: list[PayoutObserved | PayoutRequested]
) -> None:
    entries, state = await recorded(redis_url, history, governance())
    by_chain, state_by_chain = await recorded(redis_url, history, replace(governance(), fast_path=None))
    for ours, theirs in zip(entries, by_chain, strict=True):
        assert ours == theirs
    assert state == state_by_chain


to_who_was_paid = st.builds(
    observed,
    st.integers(0, 30).map("pout_{}".format),
    st.sampled_from([100, 200, 300, 399]),
    agent=st.sampled_from(["bot", "free", "wary", "steady"]),
    url=st.sampled_from(URLS[1:3]),
    currency=st.sampled_from(["INR", "INR", "INR", "USD"]),
    at=st.integers(0, 90).map(lambda s: NOW + s * 1_000_000),
)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=st.lists(to_who_was_paid, min_size=8, max_size=14))
async def test_without_a_slot_or_room_the_script_records_what_the_chain_records(
    redis_url: str, history: list[PayoutObserved | PayoutRequested]
) -> None:
    """To who was paid before, so that an approval is a form; of limits in several windows, and slots."""
    paid: list[PayoutObserved | PayoutRequested] = [
        observed(f"pout_before{n}", 1, agent="bot", url=url, at=NOW - 10**9)
        for n, url in enumerate(URLS[1:3])
    ]
    ours = await recorded(redis_url, paid + history, governance())
    assert ours == await recorded(redis_url, paid + history, replace(governance(), fast_path=None))


async def test_payouts_that_share_a_form_are_recorded_as_the_chain_records_them(redis_url: str) -> None:
    """Of agents with and without a rate, to who was paid before, with what others wrote in the places of blanks."""
    history: list[PayoutObserved | PayoutRequested] = []
    for n, text in enumerate(("", '"\\', "\x01-1\x01", '"number":0,"used":0', "é")):
        for agent in ("bot", "free"):
            event = observed(f"pout_{agent}{n}", 100 + n, agent=agent, url="https://shop.example/100%25?%d")
            history.append(replace(event, facts=replace(event.facts, reference_id=text)))
    entries, state = await recorded(redis_url, history, governance())
    assert (entries, state) == await recorded(redis_url, history, replace(governance(), fast_path=None))


async def test_what_a_stage_behind_the_counters_rejects_is_recorded_as_the_chain_records_it(
    redis_url: str,
) -> None:
    """It has taken a slot, which the fast path's rejection would not."""
    history: list[PayoutObserved | PayoutRequested] = [
        observed(f"pout_{n}", 100, url="https://malware.example/") for n in range(2)
    ]
    entries, state = await recorded(redis_url, history, governance())
    assert (entries, state) == await recorded(redis_url, history, replace(governance(), fast_path=None))


async def test_what_is_unlike_an_agents_usual_payouts_is_held_as_the_chain_holds_it(redis_url: str) -> None:
    """Usual ones stand between, whose plan must not let pass what is unlike."""
    history: list[PayoutObserved | PayoutRequested] = [
        observed(f"pout_{n}", amount, agent="steady", url=URLS[1])
        for n, amount in enumerate((100, 300, 700, 300))
    ]
    history += [
        requested(900, key="k1", agent="steady"),
        observed("pout_9", 500, agent="steady", url=URLS[1]),
    ]
    entries, state = await recorded(redis_url, history, governance())
    assert (entries, state) == await recorded(redis_url, history, replace(governance(), fast_path=None))
    held = [b"ANOMALY_DETECTED" in e for _, e in entries if b"payout.decided" in e]
    assert held == [False, False, True, False, True, True]


async def test_hours_are_those_of_the_zone_that_is_set(redis_url: str) -> None:
    """At NOW it is 10:13 in New York, and 19:43 in Asia/Kolkata."""
    for zone, decision in (("America/New_York", "APPROVED"), ("Asia/Kolkata", "HELD")):
        async with connected(redis_url) as client:
            await client.flushdb()
        group = consumers.governance(Reputations(Vendors()), zone=zone)
        async with Engine(redis_url, groups=[group]) as engine:
            await engine.apply("policies: {bot: {hours: '09:00-18:00'}}")
            await engine.deliver(observed("pout_1", 100))
            assert (await engine.record("pout_1")).decision == decision, zone


async def test_of_payouts_of_one_batch_each_is_told_its_own(redis_url: str) -> None:
    async with Engine(redis_url, groups=[governance()]) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"pout_{n}", 100, agent="free", url=URLS[1]) for n in range(2)))
        await engine.stop()
        for n in range(2, 6):
            await engine.append(ACCOUNT, observed(f"pout_{n}", 100 + n, agent="free", url=URLS[1]))
        engine.start()
        await engine.settled()
        amounts = {payout: record.amount for payout, record in (await engine.records()).items()}
        await kept(engine)  # which holds each record against the fold of its events
    assert amounts == {f"pout_{n}": 100 + n if n > 1 else 100 for n in range(6)}


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch) -> dict[str, OfferFate]:
    """What the script answers to each payout that is offered to it."""
    fates: dict[str, OfferFate] = {}
    real = grants.grant

    async def watched(*args: Any, **named: Any) -> list[OfferFate]:
        answer = await real(*args, **named)
        fates.update({one.offer.ask.payout: fate for one, fate in zip(args[3], answer, strict=True)})
        return answer

    monkeypatch.setattr(grants, "grant", watched)
    return fates


async def test_what_is_plain_takes_the_fast_path_and_the_rest_the_chain(
    redis_url: str, fates: dict[str, OfferFate]
) -> None:
    intent = requested(100, agent="free")
    shop = URLS[1]
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("unknown_vendor", 400, url=shop))
        await engine.deliver(observed("plain", 100, agent="free", url=shop))
        await engine.append(ACCOUNT, intent)
        await engine.settled()
        await engine.deliver(observed("above", 401))  # a person is asked for that much
        assert await engine.client.zcard(engine.names.timers) == 3
        await engine.deliver(observed("no_room", 700, agent="free", url=shop))
        await engine.deliver(observed("last_slot", 100, url=shop))
        await engine.deliver(observed("no_slot", 100, url=shop))
        await engine.deliver(observed("new_payee", 700, agent="free", url=shop, fund_account="fa_2"))
        await engine.deliver(observed("blocked", 100, url="https://bad.example/"))
        await engine.deliver(
            observed("nobodys", 100, agent="stranger"), observed("plain", 100, status="queued")
        )
        records = await engine.records()
        await kept(engine)  # which holds each record against the fold of its events
    assert fates == {
        "plain": OfferFate.DONE,
        intent.payout: OfferFate.DONE,
        "no_room": OfferFate.NO_ROOM,
        "above": OfferFate.DONE,
        "last_slot": OfferFate.DONE,
        "no_slot": OfferFate.NO_SLOT,
        "new_payee": OfferFate.LEFT,
        "blocked": OfferFate.DONE,
        "nobodys": OfferFate.DONE,
    }
    reasons = {payout: record.reason for payout, record in records.items()}
    assert reasons == {
        "unknown_vendor": "POLICY_OK",
        "plain": "POLICY_OK",
        intent.payout: "POLICY_OK",
        "above": "APPROVAL_REQUIRED",
        "no_room": "LIMIT_EXCEEDED",
        "last_slot": "POLICY_OK",
        "no_slot": "RATE_LIMITED",
        "new_payee": "LIMIT_EXCEEDED",
        "blocked": "DOMAIN_BLOCKED",
        "nobodys": "NO_POLICY",
    }


requests = st.builds(
    requested,
    st.sampled_from([100, 401]),
    key=st.integers(0, 9).map(str),
    agent=st.sampled_from(["free", "strict", "strict"]),
    payee=st.sampled_from(list(map(contact, ("Verified Ltd", "Verified Ltd", "Lapsed Ltd", "Away Ltd")))),
    notes=st.sampled_from([{}, {}, {"lei": "no LEI"}]),
)


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=st.lists(requests, min_size=4, max_size=10))
async def test_what_a_register_says_is_recorded_alike_whether_it_is_asked_or_remembered(
    redis_url: str, history: list[PayoutObserved | PayoutRequested]
) -> None:
    ours = await recorded(redis_url, history, governance())
    assert ours == await recorded(redis_url, history, replace(governance(), fast_path=None))


async def test_a_contact_takes_the_fast_path_once_its_entity_is_remembered(
    redis_url: str, fates: dict[str, OfferFate]
) -> None:
    known, away, malformed = contact("Verified Ltd"), contact("Away Ltd"), {"lei": "no LEI"}
    first, second = (requested(100, agent="strict", payee=known, key=key) for key in ("1", "2"))
    asked = [requested(100, agent="strict", payee=away, key=key) for key in ("3", "4")]
    unasked = requested(100, agent="strict", payee=away, notes=malformed, key="5")
    async with Engine(redis_url, groups=[governance()]) as engine:
        await engine.apply(POLICIES)
        for event in (first, second, *asked, unasked):
            await engine.append(ACCOUNT, event)
            await engine.settled()
        records = await engine.records()
        await kept(engine)
    assert fates == {second.payout: OfferFate.DONE, unasked.payout: OfferFate.DONE}
    decisions = [records[event.payout].decision for event in (first, second, *asked, unasked)]
    assert decisions == ["APPROVED", "APPROVED", "HELD", "HELD", "HELD"]


async def nobody_archived(payout: str) -> None:
    return None


def test_a_chain_with_another_stage_or_other_rules_has_no_fast_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = governance()
    assert fast_path.stands_for(group.stages)
    assert not fast_path.stands_for(group.stages[1:])
    with_recall = consumers.governance(Reputations(Vendors()), zone=ZONE, archived=nobody_archived)
    assert "recall" in {stage.name for stage in with_recall.stages}
    assert with_recall.fast_path is not None
    assert not fast_path.stands_for((*group.stages, replace(group.stages[0], name="another")))
    monkeypatch.setitem(RULES, "another", ())
    assert not fast_path.stands_for(group.stages)


async def test_what_the_script_fails_at_is_left_to_the_chain(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants._grant, "text", b"#!lua\nerror('broken')")
    monkeypatch.setattr(grants._grant, "sha", "0" * 40)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 100), observed("pout_2", 100))
        decisions = {payout: record.decision for payout, record in (await engine.records()).items()}
    assert decisions == {"pout_1": "APPROVED", "pout_2": "APPROVED"}

"""Rule 14 in the engine: what a register says of a contact is recorded and kept, and holds where a policy says so."""

import asyncio
from collections.abc import Sequence

import pytest

import consumers
from consumers.answers import cache_key
from consumers.entities import Entities, EntityLookup
from consumers.vet import Reputations
from streamproc.domain import events as e
from streamproc.domain.events import EntitySeen, PayoutRequested
from streamproc.domain.legal_entities import Question
from streamproc.domain.wire import encode_events
from streamproc.log.work import Group
from tests.engine import ZONE, Engine
from tests.words import ACCOUNT, Payees, Register, Vendors, contact, observed, requested

POLICIES = """
defaults: {rate_limit: {count: 0}}
policies:
  strict: {require_entity: true}
  lax: {}
reviewers: [asha]
"""
VERDICTS = {"Verified Ltd": "verified", "Lapsed Ltd": "not_issued", "Away Ltd": "unavailable"}


def governance(
    register: EntityLookup | None, vendors: Vendors | None = None, payees: Payees | None = None
) -> Group:
    entities = Entities(register, payees) if register is not None else None
    return consumers.governance(Reputations(vendors or Vendors()), zone=ZONE, entities=entities)


def asks(name: str, *, agent: str = "strict", key: str = "", url: str = "") -> PayoutRequested:
    return requested(100, agent=agent, key=key or name, payee=contact(name), url=url)


async def handled(engine: Engine, *events: PayoutRequested) -> None:
    for event in events:
        await engine.append(ACCOUNT, event)
    await engine.settled()


async def vetted(engine: Engine, payout: str) -> EntitySeen | None:
    (event,) = [one for one in await engine.story(payout) if type(one) is e.ReputationChecked]
    return event.entity


async def test_who_is_not_verified_is_held_where_the_policy_requires_it_and_recorded_where_not(
    redis_url: str,
) -> None:
    names = ["Verified Ltd", "Lapsed Ltd", "Nobody Ltd", "Away Ltd"]
    async with Engine(redis_url, groups=[governance(Register(VERDICTS))]) as engine:
        await engine.apply(POLICIES)
        for name in names:
            await handled(engine, asks(name), asks(name, agent="lax"))
        strict = [(await engine.record(asks(name).payout)).reason for name in names]
        lax = [(await engine.record(asks(name, agent="lax").payout)).reason for name in names]
        seen = [await vetted(engine, asks(name, agent="lax").payout) for name in names]
    assert strict == ["POLICY_OK", *["ENTITY_UNVERIFIED"] * 3]
    assert lax == ["POLICY_OK"] * 4
    assert [one.verdict for one in seen if one] == ["verified", "not_issued", "not_found", "unavailable"]


async def test_an_answer_is_asked_for_once_and_a_failure_again(redis_url: str) -> None:
    register, restarted = Register(VERDICTS), Register(VERDICTS)
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(POLICIES)
        for key in ("1", "2"):
            await handled(engine, asks("Verified Ltd", key=f"v{key}"), asks("Away Ltd", key=f"a{key}"))
    assert [question.name for question in register.asked].count("Verified Ltd") == 1
    assert [question.name for question in register.asked].count("Away Ltd") == 2
    async with Engine(redis_url, groups=[governance(restarted)]) as engine:
        await handled(engine, asks("Verified Ltd", key="v3"))
        assert (await engine.record(asks("Verified Ltd", key="v3").payout)).reason == "POLICY_OK"
    assert restarted.asked == []  # Redis knew


async def test_an_answer_about_a_name_is_none_about_an_lei_nor_about_a_url(redis_url: str) -> None:
    lei = {"lei": "506700GE1G29325QX363"}
    register = Register(VERDICTS)
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(POLICIES)
        by_name = asks("Verified Ltd")
        by_lei = requested(100, agent="strict", key="lei", payee=contact("Verified Ltd"), notes=lei)
        await handled(engine, by_name, by_lei)
        kept = [key async for key in engine.client.scan_iter(engine.names.reputation("*"))]
    assert set(register.asked) == {Question("Verified Ltd"), Question("Verified Ltd", lei["lei"])}
    assert len(kept) == 2
    assert engine.names.reputation(cache_key("Verified Ltd")).encode() not in kept


@pytest.mark.parametrize("kept", [b"", b"{", b'{"verdict":"a later version\'s"}', b'"\xff"'])
async def test_an_answer_in_redis_that_cannot_be_read_costs_a_call_and_no_more(
    redis_url: str, kept: bytes
) -> None:
    async with Engine(redis_url, groups=[governance(Register(VERDICTS))]) as engine:
        await engine.apply(POLICIES)
        await engine.client.set(engine.names.reputation(cache_key("entity\n\nVerified Ltd")), kept)
        await handled(engine, asks("Verified Ltd"))
        assert (await engine.record(asks("Verified Ltd").payout)).reason == "POLICY_OK"


async def test_without_a_register_nothing_is_asked_nothing_recorded_and_who_requires_it_is_held(
    redis_url: str,
) -> None:
    async with Engine(redis_url, groups=[governance(None)]) as engine:
        await engine.apply(POLICIES)
        await handled(engine, asks("Verified Ltd"), asks("Verified Ltd", agent="lax"))
        await engine.deliver(observed("pout_1", 100, agent="strict"), observed("pout_2", 100, agent="lax"))
        held = await engine.record(asks("Verified Ltd").payout)
        unnamed = await engine.record("pout_1")
        written = [encode_events(events) for events in await engine.entries()]
        decisions = [
            (await engine.record(payout)).decision
            for payout in ("pout_2", asks("Verified Ltd", agent="lax").payout)
        ]
    assert (held.reason, held.findings[0].evidence) == (
        "ENTITY_UNVERIFIED",
        {"problem": "no register of legal entities is set"},
    )
    assert unnamed.findings[0].evidence == {"problem": "the payout names no contact"}
    assert decisions == ["APPROVED", "APPROVED"]
    assert not any(b'"entity"' in e for e in written)


async def test_where_the_policy_requires_it_the_bank_is_asked_who_has_the_fund_account_and_elsewhere_not(
    redis_url: str,
) -> None:
    """Payouts that were made at the bank, and intents to a fund account that the bank has."""
    payees = Payees({"fa_good": "Verified Ltd", "fa_bad": "Lapsed Ltd"})
    register = Register(VERDICTS)
    async with Engine(redis_url, groups=[governance(register, payees=payees)]) as engine:
        await engine.apply(POLICIES)
        good = requested(100, agent="strict", key="good", fund_account="fa_good")
        await handled(engine, good, requested(100, agent="lax", key="lax", fund_account="fa_lax"))
        for payout, agent, fund_account in (
            ("pout_good", "strict", "fa_good"),
            ("pout_bad", "strict", "fa_bad"),
            ("pout_away", "strict", "fa_away"),
            ("pout_lax", "lax", "fa_lax"),
        ):
            await engine.deliver(observed(payout, 100, agent=agent, fund_account=fund_account))
        reasons = {
            payout: (await engine.record(payout)).reason
            for payout in (good.payout, "pout_good", "pout_bad", "pout_away", "pout_lax")
        }
        bad, away = [(await engine.record(p)).findings[0].evidence for p in ("pout_bad", "pout_away")]
        seen = await vetted(engine, "pout_good")
        unasked = await vetted(engine, "pout_lax")
    assert list(reasons.values()) == [
        *("POLICY_OK", "POLICY_OK", "ENTITY_UNVERIFIED", "ENTITY_UNVERIFIED", "POLICY_OK")
    ]
    assert bad == {"problem": "the entity's LEI is not valid any more", "contact": "Lapsed Ltd"}
    said = "the bank did not say who has the fund account, timeout"
    assert away == {"problem": f"the register could not be asked: {said}"}
    assert seen is not None
    assert (seen.verdict, seen.contact) == ("verified", "Verified Ltd")
    assert unasked is None
    assert payees.asked == ["fa_good", "fa_bad", "fa_away"]
    assert [question.name for question in register.asked] == ["Verified Ltd", "Lapsed Ltd"]


async def test_who_has_a_fund_account_is_kept_in_redis_and_a_failure_is_not(redis_url: str) -> None:
    payees, restarted = Payees({"fa_good": "Verified Ltd"}), Payees({"fa_away": "Verified Ltd"})
    register = Register(VERDICTS)
    async with Engine(redis_url, groups=[governance(register, payees=payees)]) as engine:
        await engine.apply(POLICIES)
        for payout, fund_account in (("pout_1", "fa_good"), ("pout_2", "fa_away"), ("pout_3", "fa_away")):
            await engine.deliver(observed(payout, 100, agent="strict", fund_account=fund_account))
    assert payees.asked == ["fa_good", "fa_away", "fa_away"]
    async with Engine(redis_url, groups=[governance(register, payees=restarted)]) as engine:
        for payout, fund_account in (("pout_4", "fa_good"), ("pout_5", "fa_away")):
            await engine.deliver(observed(payout, 100, agent="strict", fund_account=fund_account))
        reasons = [(await engine.record(payout)).reason for payout in ("pout_4", "pout_5")]
    assert restarted.asked == ["fa_away"]
    assert reasons == ["POLICY_OK", "POLICY_OK"]


async def test_payouts_that_need_an_answer_are_asked_for_first(redis_url: str) -> None:
    register = Register()
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(POLICIES)
        await engine.stop()
        for n in range(6):
            await engine.append(ACCOUNT, asks(f"Name{n} Ltd", agent="strict" if n % 2 else "lax"))
        engine.start()
        await engine.settled()
    asked = [question.name for question in register.asked]
    assert asked == [f"Name{n} Ltd" for n in (1, 3, 5, 0, 2, 4)]


async def test_the_register_and_safe_browsing_are_asked_at_once(redis_url: str) -> None:
    """Each waits until the other was asked too."""
    both = asyncio.Barrier(2)

    class SlowVendors(Vendors):
        async def __call__(self, urls: Sequence[str]) -> dict[str, object]:  # type: ignore[override]
            await both.wait()
            return dict(await super().__call__(urls))

    class SlowRegister(Register):
        async def __call__(
            self, required: Sequence[Question], others: Sequence[Question]
        ) -> dict[Question, EntitySeen]:
            await both.wait()
            return await super().__call__(required, others)

    async with Engine(redis_url, groups=[governance(SlowRegister(VERDICTS), SlowVendors())]) as engine:
        await engine.apply(POLICIES)
        event = asks("Verified Ltd", url="https://shop.example/")
        await handled(engine, event)
        assert (await engine.record(event.payout)).reason == "POLICY_OK"


async def test_a_reviewer_stands_in_for_the_register_which_is_not_asked_again(redis_url: str) -> None:
    register = Register(VERDICTS)
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(POLICIES)
        event = asks("Away Ltd")
        await handled(engine, event)
        await engine.review(event.payout, "asha", "approve", account=ACCOUNT)
        record = await engine.record(event.payout)
    assert (record.decision, record.reason) == ("APPROVED", "REVIEW_APPROVED")
    assert len(register.asked) == 1


async def test_whoever_was_not_asked_about_since_no_policy_requires_it_has_no_answer_and_is_asked_about_again(
    redis_url: str,
) -> None:
    """The register's client leaves out what would have made payouts wait."""

    class Busy(Register):
        async def __call__(
            self, required: Sequence[Question], others: Sequence[Question]
        ) -> dict[Question, EntitySeen]:
            return await super().__call__(required, ())

    register = Busy(VERDICTS)
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(POLICIES)
        unasked, needed, later = (
            asks("Verified Ltd", agent="lax"),
            asks("Verified Ltd"),
            asks("Verified Ltd", key="2"),
        )
        for event in (unasked, needed, later):
            await handled(engine, event)
        seen = [await vetted(engine, event.payout) for event in (unasked, needed, later)]
        decisions = [(await engine.record(event.payout)).decision for event in (unasked, needed, later)]
    assert [one and one.verdict for one in seen] == [None, "verified", "verified"]
    assert decisions == ["APPROVED"] * 3
    assert [question.name for question in register.asked] == ["Verified Ltd"]

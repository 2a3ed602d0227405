"""Rule 13: who was paid before on this account, by what was approved; kept in Redis as the log tells it."""

import random

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.domain import events as e
from streamproc.domain.beneficiaries import KEPT_S, NAMES_MAX, RENEW_S, Pair, look, with_name
from streamproc.domain.budget import US
from streamproc.domain.intent import Beneficiary
from streamproc.domain.policy import PolicyBook
from streamproc.domain.wire import encode_events
from streamproc.log import scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.scripts import Handover
from streamproc.log.stream import open_log
from tests.engine import Engine
from tests.words import ACCOUNT, NOW, Vendors, observed, requested

POLICIES = """
defaults: {rate_limit: {count: 0}}
policies:
  bot: {new_beneficiary: hold, changed_beneficiary: hold}
  new: {new_beneficiary: hold}
  changed: {changed_beneficiary: hold}
  free: {}
  careful: {new_beneficiary: hold, require_approval_above: 0}
reviewers: [asha]
"""
SHOP, OTHER = "https://shop.example/inv/1", "https://other.example/inv/2"
PAYEE = Beneficiary(
    contact_name="Shop",
    account_type="bank_account",
    name="Shop",
    ifsc="HDFC0000001",
    account_number="11112222",
)
PAIR = Pair(ACCOUNT, "fa_1", "shop.example")


async def outcome(engine: Engine, payout: str, *, account: str = ACCOUNT, **facts: object) -> str:
    await engine.deliver(observed(payout, 1_000, account=account, **facts))  # type: ignore[arg-type]
    record = await engine.record(payout)
    assert record.decision is not None
    return " ".join((record.decision, *record.reasons))


async def test_a_fund_account_is_new_until_a_payout_to_it_was_approved_on_this_account(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        assert await outcome(engine, "pout_1", url=SHOP) == "HELD BENEFICIARY_NEW"
        assert await outcome(engine, "pout_2", url=SHOP) == "HELD BENEFICIARY_NEW"
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        assert await outcome(engine, "pout_3", url=SHOP) == "APPROVED POLICY_OK"
        assert await outcome(engine, "pout_4", url=SHOP, account="acc_Other") == "HELD BENEFICIARY_NEW"
        await engine.deliver(observed("pout_2", 1_000, url=SHOP, status="processed"))
        assert (await engine.record("pout_2")).state == "bypassed"
        story = await engine.story("pout_1")
    assert story[-1] == e.BeneficiaryNoted(
        at=story[-1].at, payout="pout_1", account=ACCOUNT, fund_account="fa_1", vendor="shop.example"
    )


async def test_what_was_rejected_or_paid_without_approval_makes_nobody_known(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        assert await outcome(engine, "pout_1", url=SHOP) == "HELD BENEFICIARY_NEW"
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
        await engine.deliver(observed("pout_2", 1_000, agent="free", url=SHOP, status="processing"))
        assert await outcome(engine, "pout_3", url=SHOP) == "HELD BENEFICIARY_NEW"


@pytest.mark.parametrize(
    ("expected", "agent", "fund_account", "url"),
    [
        ("APPROVED POLICY_OK", "bot", "fa_1", SHOP),
        ("APPROVED POLICY_OK", "bot", "fa_1", "https://SHOP.example:443/other/page"),
        ("APPROVED POLICY_OK", "bot", "fa_1", None),
        ("HELD BENEFICIARY_CHANGED", "bot", "fa_1", OTHER),
        ("HELD BENEFICIARY_NEW BENEFICIARY_CHANGED", "bot", "fa_2", SHOP),
        ("HELD BENEFICIARY_NEW", "bot", "fa_2", OTHER),
        ("HELD BENEFICIARY_NEW", "bot", "fa_2", None),
        ("HELD BENEFICIARY_NEW", "bot", "", SHOP),
        ("APPROVED POLICY_OK", "new", "fa_1", OTHER),
        ("HELD BENEFICIARY_NEW", "new", "fa_2", SHOP),
        ("HELD BENEFICIARY_CHANGED", "changed", "fa_1", OTHER),
        ("HELD BENEFICIARY_CHANGED", "changed", "fa_2", SHOP),
        ("APPROVED POLICY_OK", "changed", "fa_2", OTHER),
        ("APPROVED POLICY_OK", "free", "fa_2", SHOP),
        ("HELD BENEFICIARY_NEW APPROVAL_REQUIRED", "careful", "fa_2", OTHER),
    ],
)
async def test_after_a_payout_to_fa_1_for_the_shop(
    redis_url: str, expected: str, agent: str, fund_account: str, url: str | None
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        assert await outcome(engine, "pout_1", agent="free", url=SHOP) == "APPROVED POLICY_OK"
        found = await outcome(engine, "pout_2", agent=agent, fund_account=fund_account, url=url)
    # A fund account that the bank did not name is new, and for a known vendor it is another one than its own.
    expected += " BENEFICIARY_CHANGED" if not fund_account else ""
    assert found == expected


@pytest.mark.parametrize(
    ("expected", "agent", "url"),
    [
        ("HELD BENEFICIARY_CHANGED", "changed", SHOP),
        ("APPROVED POLICY_OK", "changed", ""),
        ("HELD BENEFICIARY_NEW BENEFICIARY_CHANGED", "bot", SHOP),
        ("APPROVED POLICY_OK", "free", SHOP),
    ],
)
async def test_a_payee_given_inline_may_be_a_vendors_other_account_so_a_person_looks(
    redis_url: str, expected: str, agent: str, url: str
) -> None:
    """Every time: the registry knows fund accounts, and this one is known only when it is paid."""
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        for number in "12":
            asked = requested(1_000, key=number, agent=agent, url=url, payee=PAYEE)
            await engine.append(ACCOUNT, asked)
            await engine.settled()
            record = await engine.record(asked.payout)
            assert " ".join((record.decision or "", *record.reasons)) == expected
            if record.decision == "HELD":
                await engine.review(record.payout, "asha", "approve", account=ACCOUNT)


@pytest.mark.parametrize("reads_between", [0, 2])
async def test_a_vendors_second_account_is_changed_though_both_were_in_the_backlog(
    redis_url: str, reads_between: int
) -> None:
    """In reads one after the other: what is approved of one is noted before the next one is decided."""
    most = 8

    def known(n: int) -> e.Event:
        return observed(f"pout_{n}", 1, agent="free", url=SHOP)

    def read(at: int, *others: e.Event) -> list[e.Event]:
        return [*others, *(known(most * at + n) for n in range(most - len(others)))]

    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"pout_first{n}", 1, agent="free", url=SHOP) for n in range(3)))
    group = replace(engine.groups[0], read_max=most)
    async with Engine(redis_url, groups=[group]) as engine:
        await engine.deliver(observed("pout_last", 1, agent="free", url=SHOP))
        backlog = [
            *read(1, observed("pout_one", 1, agent="changed", url=OTHER, fund_account="fa_8")),
            *(event for at in range(reads_between) for event in read(10 + at)),
            *read(2, observed("pout_two", 1, agent="changed", url=OTHER, fund_account="fa_9")),
        ]
        async with engine.client.pipeline(transaction=True) as pipe:
            for event in backlog:
                pipe.xadd(engine.names.log, {"e": encode_events([event]), "m": b'{"by":"webhook"}'})
            await pipe.execute()
        await engine.settled()
        one, two = await engine.record("pout_one"), await engine.record("pout_two")
    assert (one.decision, two.decision, two.reasons) == ("APPROVED", "HELD", ["BENEFICIARY_CHANGED"])


OF_ONE_VENDOR = ((OTHER, "fa_8"), (OTHER, "fa_9"))
TO_ONE_ACCOUNT = ((SHOP, "fa_8"), (OTHER, "fa_8"))


def both_new(pairs: tuple[tuple[str, str], tuple[str, str]]) -> list[e.PayoutObserved]:
    """Two payouts whose beneficiaries nobody knows, and of which either makes the other one a changed one."""
    (url, account), (other_url, other_account) = pairs
    return [
        observed("pout_one", 1, agent="changed", url=url, fund_account=account),
        observed("pout_two", 1, agent="changed", url=other_url, fund_account=other_account),
    ]


@pytest.mark.parametrize("pairs", [OF_ONE_VENDOR, TO_ONE_ACCOUNT], ids=["one vendor", "one account"])
@pytest.mark.parametrize("way", ["fast path", "chain"])
async def test_of_two_that_come_together_the_second_is_changed(
    redis_url: str, way: str, pairs: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        for n, (url, _) in enumerate(pairs):  # vendors whom nobody has to ask for
            await engine.deliver(observed(f"pout_{n}", 1, agent="careful", url=url, account="acc_Other"))
        reputations = engine.groups[0]
    group = reputations if way == "fast path" else replace(reputations, fast_path=None)
    async with Engine(redis_url, groups=[group]) as engine:
        await engine.stop()
        for event in both_new(pairs):
            await engine.append(ACCOUNT, event)
        engine.start()
        await engine.settled()
        one, two = await engine.record("pout_one"), await engine.record("pout_two")
    assert (one.decision, two.decision, two.reasons) == ("APPROVED", "HELD", ["BENEFICIARY_CHANGED"])


@pytest.mark.parametrize("pairs", [OF_ONE_VENDOR, TO_ONE_ACCOUNT], ids=["one vendor", "one account"])
@pytest.mark.parametrize("way", ["fast path", "chain"])
async def test_of_two_in_the_hands_of_two_workers_the_later_one_is_changed(
    redis_url: str, way: str, pairs: tuple[tuple[str, str], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one worker knew before the other one approved is found to be so no more in the step that would record it."""
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        group, names, client = engine.groups[0], engine.names, engine.client
        for url, _ in pairs:
            await engine.deliver(observed(f"pout_{url}", 1, agent="careful", url=url, account="acc_Other"))
        await engine.stop()
        group = group if way == "fast path" else replace(group, fast_path=None)
        slow, other = Handler(0, group, Limits()), Handler(0, group, Limits())
        read = "XREADGROUP", "GROUP", group.name, "me", "COUNT", 1, "STREAMS", names.log, ">"
        in_hand = []
        for event in both_new(pairs):
            await engine.append(ACCOUNT, event)
            [[_, entries]] = await client.execute_command(*read)
            in_hand.append(entries)
        refresh, begun = slow._policies.refresh, list[bytes]()

        async def refresh_late(to: Redis, rev: bytes) -> PolicyBook:
            if not begun:  # what is known of its payout was loaded; nothing is recorded yet
                begun.append(rev)
                await other.handle(client, in_hand[1], taken=False)
            return await refresh(to, rev)

        monkeypatch.setattr(slow._policies, "refresh", refresh_late)
        await slow.handle(client, in_hand[0], taken=False)
        one, two = await engine.record("pout_one"), await engine.record("pout_two")
    assert (two.decision, one.decision, one.reasons) == ("APPROVED", "HELD", ["BENEFICIARY_CHANGED"])


async def test_two_to_one_pair_that_nobody_knows_are_both_let_through_where_only_changes_are_held(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.stop()
        for event in both_new(((OTHER, "fa_8"), (OTHER, "fa_8"))):
            await engine.append(ACCOUNT, event)
        engine.start()
        await engine.settled()
        one, two = await engine.record("pout_one"), await engine.record("pout_two")
    assert (one.decision, two.decision) == ("APPROVED", "APPROVED")


async def test_a_changed_pair_that_a_reviewer_approved_is_known_from_then_on(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await outcome(engine, "pout_1", agent="free", url=SHOP)
        assert await outcome(engine, "pout_2", fund_account="fa_2", url=SHOP) == (
            "HELD BENEFICIARY_NEW BENEFICIARY_CHANGED"
        )
        evidence = (await engine.record("pout_2")).findings[-1].evidence
        assert evidence == {"fund_account": "fa_2", "paid_for": [], "vendor_paid_at": ["fa_1"]}
        await engine.review("pout_2", "asha", "approve", account=ACCOUNT)
        assert await outcome(engine, "pout_3", fund_account="fa_2", url=SHOP) == "APPROVED POLICY_OK"
        assert await outcome(engine, "pout_4", fund_account="fa_1", url=SHOP) == "APPROVED POLICY_OK"


async def test_a_hold_for_the_beneficiary_goes_on_and_a_threat_still_rejects(redis_url: str) -> None:
    async with Engine(redis_url, vendors=Vendors({"malware": "threat"})) as engine:
        await engine.apply(POLICIES)
        found = await outcome(engine, "pout_1", url="https://malware.example/")
    assert found == "REJECTED RISK_HIGH"


async def test_a_pair_is_noted_once_and_not_with_every_payout(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        for i in range(3):
            await outcome(engine, f"pout_{i}", agent="free", url=SHOP)
        noted = [
            event
            for entry in await engine.entries()
            for event in entry
            if isinstance(event, e.BeneficiaryNoted)
        ]
        assert [event.payout for event in noted] == ["pout_0"]
        names = engine.names
        by_account = await engine.client.hgetall(names.paid_for(ACCOUNT, "fa_1"))
        by_vendor = await engine.client.hgetall(names.paid_at(ACCOUNT, "shop.example"))
        ttl = await engine.client.ttl(names.paid_for(ACCOUNT, "fa_1"))
    at = str(noted[0].at).encode()
    assert (by_account, by_vendor) == ({b"shop.example": at}, {b"fa_1": at})
    assert KEPT_S - 60 <= ttl <= KEPT_S


def test_a_pair_is_forgotten_after_its_time_and_noted_again_before() -> None:
    def seen(age_s: int) -> e.BeneficiarySeen:
        at = NOW - age_s * US
        return look(PAIR, {"shop.example": at}, {"fa_1": at}, NOW)

    assert seen(0) == seen(RENEW_S - 1) == e.BeneficiarySeen(known=True, noted=True)
    assert seen(RENEW_S) == seen(KEPT_S - 1) == e.BeneficiarySeen(known=True)
    assert seen(KEPT_S) == e.BeneficiarySeen()


async def test_the_script_keeps_the_names_that_the_model_keeps(redis_url: str) -> None:
    rng, names, model = random.Random(13), Names(0), dict[str, int]()
    key = names.paid_for(ACCOUNT, "fa_1")
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["g"])
        for _ in range(60):
            name, at = f"host-{rng.randrange(12)}", NOW + rng.randrange(20)
            entry = await client.xadd(names.log, {"e": "[]", "m": "{}"})
            await client.xreadgroup("g", "c", {names.log: ">"})
            await scripts.commit(client, names, "g", [Handover(entry=entry, notes=[(key, name, at, False)])])
            model = with_name(model, name, at)
            kept = await client.hgetall(key)
            assert {k.decode(): int(v) for k, v in kept.items()} == model
    assert len(model) == NAMES_MAX


def test_of_many_others_the_two_that_were_noted_last_are_told() -> None:
    others = {f"fa_{n}": NOW - n for n in range(2, 9)}
    seen = look(PAIR, {}, others, NOW)
    assert seen == e.BeneficiarySeen(other_accounts=["fa_2", "fa_3"])

"""First looks are offered by what Redis said before. The script finds what is no longer so, and that is asked about."""

from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import RENEW_S
from streamproc.domain.events import PayoutObserved
from streamproc.domain.payouts import PayoutRecord, decode_record
from streamproc.domain.wire import encode_events
from streamproc.log import grants, payees, remembered, scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.opened import Opened
from streamproc.log.script import Script
from streamproc.log.stream import open_log
from streamproc.log.work import Work
from tests.bank import until
from tests.engine import Engine
from tests.properties.test_fast_path import governance
from tests.words import ACCOUNT, apply_policies, observed

NAMES = Names(0)
POLICIES = """
defaults: {rate_limit: {count: 0}}
policies:
  bot: {daily_limit: 100000, new_beneficiary: hold, changed_beneficiary: hold}
  easy: {daily_limit: 100000}
reviewers: [asha]
"""
HOST, US = "shop.example", 1_000_000
SCRIPTS = {scripts._load.sha: "load", grants._grant.sha: "grant", scripts._commit.sha: "commit"}


class Bench:
    """A consumer's handler, and entries as it reads them."""

    def __init__(self, client: Redis, called: list[str]) -> None:
        self.client, self.called = client, called
        self.handler = Handler(0, governance(), Limits())

    async def read(self, *events: PayoutObserved) -> Opened:
        """Append entries and read them, as a consumer does while another batch is in hand."""
        self.called.clear()
        for event in events:
            await self.client.xadd(NAMES.log, {"e": encode_events([event]), "m": b'{"by":"webhook"}'})
        name = self.handler.group.name
        reply = await self.client.execute_command(
            "XREADGROUP", "GROUP", name, "me", "STREAMS", NAMES.log, ">"
        )
        return await self.handler.opener.ahead(self.client, reply[0][1])

    async def handle(self, opened: Opened) -> None:
        await self.handler.handle(self.client, opened.entries, taken=False, ahead=opened)

    async def decide(self, *events: PayoutObserved) -> list[PayoutRecord]:
        await self.handle(await self.read(*events))
        return await self.records(*(event.payout for event in events))

    async def records(self, *payouts: str) -> list[PayoutRecord]:
        return [decode_record(await self.client.hget(NAMES.payout(payout), "s")) for payout in payouts]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that are called, in order."""
    names: list[str] = []
    real = Script.__call__

    async def heard(script: Script, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        names.append(SCRIPTS.get(script.sha, "another"))
        return await real(script, client, keys, args)

    monkeypatch.setattr(Script, "__call__", heard)
    return names


@pytest.fixture
async def bench(redis_url: str, called: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Whose payee was paid, and is remembered, so long ago that the script looks again."""
    monkeypatch.setattr(remembered, "BELIEVED_S", 0.0)
    async with connected(redis_url) as client:
        bench = Bench(client, called)
        await open_log(client, partitions=1, groups=[bench.handler.group.name])
        await apply_policies(client, POLICIES)
        for n in range(2):  # the first one is noted, the second one is found noted
            await bench.decide(pay(f"pout_a{n}", agent="easy"))
        yield bench


def pay(payout: str, *, agent: str = "bot", account: str = "fa_1", status: str = "pending") -> PayoutObserved:
    return observed(payout, 100, agent=agent, url=f"https://{HOST}/", fund_account=account, status=status)


async def now_us(client: Redis) -> int:
    seconds, us = await client.time()
    return int(seconds * US + us)


async def test_a_batch_to_payees_that_are_remembered_is_one_command(bench: Bench) -> None:
    opened = await bench.read(*(pay(f"pout_{n}") for n in range(3)))
    assert bench.called == []
    await bench.handle(opened)
    assert bench.called == ["grant"]
    for record in await bench.records("pout_0", "pout_1", "pout_2"):
        assert (record.decision, record.reasons) == ("APPROVED", ["POLICY_OK"])
        written = int((await entry_of(bench.client, record.payout)).partition(b"-")[0])
        assert record.received_at <= record.decided_at <= await now_us(bench.client)
        assert written * 1000 <= record.decided_at


async def entry_of(client: Redis, payout: str) -> bytes:
    """The entry that showed it first."""
    rows = await client.execute_command("XRANGE", NAMES.log, "-", "+")
    return bytes(
        next(
            entry
            for entry, fields in rows
            if b"payout.observed" in fields[1] and payout.encode() in fields[1]
        )
    )


async def test_payees_that_are_not_remembered_are_asked_about_after_those_that_are(bench: Bench) -> None:
    records = await bench.decide(pay("pout_1"), pay("pout_2", account="fa_2"))
    assert bench.called[:2] == ["grant", "load"]
    assert [record.decision for record in records] == ["APPROVED", "HELD"]


async def test_where_most_payees_are_not_remembered_all_are_asked_about_at_once(bench: Bench) -> None:
    events = [pay(f"pout_{n}", agent="easy", account=f"fa_{n}") for n in range(1, 4)]
    records = await bench.decide(*events)
    assert bench.called[0] == "load"
    assert {record.decision for record in records} == {"APPROVED"}


async def test_a_payee_that_was_forgotten_since_is_judged_as_one_who_is_not_known(bench: Bench) -> None:
    opened = await bench.read(pay("pout_1"))
    await bench.client.delete(NAMES.paid_for(ACCOUNT, "fa_1"), NAMES.paid_at(ACCOUNT, HOST))
    await bench.handle(opened)
    assert bench.called[:2] == ["grant", "load"]
    (record,) = await bench.records("pout_1")
    assert (record.decision, record.reasons) == ("HELD", ["BENEFICIARY_NEW"])
    await bench.decide(pay("pout_2"))
    assert bench.called[0] == "load"


async def test_a_payee_that_was_found_noted_just_now_is_not_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script, too: by nobody is he looked at three times."""
    looked: list[int] = []
    real = grants.grant

    async def heard(*args: Any, **named: Any) -> list[int]:
        looked.append(sum(one.first is not None for one in args[3]))
        return await real(*args, **named)

    monkeypatch.setattr(grants, "grant", heard)
    await bench.decide(pay("pout_1"))
    bench.handler.opener.remembered.forget()
    await bench.decide(pay("pout_2"))  # asks
    monkeypatch.setattr(remembered, "BELIEVED_S", 60.0)
    await bench.decide(pay("pout_3"))
    opened = await bench.read(pay("pout_4"))
    bench.handler.opener.remembered.found(opened.from_memory[0], -60.0)
    await bench.handle(opened)
    await bench.decide(pay("pout_5"))
    assert looked == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("hash_of", ["account", "vendor"])
async def test_a_payee_that_others_pushed_out_since_is_not_paid_as_known(bench: Bench, hash_of: str) -> None:
    """Either half of what is remembered is looked at."""
    key = NAMES.paid_for(ACCOUNT, "fa_1") if hash_of == "account" else NAMES.paid_at(ACCOUNT, HOST)
    opened = await bench.read(pay("pout_1"), pay("pout_2"))
    now = await now_us(bench.client)
    await bench.client.delete(key)
    await bench.client.hset(key, mapping={f"other{n}": now for n in range(8)})
    await bench.handle(opened)
    for record in await bench.records("pout_1", "pout_2"):
        assert (record.decision, record.reasons) == ("HELD", ["BENEFICIARY_CHANGED"])


async def test_a_payee_that_its_own_approvals_pushed_out_is_looked_at_however_lately_he_was_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He was paid as known, while the chain holds the payout."""
    monkeypatch.setattr(remembered, "BELIEVED_S", 3_600.0)
    await bench.decide(pay("pout_1"))
    await bench.decide(*(pay(f"pout_{n}", agent="easy", account=f"fa_{n}") for n in range(2, 10)))
    (record,) = await bench.decide(pay("pout_last"))
    assert bench.called[0] == "grant"
    assert (record.decision, record.reasons) == ("HELD", ["BENEFICIARY_CHANGED"])


async def test_a_payee_that_approvals_by_the_chain_pushed_out_is_looked_at_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken over takes no fast path."""
    monkeypatch.setattr(remembered, "BELIEVED_S", 3_600.0)
    await bench.decide(pay("pout_1"))
    others = await bench.read(*(pay(f"pout_{n}", agent="easy", account=f"fa_{n}") for n in range(2, 10)))
    bench.called.clear()
    await bench.handler.handle(bench.client, others.entries, taken=True)
    assert "grant" not in bench.called
    (record,) = await bench.decide(pay("pout_last"))
    assert bench.called[0] == "grant"
    assert (record.decision, record.reasons) == ("HELD", ["BENEFICIARY_CHANGED"])


async def test_a_payee_whom_the_batch_before_pushed_out_is_asked_about_anew(bench: Bench) -> None:
    """What was known of the next batch ahead of it was used, as all its payees were noted then."""
    bench.handler.opener.remembered.forget()
    before = await bench.read(*(pay(f"pout_{n}", agent="easy", account=f"fa_{n}") for n in range(2, 10)))
    opened = await bench.read(pay("pout_last"))
    assert opened.known is not None
    await bench.handle(before)
    await bench.handle(opened)
    (record,) = await bench.records("pout_last")
    assert (record.decision, record.reasons) == ("HELD", ["BENEFICIARY_CHANGED"])


async def test_a_payee_whom_another_worker_noted_since_he_was_asked_about_is_known(bench: Bench) -> None:
    """What was known ahead of a batch is used only of payees who were noted then."""
    opened = await bench.read(pay("pout_1", account="fa_2"))
    assert opened.known is not None
    now = await now_us(bench.client)
    await bench.client.hset(NAMES.paid_for(ACCOUNT, "fa_2"), HOST, now)
    await bench.client.hset(NAMES.paid_at(ACCOUNT, HOST), "fa_2", now)
    await bench.handle(opened)
    (record,) = await bench.records("pout_1")
    assert (record.decision, record.reasons) == ("APPROVED", ["POLICY_OK"])


async def test_a_payee_that_was_noted_too_long_ago_is_noted_again(bench: Bench) -> None:
    key = NAMES.paid_for(ACCOUNT, "fa_1")
    opened = await bench.read(pay("pout_1"))
    await bench.client.hset(key, HOST, await now_us(bench.client) - RENEW_S * US - 1)
    await bench.handle(opened)
    (record,) = await bench.records("pout_1")
    assert record.decision == "APPROVED"
    assert await bench.client.hget(key, HOST) == str(record.decided_at).encode()


async def test_policies_that_changed_since_are_those_that_it_is_decided_under(bench: Bench) -> None:
    opened = await bench.read(pay("pout_1"))
    await apply_policies(bench.client, POLICIES.replace("bot: {", "bot: {per_txn_limit: 50, "))
    await bench.handle(opened)
    assert bench.called[-3:] == ["grant", "load", "commit"]
    (record,) = await bench.records("pout_1")
    assert (record.decision, record.reason) == ("REJECTED", "TXN_LIMIT_EXCEEDED")


async def test_a_payout_that_is_known_is_approved_once(bench: Bench) -> None:
    await bench.decide(pay("pout_1"))
    number = await bench.client.get(NAMES.number)
    (record,) = await bench.decide(pay("pout_1", status="queued"))
    assert bench.called == ["grant", "load", "commit"]
    assert (record.decision, record.bank_status) == ("APPROVED", "queued")
    assert await bench.client.get(NAMES.number) == number


async def test_two_looks_at_a_payout_in_one_batch_are_one_first_look(bench: Bench) -> None:
    number = int(await bench.client.get(NAMES.number))
    (record, _) = await bench.decide(pay("pout_1"), pay("pout_1", status="queued"))
    assert bench.called == ["grant", "load", "commit"]
    assert (record.decision, record.bank_status) == ("APPROVED", "queued")
    assert int(await bench.client.get(NAMES.number)) == number + 1


@pytest.mark.parametrize(
    ("entries", "latest"),
    [
        ([(b"10-0", 10_400), (b"10-1", 10_700), (b"10-2", 10_500)], 10_700),
        ([(b"10-0", 10_700), (b"11-0", 10_800)], 11_000),  # seen before it was written
        ([(b"10-0", 10_700), (b"11-0", 99_000)], 11_999),  # by a producer whose clock is ahead
        ([(b"1-9", 99_000), (b"11-0", 11_001)], 11_001),
    ],
    ids=[
        "the latest of its millisecond",
        "written later",
        "a clock ahead",
        "an earlier id of the same beginning",
    ],
)
def test_the_time_of_a_batch_is_not_before_its_payouts_were_seen_and_written(
    entries: list[tuple[bytes, int]], latest: int
) -> None:
    memory = remembered.Remembered()
    an_hour_s = 3_600  # in which the clock says 1970: until then what is carried on is before that, however slow we are
    memory.learn(0, monotonic() + an_hour_s, (), ())
    firsts = payees.first_looks(NAMES, [Work(entry, [observed(at=at)]) for entry, at in entries])
    assert memory.now_us(firsts) == latest


async def test_where_the_clock_was_set_back_redis_has_the_time(bench: Bench) -> None:
    before = await now_us(bench.client)
    opened = await bench.read(pay("pout_1"))
    bench.handler.opener.remembered.learn(before + 60 * US, monotonic(), (), ())
    await bench.handle(opened)
    assert bench.called[:2] == ["grant", "load"]
    (record,) = await bench.records("pout_1")
    assert record.decision == "APPROVED"
    assert before <= record.decided_at <= await now_us(bench.client)
    await bench.decide(pay("pout_2"))
    assert bench.called == ["grant"]


async def test_what_was_remembered_too_long_ago_is_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await bench.read(pay("pout_1"))
    monkeypatch.setattr(remembered, "CLOCK_S", 0.0)
    await bench.handle(opened)
    assert bench.called[0] == "load"


def deciding(called: Sequence[str]) -> list[str]:
    """Without what a consumer calls beside its batches."""
    return [name for name in called if name in ("load", "grant")]


async def test_after_a_reconnect_nothing_is_remembered(redis_url: str, called: list[str]) -> None:
    async with Engine(redis_url, groups=[governance()]) as engine:
        await engine.apply(POLICIES)
        for n in range(3):
            await engine.deliver(pay(f"pout_{n}", agent="easy"))
        assert deciding(called)[-1] == "grant"

        async def connections() -> set[str]:
            return {
                one["id"] for one in await engine.client.client_list() if one["name"].startswith("governance")
            }

        before = await connections()
        for one in before:
            await engine.client.client_kill_filter(_id=one)

        async def is_back() -> bool:
            now = await connections()
            return bool(now) and not now & before

        await until(is_back, what="the consumer is connected again")
        called.clear()
        await engine.deliver(pay("pout_3", agent="easy"))
        assert deciding(called)[0] == "load"

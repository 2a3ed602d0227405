"""Approved intents are created at the bank, once, whatever is lost; what is foreign changes nothing."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

import consumers
from consumers import create as creating
from consumers.attempt import Debit
from consumers.create import key_of, order_bytes
from consumers.enact import Barrier, execution
from consumers.verdicts import decision_of
from consumers.vet import Reputations
from streamproc.bench.pure import NoCache
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.razorpay import CommandAnswer, Found, Razorpay, open_razorpay
from streamproc.domain import events as e
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.governance import conclude
from streamproc.domain.intent import Beneficiary, without_personal
from streamproc.domain.payouts import PayoutRecord, decode_record, fold
from streamproc.domain.policy import PolicyBook
from streamproc.errors import TryAgain, Unprocessable
from streamproc.ingress.translate import append_of
from streamproc.log.connection import named_errors
from streamproc.log.script import Script
from streamproc.log.work import BatchContext, Work
from streamproc.operate.bank import bank_unasked
from streamproc.operate.recover import look, rebuild
from streamproc.operate.recover_bank import ask_bank
from streamproc.settings import load
from tests.bank import Sandbox, running_sandbox, until
from tests.consumers.test_refuted import at_once
from tests.deadline import DEADLINE_S
from tests.engine import ZONE, Engine
from tests.operate.recovering import archive, polled, recovered, settings_of
from tests.words import ACCOUNT, NOW, Vendors, copy_of, request, requested

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 10_000_000, require_verified_identity: true}
  careful: {daily_limit: 10_000_000, require_approval_above: 100_000, hold_ttl: 1h}
  small: {per_txn_limit: 100}
reviewers: [asha]
"""
PAYEE = Beneficiary(
    contact_name="Some Body", account_type="bank_account", name="Some Body", ifsc="HDFC0000001",
    account_number="000011112222",
)  # fmt: skip


class Gateway:
    """The engine with both groups against a real sandbox; the bank's webhooks are this test's to deliver."""

    def __init__(self, engine: Engine, bank: Sandbox, client: Razorpay) -> None:
        self.engine, self.bank, self.client = engine, bank, client

    async def ask(self, event: e.PayoutRequested) -> None:
        await self.engine.producer.append(request(event))
        await self.engine.settled()

    async def ends(self, payout: str, *states: str) -> PayoutRecord:
        """Wait until the fold of the log has the payout in one of these states."""

        async def there() -> PayoutRecord | None:
            record = fold(await self.engine.story(payout))
            return record if record is not None and record.state in states else None

        record = await until(there, what=f"{payout} is {states}")
        assert record is not None
        return record

    async def at_bank(self, payout: str) -> list[dict[str, Any]]:
        """What the bank has under the reference."""
        return [shown for shown in await self.bank.show("payouts") if shown["reference_id"] == payout]

    async def tells(self, payout: str) -> None:
        """The bank's webhooks about it, as they stand now."""
        for facts in (await self.client.find(self.bank.config.account_number, payout)).payouts:
            await self.engine.producer.append(
                append_of(
                    facts, account=requested().account, source="poll", now_us=self.engine.producer.now_us()
                )
            )
        await self.engine.settled()

    async def commands(self) -> list[str]:
        return [line["command"] for line in await self.bank.record(effect="true")]


@asynccontextmanager
async def gateway(redis_url: str, barrier: Barrier = at_once, **config: Any) -> AsyncIterator[Gateway]:
    async with running_sandbox(**config) as bank:
        client = open_razorpay(
            bank.url, key_id=bank.config.key_id, key_secret=bank.config.key_secret,
            oauth_token=bank.config.oauth_token,
        )  # fmt: skip
        debit = Debit(bank.config.account_number, ACCOUNT)
        unasked = partial(bank_unasked, load({"STREAMPROC_REDIS_URL": redis_url}))
        await polled(redis_url, ACCOUNT)
        groups = [
            consumers.governance(Reputations(Vendors()), zone=ZONE),
            execution(client, barrier, debit, unasked=unasked),
        ]
        try:
            async with Engine(redis_url, groups=groups) as engine:
                await engine.apply(POLICIES)
                yield Gateway(engine, bank, client)
        finally:
            await client.aclose()


async def fund_account(bank: Sandbox) -> str:
    """A fund account that the bank knows."""
    contact = (await bank.call("POST", "/v1/contacts", {"name": "Some Body", "type": "vendor"})).json()["id"]
    details = {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"}
    made = await bank.call(
        "POST",
        "/v1/fund_accounts",
        {"contact_id": contact, "account_type": "bank_account", "bank_account": details},
    )
    identity: str = made.json()["id"]
    return identity


async def test_an_approved_intent_is_created_approved_at_the_bank_and_committed_when_it_is_processed(
    redis_url: str,
) -> None:
    async with gateway(redis_url) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.ask(asked)
        [made] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(made["id"], "processed")
        await gate.tells(asked.payout)
        record = await gate.ends(asked.payout, "processed")
        assert (record.bank_payout, record.identity, record.decision) == (made["id"], "verified", "APPROVED")
        assert record.reservation is not None
        assert record.reservation.state == "committed"
        assert (await gate.commands())[-2:] == ["payout.create", "payout.approve"]
        assert made["amount"] == asked.amount


async def test_an_inline_beneficiary_goes_to_the_bank_and_is_kept_no_longer_than_that(redis_url: str) -> None:
    async with gateway(redis_url, workflow="off") as gate:
        asked = requested(payee=PAYEE)
        await gate.ask(asked)
        record = await gate.ends(asked.payout, "confirmed")
        [made] = await gate.at_bank(asked.payout)
        assert record.bank_payout == made["id"]
        known = await gate.engine.client.hget(gate.engine.names.payout(asked.payout), "s")
        assert known is not None
        assert PAYEE.account_number.encode() not in known


@pytest.mark.parametrize("payee", [None, PAYEE])
async def test_when_the_answer_is_lost_after_the_bank_acted_there_is_one_payout_and_it_is_found(
    redis_url: str, payee: Beneficiary | None
) -> None:
    async with gateway(redis_url, workflow="off") as gate:
        account = await fund_account(gate.bank)
        await gate.bank.faults(
            api=[{"kind": "502", "path": "/v1/payouts", "method": "GET", "count": 1},
                 {"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 1}]
        )  # fmt: skip
        gate.client._http._timeout_s = 1.0  # the bank never answers; ten seconds would prove no more
        asked = requested(payee=payee, fund_account=account)
        await gate.engine.producer.append(request(asked))
        record = await gate.ends(asked.payout, "confirmed", "processed")
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [record.bank_payout]
        keys = {line["idempotency_key"] for line in await gate.bank.record(command="payout.create")}
        assert len(keys) == 1
        assert len(await gate.bank.record(command="payout.create", effect="true")) == 1


async def test_a_webhook_that_comes_before_our_answer_is_recorded_is_no_bypass(redis_url: str) -> None:
    async with gateway(redis_url, workflow="off") as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        release, sent = asyncio.Event(), asyncio.Event()
        call = gate.client.create

        async def slow(order: bytes, key: str) -> Any:
            answer = await call(order, key)
            sent.set()
            await release.wait()
            return answer

        gate.client.create = slow  # type: ignore[method-assign]
        await gate.engine.producer.append(request(asked))
        await sent.wait()
        [made] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(made["id"], "processed")
        for facts in (await gate.client.find(gate.bank.config.account_number, asked.payout)).payouts:
            await gate.engine.producer.append(
                append_of(
                    facts, account=asked.account, source="webhook", now_us=gate.engine.producer.now_us()
                )
            )
        before = await gate.ends(asked.payout, "processed")
        release.set()
        await gate.engine.settled()
        story = await gate.engine.story(asked.payout)
        after = fold(story)
    assert before.bank_payout == made["id"]
    assert after is not None
    assert (after.state, after.created_as) == ("processed", made["id"])
    assert not [event for event in story if isinstance(event, e.GovernanceBypassed)]
    assert len([event for event in story if isinstance(event, e.PayoutSettled)]) == 1


async def test_a_refused_creation_fails_the_payout_says_why_and_gives_the_budget_back(redis_url: str) -> None:
    async with gateway(redis_url, workflow="off", balance=100) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.ask(asked)
        record = await gate.ends(asked.payout, "failed")
        assert record.reservation is not None
        assert record.reservation.state == "released"
        assert "balance" in record.failure
        assert await gate.at_bank(asked.payout) == []
        assert await gate.engine.client.xlen(gate.engine.names.dead) == 0


async def test_a_refusal_after_a_lost_answer_is_no_failure_while_the_first_attempt_may_still_turn_up(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank's list may show a payout up to an hour late. Its agent would ask for it anew, under another key."""
    monkeypatch.setattr(creating, "LOOK_AGAIN_S", 0.1)
    async with gateway(redis_url, workflow="off") as gate:
        create, find, refusals, is_late = gate.client.create, gate.client.find, list[str](), True

        async def refused(order: bytes, key: str) -> CommandAnswer:
            if not refusals:
                await create(order, key)
            refusals.append(key)
            if len(refusals) == 1:
                raise OutcomeUnknown("no answer in time")
            return CommandAnswer(
                http_status=400, outcome="refused", code="BAD_REQUEST_ERROR", problem="balance"
            )

        async def late(account_number: str, reference: str) -> Found:
            return Found([], None) if is_late else await find(account_number, reference)

        gate.client.create, gate.client.find = refused, late  # type: ignore[method-assign]
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.engine.producer.append(request(asked))

        async def refused_twice() -> bool:
            return len(refusals) >= 3

        await until(refused_twice, what="it is tried again")
        record = fold(await gate.engine.story(asked.payout))
        assert record is not None
        assert (record.failure, len(set(refusals))) == ("", 1)
        is_late = False
        record = await gate.ends(asked.payout, "confirmed", "processed")
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [record.bank_payout]


async def test_a_refusal_after_a_lost_answer_is_a_failure_once_the_first_attempt_is_lost_for_good(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(creating, "LOST_FOR_GOOD_S", 3)
    async with gateway(redis_url, workflow="off") as gate:
        calls = list[str]()

        async def refused(_order: bytes, key: str) -> CommandAnswer:
            calls.append(key)
            if len(calls) == 1:
                raise OutcomeUnknown("no answer in time")
            return CommandAnswer(
                http_status=400, outcome="refused", code="BAD_REQUEST_ERROR", problem="balance"
            )

        gate.client.create = refused  # type: ignore[method-assign]
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.engine.producer.append(request(asked))
        record = await gate.ends(asked.payout, "failed")
        assert (record.failure, len(calls) > 2) == ("BAD_REQUEST_ERROR: balance", True)


class Kept(NoCache):
    """A cache in memory."""

    def __init__(self) -> None:
        self.values = dict[str, bytes]()

    async def get_many(self, digests: Sequence[str]) -> list[bytes | None]:
        return [self.values.get(digest) for digest in digests]

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        self.values |= {digest: value for digest, (value, _) in values.items()}


class Refusing:
    """A bank that shows nothing, and refuses each order for which nothing else comes."""

    def __init__(self) -> None:
        self.problem: TryAgain | None = None

    async def find(self, _account_number: str, _reference: str) -> Found:
        return Found([])

    async def create(self, _order: bytes, _key: str) -> CommandAnswer:
        if self.problem is not None:
            raise self.problem
        return CommandAnswer(http_status=400, outcome="refused", code="BAD_REQUEST_ERROR", problem="balance")


async def test_a_refusal_is_a_failure_once_all_attempts_of_an_hour_were_refused_however_late_the_last_was_lost() -> (
    None
):
    """The hour was that after the decision. So what an attempt made after it, which the bank's list did not show yet,
    was told to be failed by the next refusal, and was paid besides what its agent asked for instead."""
    asked, bank, cache, book = requested(300, at=NOW), Refusing(), Kept(), PolicyBook({})
    record = fold([asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW)

    async def book_now() -> PolicyBook:
        return book

    async def attempted(after_s: int, problem: TryAgain | None = None) -> list[str]:
        """The outcomes that an attempt records, so long after the decision; `problem`: it got no answer."""
        bank.problem = problem
        work = Work(b"5-1", [decided], asked.payout, taken=True)
        work.open(b"1", fold([decided], record), NOTHING_ASKED, keep=False)
        ctx: Any = BatchContext(NOW + after_s * 1_000_000, 0, book, at_once, cache, book_now, at_once)  # type: ignore[arg-type]
        debit = Debit("2323230000000000", ACCOUNT)
        attempt = creating.Attempt(work, ctx, bank, debit, decided.at, "0:5-1:0", monotonic())
        with suppress(TryAgain):
            await creating.create(attempt)
        return [event.outcome for event in work.out if isinstance(event, e.BankCommandAnswered)]

    hour_s, lost, unsent = creating.LOST_FOR_GOOD_S, OutcomeUnknown("no answer"), TryAgain("no turn")
    assert await attempted(2 * hour_s, lost) == []
    assert await attempted(2 * hour_s + 10) == []
    assert await attempted(2 * hour_s + 900, lost) == []
    assert await attempted(2 * hour_s + 910) == []
    assert await attempted(3 * hour_s, unsent) == []
    assert await attempted(3 * hour_s + 900) == []
    assert await attempted(3 * hour_s + 910) == ["refused"]
    assert await attempted(hour_s) == []  # the clock went back
    assert await attempted(2 * hour_s) == ["refused"]


async def test_nothing_is_at_the_bank_of_an_intent_that_is_held_or_rejected(redis_url: str) -> None:
    async with gateway(redis_url, workflow="off") as gate:
        account = await fund_account(gate.bank)
        small = requested(agent="small", fund_account=account)
        held = requested(agent="careful", fund_account=account)
        await gate.ask(small)
        await gate.ask(held)
        assert (await gate.ends(small.payout, "rejected")).reason == "TXN_LIMIT_EXCEEDED"
        waiting = await gate.ends(held.payout, "held")
        assert waiting.reservation is not None
        assert "payout.create" not in await gate.commands()

        await gate.engine.review(held.payout, "asha", "approve", account=held.account)

        await gate.ends(held.payout, "confirmed")
        [made] = await gate.at_bank(held.payout)
        assert made["amount"] == held.amount
        assert await gate.at_bank(small.payout) == []


async def test_a_foreign_payout_under_the_reference_is_a_bypass_when_it_moves_and_is_never_approved(
    redis_url: str,
) -> None:
    async with gateway(redis_url) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.ask(asked)
        [ours] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(ours["id"], "processed")
        foreign = await gate.bank.pay(asked.amount, reference_id=asked.payout)
        dear = await gate.bank.pay(asked.amount + 1, reference_id=asked.payout, status="processing")
        await gate.bank.reaches(dear["id"], "processed")
        await gate.tells(asked.payout)
        record = await gate.ends(asked.payout, "processed")
        bypasses = [
            event
            for event in await gate.engine.story(asked.payout)
            if isinstance(event, e.GovernanceBypassed)
        ]
        assert (record.bank_payout, record.amount) == (ours["id"], asked.amount)
        assert [(event.bank_payout, event.amount) for event in bypasses] == [(dear["id"], asked.amount + 1)]
        assert await gate.bank.record(payout=foreign["id"], command="payout.approve") == []

        async def ended() -> bool:
            return bool((await gate.bank.payout(foreign["id"]))["status"] == "rejected")

        await until(ended, what="nobody decided it, so it is rejected")
        assert (await gate.bank.payout(ours["id"]))["status"] == "processed"


@pytest.mark.parametrize(("status", "end"), [("pending", "rejected"), ("queued", "cancelled")])
async def test_a_payout_with_a_reference_that_no_intent_has_is_ended_at_the_bank(
    redis_url: str, status: str, end: str
) -> None:
    """Else such a reference would be a way around governance: one that is queued pays itself."""
    async with gateway(redis_url) as gate:
        reference = requested(key="never asked").payout
        made = [await gate.bank.pay(1_000, reference_id=reference, status=status) for _ in range(2)]
        await gate.tells(reference)

        async def ended() -> bool:
            return [(await gate.bank.payout(one["id"]))["status"] for one in made] == [end, end]

        await until(ended, what=f"both are {end}")
        await gate.tells(reference)
        story = await gate.engine.story(reference)
        assert not [event for event in story if isinstance(event, e.PayoutDecided | e.GovernanceBypassed)]


async def test_a_reference_that_nobody_asked_for_is_never_decided(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        asked = requested()
        pending = copy_of(asked, "pout_1", "pending")
        await engine.deliver(replace(pending, facts=replace(pending.facts, notes={"agent_id": "bot"})))
        await engine.deliver(copy_of(asked, "pout_1", "processing"))
        story = await engine.story(asked.payout)
    assert [type(event).__name__ for event in story] == [
        "PayoutObserved",
        "CancelRequested",
        "PayoutObserved",
        "GovernanceBypassed",
    ]


async def test_an_intent_that_moved_around_us_while_it_was_held_is_not_created_on_top(redis_url: str) -> None:
    async with gateway(redis_url) as gate:
        asked = requested(agent="careful", payee=PAYEE)
        await gate.ask(asked)
        around = await gate.bank.pay(asked.amount, reference_id=asked.payout, status="processing")
        await gate.bank.reaches(around["id"], "processed")
        await gate.tells(asked.payout)
        await gate.engine.review(asked.payout, "asha", "approve", account=asked.account)
        await gate.engine.settled()
        [aside] = [
            event for event in await gate.engine.story(asked.payout) if isinstance(event, e.EntrySetAside)
        ]
        assert around["id"] in aside.problem
        assert "payout.create" not in await gate.commands()


@pytest.mark.parametrize("payee", [PAYEE, None], ids=["inline", "fund account"])
async def test_a_foreign_payout_that_ended_does_not_take_the_place_of_the_one_that_is_created(
    redis_url: str, payee: Beneficiary | None
) -> None:
    """Somebody pays it by hand while it is held, and that is rejected at the bank; then a person approves it."""
    async with gateway(redis_url) as gate:
        to = await fund_account(gate.bank)
        asked = requested(agent="careful", payee=payee, fund_account=to)
        await gate.ask(asked)
        same = {} if payee is not None else {"fund_account_id": to}
        by_hand = await gate.bank.pay(asked.amount, reference_id=asked.payout, **same)
        await gate.tells(asked.payout)
        await gate.bank.reaches(by_hand["id"], "rejected")
        await gate.tells(asked.payout)
        await gate.engine.review(asked.payout, "asha", "approve", account=asked.account)
        record = await gate.ends(asked.payout, "confirmed", "processed")
        assert record.reservation is not None
        assert record.reservation.state == "reserved"
        assert record.bank_payout not in ("", by_hand["id"])
        await gate.bank.reaches(record.bank_payout, "processed")
        await gate.tells(asked.payout)
        record = await gate.ends(asked.payout, "processed")
        assert record.reservation is not None
        assert record.reservation.state == "committed"
        settled = [one for one in await gate.engine.story(asked.payout) if isinstance(one, e.PayoutSettled)]
        assert [one.settlement for one in settled] == ["committed"]


async def test_a_key_that_the_bank_may_have_forgotten_is_not_used_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "CREATE_WITHIN_S", -1)
    async with gateway(redis_url) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.ask(asked)
        [aside] = [
            event for event in await gate.engine.story(asked.payout) if isinstance(event, e.EntrySetAside)
        ]
        assert aside.problem.startswith("ALARM")
        assert await gate.at_bank(asked.payout) == []


@pytest.fixture
def redis_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Redis, float], Awaitable[object]]:
    """Moves the clock that scripts read of a Redis, by so many seconds from the server's own."""
    moved = b"""(function()
      local time = redis.call('TIME')
      return {string.format('%d', time[1] + tonumber(redis.call('GET', 'test:moved_s') or '0')), time[2]}
    end)()"""

    async def with_moved_clock(
        script: Script, client: Redis, keys: Sequence[str], args: Sequence[Any]
    ) -> Any:
        text = re.sub(rb"(redis\.)?call\('TIME'\)", lambda _: moved, script.text)
        with named_errors():
            return await client.execute_command("EVAL", text, len(keys), *keys, *args)

    async def move(client: Redis, by_s: float) -> object:
        return await client.set("test:moved_s", int(by_s))

    async def called(script: Script, *call: Any) -> Any:
        return await with_moved_clock(script, *call)

    monkeypatch.setattr(Script, "__call__", called)
    return move


@asynccontextmanager
async def decided_by_a_clock_that_was_wrong(
    redis_url: str, redis_clock: Callable[[Redis, float], Awaitable[object]], by_s: float
) -> AsyncIterator[tuple[Gateway, e.PayoutRequested]]:
    """An intent that was approved while Redis's clock was wrong, and whose creation is called when it is right again;
    the answer to the first call is lost."""
    opened = asyncio.Event()

    async def barrier(partition: int, entry: str, e: bytes) -> None:
        await opened.wait()

    async with gateway(redis_url, barrier, workflow="off") as gate:
        await redis_clock(gate.engine.client, by_s)
        asked = requested(payee=PAYEE)
        await gate.engine.producer.append(request(asked))
        await gate.ends(asked.payout, "approved")
        await gate.bank.faults(api=[{"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 1}])
        gate.client._http._timeout_s = 1.0
        await redis_clock(gate.engine.client, 0)
        opened.set()
        yield gate, asked


@pytest.mark.parametrize("by_s", [20 * 3_600, -20 * 3_600])
async def test_an_intent_decided_by_a_clock_that_was_wrong_by_hours_is_created_once(
    redis_url: str, redis_clock: Callable[[Redis, float], Awaitable[object]], by_s: float
) -> None:
    async with decided_by_a_clock_that_was_wrong(redis_url, redis_clock, by_s) as (gate, asked):
        record = await gate.ends(asked.payout, "confirmed", "processed")
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [record.bank_payout]
        assert len(await gate.bank.record(command="payout.create", effect="true")) == 1


@pytest.mark.parametrize("days", [30, -7])
async def test_an_intent_decided_by_a_clock_that_was_wrong_by_days_waits_for_a_person(
    redis_url: str, redis_clock: Callable[[Redis, float], Awaitable[object]], days: int
) -> None:
    """How long ago it was first sent cannot be told. It was sent for as many days more as the clock had been ahead, by
    when the bank may have forgotten the key, and pays it again."""
    async with decided_by_a_clock_that_was_wrong(redis_url, redis_clock, days * 86_400) as (gate, asked):

        async def sent() -> int:
            return len(await gate.bank.record(command="payout.create"))

        await until(sent, what="it is sent")
        if days > 0:
            await redis_clock(gate.engine.client, 8 * 86_400)

        async def set_aside() -> list[str]:
            assert await sent() == 1
            return [
                event.problem
                for event in await gate.engine.story(asked.payout)
                if isinstance(event, e.EntrySetAside)
            ]

        [problem] = await until(set_aside, what="it waits for a person")
        assert problem.startswith(f"ALARM: intent {asked.payout} was approved")


async def test_after_a_recovery_the_bank_is_asked_for_an_open_intent_by_its_reference(redis_url: str) -> None:
    async with gateway(redis_url) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.ask(asked)
        [made] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(made["id"], "processed")  # and nobody tells us
        config = gate.bank.config
        settings = settings_of(
            redis_url, "postgresql://nobody@127.0.0.1:1/x", razorpay_key_id=config.key_id,
            razorpay_key_secret=config.key_secret, razorpay_account_number=config.account_number,
            razorpay_account_id=ACCOUNT, razorpay_base_url=f"{gate.bank.url}/v1",
        )  # fmt: skip
        done = await ask_bank(settings)
        await gate.engine.settled()
        record = await gate.ends(asked.payout, "processed")
        assert (done.asked, done.left, record.bank_payout) == (1, [], made["id"])


async def test_what_was_approved_and_not_created_when_redis_was_lost_is_created_once(
    redis_url: str, postgres: str
) -> None:
    is_open = False

    async def barrier(partition: int, entry: str, e: bytes) -> None:
        if not is_open:
            raise TryAgain("the barrier is closed", after_s=0.1)

    async with gateway(redis_url, barrier, workflow="off") as gate:
        asked = requested(payee=PAYEE)
        await gate.ask(asked)
        await gate.engine.stop()
        await archive(redis_url, postgres)
        await gate.engine.client.flushdb()
        await recovered(redis_url, postgres)
        is_open = True
        gate.engine.start()

        async def created() -> PayoutRecord | None:  # from Redis: the log's beginning is in the archive alone
            known = await gate.engine.client.hget(gate.engine.names.payout(asked.payout), "s")
            record = decode_record(known) if known is not None else None
            return record if record is not None and record.created_as else None

        record = await until(created, what="the intent is created")
        assert record is not None
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [record.created_as]
        assert len(await gate.bank.record(command="payout.create")) == 1


async def test_what_was_paid_by_a_decision_that_postgres_lost_is_not_paid_again_after_a_recovery(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres is restored from a backup after the log was trimmed: the request is kept and decided again, so under
    another idempotency key."""
    monkeypatch.setattr(creating, "DECIDED_AT_ONCE_S", 0)  # restoring took no time here
    async with gateway(redis_url, workflow="off") as gate:
        await archive(redis_url, postgres)
        [*_, (last, _)] = await gate.engine.client.xrange(gate.engine.names.log)
        asked = requested(payee=PAYEE)
        await gate.ask(asked)
        [paid] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(paid["id"], "processed")
        await gate.tells(asked.payout)
        await gate.engine.stop()
        await gate.engine.client.xdel(gate.engine.names.log, last)
        await recovered(redis_url, postgres)
        gate.engine.start()

        async def set_aside() -> list[str]:
            events = await gate.engine.story(asked.payout)
            return [event.problem for event in events if isinstance(event, e.EntrySetAside)]

        [problem] = await until(set_aside, what="it waits for a person")
        assert problem.startswith(f"ALARM: {paid['id']} moved at the bank under the reference {asked.payout}")
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [paid["id"]]


async def test_what_both_stores_have_forgotten_and_is_asked_for_again_is_not_paid_again(
    redis_url: str, postgres: str
) -> None:
    """An agent repeats its request under the same key before the bank was asked what it has made meanwhile."""
    async with gateway(redis_url, workflow="off") as gate:
        await archive(redis_url, postgres)
        asked = requested(payee=PAYEE)
        await gate.ask(asked)
        [paid] = await gate.at_bank(asked.payout)
        await gate.bank.reaches(paid["id"], "processed")
        await gate.engine.stop()
        await gate.engine.client.flushall()
        await recovered(redis_url, postgres)
        await polled(redis_url, ACCOUNT)
        gate.engine.start()
        await gate.ask(replace(asked, at=gate.engine.producer.now_us()))
        assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [paid["id"]]
        events = await gate.engine.story(asked.payout)
        [problem] = [event.problem for event in events if isinstance(event, e.EntrySetAside)]
        assert problem.startswith(f"ALARM: {paid['id']} moved at the bank under the reference {asked.payout}")


async def test_an_intent_of_another_account_is_not_paid_from_ours(redis_url: str) -> None:
    async with gateway(redis_url) as gate:
        asked = requested(fund_account=await fund_account(gate.bank), account="acc_Another0000001")
        await gate.ask(asked)
        [aside] = [
            event for event in await gate.engine.story(asked.payout) if isinstance(event, e.EntrySetAside)
        ]
        assert "acc_Another0000001" in aside.problem
        assert await gate.at_bank(asked.payout) == []


def test_the_key_fits_the_bank_and_the_same_intent_always_gives_the_same_bytes() -> None:
    asked = requested(amount=123_456, payee=PAYEE)
    record = fold([asked])
    assert record is not None
    assert len(key_of("0:1790000000000-0:4")) <= 36
    assert order_bytes(record, "7878780080316316") == (
        b'{"account_number":"7878780080316316","amount":123456,"currency":"INR","mode":"IMPS","purpose":"payout",'
        b'"queue_if_low_balance":false,"reference_id":"' + asked.payout.encode() + b'",'
        b'"fund_account":{"account_type":"bank_account","bank_account":{"name":"Some Body","ifsc":"HDFC0000001",'
        b'"account_number":"000011112222"},"contact":{"name":"Some Body"}}}'
    )


async def test_an_intent_of_an_agent_that_was_frozen_after_its_approval_is_not_created(
    redis_url: str,
) -> None:
    """The barrier holds the call while a person freezes: what counts is the moment of the call."""
    held, opened = asyncio.Event(), asyncio.Event()

    async def barrier(partition: int, entry: str, e: bytes) -> None:
        held.set()
        await opened.wait()

    async with gateway(redis_url, barrier=barrier) as gate:
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.engine.producer.append(request(asked))
        await asyncio.wait_for(held.wait(), DEADLINE_S)
        await gate.engine.apply(POLICIES.replace("bot: {", "bot: {frozen: true, "))
        opened.set()
        record = await gate.ends(asked.payout, "rejected")
        await gate.engine.settled()
        record = await gate.ends(asked.payout, "rejected")
        assert await gate.at_bank(asked.payout) == []
        assert record.reason == "FROZEN"
        assert record.reservation is not None
        assert record.reservation.state == "released"
        stopped = [one for one in await gate.engine.story(asked.payout) if isinstance(one, e.PayoutStopped)]
        assert [(one.command, one.maybe_sent) for one in stopped] == [("create", False)]


async def test_an_intent_to_a_new_fund_account_is_held_and_the_next_to_it_is_not(redis_url: str) -> None:
    async with gateway(redis_url) as gate:
        await gate.engine.apply(POLICIES.replace("bot: {", "bot: {new_beneficiary: hold, "))
        payee = await fund_account(gate.bank)
        first, second = (
            requested(fund_account=payee, key="first"),
            requested(fund_account=payee, key="second"),
        )
        await gate.ask(first)
        assert (await gate.ends(first.payout, "held")).reason == "BENEFICIARY_NEW"
        await gate.engine.review(first.payout, "asha", "approve", account=ACCOUNT)
        await gate.ends(first.payout, "confirmed", "processed")
        await gate.ask(second)
        assert (await gate.ends(second.payout, "confirmed", "processed")).decision == "APPROVED"
        inline = requested(payee=PAYEE, key="inline")
        await gate.ask(inline)
        assert (await gate.ends(inline.payout, "held")).reason == "BENEFICIARY_NEW", "it has no id yet"


@pytest.mark.parametrize("payee", [None, PAYEE])
@pytest.mark.parametrize("seen", ["by the look before the second attempt", "later, by its webhook"])
async def test_a_freeze_after_a_lost_answer_rejects_at_the_bank_what_was_made_there(
    redis_url: str, payee: Beneficiary | None, seen: str
) -> None:
    """The bank made it, its answer was lost, the agent is frozen: what is there must not wait for an approver."""
    again = asyncio.Event()
    calls = 0

    async def barrier(partition: int, entry: str, e: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
            await opened.wait()

    opened = asyncio.Event()
    async with gateway(redis_url, barrier=barrier) as gate:
        account = await fund_account(gate.bank)
        await gate.bank.faults(api=[{"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 1}])
        patience, gate.client._http._timeout_s = gate.client._http._timeout_s, 1.0
        asked = requested(payee=payee, fund_account=account)
        await gate.engine.producer.append(request(asked))
        await asyncio.wait_for(again.wait(), DEADLINE_S)
        gate.client._http._timeout_s = patience  # only that one answer is lost, on a busy machine too
        await gate.engine.apply(POLICIES.replace("bot: {", "bot: {frozen: true, "))
        if seen == "later, by its webhook":
            find, gate.client.find = gate.client.find, _nothing_there  # type: ignore[method-assign]
        opened.set()
        await gate.ends(asked.payout, "rejected")
        if seen == "later, by its webhook":
            gate.client.find = find  # type: ignore[method-assign]
            await gate.tells(asked.payout)

        async def rejected() -> bool:
            await gate.tells(asked.payout)
            return [shown["status"] for shown in await gate.at_bank(asked.payout)] == ["rejected"]

        await until(rejected, what="it is rejected at the bank")
        await gate.tells(asked.payout)
        record = await gate.ends(asked.payout, "rejected", "declined")
        assert record.reservation is not None
        assert (record.reason, record.reservation.state) == ("FROZEN", "released")
        assert not record.bypassed


async def _nothing_there(account_number: str, reference: str) -> Found:
    return Found([])


@asynccontextmanager
async def frozen_after_a_lost_answer(redis_url: str) -> AsyncIterator[tuple[Gateway, e.PayoutRequested]]:
    """An intent whose answer was lost, whose agent is frozen before the next attempt, and that is rejected then."""
    again, opened, calls = asyncio.Event(), asyncio.Event(), 0

    async def barrier(partition: int, entry: str, e: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
            await opened.wait()

    async with gateway(redis_url, barrier=barrier) as gate:
        await gate.bank.faults(api=[{"kind": "500", "path": "/v1/payouts", "method": "POST", "count": 1}])
        asked = requested(payee=PAYEE)
        await gate.engine.producer.append(request(asked))
        await asyncio.wait_for(again.wait(), DEADLINE_S)
        await gate.engine.apply(POLICIES.replace("bot: {", "bot: {frozen: true, "))
        opened.set()
        yield gate, asked


async def test_a_stopped_intent_of_which_nothing_turns_up_at_the_bank_gets_its_money_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt was made, and may have reached the bank: its money is kept as long as it may turn up, no longer."""
    monkeypatch.setattr(creating, "LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(creating, "LOST_FOR_GOOD_S", 3)
    async with frozen_after_a_lost_answer(redis_url) as (gate, asked):
        record = await gate.ends(asked.payout, "rejected")
        assert record.reservation is not None
        assert record.reservation.state == "reserved"

        async def free() -> bool:
            record = fold(await gate.engine.story(asked.payout))
            assert record is not None
            assert record.reservation is not None
            return record.reservation.state == "released"

        await until(free, what="the money is free")
        assert await gate.at_bank(asked.payout) == []


def test_what_the_bank_repeats_of_a_beneficiary_is_masked() -> None:
    said = "The account number 000011112222 of Some Body is invalid"
    assert without_personal(said, PAYEE) == "The account number ********2222 of *****Body is invalid"
    assert without_personal(said, None) == said


async def test_a_recovery_goes_on_looking_for_an_attempt_whose_answer_was_lost_before_a_freeze(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was rejected with nothing at the bank was taken for over, so nobody looked any more: its money stayed
    reserved for good."""
    monkeypatch.setattr(creating, "LOOK_AGAIN_S", 0.1)
    async with frozen_after_a_lost_answer(redis_url) as (gate, asked):
        await gate.ends(asked.payout, "rejected")
        await gate.engine.stop()
        await archive(redis_url, postgres)
        await gate.engine.client.flushdb()
        settings = replace(settings_of(redis_url, postgres), retention_s=0.001)  # however short it is
        await rebuild(settings, await look(settings))
        monkeypatch.setattr(creating, "LOST_FOR_GOOD_S", 0)  # the hour is over
        gate.engine.start()

        async def free() -> bool:
            known = await gate.engine.client.hget(gate.engine.names.payout(asked.payout), "s")
            held = decode_record(known).reservation if known is not None else None
            return held is not None and held.state == "released"

        await until(free, what="the money is free")


class Listing:
    """A bank whose list shows one payout, at a time. It keeps the keys by which it is to create another."""

    def __init__(self, facts: e.BankPayout, at_s: int | None = None) -> None:
        self.facts, self.at_s, self.keys = facts, at_s, list[str]()

    async def find(self, _account_number: str, _reference: str) -> Found:
        return Found([self.facts], self.at_s)

    async def create(self, _order: bytes, key: str) -> CommandAnswer:
        self.keys.append(key)
        return CommandAnswer(http_status=200, outcome="done", payout=self.facts)


LATE_US = 60_000_000


@pytest.mark.parametrize(
    "late_us", [LATE_US, -LATE_US], ids=["by a clock as before", "by one that is behind"]
)
async def test_a_first_attempt_looks_for_what_a_lost_decision_has_paid(late_us: int) -> None:
    """After a recovery the clock may be that of another host."""
    asked = requested(300, at=NOW, payee=PAYEE, fund_account="")
    record = fold([asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW + late_us)
    bank: Any = Listing(copy_of(asked, "pout_first", "processed", at=NOW).facts)
    work = Work(b"5-1", [decided], asked.payout)
    work.open(b"1", fold([decided], record), NOTHING_ASKED, keep=False)
    ctx: Any = BatchContext(NOW + late_us, 0, PolicyBook({}), at_once, NoCache(), at_once, at_once)  # type: ignore[arg-type]
    attempt = creating.Attempt(
        work, ctx, bank, Debit("2323230000000000", ACCOUNT), decided.at, "0:5-1:0", monotonic()
    )
    with pytest.raises(Unprocessable, match="ALARM: pout_first moved at the bank"):
        await creating.create(attempt)
    assert bank.keys == []


@pytest.mark.parametrize(
    "off_s", [0, -3600, 3600], ids=["bank's clock is ours", "behind ours", "ahead of ours"]
)
@pytest.mark.parametrize("is_known", [False, True], ids=["not seen yet", "in the record"])
@pytest.mark.parametrize(
    ("taken", "status", "made_at", "is_created"),
    [
        (False, "processed", NOW, False),
        (False, "pending", NOW, True),
        (True, "processed", NOW, False),
        (True, "processed", NOW + LATE_US, True),
        (True, "processed", NOW + LATE_US - 1_000_000, True),
    ],
    ids=["first attempt", "nothing moved", "later attempt", "ours", "ours, by a clock that is behind"],
)
async def test_what_moved_before_a_late_decision_is_not_created_on_top(
    taken: bool, status: str, made_at: int, is_created: bool, is_known: bool, off_s: int
) -> None:
    asked = requested(300, at=NOW, payee=PAYEE, fund_account="")
    made = copy_of(asked, "pout_first", status, at=made_at + off_s * 1_000_000)
    record = fold([asked, made] if is_known else [asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW + LATE_US)
    bank: Any = Listing(made.facts, (NOW + LATE_US) // 1_000_000 + off_s)
    work = Work(b"5-1", [decided], asked.payout, taken=taken)
    work.open(b"1", fold([decided], record), NOTHING_ASKED, keep=False)
    book = PolicyBook({})

    async def book_now() -> PolicyBook:
        return book

    ctx: Any = BatchContext(NOW + LATE_US, 0, book, at_once, NoCache(), book_now, at_once)  # type: ignore[arg-type]
    attempt = creating.Attempt(
        work, ctx, bank, Debit("2323230000000000", ACCOUNT), decided.at, "0:5-1:0", monotonic()
    )
    if is_created:
        await creating.create(attempt)
    else:
        with pytest.raises(Unprocessable, match="ALARM: pout_first moved at the bank"):
            await creating.create(attempt)
    assert len(bank.keys) == is_created


class Lagging:
    """A bank whose list does not show a payout yet. It keeps what it is told to do."""

    def __init__(self, facts: e.BankPayout) -> None:
        self.facts, self.told = facts, list[str]()

    async def find(self, _account_number: str, _reference: str) -> Found:
        return Found([])

    async def fetch(self, _payout: str) -> e.BankPayout:
        return self.facts

    async def create(self, _order: bytes, _key: str) -> CommandAnswer:
        raise AssertionError("it was created before")

    async def approve(self, payout: str, _remarks: str) -> CommandAnswer:
        self.told.append(payout)
        self.facts = replace(self.facts, status="processing")
        return CommandAnswer(http_status=200, outcome="done", payout=self.facts)


async def test_an_intent_that_was_created_is_approved_and_not_created_anew_when_its_decision_comes_again() -> (
    None
):
    """As a dead letter that is redriven does, by an entry of another id, so under another idempotency key."""
    asked = requested(300, at=NOW)
    record = fold([asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW)
    made = e.BankCommandAnswered(
        at=NOW,
        payout=asked.payout,
        command="create",
        outcome="done",
        bank_status="pending",
        bank_payout="pout_ours",
    )
    bank: Any = Lagging(copy_of(asked, "pout_ours", "pending").facts)
    work = Work(b"5-1", [decided], asked.payout, taken=True)
    work.open(b"1", fold([asked, decided, made]), NOTHING_ASKED, keep=False)
    book = PolicyBook({})

    async def book_now() -> PolicyBook:
        return book

    ctx: Any = BatchContext(NOW, 0, book, at_once, NoCache(), book_now, at_once)  # type: ignore[arg-type]
    (stage,) = execution(bank, at_once, Debit("2323230000000000", ACCOUNT)).stages
    await stage.handle([(work, decided)], ctx)
    assert (work.problem, bank.told) == (None, ["pout_ours"])

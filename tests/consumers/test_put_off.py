"""An intent that was only put off has not been sent: what comes next is a first attempt, and what the bank says to that
is told at once. How long a lost attempt is looked for where the clock went back."""

from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest

from consumers.attempt import Attempt, Debit
from consumers.create import LOST_FOR_GOOD_S, create, look_for_lost
from consumers.verdicts import decision_of
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.razorpay import CommandAnswer
from streamproc.domain import events as e
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.governance import conclude
from streamproc.domain.payouts import fold
from streamproc.domain.policy import PolicyBook
from streamproc.errors import TryAgain
from streamproc.log.scripts import DEFERRED_S_MAX
from streamproc.log.work import BatchContext, Work
from tests.bank import until
from tests.consumers.test_create import POLICIES, Gateway, Kept, Refusing, fund_account, gateway
from tests.consumers.test_refuted import at_once
from tests.words import ACCOUNT, NOW, request, requested

POOR = 100
"""Paise in the account: too few for any payout here."""
TIMES = 2
"""An entry is put off so often before its first attempt."""


class Slow:
    """A barrier that is not passed until it is opened."""

    def __init__(self) -> None:
        self.is_open, self.tries = False, 0

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        self.tries += 1
        if not self.is_open:
            raise TryAgain("it is not archived yet", after_s=0.01)

    async def was_tried(self) -> bool:
        return self.tries >= TIMES


async def is_put_off(gate: Gateway, barrier: Slow) -> e.PayoutRequested:
    """An approved intent whose entry was put off TIMES times."""
    asked = requested(fund_account=await fund_account(gate.bank))
    await gate.engine.producer.append(request(asked))
    await until(barrier.was_tried, what="it was put off")
    return asked


async def test_the_refusal_of_what_was_put_off_by_a_slow_archive_is_told_at_once(redis_url: str) -> None:
    """It was told up to an hour later, after some 30 calls, as if an earlier attempt might still turn up."""
    barrier = Slow()
    async with gateway(redis_url, barrier, workflow="off", balance=POOR) as gate:
        asked = await is_put_off(gate, barrier)
        barrier.is_open = True
        await gate.ends(asked.payout, "failed")
        await gate.engine.settled()
        record = await gate.ends(asked.payout, "failed")
        assert "balance" in record.failure
        assert record.reservation is not None
        assert record.reservation.state == "released"
        assert len(await gate.bank.record(command="payout.create")) == 1


async def test_a_refusal_after_which_the_banks_list_does_not_answer_is_told_as_soon_as_it_does(
    redis_url: str,
) -> None:
    """The next attempt was taken for a second one, since the first might have been made."""
    async with gateway(redis_url, workflow="off", balance=POOR) as gate:
        asked = requested(fund_account=await fund_account(gate.bank), at=gate.engine.producer.now_us())
        await gate.bank.faults(api=[{"kind": "502", "path": "/v1/payouts", "method": "GET", "count": 1}])
        await gate.engine.producer.append(request(asked))
        await gate.ends(asked.payout, "failed")
        assert len(await gate.bank.record(command="payout.create")) == 2


@pytest.mark.parametrize(
    ("problem", "is_told"),
    [(TryAgain("the breaker is open"), True), (OutcomeUnknown("no answer in time"), False)],
    ids=["no call was made", "its answer was lost"],
)
async def test_the_refusal_after_a_call_is_told_at_once_only_if_that_call_was_not_made(
    redis_url: str, problem: TryAgain, is_told: bool
) -> None:
    async with gateway(redis_url, workflow="off", balance=POOR) as gate:
        create, keys = gate.client.create, list[str]()

        async def fails_first(order: bytes, key: str) -> CommandAnswer:
            keys.append(key)
            if len(keys) == 1:
                raise problem
            return await create(order, key)

        gate.client.create = fails_first  # type: ignore[method-assign]
        asked = requested(fund_account=await fund_account(gate.bank))
        await gate.engine.producer.append(request(asked))
        if is_told:
            await gate.ends(asked.payout, "failed")
            assert len(keys) == 2
            return

        async def waits_on() -> bool:
            tries: Any = await gate.engine.client.hvals(gate.engine.names.tries("execution"))
            return b"2" in tries

        await until(waits_on, what="it waits after the refusal too")
        record = fold(await gate.engine.story(asked.payout))
        assert record is not None
        assert record.failure == ""


async def test_the_money_of_what_was_put_off_and_is_frozen_then_is_free_at_once(redis_url: str) -> None:
    barrier = Slow()
    async with gateway(redis_url, barrier, workflow="off") as gate:
        asked = await is_put_off(gate, barrier)
        await gate.engine.apply(POLICIES.replace("bot: {", "bot: {frozen: true, "))
        barrier.is_open = True
        await gate.ends(asked.payout, "rejected")
        await gate.engine.settled()
        record = await gate.ends(asked.payout, "rejected")
        assert record.reservation is not None
        assert (record.reason, record.reservation.state) == ("FROZEN", "released")
        [stop] = [one for one in await gate.engine.story(asked.payout) if isinstance(one, e.PayoutStopped)]
        assert not stop.maybe_sent
        assert await gate.bank.record(command="payout.create") == []


# ---- a lost attempt, and a Redis that was set back --------------------------------------


class KeptBy(Kept):
    """What a server keeps."""

    def __init__(self, name: str, values: Mapping[str, bytes]) -> None:
        super().__init__()
        self.name = name
        self.values |= values

    async def server(self) -> str:
        return self.name


async def test_what_another_server_says_of_refusals_may_be_of_before_an_attempt_that_was_lost() -> None:
    """The one that took over had not heard that the refusals were interrupted. An hour after the first of them the next
    one was told to be the end, though what was sent last could still turn up."""
    asked, bank, book = requested(300, at=NOW), Refusing(), PolicyBook({})
    record = fold([asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW)

    async def book_now() -> PolicyBook:
        return book

    async def attempted(after_s: int, server: KeptBy, problem: TryAgain | None = None) -> list[str]:
        bank.problem = problem
        work = Work(b"5-1", [decided], asked.payout, taken=True)
        work.open(b"1", fold([decided], record), NOTHING_ASKED, keep=False)
        ctx: Any = BatchContext(NOW + after_s * 1_000_000, 0, book, at_once, server, book_now, at_once)  # type: ignore[arg-type]
        attempt = Attempt(work, ctx, bank, Debit("1", ACCOUNT), decided.at, "0:5-1:0", monotonic())
        with suppress(TryAgain):
            await create(attempt)
        return [event.outcome for event in work.out if isinstance(event, e.BankCommandAnswered)]

    first = KeptBy("first", {})
    assert await attempted(10, first) == []
    replica = KeptBy("replica, promoted", first.values)
    assert await attempted(1_800, first, OutcomeUnknown("no answer in time")) == []
    assert await attempted(LOST_FOR_GOOD_S + 60, replica) == []
    assert await attempted(2 * LOST_FOR_GOOD_S + 120, replica) == ["refused"]


# ---- a lost attempt, and a clock that went back -----------------------------------------

LOOKS_MAX = 80
"""Two hours of them: the interval between two begins with five seconds and grows."""


@pytest.mark.parametrize("back_s", [0, 1_800, 30 * 86_400], ids=["as it was", "half an hour", "a month"])
async def test_however_far_the_clock_went_back_a_lost_attempt_is_looked_for_some_dozens_of_times_and_no_longer(
    back_s: int,
) -> None:
    """The bank was asked every five seconds until the clock was there again."""
    asked, bank, cache = requested(300, at=NOW), Refusing(), Kept()
    record = fold([asked])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW)
    now_s = began_s = NOW / 1e6 - back_s
    looks, outcomes = 0, list[str]()
    while not outcomes:
        looks += 1
        assert looks <= LOOKS_MAX
        work = Work(b"5-1", [decided], asked.payout, taken=True)
        work.open(b"1", record, NOTHING_ASKED, keep=False)
        ctx: Any = BatchContext(int(now_s * 1e6), 0, PolicyBook({}), at_once, cache, at_once, at_once)  # type: ignore[arg-type]
        attempt = Attempt(work, ctx, bank, Debit("1", ACCOUNT), decided.at, "0:5-1:0", monotonic())
        try:
            await look_for_lost(attempt)
        except TryAgain as problem:
            now_s += min(problem.after_s, DEFERRED_S_MAX)
        outcomes = [event.outcome for event in work.out if isinstance(event, e.BankCommandAnswered)]
    assert outcomes == ["not_needed"]
    assert LOST_FOR_GOOD_S <= now_s - began_s <= 2 * LOST_FOR_GOOD_S

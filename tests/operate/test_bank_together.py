"""What all processes do together at the bank: they keep one pace, and one OAuth token that outlives them."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient, OutcomeUnknown
from streamproc.clients.limiter import Limiter, NoTurn, SharedLimiter
from streamproc.clients.oauth import REFRESH_BEFORE_S, TokenKeeper, vault_name
from streamproc.errors import ConfigError, LogUnavailable, TryAgain
from streamproc.log.clock import clock_us
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.pace import Pace
from streamproc.log.vault import Vault
from streamproc.operate.bank import opened_bank
from streamproc.settings import Settings, load, require
from streamproc.telemetry.watch import outcome_of
from tests.bank import Sandbox, running_sandbox
from tests.deadline import DEADLINE_S

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
async def bank() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


def settings(redis_url: str, bank: Sandbox, **more: str) -> Settings:
    names = {
        "REDIS_URL": redis_url,
        "RAZORPAY_KEY_ID": bank.config.key_id,
        "RAZORPAY_KEY_SECRET": bank.config.key_secret,
        "RAZORPAY_BASE_URL": bank.url,
        "RAZORPAY_AUTH_URL": f"{bank.url}/oauth",
        "RAZORPAY_OAUTH_TOKEN": bank.config.oauth_token,
        "RAZORPAY_OAUTH_CLIENT_ID": bank.config.oauth_client_id,
        "RAZORPAY_OAUTH_CLIENT_SECRET": bank.config.oauth_client_secret,
        "RAZORPAY_OAUTH_REFRESH_TOKEN": bank.config.oauth_refresh_token,
        "RAZORPAY_CALLS_PER_S": "1000",
        **more,
    }
    return load({f"STREAMPROC_{name}": value for name, value in names.items()})


async def approved(with_settings: Settings, payout: str) -> str:
    """Approve by a client of a process of its own: what came of it."""
    async with opened_bank(with_settings) as client:
        return (await client.approve(payout, "test")).outcome


# ---- pace -------------------------------------------------------------------------------


async def test_processes_together_take_turns_at_one_pace(redis_url: str) -> None:
    """Waits are told and not waited for: 3 processes, 8 a second, a burst of 8."""
    paces = [Pace(redis_url, name="test", per_s=8, burst=8) for _ in range(3)]
    async with Redis.from_url(redis_url) as client:
        began_us = await clock_us(client)
        waits = [await paces[n % 3].reserve() for n in range(40)]
        next_us = int(await client.get(Names(SHARED_PARTITION).pace("test")) or 0)
    for pace in paces:
        await pace.aclose()
    assert waits[:8] == [0] * 8
    assert next_us - began_us >= (40 - 7) * 125_000  # the 41st turn is no sooner, however fast they asked


async def test_a_call_is_told_to_wait_until_its_turn_comes(redis_url: str) -> None:
    pace = Pace(redis_url, name="test", per_s=8, burst=1)
    async with Redis.from_url(redis_url) as client:
        turn_us = await clock_us(client) + 10_000_000
        await client.set(Names(SHARED_PARTITION).pace("test"), turn_us)
        before_us = await clock_us(client)
        wait_us = round(await pace.reserve() * 1e6)
        after_us = await clock_us(client)
        assert turn_us - after_us <= wait_us <= turn_us - before_us
        assert int(await client.get(Names(SHARED_PARTITION).pace("test")) or 0) == turn_us + 125_000
    await pace.aclose()


async def test_a_wait_that_cannot_be_is_a_clock_that_went_back(redis_url: str) -> None:
    pace = Pace(redis_url, name="test", per_s=8, burst=1)
    await pace.reserve()
    async with Redis.from_url(redis_url) as client:
        await client.set(Names(SHARED_PARTITION).pace("test"), int((time.time() + 3_600) * 1e6))
    assert await pace.reserve() == 0
    await pace.aclose()


async def test_a_clock_that_went_back_by_a_little_keeps_nobody_waiting_until_it_is_there_again(
    redis_url: str,
) -> None:
    """By 20 s, which was no longer than a wait can be: nobody called for so long. One turn was taken ahead."""
    names = Names(SHARED_PARTITION)
    pace = Pace(redis_url, name="test", per_s=8, burst=1)
    async with Redis.from_url(redis_url) as client:
        before_us = await clock_us(client) + 20_000_000
        await client.mset({names.pace("test"): before_us + 125_000, names.paced("test"): before_us})
        assert (await pace.take(within_s=0)).wait_s <= 0.125
        waits = [await pace.reserve() for _ in range(2)]
    assert waits[0] <= 0.125
    assert 0 < waits[1] <= 0.25
    await pace.aclose()


async def test_a_turn_that_comes_too_late_or_leaves_too_few_is_not_taken(redis_url: str) -> None:
    """A turn in 25 s after a burst of 3. Waits are told and not waited for."""
    paces = [Pace(redis_url, name="test", per_s=0.04, burst=3) for _ in range(2)]
    assert not (await paces[0].take(within_s=0, beside=3)).taken
    assert await paces[0].take(within_s=0, beside=1) == (True, 0)
    assert await paces[1].take(within_s=0, beside=1) == (True, 0)
    taken, wait_s = await paces[0].take(within_s=0, beside=1)
    assert (taken, 0 < wait_s <= 25) == (False, True)
    assert await paces[1].take(within_s=0) == (True, 0)
    taken, wait_s = await paces[0].take(within_s=5)
    assert (taken, 0 < wait_s <= 20) == (False, True)
    for pace in paces:
        await pace.aclose()


async def test_an_urgent_call_goes_before_what_waits_here_and_waits_for_one_turn_of_the_others() -> None:
    turns: asyncio.Queue[float] = asyncio.Queue()
    limiter, served = SharedLimiter(turns.get, per_s=8), list[str]()

    async def call(name: str, urgent: bool) -> None:
        await limiter.take(urgent=urgent)
        served.append(name)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for name in ("a", "b", "c", "cancel", "reject"):
            tasks.create_task(call(name, name in ("cancel", "reject")))
        for _ in range(5):
            turns.put_nowait(0.0)
    assert served == ["cancel", "a", "reject", "b", "c"]


@pytest.mark.parametrize(("problem", "outcome"), [(NoTurn, "put_off"), (OutcomeUnknown, "unknown")])
def test_a_call_that_got_no_turn_was_not_carried_out_and_is_not_counted_as_a_lost_answer(
    problem: type[TryAgain], outcome: str
) -> None:
    assert outcome_of(problem) == outcome


async def test_without_redis_no_call_is_made_uncounted(bank: Sandbox) -> None:
    made = await bank.pay(1_000)
    with pytest.raises(TryAgain, match="no turn for a call can be counted"):
        async with opened_bank(settings(NOBODY, bank, RAZORPAY_OAUTH_REFRESH_TOKEN="")) as client:
            await client.approve(made["id"], "test")
    assert await bank.record() == []


# ---- token ------------------------------------------------------------------------------


async def test_a_token_that_the_bank_refuses_is_exchanged_once_and_outlives_the_process(
    redis_url: str, bank: Sandbox
) -> None:
    ours = settings(redis_url, bank)
    first, second, third = [(await bank.pay(1_000))["id"] for _ in range(3)]
    assert await approved(ours, first) == "done"
    await bank.bank(expire_token=True)
    assert await approved(ours, second) == "done"
    # A new process finds the new token: neither the configured one nor the refresh token of then is good any more.
    assert await approved(ours, third) == "done"
    told = [line["status"] for line in await bank.record(command="payout.approve")]
    assert told == [200, 200, 200]
    refused = [line for line in await bank.record() if line["status"] == 401]
    assert len(refused) == 1


async def test_of_two_processes_one_gets_the_new_token_and_both_use_it(redis_url: str, bank: Sandbox) -> None:
    ours = settings(redis_url, bank)
    payouts = [(await bank.pay(1_000))["id"] for _ in range(2)]
    await bank.bank(expire_token=True)

    async def until_done(payout: str) -> str:
        while True:
            try:
                return await approved(ours, payout)
            except TryAgain:
                await asyncio.sleep(0.02)

    async with asyncio.timeout(DEADLINE_S):
        assert await asyncio.gather(*map(until_done, payouts)) == ["done", "done"]


async def test_what_is_kept_of_the_token_is_unreadable_without_the_clients_secret(
    redis_url: str, bank: Sandbox
) -> None:
    made = await bank.pay(1_000)
    await bank.bank(expire_token=True)
    await approved(settings(redis_url, bank), made["id"])
    async with Redis.from_url(redis_url) as client:
        kept = await client.get(Names(SHARED_PARTITION).vault(vault_name(bank.config.oauth_refresh_token)))
    assert kept is not None
    assert b"access" not in kept
    other = settings(redis_url, bank, RAZORPAY_OAUTH_CLIENT_SECRET="another")
    with pytest.raises(TryAgain, match="refuses the OAuth refresh token"):
        await approved(other, (await bank.pay(1_000))["id"])


async def test_a_token_is_exchanged_before_it_expires(redis_url: str, bank: Sandbox) -> None:
    now = [1_000_000.0]
    async with OutboundClient(
        "auth", f"{bank.url}/oauth", timeout_s=5, limiter=Limiter(100, 10), breaker=Breaker()
    ) as http:
        keeper = keeper_of(http, Vault(redis_url, name="test", owner="me"), bank, clock=lambda: now[0])
        first = await keeper.token()
        now[0] += bank.config.oauth_expires_s - REFRESH_BEFORE_S - 1
        assert await keeper.token() == first
        now[0] += 2
        second = await keeper.token()
        assert second != first
        assert await keeper.token() == second


class VaultAway(Vault):
    """A vault that takes nothing while `away`, as where Redis is lost just then."""

    away = True

    async def save(self, sealed: bytes) -> None:
        if self.away:
            raise LogUnavailable("away")
        await super().save(sealed)


def keeper_of(http: OutboundClient, vault: Vault, bank: Sandbox, **more: Any) -> TokenKeeper:
    return TokenKeeper(
        http,
        vault,
        client_id=bank.config.oauth_client_id,
        client_secret=bank.config.oauth_client_secret,
        refresh_token=bank.config.oauth_refresh_token,
        **more,
    )


async def test_a_new_token_that_could_not_be_kept_is_kept_later_since_its_refresh_token_is_spent(
    redis_url: str, bank: Sandbox
) -> None:
    vault = VaultAway(redis_url, name="test", owner="me")
    async with OutboundClient(
        "auth", f"{bank.url}/oauth", timeout_s=5, limiter=Limiter(100, 10), breaker=Breaker()
    ) as http:
        keeper = keeper_of(http, vault, bank)
        for _ in range(2):
            with pytest.raises(TryAgain, match="cannot be looked up"):
                await keeper.token()
        vault.away = False
        ours = await keeper.token()
        assert await keeper_of(http, Vault(redis_url, name="test", owner="another"), bank).token() == ours


def test_a_refresh_token_without_its_client_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="RAZORPAY_OAUTH_CLIENT_ID"):
        require(load({"STREAMPROC_RAZORPAY_OAUTH_REFRESH_TOKEN": "x"}), "worker")

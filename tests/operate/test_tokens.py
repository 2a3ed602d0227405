"""Tokens and intents outlive the loss of Redis; names are given once; a retrial of a history with intents."""

import asyncio

import pytest

from streamproc.domain import events as e
from streamproc.errors import InputError
from streamproc.log.tokens import read_tokens
from streamproc.operate import tokens
from streamproc.operate.site import Site
from tests.bank import until
from tests.engine import Engine
from tests.operate.recovering import archive, dump, recovered
from tests.operate.test_recover_fork import failed_over, snapshot
from tests.operate.test_whatif_scenarios import again, log_of, moved
from tests.words import ACCOUNT, attributed, observed, request, requested

POLICIES = """
defaults: {rate_limit: {count: 5, window: 60}}
policies:
  bot: {daily_limit: 600_000, require_verified_identity: true}
  careful: {daily_limit: 1_000_000, require_approval_above: 100_000}
reviewers: [asha]
"""


async def made(engine: Engine, name: str, **more: str) -> tokens.NewToken:
    given = {"scope": "agent", "agent": "bot", "account": ACCOUNT, **more}
    site = Site(engine.url, engine.client, 1)
    spec = tokens.TokenSpec(name=name, expires_s=3600, **given)  # type: ignore[arg-type]
    return await tokens.create(site, spec, attributed("test"))


async def lived(engine: Engine) -> None:
    """Intents approved, refused for want of room, held, held and approved; and payouts of the bank's between them."""
    await engine.apply(POLICIES)
    for n, (agent, amount) in enumerate(
        [("bot", 250_000), ("bot", 250_000), ("bot", 250_000), ("careful", 200_000), ("careful", 200_000)]
    ):
        at = engine.producer.now_us()
        await engine.producer.append(request(requested(amount, key=f"k{n}", agent=agent, at=at)))
        await engine.deliver(observed(f"pout_{n}", 50_000, agent=agent, at=at + 1))
    await engine.review(requested(key="k4", agent="careful").payout, "asha", "approve", account=ACCOUNT)


async def test_a_name_is_given_once_and_only_an_agents_token_belongs_to_an_agent(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        site = Site(engine.url, engine.client, 1)
        await made(engine, "a")
        for name, more in (("a", {}), ("no blanks", {}), ("v", {"scope": "viewer"}), ("u", {"agent": "unknown"}),
                           ("n", {"agent": ""}), ("m", {"account": ""})):  # fmt: skip
            with pytest.raises(InputError):
                await made(engine, name, **more)
        assert await tokens.revoke(site, "a", attributed("test"))
        with pytest.raises(InputError, match="revoked"):
            await made(engine, "a")
        with pytest.raises(InputError, match="no token"):
            await tokens.revoke(site, "nobody", attributed("test"))
        assert [(token.name, what) for token, what in await tokens.listed(site)] == [("a", "revoked")]


async def test_tokens_that_are_made_at_the_same_moment_are_all_made(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await asyncio.gather(*(made(engine, f"t{n}") for n in range(4)))
        _, found = await read_tokens(engine.client)
        events = [
            event for entry in await engine.entries() for event in entry if isinstance(event, e.TokenCreated)
        ]
    assert sorted(found) == sorted(event.name for event in events) == ["t0", "t1", "t2", "t3"]


async def test_a_rebuilt_redis_knows_every_intent_and_every_token(redis_url: str, postgres: str) -> None:
    async with Engine(redis_url) as engine:
        await lived(engine)
        await made(engine, "good")
        await made(engine, "gone")
        await made(engine, "laptop", scope="approver", agent="", account="", reviewer="asha")
        await tokens.revoke(Site(engine.url, engine.client, 1), "gone", attributed("test"))
        await engine.stop()
        before, known = await dump(engine.client), await read_tokens(engine.client)
        await archive(redis_url, postgres)
        await engine.client.flushdb()

        await recovered(redis_url, postgres)

        after = await dump(engine.client)
        assert (await read_tokens(engine.client))[1] == known[1]
        assert known[1]["gone"].revoked_at
        assert after["timers"].items() <= before["timers"].items()
        assert len(after["timers"]) >= 1
        for kind in ("payouts", "budgets", "rates", "seen"):
            assert after[kind] == before[kind], kind
        engine.start()
        await engine.settled()
        repeated = await engine.producer.append(request(requested(key="k0")))
        assert not repeated.new
        assert (await dump(engine.client))["payouts"].keys() == before["payouts"].keys()


async def test_under_the_policies_of_then_a_history_with_intents_comes_out_as_it_did(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await lived(engine)
        log = await log_of(engine)
        decided = sum(isinstance(event, e.PayoutDecided) for told in log for event in told.events)
    found = again(log, None)
    assert found.changed.payouts == 0
    assert found.judged.payouts == decided - 1 == 10  # one was decided twice: held, and then approved
    stricter = POLICIES.replace(
        "bot: {daily_limit: 600_000", "bot: {daily_limit: 600_000, per_txn_limit: 100_000"
    )
    assert requested(key="k0").payout in moved(again(log, stricter))


async def test_what_was_made_revoked_and_asked_for_on_a_log_that_had_lost_its_tail_is_kept(
    redis_url: str, postgres: str
) -> None:
    async with Engine(redis_url) as engine:
        site = Site(engine.url, engine.client, 1)
        await engine.apply(POLICIES)
        await made(engine, "old")
        replica = await snapshot(engine.client)
        await made(engine, "lost")
        await engine.stop()
        await archive(redis_url, postgres)
        await failed_over(engine.client, replica)
        await made(engine, "fork")
        await tokens.revoke(site, "old", attributed("test"))
        asked = requested(at=engine.producer.now_us())
        await engine.producer.append(request(asked))

        await recovered(redis_url, postgres)

        found = {token.name: what for token, what in await tokens.listed(site)}
        assert found == {"old": "revoked", "lost": "good", "fork": "good"}
        engine.start()  # governance alone: nobody reads for execution, so it never settles

        async def decided() -> bool:
            return (await engine.record(asked.payout)).decision == "APPROVED"

        await until(decided, what="the request of the fork is decided")

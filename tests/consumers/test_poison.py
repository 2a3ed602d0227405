"""An entry that cannot be handled is set aside with its reason; its neighbours are handled, the worker lives."""

import pytest

import consumers
from consumers.vet import Reputations
from streamproc.domain.events import EntrySetAside, PayoutObserved
from streamproc.log import failures, scripts
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.engine import Engine
from tests.words import ACCOUNT, observed

POLICIES = """
policies:
  bot: {daily_limit: 1000000}
"""


async def test_a_record_that_cannot_be_read_stops_its_own_payout_only(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.client.hset(engine.names.payout("pout_bad"), mapping={"v": "1", "s": "{not json"})
        await engine.client.hset(engine.names.payout("pout_odd"), mapping={"a": "|1 2|[]"})
        await engine.deliver(observed("pout_bad"), observed("pout_odd"), observed("pout_good"))
        assert (await engine.record("pout_good")).decision == "APPROVED"
        asides = [(await engine.story(payout))[-1] for payout in ("pout_bad", "pout_odd")]
        assert await engine.client.xlen(engine.names.dead) == 2
    assert all(isinstance(event, EntrySetAside) and "cannot be read" in event.problem for event in asides)


@pytest.mark.parametrize("error", [KeyError("what"), RuntimeError("bug")])
async def test_an_entry_that_fails_by_itself_is_tried_a_few_times_and_set_aside(
    redis_url: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def fails(items: list[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            if work.payout == "pout_bad":
                tried.append(work.payout)
                raise error

    chain = consumers.governance(Reputations(None), zone="UTC").stages  # type: ignore[arg-type]
    stage = Stage(name="fails", consumes=frozenset({PayoutObserved}), handle=fails)  # type: ignore[arg-type]
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    async with Engine(redis_url, groups=[Group(name="governance", stages=(stage, *chain))]) as engine:
        await engine.apply(POLICIES)
        for payout in ("pout_1", "pout_bad", "pout_2"):
            await engine.append(ACCOUNT, observed(payout))
        await engine.settled(wholly=True)
        records = await engine.records()
        story = await engine.story("pout_bad")
        letters = await engine.client.xrange(engine.names.dead)
    assert [records[payout].decision for payout in ("pout_1", "pout_2")] == ["APPROVED", "APPROVED"]
    assert isinstance(story[-1], EntrySetAside)
    assert f"failed {failures.ATTEMPTS_MAX} times" in story[-1].problem
    assert len(letters) == 1
    # Once with its batch and once alone, for each attempt.
    assert failures.ATTEMPTS_MAX <= len(tried) <= 2 * failures.ATTEMPTS_MAX

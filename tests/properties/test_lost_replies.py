"""A connection that breaks at any script call, before Redis hears it or after it acted, changes nothing."""

from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.domain.events import PayoutDecided
from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.script import Script
from tests.engine import Engine
from tests.properties.test_no_overspending import check_every_prefix
from tests.words import ACCOUNT, observed

POLICIES = """
policies:
  bot: {daily_limit: 1000, rate_limit: {count: 0, window: 60}, require_approval_above: 300}
reviewers: [asha]
"""
CALLS_BROKEN = 24
"""More than the scenario makes in load, admit, commit, timers and retries."""


class BreaksAt:
    """Breaks the n-th script call of the workers, once: `before` it is sent, or `after` it acted."""

    def __init__(self, n: int, when: str) -> None:
        self.n, self.when, self.calls = n, when, 0
        self.original = Script.__call__

    async def __call__(self, script: Script, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.calls += 1
        if self.calls != self.n:
            return await self.original(script, client, keys, args)
        if self.when == "after":
            await self.original(script, client, keys, args)
        raise LogUnavailable(f"the connection broke {self.when} call {self.n}")

    def as_method(self) -> Any:
        """A plain function, so that a class gives it the script as its first argument."""
        return lambda *args: self(*args)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_broken_call_is_never_a_lost_or_doubled_decision(
    redis_url: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, CALLS_BROKEN + 1):
        async with connected(redis_url) as client:
            await client.flushdb()
        async with Engine(redis_url) as engine:
            await engine.apply(POLICIES)
            for i, amount in enumerate((300, 301, 400, 100)):
                await engine.append(ACCOUNT, observed(f"pout_{i}", amount))
            breaking = BreaksAt(n, when)
            with monkeypatch.context() as patch:
                patch.setattr(Script, "__call__", breaking.as_method())
                await engine.settled()
            for payout in ("pout_1", "pout_2"):
                if (await engine.record(payout)).state == "held":
                    await engine.review(payout, "asha", "reject", account=ACCOUNT)
            await engine.settled()
            entries = await engine.entries()
            totals = check_every_prefix(entries)
            final = [event for entry in entries for event in entry if isinstance(event, PayoutDecided)]
            reserved = int(await engine.client.hget(engine.names.budget("agent:bot", "2026-09-21"), "r") or 0)
        decisions = sorted((event.payout, event.decision) for event in final if event.decision != "HELD")
        assert decisions == [
            ("pout_0", "APPROVED"),
            ("pout_1", "REJECTED"),
            ("pout_2", "REJECTED"),
            ("pout_3", "REJECTED" if reserved == 300 else "APPROVED"),
        ], (n, when)
        assert totals["agent:bot", "2026-09-21"] == (reserved, 0)

"""What rate slots that lie ahead of Redis's clock, which went back, mean for an agent."""

from tests.engine import Engine
from tests.words import observed

POLICIES = """
policies:
  was_ahead: {rate_limit: {count: 3, window: 60}}
  other: {rate_limit: {count: 3, window: 60}}
"""
SECOND = 1_000_000
HOUR = 3_600 * SECOND


async def test_slots_taken_while_the_clock_was_ahead_are_free_again_a_window_after_it_is_there_again(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        now = engine.producer.now_us()
        ahead = now + HOUR

        async def decided(agent: str, *times: int) -> list[str]:
            found = []
            for at in times:
                payout = f"pout_{agent}_{at}"
                await engine.deliver(observed(payout, at=at, agent=agent))
                record = await engine.record(payout)
                found.append(record.decision)
            return found

        assert await decided("was_ahead", ahead) == ["APPROVED"]
        # It went back. What was left of the rate is all that there is, however long the payouts are apart,
        apart = [now + n * 120 * SECOND for n in range(4)]
        assert await decided("was_ahead", *apart) == ["APPROVED", "APPROVED", "REJECTED", "REJECTED"]
        assert await decided("other", *apart) == 4 * ["APPROVED"]
        # until a window after the clock is there again.
        assert await decided("was_ahead", ahead + 59 * SECOND) == ["REJECTED"]
        assert await decided("was_ahead", ahead + 61 * SECOND) == ["APPROVED"]

"""All workers together ask the register no more than it allows, and what they cannot ask about waits for a person."""

from streamproc.clients.gleif import CALLS_BURST, CALLS_PER_S, NO_TURN, TIMEOUT_S
from tests.journeys.test_entities import POLICIES, ask, held_because, vetting_system
from tests.journeys.test_gateway import token

WORKERS = 3
PAYOUTS = 5 * CALLS_BURST


async def test_several_workers_ask_the_register_no_more_than_one_may(redis_url: str, postgres: str) -> None:
    """Each contact is new, and takes one call. The register counts them, by its own clock. Each worker kept a pace of
    its own: three asked 39 times in 1.3 s."""
    async with vetting_system(redis_url, postgres, workers=WORKERS) as system:
        await system.apply(POLICIES.replace("require_entity", "rate_limit: {count: 0}, require_entity"))
        secret = await token(system, "strict")
        payouts = [await ask(system, secret, f"Nobody {n}") for n in range(PAYOUTS)]
        problems = [str((await held_because(system, payout))["problem"]) for payout in payouts]
        asked = [float(call["at"]) for call in await system.bank.show("gleif")]
    counted_s = asked[-1] - asked[0] + TIMEOUT_S  # the first may have been slow
    assert len(asked) <= CALLS_BURST + CALLS_PER_S * counted_s
    answered = problems.count("the register has no such entity")
    without_turn = problems.count(f"the register could not be asked: {NO_TURN}")
    assert without_turn
    # On a busy machine an answer may come too late.
    assert CALLS_BURST <= answered <= len(asked) <= PAYOUTS - without_turn

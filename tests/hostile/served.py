"""What every hostile request must come to, whoever is asked."""

import json
from random import Random

import httpx

from streamproc.domain.events import Event, PayoutDecided, PayoutObserved
from tests.hostile.mutations import CASES
from tests.journeys.system import System

DETAIL_CHARS_MAX = 500
REFUSED = range(400, 500)


def assert_refused_well(answer: httpx.Response, why: object = "") -> None:
    """A problem that says in a few words what is wrong."""
    assert answer.status_code in REFUSED, (answer.status_code, answer.text[:300], why)
    assert answer.headers["content-type"] == "application/problem+json", (answer.text[:300], why)
    told = answer.json()
    assert told["status"] == answer.status_code
    assert 0 < len(told["detail"]) < DETAIL_CHARS_MAX


async def assert_nothing_is_lost(system: System, entries: dict[str, object]) -> None:
    """What was answered 2xx is in the log; each payout that waited for us has one decision; no role has stumbled."""
    try:
        await system.settled(60.0 + CASES / 10)
    except AssertionError as problem:
        raise AssertionError(f"{problem}: {await system.pending()}") from None
    there = {entry.id for entry in await system.entries()}
    assert not [(entry, why) for entry, why in entries.items() if entry not in there]
    events = await system.events()
    decided = [event.payout for event in events if isinstance(event, PayoutDecided)]
    assert len(decided) == len(set(decided))
    assert waiting(events) <= set(decided)
    for _, fields in await system.redis.xrange(system.names.dead):
        assert dict(zip(fields[::2], fields[1::2], strict=True))[b"problem"]
    assert system.logs is not None
    for log in system.logs.iterdir():
        assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-4_000:]


def waiting(events: list[Event]) -> set[str]:
    """Payouts of which the first that was seen is that they are pending."""
    first: dict[str, str] = {}
    for event in events:
        if isinstance(event, PayoutObserved):
            first.setdefault(event.payout, event.facts.status)
    return {payout for payout, status in first.items() if status == "pending"}


def about(body: bytes, payout: str, **fields: object) -> bytes:
    """A sample about another payout, where it is about one."""
    envelope = json.loads(body)
    inner = envelope["payload"].get("payout")
    if inner is not None:
        inner["entity"] |= {"id": payout, **fields}
    return json.dumps(envelope).encode()


def named(rng: Random) -> str:
    """A payout's id that was not there before."""
    return f"pout_{rng.randrange(2**40):014d}"

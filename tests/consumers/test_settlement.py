"""The bank's word in any order: every two things that it can say of a payout come to the same, whichever comes first.

A payout's first sight is left out on purpose: whether it was decided before the bank moved it is what a bypass is.
"""

import asyncio
import itertools
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record
from tests.engine import Engine
from tests.words import ACCOUNT, NOW, observed

FEES, TAX = 118, 18
SAID: dict[str, dict[str, Any]] = {
    "pending": {},
    "queued": {},
    "processing": {"fees": FEES, "tax": TAX},
    "processed": {"utr": "UTR1"},
    "failed": {"fees": FEES, "tax": TAX},
    "reversed": {"fees": FEES, "tax": TAX, "utr": "UTR1"},
    "rejected": {},
    "cancelled": {},
    "updated": {"fees": FEES, "tax": TAX, "utr": "UTR2"},
}
"""What the bank can say, `cancelled` by fetching only, and what comes with it. An update is of a processed payout, and
tells of fees that nobody told of before."""
PAIRS = list(itertools.product(SAID, SAID))
AMOUNTS = {"APPROVED": 1_000, "HELD": 600_000, "REJECTED": 800_000}
COUNT_FEES = "count_fees: true, "
POLICY = (
    "{{daily_limit: 5000000, require_approval_above: 500000, per_txn_limit: 700000, {more}"
    "rate_limit: {{count: 0}}}}"
)


def seen(payout: str, agent: str, amount: int, what: str) -> e.PayoutObserved:
    at = NOW + 1_000 * (1 + list(SAID).index(what))
    status = "processed" if what == "updated" else what
    event = observed(payout, amount, agent=agent, status=status, at=at)
    source: e.Source = "fetch" if what == "cancelled" else "webhook"
    name = "payout.initiated" if what == "processing" else f"payout.{what}"
    bank_event = "" if source == "fetch" else name
    return replace(event, source=source, bank_event=bank_event, facts=replace(event.facts, **SAID[what]))


class Seen:
    """Payouts of one agent each, so that every budget window tells of one payout."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: dict[str, tuple[str, int]] = {}

    async def ask(self, names: list[str], amount: int, more: str = "") -> None:
        agents = {name: f"agent-{name}" for name in names}
        policies = "\n".join(f"  {agent}: {POLICY.format(more=more)}" for agent in agents.values())
        await self.engine.apply(f"policies:\n{policies}")
        self.asked |= {name: (agent, amount) for name, agent in agents.items()}
        await self._append([observed(name, amount, agent=agent) for name, agent in agents.items()])

    async def say(self, said: dict[str, str]) -> None:
        await self._append([seen(name, *self.asked[name], what) for name, what in said.items()])

    async def _append(self, events: list[e.PayoutObserved]) -> None:
        await asyncio.gather(*(self.engine.append(ACCOUNT, event) for event in events))
        await self.engine.settled()

    async def outcomes(self) -> dict[str, tuple[dict[str, Any], tuple[int, int], bool]]:
        """Of each payout: its record without what names it, what its window holds, whether a bypass was recorded."""
        records = await self.engine.records()
        found = {}
        for name, (agent, _) in self.asked.items():
            record = records[name]
            kept = await self.engine.client.hget(self.engine.names.payout(name), "s")
            assert kept is not None
            assert decode_record(kept) == record
            told = msgspec.to_builtins(record)
            for own in ("payout", "agent", "decided_at", "hold_expires_at", "updated_at"):
                told.pop(own, None)
            if record.reservation is not None:
                told["reservation"] = record.reservation.state
            row = await self.engine.client.hmget(
                self.engine.names.budget(f"agent:{agent}", "2026-09-21"), "r", "c"
            )
            found[name] = (told, (int(row[0] or 0), int(row[1] or 0)), record.bypassed)
        return found


@pytest.mark.parametrize(
    ("decision", "more"), [*((decision, "") for decision in sorted(AMOUNTS)), ("APPROVED", COUNT_FEES)]
)
async def test_every_two_things_that_the_bank_says_come_to_the_same_in_both_orders(
    redis_url: str, decision: str, more: str
) -> None:
    names = {f"{first}-{second}": (first, second) for first, second in PAIRS}
    async with Engine(redis_url, workers=2) as engine:
        payouts = Seen(engine)
        await payouts.ask(list(names), AMOUNTS[decision], more)
        for place in (0, 1):
            await payouts.say({name: pair[place] for name, pair in names.items()})
        outcomes = await payouts.outcomes()
    assert {told["decision"] for told, _, _ in outcomes.values()} == {decision}
    differing = {
        name: (outcomes[name], outcomes[f"{second}-{first}"])
        for name, (first, second) in names.items()
        if outcomes[name] != outcomes[f"{second}-{first}"]
    }
    assert differing == {}
    if decision == "APPROVED":
        assert outcomes["processed-updated"][1] == (0, 1_000 + (FEES if more else 0))
        assert outcomes["processed-processed"][1] == (0, 1_000)
    assert (
        outcomes["updated-reversed"][1]
        == outcomes["processed-reversed"][1]
        == outcomes["processed-failed"][1]
        == (0, 0)
    )


async def test_an_approved_payout_is_settled_as_the_last_word_says_with_fees_tax_and_utr(
    redis_url: str,
) -> None:
    ends = {
        "processed": ("processed", "committed", (0, 1_000)),
        "updated": ("processed", "committed", (0, 1_000)),
        "failed": ("failed", "released", (0, 0)),
        "reversed": ("reversed", "released", (0, 0)),
        "rejected": ("declined", "released", (0, 0)),
        "cancelled": ("cancelled", "released", (0, 0)),
        "processing": ("confirmed", "reserved", (1_000, 0)),
        "queued": ("approved", "reserved", (1_000, 0)),
    }
    async with Engine(redis_url) as engine:
        payouts = Seen(engine)
        await payouts.ask(list(ends), 1_000)
        await payouts.say({name: name for name in ends})
        await payouts.say({name: name for name in ends})
        outcomes = await payouts.outcomes()
    for name, (state, reservation, window) in ends.items():
        told, held, _ = outcomes[name]
        assert (told.get("state"), told["reservation"], held) == (state, reservation, window), name
        said = SAID[name]
        assert [told.get(field) for field in ("fees", "tax", "utr")] == [
            said.get(field) for field in ("fees", "tax", "utr")
        ], name


async def test_fees_that_count_fill_the_window_after_the_payout_and_the_next_payout_finds_it_so(
    redis_url: str,
) -> None:
    limit = "{daily_limit: 2000, weekly_limit: 5000, count_fees: true, rate_limit: {count: 0}}"
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {limit}, other: {limit.replace('true', 'false')}}}")

        async def outcome(payout: str, amount: int, agent: str) -> str:
            await engine.deliver(observed(payout, amount, agent=agent))
            return (await engine.record(payout)).reason

        async def committed(agent: str) -> list[int]:
            keys = [engine.names.budget(f"agent:{agent}", window) for window in ("2026-09-21", "2026-W39")]
            return [int(await engine.client.hget(key, "c") or 0) for key in keys]

        for agent in ("bot", "other"):
            assert await outcome(f"{agent}-1", 2_000, agent) == "POLICY_OK"
            for what in ("processed", "updated", "updated"):
                await engine.append(ACCOUNT, seen(f"{agent}-1", agent, 2_000, what))
            await engine.settled()
        # Over the limit by the fees, which nobody knew before: what is not refused is what comes next.
        assert (await committed("bot"), await committed("other")) == ([2_118, 2_118], [2_000, 2_000])
        settled = [event for event in await engine.story("bot-1") if isinstance(event, e.PayoutSettled)]
        assert [(event.settlement, event.fees) for event in settled] == [
            ("committed", 0),
            ("committed", FEES),
        ]
        assert await outcome("bot-2", 1, "bot") == "LIMIT_EXCEEDED"
        for agent in ("bot", "other"):
            await engine.append(ACCOUNT, seen(f"{agent}-1", agent, 2_000, "reversed"))
        await engine.settled()
        assert (await committed("bot"), await committed("other")) == ([0, 0], [0, 0])
        assert await outcome("bot-3", 2_000, "bot") == "POLICY_OK"

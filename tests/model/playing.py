"""Random histories, handled by one worker of each group. The workers take turns after every input."""

import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from streamproc.domain import events as e
from streamproc.domain.wire import encode_events, payout_of
from streamproc.log.batch import Limits
from streamproc.log.connection import connect
from streamproc.log.group import Consumer
from streamproc.log.work import Group
from tests.model.stepping import START, Row, World
from tests.properties.test_fast_path import POLICIES, intents, payouts
from tests.words import ACCOUNT, copy_of, reviewed

STATUSES = ("queued", "processing", "processed", "rejected", "cancelled", "failed", "reversed")
ROUNDS_MAX = 40
"""Limit of rounds of all groups over one input: nine groups need at most nine, and as many for their outputs."""
CHANGES = (
    "policies: {bot: {daily_limit: 700, require_approval_above: 200}}",
    "policies: {free: {frozen: true}}",
    "policies: {wary: {new_beneficiary: hold, per_txn_limit: 300}}",
    f"accounts: {{{ACCOUNT}: {{daily_limit: 1200}}}}",
)
Input = e.Event | str


def _number(upto: int) -> st.SearchStrategy[int]:
    return st.integers(0, upto)


again = st.tuples(st.just("status"), _number(9), st.sampled_from(STATUSES))
copies = st.tuples(st.just("copy"), _number(9), st.sampled_from(("pending", *STATUSES)))
answers = st.tuples(
    st.just("answer"),
    _number(9),
    st.sampled_from(["approve done processing", "reject done rejected", "approve already processed"]),
)
reviews = st.tuples(
    st.just("review"),
    _number(9),
    st.sampled_from(["asha approve", "asha approve", "asha reject", "mallory approve"]),
)
endings = st.tuples(st.just("timer"), _number(9), st.just("hold_expiry"))
stops = st.tuples(st.just("stop"), _number(9), st.sampled_from(["sent", "kept"]))
changes = st.sampled_from(CHANGES)
drawn = st.lists(
    payouts
    | payouts
    | payouts
    | intents
    | again
    | again
    | copies
    | answers
    | reviews
    | reviews
    | endings
    | stops
    | changes,
    min_size=4,
    max_size=16,
)


def history_of(inputs: Sequence[Any]) -> list[Input]:
    """Drawn inputs as events, without those about a payout that is not known yet."""
    known: dict[str, e.PayoutObserved | e.PayoutRequested] = {}
    history: list[Input] = []
    for item in inputs:
        if isinstance(item, str):
            history.append(item)
        elif isinstance(item, e.PayoutObserved | e.PayoutRequested):
            known.setdefault(item.payout, item)
            history.append(item)
        elif known:
            kind, which, how = item
            first = list(known.values())[which % len(known)]
            if (event := _event(kind, first, how)) is not None:
                history.append(event)
    return history


def _event(kind: str, first: e.PayoutObserved | e.PayoutRequested, how: str) -> e.Event | None:
    payout = first.payout
    match kind:
        case "status" if isinstance(first, e.PayoutObserved):
            facts = e.BankPayout(**{name: getattr(first.facts, name) for name in _FACTS}, status=how)
            return e.PayoutObserved(
                at=first.at, payout=payout, account=first.account, source="webhook", facts=facts
            )
        case "copy" if isinstance(first, e.PayoutRequested):
            return copy_of(first, f"pout_copy_{how[:2]}", how)
        case "answer" if isinstance(first, e.PayoutObserved):
            command, outcome, status = how.split()
            return e.BankCommandAnswered(
                at=START,
                payout=payout,
                command=command,
                outcome=outcome,
                bank_status=status,  # type: ignore[arg-type]
            )
        case "review":
            by, action = how.split()
            return reviewed(payout, by, action, at=START, why="")
        case "timer":
            return e.TimerFired(at=START + 86_400_000_000, payout=payout, timer="hold_expiry")
        case "stop":
            finding = e.Finding(stage="screening", code="FROZEN", outcome="REJECTED")
            return e.PayoutStopped(
                at=START,
                payout=payout,
                command="approve",
                finding=finding,
                maybe_sent=how == "sent",
                caused_by="",
            )
    return None


_FACTS = ("id", "amount", "currency", "fund_account_id", "notes")


class Crew:
    """One worker of each group."""

    def __init__(self, world: World, groups: Sequence[Group], *, puts_off: bool = False) -> None:
        self.world, self.groups, self.puts_off = world, groups, puts_off

    async def __aenter__(self) -> "Crew":
        await self.world.open(self.groups)
        await self.world.apply(POLICIES)
        self._all = [
            (Consumer(self.world.url, 0, group, name="one", limits=Limits()), connect(self.world.url))
            for group in self.groups
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, client in self._all:
            await client.aclose()
        await self.world.close()

    async def tell(self, given: Input) -> None:
        """Append an event, or apply a policy file; no worker has a turn yet."""
        if isinstance(given, str):
            await self.world.apply(given)
        else:
            await self.world.append(given)

    async def rest(self) -> None:
        """Give turns to all groups until nothing is left; with `puts_off`, deferred entries may be."""
        await self._rest({group.name for group in self.groups})

    async def rest_of(self, group: Group) -> None:
        """Give turns to one group only."""
        await self._rest({group.name})

    async def _rest(self, names: set[str]) -> None:
        for _ in range(ROUNDS_MAX):
            rows = await self.world.client.xinfo_groups(self.world.names.log)
            behind = {row["name"].decode() for row in rows if row["lag"]}
            assert self.puts_off or not any(row["pending"] for row in rows)
            behind &= names
            if not behind:
                return
            for consumer, client in self._all:
                if consumer.group.name in behind:
                    entries = await consumer._read(client, block_ms=1)
                    ahead = await consumer._handler.opener.ahead(client, entries)
                    await consumer._handler.handle(client, entries, taken=False, ahead=ahead)
                    await consumer._handler.acknowledge(client)
        raise AssertionError("the groups never come to rest")

    async def play(self, history: Sequence[Input]) -> None:
        """Give each input, and let the workers finish before the next one."""
        for given in history:
            await self.tell(given)
            await self.rest()


def stories(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The events of each payout as bytes, with the ids of entries replaced."""
    by_payout: dict[str, list[str]] = {}
    for row in rows:
        for event in row.events:
            if payout_of(event):
                text = re.sub(r"\d{13}-\d+", "ID", encode_events([event]).decode())
                by_payout.setdefault(payout_of(event), []).append(text)
    return by_payout


async def counters(world: World) -> dict[str, Any]:
    """What Redis holds beside the log: records, admissions, budgets, slots, beneficiaries, timers, dead letters."""
    state: dict[str, Any] = {}
    for key in sorted(map(bytes.decode, await world.client.keys(f"{world.names.base}:*"))):
        kind = key.removeprefix(world.names.base + ":").partition(":")[0]
        if kind == "payout":
            state[key] = await world.client.hmget(key, "s", "a", "q", "f")
        elif kind in ("budget", "paid"):
            state[key] = await world.client.hgetall(key)
        elif kind in ("rate", "timers"):
            state[key] = await world.client.zrange(key, 0, -1, withscores=True)
        elif kind in ("number", "dead"):
            state[key] = await (world.client.get(key) if kind == "number" else world.client.xlen(key))
    return state

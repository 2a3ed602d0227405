"""Random histories, played to one worker of each group, which take their turns after every input."""

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
from tests.properties.test_straight import POLICIES, intents, payouts
from tests.words import ACCOUNT, copy_of, reviewed

STATUSES = ("queued", "processing", "processed", "rejected", "cancelled", "failed", "reversed")
ROUNDS_MAX = 40
"""Rounds of all groups over one input: a chain of nine has at most as many, and what it writes once more."""
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


def history_of(what: Sequence[Any]) -> list[Input]:
    """What was drawn as events; what would be about a payout that nobody has shown is left out."""
    known: dict[str, e.PayoutObserved | e.PayoutRequested] = {}
    history: list[Input] = []
    for one in what:
        if isinstance(one, str):
            history.append(one)
        elif isinstance(one, e.PayoutObserved | e.PayoutRequested):
            known.setdefault(one.payout, one)
            history.append(one)
        elif known:
            kind, which, how = one
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

    async def tell(self, what: Input) -> None:
        """One input, without a turn."""
        if isinstance(what, str):
            await self.world.apply(what)
        else:
            await self.world.append(what)

    async def rest(self) -> None:
        """Turns until nothing is left, but for what is put off where that may be."""
        await self._rest({group.name for group in self.groups})

    async def rest_of(self, group: Group) -> None:
        """Turns of one group only."""
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
        """Each input and all that follows of it before the next one."""
        for what in history:
            await self.tell(what)
            await self.rest()


def stories(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Each payout's events, byte for byte but for the ids of entries."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for event in row.events:
            if payout_of(event):
                text = re.sub(r"\d{13}-\d+", "ID", encode_events([event]).decode())
                found.setdefault(payout_of(event), []).append(text)
    return found


async def counters(world: World) -> dict[str, Any]:
    """Records, admissions, budgets, slots, beneficiaries, and timers, as Redis has them."""
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

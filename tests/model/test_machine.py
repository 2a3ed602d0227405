"""Random histories, random interleavings: what workers make of them is what the rules say, at every entry of the log.

A machine of hypothesis draws payouts, webhooks (twice, late, out of order), reviews, changes of policies, jumps of the
clock, and which worker makes its next call or dies before or after it. In the end the survivors finish, the bank tells
what it has not told yet, and `Rulebook`, which knows nothing of our code, reads the log.
"""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace as changed

from consumers.enact import execution
from streamproc.domain import events as e
from streamproc.domain.payouts import fold
from streamproc.log.work import Group
from tests.consumers.test_refuted import at_once
from tests.model.bank import NEXT, Bank, Wired
from tests.model.rulebook import HOLD_US, Facts, Policies, Rulebook, Terms
from tests.model.stepping import Worker, World, governance, the_tests_clock
from tests.words import ACCOUNT, observed

PAYOUTS_MAX = 8
KILLS_MAX = 5
"""Deaths and takeovers in one history: an entry that was taken up ten times is set aside, and rightly."""
AGENTS = ("plain", "held", "rated", "limited", "stranger")
FIRST = Policies(
    {
        "plain": Terms(daily=1_000),
        "held": Terms(daily=2_000, above=300, dual=600),
        "rated": Terms(rate=2),
        "limited": Terms(daily=700, per_txn=500, blocks=True),
    },
    account_daily=3_000,
)
HOSTS = ("", "", "shop.example", "bad.example", "malware.example", "unknown.example")
DAY_US = 24 * HOLD_US


class Histories(RuleBasedStateMachine):
    """Everything that may happen to one partition."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.bank = Bank()
        self.facts: dict[str, Facts] = {}
        self.versions = [FIRST]
        self.told: dict[str, int] = {}
        self.workers: list[Worker] = []
        self.kills = self.started = 0
        self.groups = {"governance": governance(), "execution": execution(Wired(self.bank), at_once)}
        self._run(self._open())

    def _run(self, what: Any) -> Any:
        return self.runner.run(what)

    async def _open(self) -> None:
        self.world = World(self.url)
        await self.world.open(list(self.groups.values()))
        await self.world.apply(FIRST.text())
        for name in ("governance", "governance", "execution", "execution"):
            self.workers.append(self._new(name))

    def _new(self, name: str) -> Worker:
        self.started += 1
        if name == "execution":
            wired = Wired(self.bank)
            worker = self.world.worker(execution(wired, at_once), f"{name}-{self.started}")
            wired.call = worker.call
            return worker
        return self.world.worker(governance(), f"{name}-{self.started}")

    # ---- what happens outside -----------------------------------------------------------

    @precondition(lambda self: len(self.facts) < PAYOUTS_MAX)
    @rule(
        agent=st.sampled_from(AGENTS),
        amount=st.sampled_from([100, 300, 301, 500, 601, 1_000]),
        host=st.sampled_from(HOSTS),
        status=st.sampled_from(["pending", "pending", "pending", "queued"]),
        tell=st.integers(0, 2),
    )
    def makes(self, agent: str, amount: int, host: str, status: str, tell: int) -> None:
        """Somebody makes a payout at the bank, and the bank tells us of it so often."""
        payout = f"pout_{len(self.facts)}"
        self.facts[payout] = Facts(agent, amount, host)
        url = f"https://{host}/" if host else None
        self.bank.make(observed(payout, amount, agent=agent, url=url, status=status).facts)
        for _ in range(tell):
            self._tell(payout, 0, deduplicated=tell == 1)

    @precondition(lambda self: self.facts)
    @rule(which=st.integers(0), to=st.integers(0))
    def moves(self, which: int, to: int) -> None:
        """The bank, or somebody there, moves a payout on."""
        payout = f"pout_{which % len(self.facts)}"
        then = NEXT.get(self.bank.now(payout).status, ())
        if then:
            self.bank.move(payout, then[to % len(then)])

    @precondition(lambda self: self.facts)
    @rule(which=st.integers(0), state=st.integers(0), deduplicated=st.booleans())
    def tells(self, which: int, state: int, deduplicated: bool) -> None:
        """A webhook about any state that a payout was in: late, again, before an earlier one."""
        payout = f"pout_{which % len(self.facts)}"
        self._tell(payout, state % len(self.bank.payouts[payout]), deduplicated=deduplicated)

    def _tell(self, payout: str, state: int, *, deduplicated: bool) -> None:
        facts = self.bank.payouts[payout][state]
        event = e.PayoutObserved(
            at=self.world.now, payout=payout, account=ACCOUNT, source="webhook", facts=facts
        )
        keys = (f"st:{payout}:{facts.status}",) if deduplicated else ()
        self._run(self.world.append(event, keys=keys))

    @precondition(lambda self: self.facts)
    @rule(
        which=st.integers(0),
        by=st.sampled_from(["asha", "asha", "ravi", "ravi", "mallory", "held"]),
        action=st.sampled_from(["approve", "approve", "reject"]),
    )
    def answers(self, which: int, by: str, action: Any) -> None:
        """A reviewer, or somebody who is none, answers."""
        payout = f"pout_{which % len(self.facts)}"
        answer = e.ReviewSubmitted(
            at=self.world.now, payout=payout, by=by, action=action, why="because", channel="test"
        )
        self._run(self.world.append(answer))

    @rule(
        agent=st.sampled_from(AGENTS[:-1]),
        terms=st.builds(
            Terms,
            daily=st.sampled_from([0, 500, 1_000, 2_000]),
            per_txn=st.sampled_from([None, None, 300]),
            above=st.sampled_from([None, 0, 300]),
            dual=st.sampled_from([None, 600]),
            rate=st.sampled_from([0, 0, 1, 3]),
            blocks=st.booleans(),
            frozen=st.sampled_from([False, False, True]),
        ),
    )
    def changes(self, agent: str, terms: Terms) -> None:
        """A policy is changed, perhaps while something is decided under the one before."""
        self._change(self.versions[-1].with_terms(agent, terms))

    @rule(daily=st.sampled_from([0, 1_000, 3_000]), frozen=st.sampled_from([False, False, True]))
    def changes_the_account(self, daily: int, frozen: bool) -> None:
        """So are those of the account."""
        self._change(Policies(self.versions[-1].agents, daily, frozen))

    def _change(self, policies: Policies) -> None:
        if policies != self.versions[-1]:
            self._run(self.world.apply(policies.text()))
            self.versions.append(policies)

    @rule(us=st.sampled_from([1_000_000, 30_000_000, 61_000_000, HOLD_US, DAY_US]))
    def passes(self, us: int) -> None:
        """Time."""
        self._run(self.world.set_clock(self.world.now + us))

    # ---- what workers do ----------------------------------------------------------------

    @rule(
        which=st.integers(0, 3),
        turn=st.sampled_from(["read", "read", "upkeep"]),
        calls=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    )
    def works(self, which: int, turn: str, calls: list[int]) -> None:
        """A worker makes its next calls; where several wait, any of them."""
        self._run(self._work(self.workers[which], turn, calls))

    async def _work(self, worker: Worker, turn: str, calls: list[int]) -> None:
        if not worker.is_busy:
            await worker.begin(turn)
        for call in calls:
            if worker.is_busy:
                await worker.step(call)

    @rule(which=st.integers(0, 3))
    def finishes(self, which: int) -> None:
        """A worker reads and handles what there is, to the end."""
        self._run(self.workers[which].whole_turn("read"))

    @precondition(lambda self: self.kills < KILLS_MAX)
    @rule(which=st.integers(0, 3), after=st.booleans(), claim=st.booleans())
    def dies(self, which: int, after: bool, claim: bool) -> None:
        """A worker dies before its call or after it; another one takes its place, and may claim what it had."""
        self.kills += 1
        self._run(self.workers[which].kill(after=after))
        self.workers[which] = self._new(self.workers[which].group.name)
        if claim:
            self._run(self.workers[which].whole_turn("claim"))

    # ---- the end ------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self._run(self._finish())
        finally:
            self._run(self.world.close())
            self.runner.close()

    async def _finish(self) -> None:
        world, effects = self.world, -1
        while effects != len(self.bank.effects):
            effects = len(self.bank.effects)
            await world.drain(self.workers)
            for payout, states in self.bank.payouts.items():
                for facts in states:
                    event = e.PayoutObserved(
                        at=world.now, payout=payout, account=ACCOUNT, source="poll", facts=facts
                    )
                    await world.append(event, keys=(f"st:{payout}:{facts.status}",))
            await world.drain(self.workers)
        log = await world.rows()
        book = Rulebook(self.versions, self.facts)
        assert list(book.wrong(log)) == []
        assert await world.client.xlen(world.names.dead) == 0
        await self._counters(book)
        await self._records(log, book)
        self._bank(book)

    async def _counters(self, book: Rulebook) -> None:
        """Redis holds the sums of the log and nothing else."""
        found = {}
        for key in await self.world.client.keys(self.world.names.budget("*", "*")):
            kind, scope, window = key.decode().rsplit(":", 3)[-3:]
            row = await self.world.client.hmget(key, "r", "c")
            found[f"{kind}:{scope}", window] = [int(row[0] or 0), int(row[1] or 0)]
        assert found == dict(book.money)

    async def _records(self, log: list[Any], book: Rulebook) -> None:
        """What Redis knows of a payout is the fold of its events, and it is where the rules have it."""
        for payout, known in book.payouts.items():
            story = [event for row in log for event in row.events if getattr(event, "payout", "") == payout]
            kept = await self.world.client.hget(self.world.names.payout(payout), "s")
            record = e_record(kept)
            assert record == fold(story), payout
            assert record.bank_status == self.bank.now(payout).status, payout
            assert (record.decision or "") == (known.decided or [""])[-1], payout
            if known.is_held and record.state == "held":
                assert known.hold_ends > self.world.now, f"{payout} is held for ever"

    def _bank(self, book: Rulebook) -> None:
        """One command at most took effect, and it is the one that was decided; what is decided, the bank knows."""
        for payout, known in book.payouts.items():
            commands = [command for of, command in self.bank.effects if of == payout]
            assert len(commands) <= 1, (payout, commands)
            if commands == ["approve"]:
                assert "APPROVED" in known.decided, payout
            elif commands:
                assert known.decided[-1:] in (["REJECTED"], ["HELD"]), (payout, commands, known.decided)
            status = self.bank.now(payout).status
            if known.decided[-1:] == ["APPROVED"]:
                assert status != "pending", payout
            elif known.decided[-1:] == ["REJECTED"]:
                assert status not in ("pending", "queued"), payout


def e_record(kept: bytes | None) -> Any:
    from streamproc.domain.payouts import decode_record

    assert kept is not None
    return decode_record(kept)


def run(url: str, **more: Any) -> None:
    with the_tests_clock():
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            type("Machine", (Histories,), {"url": url}),
            settings=settings(
                deadline=None,
                stateful_step_count=40,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                **more,
            ),
        )


def test_whatever_workers_make_of_a_history_is_what_the_rules_say(valkey: str) -> None:
    run(valkey, max_examples=25, derandomize=True)

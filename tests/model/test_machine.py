"""Random histories in random interleavings: every entry that the workers write is what the rules say.

A state machine of hypothesis draws payouts, webhooks (twice, late, out of order), reviews, changes of policies, jumps
of the clock, and which worker makes its next call or dies before or after it. In the end the survivors finish, the bank
reports what it has not reported yet, and `Rulebook`, which uses none of our code, checks the log.
"""

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumers.enact import execution
from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record, fold
from tests.consumers.test_refuted import at_once
from tests.model.bank import NEXT, Bank, Wired
from tests.model.rulebook import HOLD_US, Facts, Policies, Rulebook, Terms
from tests.model.stepping import Worker, World, governance, the_tests_clock, vendors
from tests.words import ACCOUNT, observed, reviewed

PAYOUTS_MAX = 16
KILLS_MAX, CLAIMS_MAX = 3, 4
"""Limits in one history, since an entry that was taken over ten times rightly becomes a dead letter."""
POLICIES_MAX = 8
AGENTS = ("plain", "plain", "held", "held", "held", "rated", "limited", "stranger")
AMOUNTS = (100, 300, 301, 400, 500, 601, 1_000)
PEOPLE = ("asha", "asha", "ravi", "ravi", "mallory", "held")
ACTIONS = ("approve", "approve", "approve", "reject")
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"daily": 0}, {"daily": 500}, {"daily": 5_000}, {"per_txn": 300}, {"above": 0}, {"above": None}),
    *({"dual": None}, {"rate": 1}, {"rate": 0}, {"blocks": True}, {"frozen": True}),
)
"""The changes that a policy may have, compared with the first one."""
FIRST = Policies(
    {
        "plain": Terms(daily=1_000),
        "held": Terms(daily=2_000, above=300, dual=600),
        "rated": Terms(rate=2),
        "limited": Terms(daily=700, per_txn=500, blocks=True),
    },
    account_daily=3_000,
)
HOSTS = ("", "", "", "shop.example", "shop.example", "bad.example", "malware.example", "unknown.example")
MADE = st.tuples(st.sampled_from(AGENTS), st.sampled_from(AMOUNTS), st.sampled_from(HOSTS), st.integers(0, 9))
"""A payout. If the last part is 9, it is queued at the bank instead of pending."""
DAY_US = 24 * HOLD_US


def changed(agent: str, change: dict[str, Any]) -> Terms:
    """The agent's first policy with a change, but never with a limit per payout above the daily one (refused)."""
    terms = dataclasses.replace(FIRST.agents[agent], **change)
    if terms.daily is not None and terms.per_txn is not None and terms.per_txn > terms.daily:
        return dataclasses.replace(terms, per_txn=None)
    return terms


class Histories(RuleBasedStateMachine):
    """Everything that may happen to one partition."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.bank = Bank()
        self.facts: dict[str, Facts] = {}
        self.versions = [FIRST]
        self.workers: list[Worker] = []
        self.kills = self.claims = self.started = 0
        self.known = vendors()
        """Reputations, which all governance workers share as in one process; each remembers its own beneficiaries."""
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
        return self.world.worker(governance(known=self.known), f"{name}-{self.started}")

    # ---- what happens outside -----------------------------------------------------------

    @initialize(made=st.lists(MADE, min_size=3, max_size=6))
    def begins(self, made: list[tuple[str, int, str, int]]) -> None:
        """Begin with some payouts, since a history without any shows nothing."""
        self._make(made, 1)

    @precondition(lambda self: len(self.facts) < PAYOUTS_MAX)
    @rule(made=st.lists(MADE, min_size=1, max_size=3), times=st.sampled_from([1, 1, 1, 2, 0]))
    def makes(self, made: list[tuple[str, int, str, int]], times: int) -> None:
        """Somebody makes payouts at the bank, and the bank sends so many webhooks for each."""
        self._make(made, times)

    @precondition(lambda self: len(self.facts) < PAYOUTS_MAX)
    @rule(
        agent=st.sampled_from(AGENTS),
        amounts=st.lists(st.sampled_from([1, 10, 100, 301, 501]), min_size=2, max_size=5),
        which=st.integers(0, 1),
    )
    def makes_some_alike(self, agent: str, amounts: list[int], which: int) -> None:
        """An agent pays a vendor several times, and a worker reads them together."""
        self._make([(agent, amount, "shop.example", 0) for amount in amounts], 1)
        self._run(self.workers[which].whole_turn("read"))

    def _make(self, made: list[tuple[str, int, str, int]], times: int) -> None:
        for agent, amount, host, rare in made:
            payout = f"pout_{len(self.facts)}"
            self.facts[payout] = Facts(agent, amount, host)
            url, status = f"https://{host}/" if host else None, "queued" if rare == 9 else "pending"
            self.bank.make(observed(payout, amount, agent=agent, url=url, status=status).facts)
            for _ in range(times):
                self._tell(payout, 0, deduplicated=times == 1)

    @precondition(lambda self: self.facts)
    @rule(which=st.integers(0, 30), to=st.integers(0, 5), tell=st.booleans())
    def moves(self, which: int, to: int, tell: bool) -> None:
        """The bank, or somebody there, moves a payout on."""
        payout = f"pout_{which % len(self.facts)}"
        then = NEXT.get(self.bank.now(payout).status, ())
        if then:
            self.bank.move(payout, then[to % len(then)])
            if tell:
                self._tell(payout, -1, deduplicated=True)

    @precondition(lambda self: self.facts)
    @rule(which=st.integers(0, 30), state=st.integers(0, 5), deduplicated=st.booleans())
    def tells(self, which: int, state: int, deduplicated: bool) -> None:
        """A webhook about any state that a payout has had: late, repeated, or out of order."""
        payout = f"pout_{which % len(self.facts)}"
        self._tell(payout, state % len(self.bank.payouts[payout]), deduplicated=deduplicated)

    def _tell(self, payout: str, state: int, *, deduplicated: bool) -> None:
        facts = self.bank.payouts[payout][state]
        event = e.PayoutObserved(
            at=self.world.now, payout=payout, account=ACCOUNT, source="webhook", facts=facts
        )
        keys = (f"st:{payout}:{facts.status}",) if deduplicated else ()
        self._run(self.world.append(event, keys=keys))

    @precondition(lambda self: any(facts.agent == "held" for facts in self.facts.values()))
    @rule(
        which=st.integers(0, 30),
        answers=st.lists(
            st.tuples(st.sampled_from(PEOPLE), st.sampled_from(ACTIONS)), min_size=1, max_size=3
        ),
    )
    def answers(self, which: int, answers: list[tuple[str, Any]]) -> None:
        """Reviewers, or people who are not, answer at the same time."""
        asked = [payout for payout, facts in self.facts.items() if facts.agent == "held"]
        for by, action in answers:
            answer = reviewed(asked[which % len(asked)], by, action, at=self.world.now, why="")
            self._run(self.world.append(answer))

    @precondition(lambda self: len(self.versions) < POLICIES_MAX)
    @rule(agent=st.sampled_from([*AGENTS[:-1], "account"]), change=st.sampled_from(CHANGES))
    def changes(self, agent: str, change: dict[str, Any]) -> None:
        """A policy changes, perhaps while something is decided under the previous one."""
        now = self.versions[-1]
        if agent == "account":
            frozen = "frozen" in change and not now.account_frozen
            self._change(Policies(now.agents, change.get("daily", FIRST.account_daily), frozen))
        else:
            self._change(now.with_terms(agent, changed(agent, change)))

    def _change(self, policies: Policies) -> None:
        if policies != self.versions[-1]:
            self._run(self.world.apply(policies.text()))
            self.versions.append(policies)

    @rule(us=st.sampled_from([1_000_000, 30_000_000, 61_000_000, HOLD_US, DAY_US]))
    def passes(self, us: int) -> None:
        """Time passes."""
        self._run(self.world.set_clock(self.world.now + us))

    # ---- what workers do ----------------------------------------------------------------

    @rule(
        steps=st.lists(
            st.tuples(st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3]), st.integers(0, 2)), min_size=10, max_size=30
        )
    )
    def works(self, steps: list[tuple[int, int]]) -> None:
        """Workers make their next calls in turns. If several calls of a worker wait, any of them is next."""
        for which, call in steps:
            self._run(self._work(self.workers[which], "read", [call]))

    @rule(which=st.integers(0, 3), calls=st.lists(st.integers(0, 2), min_size=1, max_size=8))
    def keeps_up(self, which: int, calls: list[int]) -> None:
        """A worker handles timers and deferred entries."""
        self._run(self._work(self.workers[which], "upkeep", calls))

    @precondition(lambda self: self.claims < CLAIMS_MAX and any(worker.is_busy for worker in self.workers))
    @rule(which=st.integers(0, 3), calls=st.lists(st.integers(0, 2), min_size=4, max_size=12))
    def takes_over(self, which: int, calls: list[int]) -> None:
        """A worker takes over what others have in hand and still work on, so either may commit first."""
        self.claims += 1
        self._run(self._work(self.workers[which], "claim", calls))

    @rule(
        which=st.integers(0, 1),
        before=st.sampled_from(["commit", "commit", "grant", "admit"]),
        meanwhile=st.sampled_from(["policy", "policy", "takeover", "nothing"]),
        agent=st.sampled_from(AGENTS[:-1]),
        change=st.sampled_from(CHANGES),
    )
    def hesitates(self, which: int, before: str, meanwhile: str, agent: str, change: dict[str, Any]) -> None:
        """A worker goes on until right before such a call; then something happens that overtakes its decision."""
        self._run(self._up_to(self.workers[which], before))
        if meanwhile == "policy" and len(self.versions) < POLICIES_MAX:
            self._change(self.versions[-1].with_terms(agent, changed(agent, change)))
        elif meanwhile == "takeover" and self.claims < CLAIMS_MAX:
            self.claims += 1
            self._run(self.workers[1 - which].whole_turn("claim"))

    async def _up_to(self, worker: Worker, before: str) -> None:
        if not worker.is_busy:
            await worker.begin("read")
        while worker.is_busy and worker.calls[0].what != before:
            await worker.step()

    async def _work(self, worker: Worker, turn: str, calls: list[int]) -> None:
        if not worker.is_busy:
            await worker.begin(turn)
        for call in calls:
            if worker.is_busy:
                await worker.step(call)

    @rule()
    def rests(self) -> None:
        """All workers finish what they can read."""
        for worker in self.workers:
            self._run(worker.whole_turn("read"))

    @precondition(lambda self: self.kills < KILLS_MAX and any(worker.is_busy for worker in self.workers))
    @rule(which=st.integers(0, 3), after=st.booleans(), claim=st.booleans())
    def dies(self, which: int, after: bool, claim: bool) -> None:
        """A worker dies before or after its next call. Another one takes its place, and may claim what others have."""
        self.kills += 1
        which = next(i % 4 for i in range(which, which + 4) if self.workers[i % 4].is_busy)
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
        """The budgets in Redis are the sums of the log."""
        budgets = {}
        for key in await self.world.client.keys(self.world.names.budget("*", "*")):
            kind, scope, window = key.decode().rsplit(":", 3)[-3:]
            row = await self.world.client.hmget(key, "r", "c")
            budgets[f"{kind}:{scope}", window] = [int(row[0] or 0), int(row[1] or 0)]
        assert {key: sums for key, sums in budgets.items() if any(sums)} == {
            key: sums for key, sums in book.money.items() if any(sums)
        }

    async def _records(self, log: list[Any], book: Rulebook) -> None:
        """A record in Redis is the fold of the payout's events, and has the rules' decision and the bank's status."""
        for payout, known in book.payouts.items():
            story = [event for row in log for event in row.events if getattr(event, "payout", "") == payout]
            kept = await self.world.client.hget(self.world.names.payout(payout), "s")
            assert kept is not None, payout
            record = decode_record(kept)
            assert record == fold(story), payout
            assert record.bank_status == self.bank.now(payout).status, payout
            assert (record.decision or "") == (known.decided or [""])[-1], payout
            if known.is_held and record.state == "held":
                assert known.hold_ends > self.world.now, f"{payout} is held for ever"

    def _bank(self, book: Rulebook) -> None:
        """At most one command took effect, the one that was decided; and every final decision has reached the bank."""
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


def run(url: str, **more: Any) -> None:
    with the_tests_clock():
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            type("Machine", (Histories,), {"url": url}),
            settings=settings(
                stateful_step_count=30,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                report_multiple_bugs=False,
                **more,
            ),
        )


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    "examples", [pytest.param(20, id="quick"), pytest.param(150, id="long", marks=pytest.mark.soak)]
)
def test_whatever_workers_make_of_a_history_is_what_the_rules_say(unsynced: str, examples: int) -> None:
    """The quick examples are the same each time, the long ones are new each time."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    run(unsynced, max_examples=examples, derandomize=examples == 20, phases=phases)

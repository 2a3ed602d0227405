"""The load of a run: payouts made at the bank and asked for through the gateway, reviewers, changes of policy."""

import asyncio
import random
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import httpx

from streamproc.clients.razorpay_entities import MalformedPayout, read_payout
from streamproc.domain.events import Event, PayoutDecided, PayoutObserved, PayoutRequested
from streamproc.errors import LogBroken, LogUnavailable
from streamproc.ingress.translate import append_of
from streamproc.log.connection import connected
from streamproc.log.stream import Producer
from streamproc.operate.site import Site
from streamproc.operate.tokens import TokenSpec
from streamproc.operate.tokens import create as create_token
from tests.faults.invariants import history
from tests.faults.plan import AMOUNT, CROWDED_ROOM, OUTCOMES, Payment, Plan
from tests.faults.stand import Stand, accounts_of
from tests.journeys.system import ACCOUNT
from tests.words import apply_policies, attributed

DAY_S = 86_400
AGAIN_S = 0.4
AGAIN_S_MAX = 4.0
GIVE_UP_S = 120.0
"""Limit for one request or change, since servers are away at times."""
ENDED = ("processed", "failed", "reversed", "rejected", "cancelled")
"""Final statuses at the bank."""
GATEWAY_AGENTS = ("free", "crowded", "small", "careful")
PAYEE = {
    "account_type": "bank_account",
    "bank_account": {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"},
    "contact": {"name": "Some Body", "type": "vendor"},
}


def policies(room: int = CROWDED_ROOM) -> str:
    """The policy file of a run; `room` of the crowded agent's payouts fit into its day."""
    return f"""
defaults: {{rate_limit: {{count: 0, window: 60s}}}}
policies:
  free: {{daily_limit: 10_000_000_000}}
  small: {{per_txn_limit: {AMOUNT - 1}}}
  crowded: {{daily_limit: {AMOUNT * room}, weekly_limit: {AMOUNT * (room + 20)}}}
  careful: {{daily_limit: 10_000_000_000, require_approval_above: {AMOUNT - 1}}}
reviewers: [asha]
"""


class Load:
    """Makes the plan's payments and changes, for as long as it takes."""

    def __init__(self, stand: Stand, plan: Plan) -> None:
        self._stand, self._plan = stand, plan
        self._held: dict[str, str] = {}
        """Account of each payout that waits for a person; empty if it does not wait any more."""
        self._accounts = [account for account, _ in accounts_of(plan.accounts)]
        self._tokens: dict[str, str] = {}
        self._fund_account = ""
        self.asked: set[str] = set()
        """Intents that were answered 202."""
        self.untaken = 0
        """Intents that the gateway did not accept within GIVE_UP_S, which is longer than anything is away."""
        for witness in stand.witnesses:
            witness.heard.append(self._hear)
        stand.witness.rewritten.append(self._hear_again)

    async def prepare(self) -> None:
        """Set up policies, tokens and a fund account, before any fault."""
        system, partitions = self._stand.system, self._plan.accounts
        for partition in range(partitions):
            await apply_policies(system.redis, policies(), partition=partition)
        site = Site(system.redis_url, system.redis, partitions, system.pool)
        for agent in GATEWAY_AGENTS:
            made = await create_token(
                site,
                TokenSpec(name=agent, scope="agent", agent=agent, account=ACCOUNT, expires_s=DAY_S),
                attributed("test"),
            )
            self._tokens[agent] = made.secret
        bank = self._stand.bank
        contact = (await bank.call("POST", "/v1/contacts", {"name": "Asha Paper", "type": "vendor"})).json()
        account = {"contact_id": contact["id"], "account_type": "vpa", "vpa": {"address": "asha@ybl"}}
        self._fund_account = (await bank.call("POST", "/v1/fund_accounts", account)).json()["id"]

    async def overnight(self) -> None:
        """Make payouts received yesterday, whose windows are not today's, before any role sees them."""
        bank = self._stand.bank
        await bank.webhook(enabled=False)
        notes = {"agent_id": "free", "vendor_url": "https://overnight.example.com/"}
        async with Producer(
            self._stand.system.redis_url, partitions=self._plan.accounts, name="webhook"
        ) as producer:
            for n in range(self._plan.overnight):
                made = await bank.pay(AMOUNT, notes=notes, outcome=OUTCOMES[-1 - n % 3])
                payout = read_payout(await bank.payout(made["id"]))
                assert not isinstance(payout, MalformedPayout)
                await producer.append(
                    append_of(
                        payout,
                        account=ACCOUNT,
                        source="webhook",
                        now_us=producer.now_us() - DAY_S * 1_000_000,
                        bank_event="payout.pending",
                    )
                )
        await bank.webhook(enabled=True)

    async def run(self) -> None:
        """Make every payment and change of the plan at its time. Returns when all are made."""
        began = asyncio.get_running_loop().time()

        async def at(seconds: float) -> None:
            await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))

        async def pay(number: int, payment: Payment) -> None:
            await at(payment.at_s)
            if payment.how in ("gateway", "inline"):
                await self._ask(f"run-{number}", payment)
            else:
                await self._pay(payment)

        async def limit(seconds: float, room: int) -> None:
            await at(seconds)
            await self._change(room)

        async with asyncio.TaskGroup() as tasks:
            for number, payment in enumerate(self._plan.payments):
                tasks.create_task(pay(number, payment))
            for change in self._plan.limits:
                tasks.create_task(limit(change.at_s, change.room))

    async def go_on_until(self, over: "asyncio.Task[None]") -> None:
        """Make further payments until the roles have reached their crash points."""
        if not any(fault.kind == "crash" and fault.for_s for fault in self._plan.faults):
            return
        await asyncio.wait({over}, timeout=self._plan.seconds)
        while not over.done():
            await self._pay(Payment(0, "free", "pending", "processed"))
            await asyncio.wait({over}, timeout=AGAIN_S)

    async def _pay(self, payment: Payment) -> None:
        notes = {"agent_id": payment.agent, "vendor_url": f"https://{payment.agent}.example.com/"}
        account = self._accounts[payment.account] if payment.account else ""
        await self._stand.bank.pay(
            payment.amount, status=payment.how, notes=notes, outcome=payment.outcome, account=account
        )

    async def _ask(self, key: str, payment: Payment) -> None:
        order: dict[str, Any] = {"amount": payment.amount, "purpose": "vendor bill"}
        if payment.how == "inline":
            order |= {"mode": "IMPS", "fund_account": PAYEE}
        else:
            order |= {"mode": "UPI", "fund_account_id": self._fund_account}
        headers = {"authorization": f"Bearer {self._tokens[payment.agent]}", "idempotency-key": key}
        end, wait_s = asyncio.get_running_loop().time() + GIVE_UP_S, AGAIN_S
        while asyncio.get_running_loop().time() < end:
            answer = await self._post(order, headers)
            if answer is not None and answer.status_code == 202:
                self.asked.add(answer.json()["payout"])
                return
            assert answer is None or answer.status_code == 503, answer.text
            # Wait as a good client does, since many repeated requests at once would add to the load.
            await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, AGAIN_S_MAX)
        self.untaken += 1

    async def _post(self, order: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response | None:
        try:
            return await self._stand.system.api.post("/v1/payouts", json=order, headers=headers)
        except httpx.TransportError:
            return None

    async def _change(self, room: int) -> None:
        end = asyncio.get_running_loop().time() + GIVE_UP_S
        while asyncio.get_running_loop().time() < end:
            try:
                async with connected(self._stand.system.redis_url) as client:
                    for partition in range(self._plan.accounts):
                        await apply_policies(client, policies(room), partition=partition)
                    return
            except (LogUnavailable, LogBroken):  # LogBroken: between a failover and `recover`
                await asyncio.sleep(AGAIN_S)

    # ---- reviewers ----

    def _hear(self, event: Event) -> None:
        if isinstance(event, PayoutDecided):
            if event.decision == "HELD":
                self._held.setdefault(event.payout, event.account)
            else:
                self._held[event.payout] = ""
        elif isinstance(event, PayoutObserved) and event.facts.status in ENDED:
            self._held[event.payout] = ""  # ended at the bank, so an answer would be refused

    def _hear_again(self) -> None:
        """Read the log again after a failover: decisions, and intents that were answered 202, may be gone."""
        self._held.clear()
        requested: set[str] = set()
        for _, _, event, _ in history(self._stand.witness.entries):
            self._hear(event)
            if isinstance(event, PayoutRequested):
                requested.add(event.payout)
        lost = {
            event.payout
            for _, _, event, _ in history(self._stand.witness.lost)
            if isinstance(event, PayoutRequested)
        }
        self.asked -= lost - requested

    async def review(self) -> None:
        """Answer every hold until cancelled; repeat each answer until it counts. Two of three are approved."""
        chance = random.Random(self._plan.seed)
        while True:
            for payout, account in [(payout, account) for payout, account in self._held.items() if account]:
                action = "reject" if crc32(payout.encode()) % 3 == 0 else "approve"
                try:
                    await self._stand.system.review(
                        payout,
                        by="asha",
                        action=action,  # type: ignore[arg-type]
                        account=account,
                        partitions=self._plan.accounts,
                    )
                except LogUnavailable:
                    break
            await asyncio.sleep(chance.uniform(0.5, 1.5))

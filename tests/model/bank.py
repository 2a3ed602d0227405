"""A model of the bank: payouts with one-way states, idempotency keys, and the commands that took effect.

A worker's call waits until the test lets it go, like all its other calls (`Wired`). What outsiders do happens at once.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from streamproc.clients.razorpay import CommandAnswer, Found
from streamproc.domain.events import BankPayout

T = TypeVar("T")

NEXT: dict[str, tuple[str, ...]] = {
    "": ("pending", "queued"),
    "pending": ("processing", "rejected", "queued"),
    "queued": ("processing", "cancelled"),
    "processing": ("processed", "failed", "reversed"),
    "processed": ("reversed",),
}
"""The states to which the bank, or people there, may move a payout by themselves."""


class Bank:
    """All payouts, each with all its states so far."""

    def __init__(self) -> None:
        self.payouts: dict[str, list[BankPayout]] = {}
        self.effects: list[tuple[str, str]] = []
        """Payout and command of every command that took effect, in order."""
        self._keys: dict[str, tuple[bytes, str]] = {}

    def make(self, facts: BankPayout) -> None:
        """Add a new payout."""
        self.payouts[facts.id] = [facts]

    def now(self, payout: str) -> BankPayout:
        """The payout in its present state."""
        return self.payouts[payout][-1]

    def move(self, payout: str, status: str) -> None:
        """Move the payout to this state."""
        self.payouts[payout].append(replace(self.now(payout), status=status))

    def command(self, payout: str, command: str, before: str, then: str) -> CommandAnswer:
        """Carry out a command, which is refused unless the payout is in the state `before`."""
        if self.now(payout).status != before:
            return CommandAnswer(http_status=400, outcome="refused", code="not_allowed")
        self.move(payout, then)
        self.effects.append((payout, command))
        return CommandAnswer(http_status=200, outcome="done", payout=self.now(payout))

    def create(self, order: bytes, key: str) -> CommandAnswer:
        """Create a payout; the same key and bytes give the same one."""
        if key in self._keys:
            known_order, payout = self._keys[key]
            if known_order != order:
                return CommandAnswer(http_status=400, outcome="refused", problem="idempotency key is known")
            return CommandAnswer(http_status=200, outcome="done", payout=self.now(payout))
        asked = msgspec.json.decode(order)
        payout = f"pout_made_{len(self._keys)}"
        self._keys[key] = order, payout
        self.make(
            BankPayout(
                id=payout,
                amount=asked["amount"],
                currency=asked["currency"],
                status="pending",
                created_at=1 + len(self.payouts),
                fund_account_id=asked.get("fund_account_id", "fa_inline"),
                reference_id=asked["reference_id"],
            )
        )
        self.effects.append((payout, "create"))
        return CommandAnswer(http_status=200, outcome="done", payout=self.now(payout))

    def under(self, reference: str) -> list[BankPayout]:
        """All payouts with this reference."""
        return [states[-1] for states in self.payouts.values() if states[-1].reference_id == reference]


class Waits(Protocol):
    """Makes a worker's call wait before it acts, and after that."""

    async def __call__(self, what: str, act: Callable[[], Awaitable[T]]) -> T: ...


class Wired:
    """The bank client of one worker."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.call: Waits | None = None

    async def fetch(self, payout_id: str) -> BankPayout:
        return await self._ask("fetch", lambda: self.bank.now(payout_id))

    async def approve(self, payout_id: str, remarks: str) -> CommandAnswer:
        return await self._ask(
            "approve", lambda: self.bank.command(payout_id, "approve", "pending", "processing")
        )

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        return await self._ask(
            "reject", lambda: self.bank.command(payout_id, "reject", "pending", "rejected")
        )

    async def cancel(self, payout_id: str) -> CommandAnswer:
        return await self._ask(
            "cancel", lambda: self.bank.command(payout_id, "cancel", "queued", "cancelled")
        )

    async def create(self, order: bytes, key: str) -> CommandAnswer:
        return await self._ask("create", lambda: self.bank.create(order, key))

    async def find(self, account_number: str, reference: str) -> Found:
        return await self._ask("find", lambda: Found(list(self.bank.under(reference))))

    async def _ask(self, what: str, act: Callable[[], T]) -> T:
        async def acts() -> T:
            return act()

        assert self.call is not None
        return await self.call(what, acts)

"""Everything the sandbox holds, wired once: bank, courier, faults, journal, store; and its heartbeat."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress

from msgspec import Struct

from ops.sandbox.bank import Bank, Behaviour
from ops.sandbox.clock import Clock
from ops.sandbox.config import SandboxConfig
from ops.sandbox.directory import Directory
from ops.sandbox.entities import Contact, FundAccount, Payout, Transaction
from ops.sandbox.faults import Faults
from ops.sandbox.idempotency import IdempotencyKeys, Used
from ops.sandbox.journal import Command, Journal
from ops.sandbox.ledger import Ledger
from ops.sandbox.messaging import Messages
from ops.sandbox.registry import Registry
from ops.sandbox.reputation import Reputation
from ops.sandbox.slack_people import People
from ops.sandbox.store import Store
from ops.sandbox.tokens import Tokens
from ops.sandbox.webhooks import Courier, Delivery

HEARTBEAT_MAX_S = 60.0
"""The heartbeat's longest sleep if nothing is due; a change ends it earlier."""


class Balance(Struct, frozen=True):
    """The one row of kind `balance`, in paise."""

    paise: int


class World:
    """One simulated bank with its neighbours."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.clock = Clock()
        self.store = Store(config.data_file)
        self._awake = asyncio.Event()
        self._build()

    def _build(self) -> None:
        config = self.config
        kept = self.store.load("payout", Payout)
        # Salted with what is stored already, so that a restart with the same seed does not draw the same ids.
        rng = self.rng = random.Random(f"{config.seed}/{len(kept)}" if config.seed else None)
        self.faults = Faults(rng)
        self.journal = Journal()
        self.keys = IdempotencyKeys()
        self.directory = Directory(rng)
        self.behaviour = Behaviour(
            workflow=config.workflow, processing_s=config.processing_s, utr_s=config.utr_s
        )
        ledger = Ledger(account_number=config.account_number, balance=config.balance)
        self.bank = Bank(config.account_id, ledger, self.directory, self.behaviour, rng)
        self.oauth_scope = config.oauth_scope
        self.tokens = Tokens(config, rng)
        self.courier = Courier(config, self.clock, self.faults, rng, self._awake.set)
        self.reputation = Reputation(config.safebrowsing_key)
        self.registry = Registry()
        self.people = People(config, rng)
        self.messages = Messages(config.slack_token, self.people)
        self._load(kept)

    def _load(self, payouts: list[Payout]) -> None:
        self.directory.load(self.store.load("contact", Contact), self.store.load("fund_account", FundAccount))
        self.bank.load(payouts)
        ledger = self.bank.ledger
        ledger.transactions = sorted(self.store.load("transaction", Transaction), key=lambda t: t.created_at)
        for balance in self.store.load("balance", Balance):
            ledger.balance = balance.paise
        self.keys.load(self.store.load("key", Used))
        self.journal.commands.extend(sorted(self.store.load("command", Command), key=lambda c: c.at))
        self.courier.load(self.store.load("delivery", Delivery))
        self._lines_kept, self._balance_kept = len(ledger.transactions), ledger.balance
        self._commands_kept = self.journal.noted = len(self.journal.commands)

    # ---- after each change ------------------------------------------------------------------

    def settle(self) -> None:
        """Pass on what happened: events to the courier, changed rows to the store. Call after every change."""
        events, self.bank.outbox = self.bank.outbox, []
        for event in events:
            self.courier.take(event)
        self.store.save(self._changed_rows())
        self._awake.set()

    def _changed_rows(self) -> Iterator[tuple[str, str, object]]:
        ledger, bank = self.bank.ledger, self.bank
        yield from (("payout", key, row) for key, row in bank.changed.items())
        yield from (("key", key, row) for key, row in self.keys.changed.items())
        yield from (("delivery", key, row) for key, row in self.courier.changed.items())
        yield from (("contact", key, row) for key, row in self.directory.changed_contacts.items())
        yield from (("fund_account", key, row) for key, row in self.directory.changed_accounts.items())
        yield from (("transaction", row.id, row) for row in ledger.transactions[self._lines_kept :])
        new_commands = self.journal.noted - self._commands_kept
        first = self._commands_kept
        for offset, row in enumerate(self.journal.last(new_commands)):
            yield "command", str(first + offset), row
        if ledger.balance != self._balance_kept:
            yield "balance", "", Balance(ledger.balance)
        for changes in (bank.changed, self.keys.changed, self.courier.changed):
            changes.clear()
        self.directory.changed_contacts.clear()
        self.directory.changed_accounts.clear()
        self._lines_kept, self._commands_kept = len(ledger.transactions), self.journal.noted
        self._balance_kept = ledger.balance

    # ---- time -------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due now: payouts first, then deliveries."""
        self.bank.tick(self.clock.now())
        self.settle()
        self.courier.dispatch(self.clock.now())

    async def beat(self) -> None:
        """The heartbeat: sleep until something is due or changed, do it, for ever."""
        while True:
            self.tick()
            self._awake.clear()
            self.courier.dispatch(self.clock.now())
            due = [at for at in (self.bank.next_due(), self.courier.next_due()) if at is not None]
            wait_s = max(0.0, min([HEARTBEAT_MAX_S, *(at - self.clock.now() for at in due)]))
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes just as the wait ends.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._awake.wait()

    async def reset(self) -> None:
        """Forget everything, as after a first start."""
        await self.courier.close()
        self.store.clear()
        self._build()
        self._awake.set()

    async def close(self) -> None:
        """Stop sending, and store what is left."""
        await self.courier.close()
        self.settle()
        self.store.close()

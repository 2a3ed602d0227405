"""The bank's side of a payout's life: workflow, balance, queue, and what the clock does to it.

No I/O: `now` comes in with every call (Unix seconds), events for the customer go to `outbox`, and
`changed` names the rows to store. Every change of a status goes through `_enter`, so a move
that is not in `EVENT_OF_MOVE` cannot happen.
"""

import heapq
import random
from typing import Literal, TypeAlias

from msgspec import Struct, field

from ops.sandbox.directory import Directory
from ops.sandbox.entities import Approval, BankEvent, Json, Payout, new_id
from ops.sandbox.ledger import Ledger, fee_and_tax
from ops.sandbox.orders import Order
from ops.sandbox.refusals import Refused, unknown_id
from ops.sandbox.states import EVENT_OF_MOVE, REASON_OF_STATE

Outcome: TypeAlias = Literal["processed", "failed", "reversed", "stuck"]
UTR_DIGITS = 12
LATE_MODES = ("NEFT", "RTGS")
"""Modes whose UTR comes after `processed`."""


class Level(Struct, frozen=True, forbid_unknown_fields=True):
    """Approvals that payouts up to an amount (paise) need; `max_amount` is inclusive, None is no limit."""

    min_amount: int = 0
    max_amount: int | None = None
    approvals: int = 1


class Behaviour(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings that can be changed while the bank runs. Times in seconds."""

    workflow: Literal["all", "dashboard", "off"] = "all"
    levels: list[Level] = field(default_factory=lambda: [Level()])
    processing_s: float = 0.2
    utr_s: float = 0.1
    outcome: Outcome = "processed"
    next_outcomes: list[Outcome] = []
    """Outcomes of the next payouts that start processing; after these `outcome` counts again."""
    expand_pending: bool = False
    """Send `payout.pending` with `fund_account` in place of `fund_account_id`, and without `created_at`."""


class Bank:
    """One account at the bank."""

    def __init__(
        self, account_id: str, ledger: Ledger, directory: Directory, behaviour: Behaviour, rng: random.Random
    ) -> None:
        self.account_id = account_id
        self.merchant_id = account_id.removeprefix("acc_")
        self.ledger = ledger
        self.directory = directory
        self.behaviour = behaviour
        self.payouts: dict[str, Payout] = {}
        self.outbox: list[BankEvent] = []
        self.changed: dict[str, Payout] = {}
        self._queue: dict[str, Payout] = {}
        self._due: list[tuple[float, int, str]] = []
        self._rng = rng

    def load(self, payouts: list[Payout]) -> None:
        """Load what an earlier process stored; its timers go on."""
        for payout in sorted(payouts, key=lambda each: each.number):
            self.payouts[payout.id] = payout
            if payout.status == "queued":
                self._queue[payout.id] = payout
            if payout.due_at is not None:
                heapq.heappush(self._due, (payout.due_at, payout.number, payout.id))

    # ---- commands ---------------------------------------------------------------------------

    def create(self, order: Order, now: float) -> Payout:
        """Take an order. Raises Refused if the balance is too low and the order may not wait for more."""
        payout = Payout(
            id=new_id(self._rng, "pout"),
            fund_account_id=order.fund_account_id,
            amount=order.amount,
            mode=order.mode,
            purpose=order.purpose,
            currency=order.currency,
            status="",
            created_at=int(now),
            notes=dict(order.notes),
            reference_id=order.reference_id,
            narration=order.narration,
            number=len(self.payouts) + 1,
            origin=order.origin,
            account=order.account,
            outcome=order.outcome,
            outcome_reason=order.outcome_reason,
            reverse_after_s=order.reverse_after_s,
        )
        start = order.status or self._first_state(payout, order.queue_if_low_balance)
        if start == "pending":
            payout.approvals_needed = max(self._approvals(payout), 1)
        if start == "processing" and not self.ledger.affords(self._cost(payout)):
            raise self._low_balance()
        self.payouts[payout.id] = payout
        self._enter(payout, start, now)
        return payout

    def approve(self, payout_id: str, *, by: str, remarks: str, now: float) -> Payout:
        """Pass one level of the workflow; the last one lets the payout go, or queue for balance."""
        payout = self._awaiting(payout_id)
        payout.approvals = [*payout.approvals, Approval("approve", by, remarks, int(now))]
        self._touch(payout)
        if len(payout.approvals) >= payout.approvals_needed:
            affordable = self.ledger.affords(self._cost(payout))
            self._enter(payout, "processing" if affordable else "queued", now)
        return payout

    def reject(self, payout_id: str, *, by: str, remarks: str, now: float) -> Payout:
        """End a payout that waits for approval."""
        payout = self._awaiting(payout_id)
        payout.approvals = [*payout.approvals, Approval("reject", by, remarks, int(now))]
        self._enter(payout, "rejected", now)
        return payout

    def cancel(self, payout_id: str, now: float) -> Payout:
        """Cancel a queued payout; by API no other state can be cancelled. Nothing is sent about it."""
        payout = self.payout(payout_id)
        if payout.status != "queued":
            raise Refused(
                f"Payout is in {payout.status} state and cannot be cancelled: only queued payouts can.",
                reason="payout_cancel_not_allowed",
            )
        self._enter(payout, "cancelled", now)
        return payout

    def move(self, payout_id: str, to: str, now: float, *, reason: str | None, utr: str | None) -> Payout:
        """Move a payout by hand along any documented move; a move to its own state sends `payout.updated`.

        Raises Refused, naming the possible moves. A move to `processing` needs the balance.
        """
        payout = self.payout(payout_id)
        if to == payout.status:
            payout.utr = utr or payout.utr
            payout.reason = reason or payout.reason
            self._touch(payout)
            self._tell("payout.updated", payout, now)
            return payout
        if (payout.status, to) not in EVENT_OF_MOVE:
            can = [end for start, end in EVENT_OF_MOVE if start == payout.status]
            raise Refused(f"{payout.status} -> {to} is no move of the bank's; there is {can}", status=409)
        if to == "processing" and not self.ledger.affords(self._cost(payout)):
            raise self._low_balance()
        payout.utr = utr or payout.utr
        self._enter(payout, to, now, reason=reason)
        return payout

    def add_funds(self, amount: int, now: float) -> None:
        """Add paise (below 0: withdraw), then pay what can be paid from the queue."""
        if amount < 0:
            amount = max(amount, -self.ledger.balance)
            self.ledger.debit(-amount, source_id="", entity="bank_transfer", at=int(now), rng=self._rng)
            return
        self.ledger.credit(amount, source_id="", entity="bank_transfer", at=int(now), rng=self._rng)
        self._release_queue(now)

    def tick(self, now: float) -> None:
        """Do everything that is due."""
        while self._due and self._due[0][0] <= now:
            at, _, payout_id = heapq.heappop(self._due)
            payout = self.payouts[payout_id]
            if payout.due_at == at:  # else it was moved by hand before
                self._fall_due(payout, now)

    def next_due(self) -> float | None:
        """When `tick` has something to do, in Unix seconds."""
        return self._due[0][0] if self._due else None

    def payout(self, payout_id: str) -> Payout:
        """The payout, or the bank's refusal."""
        if payout_id not in self.payouts:
            raise unknown_id()
        return self.payouts[payout_id]

    # ---- how a state is chosen and entered --------------------------------------------------

    def _first_state(self, payout: Payout, queue_if_low_balance: bool) -> str:
        if self._approvals(payout):
            return "pending"
        if not self.ledger.affords(self._cost(payout)) and queue_if_low_balance:
            return "queued"
        return "processing"

    def _approvals(self, payout: Payout) -> int:
        workflow = self.behaviour.workflow
        if workflow == "off" or (workflow == "dashboard" and payout.origin == "api"):
            return 0
        fitting = (
            level.approvals
            for level in self.behaviour.levels
            if level.min_amount <= payout.amount
            and (level.max_amount is None or payout.amount <= level.max_amount)
        )
        return max(fitting, default=0)

    def _enter(self, payout: Payout, to: str, now: float, *, reason: str | None = None) -> None:
        before, event = payout.status, EVENT_OF_MOVE[payout.status, to]
        payout.status = to
        payout.reason = reason or REASON_OF_STATE.get(to)
        payout.due_at, payout.due_to = None, ""
        self._queue.pop(payout.id, None)
        if to == "queued":
            self._queue[payout.id] = payout
        elif to == "processing":
            self._start_processing(payout, now)
        elif to == "processed":
            self._finish(payout, now)
        self._touch(payout)
        if event is not None:
            self._tell(event, payout, now)
        if to in ("failed", "reversed") and before in ("processing", "processed"):
            self._give_back(payout, now)

    def _start_processing(self, payout: Payout, now: float) -> None:
        payout.fees, payout.tax = fee_and_tax(payout.amount, payout.mode)
        total = payout.amount + payout.fees
        self.ledger.debit(total, source_id=payout.id, entity="payout", at=int(now), rng=self._rng)
        payout.debited = True
        if payout.mode == "UPI":
            handle = self._vpa_handle(payout)
            payout.notes |= {"VPA_HANDLE": handle, "payee_ifsc": "KKBK0000197", "payee_bank_name": "Kotak"}
        if not payout.outcome:
            queued = self.behaviour.next_outcomes
            payout.outcome = queued.pop(0) if queued else self.behaviour.outcome
        if payout.outcome != "stuck":
            self._schedule(payout, now + self.behaviour.processing_s, payout.outcome)

    def _finish(self, payout: Payout, now: float) -> None:
        if payout.mode in LATE_MODES and payout.utr is None:
            self._schedule(payout, now + self.behaviour.utr_s, "utr")
            return
        payout.utr = payout.utr or self._new_utr()
        self._schedule_reversal(payout, now)

    def _fall_due(self, payout: Payout, now: float) -> None:
        if payout.due_to != "utr":
            self._enter(payout, payout.due_to, now, reason=self._reason_when_due(payout))
            return
        payout.due_at, payout.due_to, payout.utr = None, "", self._new_utr()
        self._schedule_reversal(payout, now)
        self._touch(payout)
        self._tell("payout.updated", payout, now)

    def _reason_when_due(self, payout: Payout) -> str | None:
        return None if payout.due_to == "processed" else payout.outcome_reason

    def _schedule_reversal(self, payout: Payout, now: float) -> None:
        if payout.reverse_after_s is not None:
            self._schedule(payout, now + payout.reverse_after_s, "reversed")

    def _schedule(self, payout: Payout, at: float, to: str) -> None:
        payout.due_at, payout.due_to = at, to
        heapq.heappush(self._due, (at, payout.number, payout.id))

    def _give_back(self, payout: Payout, now: float) -> None:
        total = payout.amount + payout.fees
        self.ledger.credit(total, source_id=payout.id, entity="reversal", at=int(now), rng=self._rng)
        self._release_queue(now)

    def _release_queue(self, now: float) -> None:
        """First in, first out, but a payout above the balance does not delay smaller ones behind it."""
        for payout in list(self._queue.values()):
            if payout.reason == "low_balance" and self.ledger.affords(self._cost(payout)):
                self._enter(payout, "processing", now)

    # ---- small parts ------------------------------------------------------------------------

    def _awaiting(self, payout_id: str) -> Payout:
        payout = self.payout(payout_id)
        if payout.status != "pending":
            raise Refused(
                "Payout is not in pending state and cannot be approved or rejected.",
                reason="payout_approval_not_allowed",
            )
        return payout

    def _cost(self, payout: Payout) -> int:
        return payout.amount + fee_and_tax(payout.amount, payout.mode)[0]

    def _low_balance(self) -> Refused:
        words = "Your account does not have enough balance to carry out the payout operation."
        return Refused(words, reason="insufficient_funds")

    def _new_utr(self) -> str:
        return "".join(self._rng.choices("0123456789", k=UTR_DIGITS))

    def _vpa_handle(self, payout: Payout) -> str:
        details = self.directory.fund_account(payout.fund_account_id).details
        return str(details.get("address", "")).partition("@")[2]

    def _touch(self, payout: Payout) -> None:
        self.changed[payout.id] = payout

    def _tell(self, event: str, payout: Payout, now: float) -> None:
        body = self._shown_in_event(payout)
        at = 0 if event == "payout.pending" and self.behaviour.expand_pending else int(now)
        self.outbox.append(
            BankEvent(name=event, entity="payout", body=body, at=at, about=payout.id, account=payout.account)
        )

    def _shown_in_event(self, payout: Payout) -> Json:
        account = self.directory.fund_account(payout.fund_account_id)
        body = payout.shown(self.merchant_id)
        # The bank writes this word, not null, while it has not debited anything.
        body["debit_account_number"] = self.ledger.account_number if payout.debited else "null"
        if payout.status == "pending" and self.behaviour.expand_pending:
            del body["fund_account_id"]
            contact = self.directory.contact(account.contact_id)
            body["fund_account"] = {**account.shown(), "contact": contact.shown()}
        elif payout.mode == "UPI" and payout.debited:
            body["fund_account"] = account.shown()
        return body

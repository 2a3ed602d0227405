"""Webhooks as RazorpayX sends them: signed, five seconds each, retried at doubling gaps, disabled after a day.

One dispatcher (`dispatch`, called by the server's heartbeat) starts what is due, at most SENDS_MAX at a
time; the rest waits in a heap, so a slow customer costs memory per event but never a task per event.
An event remembers the secret of its time: a retry after a rotation is still signed with the old one.
Secrets are not stored; events left after a restart are signed with the configured one.
"""

import asyncio
import hashlib
import heapq
import hmac
import json
import random
from collections.abc import Callable

import httpx
from msgspec import Struct

from ops.sandbox.clock import Clock
from ops.sandbox.config import SandboxConfig
from ops.sandbox.entities import BankEvent, Json, new_id
from ops.sandbox.faults import Faults, WebhookFault

SENDS_MAX = 16
"""Deliveries in flight: enough that one slow answer does not stop the others."""
RETRY_FACTOR = 1.977
"""Fits the one sequence of retries that was observed: from 5.8 s to 11.4 h in 14 gaps."""
DELIVERIES_MAX = 200_000
"""Deliveries kept for `GET /_control/deliveries`; the oldest finished ones go first."""
KEEP_ALIVE_S = 3.0
"""Life of an idle connection: streamproc closes it after 5 s, and a delivery on one that is just closed is lost."""
USER_AGENT = "Razorpay-Webhook/v1"


class Attempt(Struct, frozen=True, kw_only=True):
    """One POST: the status of its answer, or the error. `ms`: how long it took."""

    at: float
    status: int | None
    error: str = ""
    ms: int
    copy: bool = False


class Delivery(Struct, kw_only=True):
    """One event to deliver. `state`: waiting, delivered, given_up, dropped, or skipped (nowhere to send)."""

    id: str
    event: str
    about: str
    body: str
    secret_number: int
    created_at: float
    state: str = "waiting"
    next_at: float = 0.0
    copies: int = 0
    attempts: list[Attempt] = []


class Subscription(Struct, kw_only=True):
    """Where events go. `events` are exact names; none stands for all `payout.` events."""

    url: str = ""
    events: list[str] = []
    enabled: bool = True


def wire_bytes(event: BankEvent, account_id: str) -> bytes:
    """The body: compact JSON, slashes and everything beyond ASCII escaped."""
    envelope: Json = {
        "entity": "event",
        "account_id": account_id,
        "event": event.name,
        "contains": [event.entity],
        "payload": {event.entity: {"entity": event.body}},
    }
    if event.at:
        envelope["created_at"] = event.at
    return json.dumps(envelope, separators=(",", ":")).replace("/", "\\/").encode()


def signature(body: bytes, secret: str) -> str:
    """Lowercase hex HMAC-SHA256 over the raw body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Courier:
    """Delivers events to the customer."""

    def __init__(
        self,
        config: SandboxConfig,
        clock: Clock,
        faults: Faults,
        rng: random.Random,
        wake: Callable[[], None],
    ) -> None:
        """`wake`: there is something to look at: a delivery was scheduled, or one more may be sent."""
        self.subscription = Subscription(url=config.webhook_url)
        self.retry_base_s = config.webhook_retry_base_s
        self.give_up_s = config.webhook_give_up_s
        self.deliveries: dict[str, Delivery] = {}
        self.changed: dict[str, Delivery] = {}
        self._account_id = config.account_id
        self._timeout_s = config.webhook_timeout_s
        self._clock, self._faults, self._rng, self._wake = clock, faults, rng, wake
        self._due: list[tuple[float, int, str]] = []
        self._number = 0
        self._held: list[str] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None
        self._secrets = [config.webhook_secret]
        self._closed = False

    def rotate(self, secret: str) -> None:
        """Sign events that are made from now on with `secret`; empty: do not sign."""
        self._secrets.append(secret)

    # ---- accepting events -------------------------------------------------------------------

    def take(self, event: BankEvent) -> Delivery:
        """Accept an event; `dispatch` sends it when it is due."""
        delivery = Delivery(
            id=new_id(self._rng),
            event=event.name,
            about=event.about,
            body=wire_bytes(event, event.account or self._account_id).decode(),
            secret_number=len(self._secrets) - 1,
            created_at=self._clock.now(),
        )
        self._forget_oldest()
        self.deliveries[delivery.id] = self.changed[delivery.id] = delivery
        if not self._wanted(event.name):
            delivery.state = "skipped"
            return delivery
        wait_s = 0.0
        for fault in self._faults.for_webhook(event.name, "drop", "duplicate", "delay", "reorder"):
            wait_s = max(wait_s, self._apply_fault(delivery, fault))
        if delivery.state == "waiting":
            self._schedule(delivery, delivery.created_at + wait_s)
        return delivery

    def _apply_fault(self, delivery: Delivery, fault: WebhookFault) -> float:
        """Do to an event what a fault says; the seconds by which its first attempt is late."""
        if fault.kind == "drop":
            delivery.state = "dropped"
        elif fault.kind == "duplicate":
            delivery.copies += fault.copies
        elif fault.kind == "reorder":
            self._held.append(delivery.id)
        return fault.ms / 1000 if fault.kind in ("delay", "reorder") else 0.0

    def load(self, deliveries: list[Delivery]) -> None:
        """Load what an earlier process could not deliver."""
        for delivery in sorted(deliveries, key=lambda each: each.created_at):
            delivery.secret_number = 0
            self.deliveries[delivery.id] = delivery
            if delivery.state == "waiting":
                self._schedule(delivery, delivery.next_at)

    def send_again(self, delivery_id: str) -> Delivery | None:
        """Send one delivery again, with the same id and bytes, as the bank's support can. None: no such delivery."""
        delivery = self.deliveries.get(delivery_id)
        if delivery is not None:
            delivery.state, delivery.created_at = "waiting", self._clock.now()
            self._schedule(delivery, delivery.created_at)
        return delivery

    # ---- sending ----------------------------------------------------------------------------

    def dispatch(self, now: float) -> None:
        """Start what is due, as far as SENDS_MAX allows."""
        while not self._closed and self._due and self._due[0][0] <= now and len(self._sending) < SENDS_MAX:
            at, _, delivery_id = heapq.heappop(self._due)
            delivery = self.deliveries.get(delivery_id)
            if delivery is None or delivery.state != "waiting" or delivery.next_at != at:
                continue
            if not self.subscription.enabled:
                delivery.state = "skipped"
                self.changed[delivery.id] = delivery
                continue
            task = asyncio.create_task(self._send(delivery))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def next_due(self) -> float | None:
        """When `dispatch` has something to start; None also with SENDS_MAX in flight, since a send's end wakes it."""
        return self._due[0][0] if self._due and len(self._sending) < SENDS_MAX else None

    async def close(self) -> None:
        """Stop sending; what was in flight counts as not sent, and is tried again after a restart."""
        self._closed = True
        for task in list(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake()
        if not task.cancelled():
            task.result()  # raises a defect of the courier, instead of losing the delivery

    async def _send(self, delivery: Delivery) -> None:
        first = not delivery.attempts
        answer = await self._post(delivery)
        delivery.attempts = [*delivery.attempts, answer]
        if answer.status is not None and 200 <= answer.status < 300:
            delivery.state = "delivered"
        else:
            self._retry(delivery)
        self.changed[delivery.id] = delivery
        if first:
            self._release_held(delivery.id)
            for _ in range(delivery.copies):
                copy = await self._post(delivery, copy=True)
                delivery.attempts = [*delivery.attempts, copy]

    async def _post(self, delivery: Delivery, *, copy: bool = False) -> Attempt:
        started = self._clock.now()
        client = self._client = self._client or httpx.AsyncClient(
            trust_env=False, timeout=self._timeout_s, limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
        )
        status, error = None, ""
        try:
            # httpx's limit is for each read; the bank's five seconds are for the whole answer.
            async with asyncio.timeout(self._timeout_s):
                answer = await client.post(
                    self.subscription.url, content=delivery.body.encode(), headers=self._headers(delivery)
                )
            status = answer.status_code
        except TimeoutError:
            error = f"no answer within {self._timeout_s} s"
        except Exception as problem:  # noqa: BLE001 - a peer that dies while it is connected to: anyio's AttributeError
            error = f"{type(problem).__name__}: {problem}".removesuffix(": ")
        took_ms = int((self._clock.now() - started) * 1000)
        return Attempt(at=started, status=status, error=error, ms=took_ms, copy=copy)

    def _headers(self, delivery: Delivery) -> dict[str, str]:
        headers = {
            "user-agent": USER_AGENT,
            "content-type": "application/json",
            "request-id": delivery.id,
            "x-razorpay-event-id": delivery.id,
            "accept-encoding": "gzip",
        }
        secret = self._secrets[delivery.secret_number]
        faults = self._faults.for_webhook(delivery.event, "bad_signature", "stale_secret")
        for fault in faults:
            secret = fault.secret if fault.kind == "stale_secret" else secret + " but wrong"
        if secret:  # without a secret the bank sends no signature header at all
            headers["x-razorpay-signature"] = signature(delivery.body.encode(), secret)
        return headers

    def _retry(self, delivery: Delivery) -> None:
        failures = sum(1 for attempt in delivery.attempts if not attempt.copy)
        next_at = self._clock.now() + self.retry_base_s * RETRY_FACTOR ** (failures - 1)
        if next_at - delivery.created_at > self.give_up_s:
            delivery.state = "given_up"
            self.subscription.enabled = False
        else:
            self._schedule(delivery, next_at)

    # ---- small parts ------------------------------------------------------------------------

    def _wanted(self, event: str) -> bool:
        names = self.subscription.events
        subscribed = event in names if names else event.startswith("payout.")
        return bool(self.subscription.url) and self.subscription.enabled and subscribed

    def _schedule(self, delivery: Delivery, at: float) -> None:
        self._number += 1
        delivery.next_at = at
        self.changed[delivery.id] = delivery
        heapq.heappush(self._due, (at, self._number, delivery.id))
        self._wake()

    def _release_held(self, after: str) -> None:
        held, self._held = [each for each in self._held if each != after], []
        for delivery_id in held:
            if (delivery := self.deliveries.get(delivery_id)) and not delivery.attempts:
                self._schedule(delivery, self._clock.now())

    def _forget_oldest(self) -> None:
        while len(self.deliveries) >= DELIVERIES_MAX:
            oldest = next(iter(self.deliveries.values()))
            if oldest.state == "waiting":
                return
            del self.deliveries[oldest.id]

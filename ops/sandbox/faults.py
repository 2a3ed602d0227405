"""Things that go wrong on purpose: for API calls and for webhook deliveries."""

import random
from fnmatch import fnmatchcase
from typing import Literal

from msgspec import Struct


class ApiFault(Struct, kw_only=True, forbid_unknown_fields=True):
    """A fault of matching API calls.

    429, 500 (JSON) and 502 (HTML): answered so, without effect. `timeout`: it takes effect, no answer comes.
    `slow`: it takes effect, after `ms`. `ms` delays the others too.
    """

    kind: Literal["429", "500", "502", "timeout", "slow"]
    path: str = "*"
    """Shell pattern over the path, for example `/v1/payouts/*/approve`."""
    method: str = "*"
    count: int | None = None
    """How many more calls it hits; None: all."""
    rate: float = 1.0
    """The share of matching calls that it hits."""
    retry_after: int | None = None
    """Seconds in `Retry-After`, with 429."""
    ms: int = 0


class WebhookFault(Struct, kw_only=True, forbid_unknown_fields=True):
    """A fault of matching webhooks.

    `drop`: the event is never sent. `duplicate`: it is sent `copies` times more with the same id. `delay`: its
    first attempt waits `ms`. `reorder`: that waits until a later event was tried, at most `ms`.
    `bad_signature`, `stale_secret`: each attempt is signed wrongly, or with `secret`.
    """

    kind: Literal["drop", "duplicate", "delay", "reorder", "bad_signature", "stale_secret"]
    events: str = "*"
    count: int | None = None
    rate: float = 1.0
    copies: int = 1
    ms: int = 1000
    secret: str = "sandbox_webhook_secret_of_yesterday"  # noqa: S105 - public default of a simulator


class FaultPlan(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /_control/faults`: a given list replaces the former one, [] clears it."""

    api: list[ApiFault] | None = None
    webhooks: list[WebhookFault] | None = None


class Faults:
    """The faults in force."""

    def __init__(self, rng: random.Random) -> None:
        self.api: list[ApiFault] = []
        self.webhooks: list[WebhookFault] = []
        self._rng = rng

    def apply(self, plan: FaultPlan) -> None:
        """Replace what the plan names."""
        self.api = self.api if plan.api is None else plan.api
        self.webhooks = self.webhooks if plan.webhooks is None else plan.webhooks

    def for_call(self, method: str, path: str) -> ApiFault | None:
        """The first fault that hits this call; its count goes down."""
        for fault in self.api:
            fits = fnmatchcase(path, fault.path) and fnmatchcase(method, fault.method)
            if fits and self._hits(fault):
                return fault
        return None

    def for_webhook(self, event: str, *kinds: str) -> list[WebhookFault]:
        """All faults of these kinds that hit this event or attempt; their counts go down."""
        return [
            fault
            for fault in self.webhooks
            if fault.kind in kinds and fnmatchcase(event, fault.events) and self._hits(fault)
        ]

    def _hits(self, fault: ApiFault | WebhookFault) -> bool:
        if fault.count == 0 or self._rng.random() >= fault.rate:
            return False
        if fault.count is not None:
            fault.count -= 1
        return True

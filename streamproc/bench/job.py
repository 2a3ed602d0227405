"""The job that all sides do: the payouts, the policies, and how many payouts must have which outcome.

All sides read the same bytes: an entry's field `e` with one PayoutObserved, about 540 bytes. 2 % of the payouts are
over the transaction limit, 2 % name a blocked domain, and one agent of 50 exhausts its daily budget.
"""

import time
from collections import Counter
from typing import Any, Final

from msgspec import Struct

from streamproc.domain.beneficiaries import NAMES_MAX
from streamproc.domain.deliveries import body_digest, delivery_key, observation_key
from streamproc.domain.events import BankPayout, PayoutObserved
from streamproc.domain.wire import encode_events
from streamproc.errors import JobFailed
from streamproc.log.stream import Append

AGENTS: Final = 50
VENDORS: Final = 40
PAYEES: Final = 200
"""Fund accounts: five of each vendor, so that nearly every payout goes to a known one, as in production."""
PAYEES_MAX: Final = VENDORS * NAMES_MAX
"""More fund accounts would push each other out of the registry, and every payout would be noted anew."""
ACCOUNT: Final = "acc_Bench000000001"
BATCH_MAX: Final = 256
"""Payouts in one read of any side."""
CONSUMERS: Final = 3
"""Consumers of the engine, in one process: one decides while Redis works for the second, and the third has read. The
floor overlaps two batches too."""
CONSUMERS_MAX: Final = 16
RATE_COUNT: Final = 10_000
"""Payouts of an agent in 60 s: the highest limit that a policy may have, so the window is kept but never full."""
RATE_WINDOW_S: Final = 60
TXN_LIMIT_PAISE: Final = 10_000_000
DAY_LIMIT_PAISE: Final = 10**12
TIGHT_AGENT: Final = "agent-49"
TIGHT_AMOUNT_PAISE: Final = 50_000
TIGHT_COUNT: Final = 20
"""Payouts that fit into the daily budget of the tight agent."""
BLOCKED_HOST: Final = "blocked.example.net"
ZONE: Final = "Asia/Kolkata"
"""Time zone of histories with fixed times. Payouts that are received now are counted in `noon_zone`."""
PAYOUTS_MAX: Final = RATE_COUNT * AGENTS // 2
"""More would fill a rate window, and the job would be a different one."""

AGENT_NAMES: Final = tuple(f"agent-{n:02d}" for n in range(AGENTS))


class Policy(Struct, frozen=True):
    """The parts of a policy that the floor needs. Limits in paise."""

    txn_limit: int
    day_limit: int
    blocked: frozenset[str]


def policies() -> dict[str, Policy]:
    """Every agent's policy, for the floor."""
    return {
        agent: Policy(_txn_limit(agent), _day_limit(agent), frozenset({BLOCKED_HOST}))
        for agent in AGENT_NAMES
    }


def noon_offset_h(at_s: float) -> int:
    """Offset from UTC, in hours, of a zone where this Unix time is between 12:00 and 13:00.

    No day, week or month ends there in the next eleven hours, so a run that fills a daily budget stays within one day.
    """
    return 12 - int(at_s) % 86_400 // 3_600


def noon_zone(at_s: float) -> str:
    """Name of the time zone with this offset."""
    return f"Etc/GMT{-noon_offset_h(at_s):+d}"  # the names of these zones count westwards


def policy_file() -> dict[str, Any]:
    """The same policies as the engine takes them. No day ends during a run (`noon_offset_h`)."""
    return {
        "defaults": {
            "timezone": noon_zone(time.time()),
            "blocked_domains": [BLOCKED_HOST],
            "rate_limit": {"count": RATE_COUNT, "window": RATE_WINDOW_S},
        },
        "policies": {
            agent: {"per_txn_limit": _txn_limit(agent), "daily_limit": _day_limit(agent)}
            for agent in AGENT_NAMES
        },
    }


def _day_limit(agent: str) -> int:
    return TIGHT_AMOUNT_PAISE * TIGHT_COUNT if agent == TIGHT_AGENT else DAY_LIMIT_PAISE


def _txn_limit(agent: str) -> int:
    """A policy is refused if its transaction limit is above its daily limit."""
    return min(TXN_LIMIT_PAISE, _day_limit(agent))


def vendor_urls() -> list[str]:
    """Every URL that a payout may name."""
    hosts = [*(f"vendor{n}.example.com" for n in range(VENDORS)), BLOCKED_HOST]
    return [_url(host) for host in hosts]


def _url(host: str) -> str:
    return f"https://{host}/invoices"


def observed(i: int, at_us: int, payees: int = 0) -> PayoutObserved:
    """Payout number `i`, observed at `at_us`, to one of `payees` fund accounts; 0: each payout has its own."""
    agent, host, amount = AGENT_NAMES[i % AGENTS], f"vendor{i % VENDORS}.example.com", TIGHT_AMOUNT_PAISE
    if agent != TIGHT_AGENT:
        amount += i % 1000
        if i % 53 == 7:
            amount = TXN_LIMIT_PAISE + 1
        elif i % 59 == 11:
            host = BLOCKED_HOST
    payout = f"pout_{i:014d}"
    facts = BankPayout(
        id=payout,
        amount=amount,
        currency="INR",
        status="pending",
        created_at=at_us // 1_000_000,
        fund_account_id=f"fa_{_payee(i, payees):014d}",
        mode="IMPS",
        purpose="vendor bill",
        reference_id=f"INV-2026-{i:08d}",
        narration="Acme Corp Fund Transfer",
        notes={
            "agent_id": agent,
            "vendor_url": _url(host),
            "purpose": "vendor_payment",
            "cost_centre": "CC-4711 cloud infrastructure",
        },
    )
    return PayoutObserved(
        at=at_us,
        payout=payout,
        account=ACCOUNT,
        source="webhook",
        bank_event="payout.pending",
        delivery=f"evt_{i:014d}",
        facts=facts,
    )


def appended(event: PayoutObserved) -> Append:
    """The event as the webhook appends it, with the keys for event id and body, and for payout and status."""
    digest = body_digest(event.payout.encode())
    keys = (delivery_key(event.delivery, digest), observation_key(event.facts))
    return Append(event.account, keys, (event,), digest)


def _payee(i: int, payees: int) -> int:
    """Number of the fund account: every vendor has equally many, and all of them are paid in turn."""
    if not payees:
        return i
    each = max(payees // VENDORS, 1)
    return i % VENDORS * each + i // VENDORS % each


def number_of(payout: str) -> int:
    """The number of a payout, taken from its id."""
    return int(payout.removeprefix("pout_"))


def payload(i: int, at_us: int, payees: int = 0) -> bytes:
    """The bytes in the stream for payout number `i`."""
    return encode_events((observed(i, at_us, payees),))


def rejection(policy: Policy | None, amount: int, url: str) -> str:
    """The rules that need no counter: a reason code, or '' if the payout passes them."""
    if policy is None:
        return "NO_POLICY"
    if amount > policy.txn_limit:
        return "TXN_LIMIT_EXCEEDED"
    if url.split("/", 3)[2] in policy.blocked:
        return "DOMAIN_BLOCKED"
    return ""


def expected(payouts: int) -> Counter[str]:
    """Number of decisions that the first `payouts` must get, by reason."""
    known, outcomes, tight = policies(), Counter[str](), 0
    for i in range(payouts):
        event = observed(i, 0)
        agent = event.facts.notes["agent_id"]
        reason = rejection(known[agent], event.facts.amount, event.facts.notes["vendor_url"]) or "POLICY_OK"
        if reason == "POLICY_OK" and agent == TIGHT_AGENT:
            tight += 1
            if tight > TIGHT_COUNT:
                reason = "LIMIT_EXCEEDED"
        outcomes[reason] += 1
    return outcomes


def check(side: str, place: str, found: Counter[str], wanted: Counter[str]) -> None:
    """Raise JobFailed if a side's outcomes are wrong: the speed of wrong answers means nothing."""
    if found != wanted:
        raise JobFailed(
            f"{side}: the outcomes in {place} are {_listed(found)}; they must be {_listed(wanted)}"
        )


def _listed(outcomes: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(outcomes.items())) or "none"

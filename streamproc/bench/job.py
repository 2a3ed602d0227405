"""The job that both sides do: the payouts, the policy, and how many payouts must come to which outcome.

Both sides read the same bytes: a log entry's field `e` with one PayoutObserved, about 600 bytes. Of the payouts 2 %
are over the transaction limit, 2 % name a blocked domain, and one agent of 50 runs out of its day's budget.
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
"""Fund accounts: five of each vendor, so nearly every payout goes to one that is known, as in life."""
PAYEES_MAX: Final = VENDORS * NAMES_MAX
"""More would push each other out of the registry, and each payout would note its own again."""
ACCOUNT: Final = "acc_Bench000000001"
BATCH_MAX: Final = 256
"""Payouts in one read, for both sides."""
CONSUMERS: Final = 3
"""Of the engine, in one process: one decides while Redis works for another, and a third one has read. The floor
overlaps two batches too."""
CONSUMERS_MAX: Final = 16
RATE_COUNT: Final = 10_000
"""In 60 s and for each agent: the most that a policy may say, so the window is kept and never full."""
RATE_WINDOW_S: Final = 60
TXN_LIMIT_PAISE: Final = 10_000_000
DAY_LIMIT_PAISE: Final = 10**12
TIGHT_AGENT: Final = "agent-49"
TIGHT_AMOUNT_PAISE: Final = 50_000
TIGHT_COUNT: Final = 20
"""Payouts that fit into the tight agent's day."""
BLOCKED_HOST: Final = "blocked.example.net"
ZONE: Final = "Asia/Kolkata"
"""Of histories whose times are written down. What is received now is counted in `noon_zone`."""
PAYOUTS_MAX: Final = RATE_COUNT * AGENTS // 2
"""More would fill a rate window, and another job would be measured."""

AGENT_NAMES: Final = tuple(f"agent-{n:02d}" for n in range(AGENTS))


class Policy(Struct, frozen=True):
    """What the floor keeps of a policy. Paise."""

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
    """How many hours before UTC it is noon, or up to an hour later, at a Unix time: no day, week or month ends there
    in the eleven hours after that. One that fills a day must not meet the next day, at whatever hour it runs."""
    return 12 - int(at_s) % 86_400 // 3_600


def noon_zone(at_s: float) -> str:
    """The time zone of that place."""
    return f"Etc/GMT{-noon_offset_h(at_s):+d}"  # these names count westwards


def policy_file() -> dict[str, Any]:
    """The same policies as the engine takes them. The tight agent has one day, at whatever hour the bench runs."""
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
    """A policy whose transactions may be larger than its day is refused."""
    return min(TXN_LIMIT_PAISE, _day_limit(agent))


def vendor_urls() -> list[str]:
    """Every URL that a payout may name."""
    hosts = [*(f"vendor{n}.example.com" for n in range(VENDORS)), BLOCKED_HOST]
    return [_url(host) for host in hosts]


def _url(host: str) -> str:
    return f"https://{host}/invoices"


def observed(i: int, at_us: int, payees: int = 0) -> PayoutObserved:
    """Payout number `i`, seen at `at_us`, to one of `payees` fund accounts; 0: to one of its own."""
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
    """As the webhook appends it: known by the bank's event id and its body, and by payout and status."""
    digest = body_digest(event.payout.encode())
    keys = (delivery_key(event.delivery, digest), observation_key(event.facts))
    return Append(event.account, keys, (event,), digest)


def _payee(i: int, payees: int) -> int:
    """Each vendor has as many of the fund accounts as any other, and all of them take turns."""
    if not payees:
        return i
    each = max(payees // VENDORS, 1)
    return i % VENDORS * each + i // VENDORS % each


def number_of(payout: str) -> int:
    """The number of a payout, from its id."""
    return int(payout.removeprefix("pout_"))


def payload(i: int, at_us: int, payees: int = 0) -> bytes:
    """What waits in the stream for payout number `i`."""
    return encode_events((observed(i, at_us, payees),))


def rejection(policy: Policy | None, amount: int, url: str) -> str:
    """The rules that need nothing but memory: a reason code, or '' where the payout passes them."""
    if policy is None:
        return "NO_POLICY"
    if amount > policy.txn_limit:
        return "TXN_LIMIT_EXCEEDED"
    if url.split("/", 3)[2] in policy.blocked:
        return "DOMAIN_BLOCKED"
    return ""


def expected(payouts: int) -> Counter[str]:
    """How many of the first `payouts` come to each reason."""
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
    """Raise JobFailed where a side came to other outcomes than it must: wrong answers have no speed."""
    if found != wanted:
        raise JobFailed(
            f"{side}: the outcomes in {place} are {_listed(found)}; they must be {_listed(wanted)}"
        )


def _listed(outcomes: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(outcomes.items())) or "none"

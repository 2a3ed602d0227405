"""What a run does and when, drawn from its seed beforehand. Pure: the same seed gives the same plan.

A plan is data: payments, faults and changes of policy. The run itself is never the same twice, which must not matter.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

Kind: TypeAlias = Literal[
    "kill",  # SIGKILL of a role; it is started again
    "drain",  # SIGTERM: it finishes what it has and ends with 0; it is started again, as in a rolling restart
    "crash",  # started again so that it kills itself at a named point
    "freeze",  # SIGSTOP for longer than the claim time, then SIGCONT
    "skew",  # started again with a clock that is an hour wrong
    "reset",  # all connections of a role to one server are reset
    "stall",  # half open: connections stay, nothing goes through
    "slow",  # everything arrives late
    "mute",  # what is sent arrives, what is answered is lost
    "redis_kill",  # SIGKILL, then a restart from its AOF
    "redis_full",  # `maxmemory` below what is used: writes are refused
    "postgres_kill",  # SIGKILL of the postmaster
    "postgres_stop",  # SIGQUIT, an immediate stop
    "bank",  # 429, 500, HTML, or carried out and never answered
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
Rare: TypeAlias = Literal[
    "failover",  # Redis is killed for good while its replica lags, and the replica takes over (failover.py)
    "postgres_full",  # the disk under Postgres is full
]
"""Faults that need stores of their own, only in plans that ask for them."""

SLOTS = ("worker-1", "worker-2", "serve", "poller", "projector")
CALM = "worker-2"
"""The only role that is killed in a calm run, so that one process of each role lives through all other faults."""
ENDING: tuple[Kind, ...] = ("kill", "drain", "crash", "skew")
"""Faults that end a process."""
LINKS: dict[str, tuple[str, ...]] = {
    "worker": ("redis", "postgres", "bank"),
    "serve": ("redis",),
    "poller": ("redis", "bank"),
    "projector": ("redis", "postgres"),
}
"""The servers that a role talks to, by the role's name without number."""
POINTS: dict[str, tuple[str, ...]] = {
    "worker": ("grant", "admit", "commit", "call"),
    "serve": ("append",),
    "poller": ("append", "cursor"),
    "projector": ("archive",),
}
"""Points before or after which a role can be made to kill itself (tests/faults/role.py)."""

CLAIM_IDLE_S = 2.0
COME_BY_S = 180.0
"""Limit for a role to reach the point where it kills itself, on a busy machine."""
FREEZE_S = 3.0
"""Longer than the claim time: others take over what the frozen worker holds, and then it comes back."""
AMOUNT = 10_000
"""Paise of an ordinary payout."""
CROWDED_ROOM = 8
"""Number of the crowded agent's payouts that fit into its daily budget."""
AGENTS = {"free": 8, "crowded": 5, "small": 2, "careful": 2, "stranger": 1}
"""Agents of payouts, by weight. The stranger has no policy; the careful one's payouts are held for a person."""
OUTCOMES = ("processed", "processed", "processed", "failed", "reversed")

assert FREEZE_S > CLAIM_IDLE_S


class Payment(Struct, frozen=True):
    """A payout at `at_s`: made at the bank by an outsider in this status, or requested through the gateway."""

    at_s: float
    agent: str
    how: Literal["pending", "queued", "gateway", "inline"]
    outcome: str
    amount: int = AMOUNT
    account: int = 0
    """The account's number. Each account has its own partition."""


class Fault(Struct, frozen=True):
    """A fault at `at_s` for `for_s`: in `slot`, or between it and `link`."""

    at_s: float
    kind: Kind | Rare
    for_s: float = 0.0
    slot: str = ""
    link: str = ""
    detail: str = ""

    def __str__(self) -> str:
        where = " ".join(part for part in (self.slot, self.link, self.detail) if part)
        return f"{self.at_s:6.1f} s  {self.kind} {where}" + (f" for {self.for_s:.1f} s" if self.for_s else "")


class Limit(Struct, frozen=True):
    """From `at_s` on, so many of the crowded agent's payouts fit into its daily budget."""

    at_s: float
    room: int


class Plan(Struct, frozen=True):
    """Everything that a run does. `overnight` is the number of payouts received yesterday."""

    seed: int
    seconds: float
    payments: tuple[Payment, ...]
    faults: tuple[Fault, ...]
    limits: tuple[Limit, ...]
    overnight: int
    calm: bool = False
    accounts: int = 1

    def has(self, kind: Kind | Rare) -> bool:
        """Whether the plan has a fault of this kind."""
        return any(fault.kind == kind for fault in self.faults)

    def __str__(self) -> str:
        return "\n".join(
            [f"seed {self.seed}, {self.seconds:g} s, {len(self.payments)} payments", *map(str, self.faults)]
        )


def plan_of(
    seed: int,
    seconds: float,
    *,
    every_s: float = 4.0,
    per_s: float = 3.0,
    kinds: Sequence[Kind] = KINDS,
    calm: bool = False,
) -> Plan:
    """The plan of a seed: `per_s` payments a second, a fault every `every_s`, each kind before any comes again."""
    chance = random.Random(seed)
    payments = sorted((_payment(chance, seconds) for _ in range(int(per_s * seconds))), key=lambda p: p.at_s)
    faults, deck, at_s = list[Fault](), list[Kind](), chance.uniform(1.0, 3.0)
    while kinds and at_s < seconds:
        if not deck:
            deck = list(kinds)
            chance.shuffle(deck)
        faults.append(_fault(chance, deck.pop(), round(at_s, 1), calm=calm))
        at_s += chance.uniform(0.5, 1.5) * every_s
    limits = (
        Limit(round(seconds / 3, 1), CROWDED_ROOM + 4),
        Limit(round(seconds * 2 / 3, 1), CROWDED_ROOM - 3),
    )
    return Plan(seed, seconds, tuple(payments), tuple(faults), limits, overnight=6, calm=calm)


def sweep_of(seed: int, *, every_s: float = 3.0, per_s: float = 4.0) -> Plan:
    """Every crash point once before and once after it; the payments are those of the seed."""
    points = [(slot, point, when) for slot, point in _points() for when in ("before", "after")]
    random.Random(seed).shuffle(points)
    faults = tuple(
        Fault(round(1.0 + n * every_s, 1), "crash", COME_BY_S, slot, detail=f"{point}:{when}:1")
        for n, (slot, point, when) in enumerate(points)
    )
    plan = plan_of(seed, 1.0 + len(points) * every_s, per_s=per_s, kinds=())
    return Plan(seed, plan.seconds, plan.payments, faults, plan.limits, plan.overnight)


def spread(plan: Plan, accounts: int) -> Plan:
    """The same plan for several accounts. Outsiders pay from any of them, the gateway from the first."""
    chance = random.Random(f"{plan.seed} accounts")
    payments = tuple(
        replace(each, account=chance.randrange(accounts) if each.how in ("pending", "queued") else 0)
        for each in plan.payments
    )
    return replace(plan, payments=payments, accounts=accounts)


def failover_of(seed: int, how: Literal["ahead", "behind"], *, seconds: float = 36.0) -> Plan:
    """One failover among lesser faults; the archive is ahead of the replica, or behind it."""
    plan = plan_of(seed, seconds, every_s=5.0, kinds=("kill", "reset", "bank", "freeze"))
    failover = Fault(10.0, "failover", detail=how)
    # Nothing else may delay the archive while the replica is made to lag.
    apart = [fault for fault in plan.faults if not 6.0 < fault.at_s < 20.0]
    return replace(plan, faults=tuple(sorted([*apart, failover], key=lambda fault: fault.at_s)))


def full_disk_of(seed: int, *, seconds: float = 30.0) -> Plan:
    """The disk under Postgres is full for a while, twice; the second time Postgres is killed meanwhile."""
    plan = plan_of(seed, seconds, every_s=6.0, kinds=("kill", "reset"))
    full = (Fault(4.0, "postgres_full", 6.0), Fault(17.0, "postgres_full", 6.0, detail="killed"))
    return replace(plan, faults=tuple(sorted([*plan.faults, *full], key=lambda fault: fault.at_s)))


def _points() -> list[tuple[str, str]]:
    """Each point with a slot of its role; the two workers take turns."""
    workers = itertools.cycle(slot for slot in SLOTS if slot.startswith("worker"))
    return [
        (next(workers) if role == "worker" else role, point)
        for role, points in POINTS.items()
        for point in points
    ]


def _payment(chance: random.Random, seconds: float) -> Payment:
    agent = chance.choices(list(AGENTS), weights=list(AGENTS.values()))[0]
    how = chance.choices(("pending", "queued", "gateway", "inline"), weights=(6, 1, 2, 2))[0]
    if agent == "stranger" and how in ("gateway", "inline"):
        how = "pending"
    return Payment(round(chance.uniform(0, seconds), 2), agent, how, chance.choice(OUTCOMES))  # type: ignore[arg-type]


def _fault(chance: random.Random, kind: Kind, at_s: float, *, calm: bool) -> Fault:
    slot = chance.choice(SLOTS)
    if calm and kind in ENDING:
        slot = CALM
    role = slot.partition("-")[0]
    match kind:
        case "kill" | "drain":
            return Fault(at_s, kind, slot=slot)
        case "crash":
            when, nth = chance.choice(("before", "after")), chance.randint(1, 4)
            return Fault(at_s, kind, slot=slot, detail=f"{chance.choice(POINTS[role])}:{when}:{nth}")
        case "freeze":
            return Fault(at_s, kind, FREEZE_S, slot)
        case "skew":
            worker = CALM if calm else chance.choice(SLOTS[:2])
            return Fault(at_s, kind, slot=worker, detail=chance.choice(("3600", "-3600")))
        case "reset":
            return Fault(at_s, kind, slot=slot, link=chance.choice(LINKS[role]))
        case "stall" | "slow" | "mute":
            link, for_s = chance.choice(LINKS[role]), round(chance.uniform(1.0, 5.0), 1)
            return Fault(at_s, kind, for_s, slot, link)
        case "redis_full":
            return Fault(at_s, kind, round(chance.uniform(1.0, 3.0), 1))
        case "bank":
            return Fault(at_s, kind, round(chance.uniform(2.0, 5.0), 1))
        case _:
            return Fault(at_s, kind, round(chance.uniform(0.2, 3.0), 1))

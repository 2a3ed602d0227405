"""One run: start everything, load and break it by the plan, wait until it is at rest, check it."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from tests.faults.failover import fail_over
from tests.faults.flat import HEAD, Grown, Watch, growing
from tests.faults.gather import evidence, rest
from tests.faults.invariants import Evidence, Violation, violations
from tests.faults.lives import Life, table, watch_lives
from tests.faults.load import Load
from tests.faults.plan import LINKS, Fault, Plan
from tests.faults.stand import Stand, ready, standing

REST_MAX_S = 240.0
"""Limit until all deferred work is done: backoffs of at most 10 s, the breaker, and retries of webhooks."""
LATE_S = 0.3
"""Delay of a slow wire, per direction and piece: less than a blocking read and its command's time limit."""
RECORDS = ("--records", "200")
"""Payouts that the projector keeps in a measured run: about as many as come in a minute, so that this cache is full
when growth is judged."""
TRIMMED = {"retention": "60s", "trim_interval": "5s", "claim_idle": "30s"}
"""The shortest retention that may be set, so that the log reaches its full length in the first minute; and a claim time
above that of execution's pass, since otherwise workers on a busy machine would keep taking each other's entries."""
BANK_FAULTS = [
    {"kind": "timeout", "path": "/v1/payouts/*/approve", "count": 2, "rate": 0.3},
    {"kind": "timeout", "path": "/v1/payouts/*/reject", "count": 1, "rate": 0.3},
    {"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 2, "rate": 0.5},
    {"kind": "429", "retry_after": 1, "count": 10, "rate": 0.2},
    {"kind": "500", "count": 10, "rate": 0.2},
    {"kind": "502", "count": 10, "rate": 0.2},
]
"""429, 500 as JSON, 502 as HTML, and calls that take effect but are never answered."""
WEBHOOK_FAULTS = [
    {"kind": "drop", "rate": 0.1},
    {"kind": "duplicate", "rate": 0.3, "copies": 2},
    {"kind": "reorder", "rate": 0.3, "ms": 500},
    {"kind": "delay", "rate": 0.2, "ms": 400},
    {"kind": "bad_signature", "rate": 0.05},
]


class Report(Struct, frozen=True, kw_only=True):
    """What a run did and found. Times in seconds."""

    plan: Plan
    injected: dict[str, int]
    violations: list[Violation]
    parts: list[Evidence]
    """The evidence of each partition."""
    starts: int
    rest_s: float
    lives: list[Life]
    logs: str
    """Where the roles' logs are kept; empty if everything held."""
    crashed: list[str]
    """Crash points at which a role killed itself."""
    alarms: list[str]
    """Roles that ended because the log had lost something."""
    stood: int
    """Entries by which the log grew while Postgres's disk was full and the archive stood still."""
    verdict: list[Grown] = []
    """Growth in a measured run."""

    @property
    def evidence(self) -> Evidence:
        """The evidence of the first partition, where most runs have everything."""
        return self.parts[0]

    def __str__(self) -> str:
        done = ", ".join(f"{kind} {n}" for kind, n in sorted(self.injected.items()))
        lines = [
            f"seed {self.plan.seed}: {len(self.plan.faults)} faults in {self.plan.seconds:g} s: {done}",
            f"{self.starts} starts of roles, {len(self.crashed)} crashes at a named point, {self._sum('bank')} payouts,"
            f" {self._sum('log')} entries, {self._sum('answered')} webhooks answered 2xx,"
            f" {self._sum('commands')} commands at the bank, {self._sum('letters')} dead letters;"
            f" at rest after {self.rest_s:.0f} s",
            *(
                [f"{self._sum('lost')} entries lost, {self._sum('dropped')} dropped"]
                if self.plan.has("failover")
                else []
            ),
            *([*HEAD, *map(str, self.verdict)] if self.verdict else table(self.lives)),
            *map(str, self.violations),
            *([f"the roles' logs are in {self.logs}"] if self.logs else []),
        ]
        return "\n".join(lines)

    def _sum(self, what: str) -> str:
        """The total count; with several partitions, also the count of each."""
        counts = [len(getattr(part, what)) for part in self.parts]
        each = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
        return f"{sum(counts)}{each}"


async def run(
    plan: Plan,
    *,
    reverts: tuple[str, ...] = (),
    rest_max_s: float = REST_MAX_S,
    flat: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run `plan` from the first start to the final check. `flat`: nothing may grow, and the log is trimmed."""
    balance = 1000 * len(plan.payments) * 10_000
    stores = {"replica": plan.has("failover"), "small": plan.has("postgres_full")}
    settings, options = (TRIMMED, RECORDS) if flat else ({}, ())
    async with standing(
        plan.seed,
        reverts=reverts,
        options=options,
        settings=settings,
        **stores,
        accounts=plan.accounts,
        balance=balance,
    ) as stand:
        load = Load(stand, plan)
        first = ("serve", "projector", "worker-1", "worker-2")
        for name in first:
            stand.keep(name)
        await ready(stand)
        await load.prepare()
        if not flat:  # counters of windows that are over leave Redis after the retention time
            await load.overnight()
        pollers = [name for name in stand.slots if name.startswith("poller")]
        for name in pollers:
            stand.keep(name)
        await stand.bank.faults(webhooks=WEBHOOK_FAULTS)
        say("all roles run")
        reviewing = asyncio.create_task(load.review())
        watching = asyncio.create_task(watch_lives(stand))
        watch = Watch(stand)
        measuring = asyncio.create_task(watch.run())
        injected: Counter[str] = Counter()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run())
                breaking = tasks.create_task(break_it(stand, plan, injected, say))
                tasks.create_task(load.go_on_until(breaking))
            measuring.cancel()
            verdict = watch.verdict() if flat else []
            began = time.monotonic()
            await heal(stand)
            say("all faults are over")
            waits = await rest(stand, load, rest_max_s)
        finally:
            for task in (reviewing, watching, measuring):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        rest_s = time.monotonic() - began
        parts = await look(stand, waits)
        for name in (*first[::-1], *pollers):
            await stand.drain(name)
        logs = keep_logs(stand)
    grown = growing(verdict, (*LINKS, "redis", "postgres") if plan.calm else ()) if flat else []
    parts[0] = replace(parts[0], exits=list(stand.exits), growing=grown)
    found = [_placed(each, n, parts) for n, part in enumerate(parts) for each in violations(part)]
    if not found:
        shutil.rmtree(logs, ignore_errors=True)
    return Report(
        plan=plan,
        injected=dict(injected),
        violations=found,
        logs=str(logs) if found else "",
        parts=parts,
        starts=stand.starts,
        lives=list(stand.lives.values()),
        crashed=list(stand.crashed),
        alarms=list(stand.alarms),
        stood=stand.stood,
        rest_s=rest_s,
        verdict=verdict,
    )


def keep_logs(stand: Stand) -> Path:
    """Copy the roles' logs, since their directory is removed."""
    place = Path(tempfile.mkdtemp(prefix="streamproc-faults-logs-"))
    for slot in stand.slots.values():
        if slot.output.exists():
            shutil.copy(slot.output, place)
    return place


def _placed(violation: Violation, partition: int, parts: list[Evidence]) -> Violation:
    if len(parts) == 1:
        return violation
    return Violation(violation.invariant, f"partition {partition}: {violation.how}")


async def look(stand: Stand, waits: dict[str, int]) -> list[Evidence]:
    """Collect the evidence, when nobody appends any more."""
    await stand.fresh_connections()
    return await evidence(stand, waits)


async def heal(stand: Stand) -> None:
    """End every fault that still lasts."""
    await stand.bank.faults(api=[], webhooks=[])
    # The bank looks at its queue when money comes in, which nothing may bring after the last payout made queued.
    await stand.bank.balance(add=1)
    for slot in stand.slots.values():
        for wire in slot.wires.values():
            wire.flow()
    await stand.fresh_connections()


async def break_it(stand: Stand, plan: Plan, injected: Counter[str], say: Callable[[str], None]) -> None:
    """Inject every fault of the plan in order and at its time. Returns when the last one is over."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for fault in plan.faults:
            await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
            say(str(fault))
            injected[fault.kind] += 1
            tasks.create_task(inject(stand, fault, say), name=str(fault))


async def inject(stand: Stand, fault: Fault, say: Callable[[str], None]) -> None:
    """Inject one fault. Returns when it is over."""
    match fault.kind:
        case "kill":
            stand.kill(fault.slot)
        case "drain":
            await stand.restart(fault.slot)
        case "crash":
            await stand.crash(fault.slot, fault.detail, fault.for_s)
        case "skew":
            stand.kill(fault.slot, "--skew", fault.detail)
        case "freeze":
            await stand.freeze(fault.slot, fault.for_s)
        case "reset" | "stall" | "slow" | "mute":
            await _cut(stand, fault)
        case "redis_kill":
            await stand.restart_redis(fault.for_s)
        case "redis_full":
            await stand.fill_redis(fault.for_s)
        case "postgres_kill":
            await stand.restart_postgres(signal.SIGKILL, fault.for_s)
        case "postgres_stop":
            await stand.restart_postgres(signal.SIGQUIT, fault.for_s)
        case "failover":
            await fail_over(stand, fault.detail, say)
        case "postgres_full":
            await stand.fill_postgres(fault.for_s, killed=bool(fault.detail))
        case "bank":
            await stand.bank.faults(api=BANK_FAULTS)
            await asyncio.sleep(fault.for_s)
            await stand.bank.faults(api=[])


async def _cut(stand: Stand, fault: Fault) -> None:
    wire = stand.slots[fault.slot].wires[fault.link]
    match fault.kind:
        case "reset":
            wire.reset()
            return
        case "stall":
            wire.stall()
        case "slow":
            wire.late_s = LATE_S
        case "mute":
            wire.mute = True
    await asyncio.sleep(fault.for_s)
    wire.flow()

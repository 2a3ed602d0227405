"""python -m tests.faults.flood: webhooks at a fixed rate while workers are killed. Is anything lost, or late?

Everything is real: HTTP into `serve`, two workers, the projector, Valkey that syncs every write, Postgres with fsync,
the sandbox as the bank. The sender is open loop (tests/faults/sender.py). There are no proxies and no witness, which
would take the cores that are measured; afterwards log, archive, counters and the bank's record are read completely, and
checked by the invariants of `make faults`.

The mix: `--bank` payouts per second exist at the bank as pending. Of five, three are approved and two rejected; the
bank is told, and its webhooks report the outcome. The others are `queued` at the bank: they are approved, the bank pays
them by itself without being told, and for `--outcomes` of them a second webhook says so. Exit 1 if an invariant does
not hold.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from streamproc import processes
from streamproc.bench.cost import tree_cpu_s
from streamproc.domain import events as e
from streamproc.log.stream import Entry, LogView
from tests.faults.gather import ENDED, archive_of, commands_of, in_the_log, letters_of, wrong_views
from tests.faults.invariants import Answered, Evidence, Violation, history, violations
from tests.faults.sender import AGENT, PAYOUT, STATUS, VENDOR, Order, Sent
from tests.faults.stand import Stand, ready, standing
from tests.journeys.system import ACCOUNT, SECRET
from tests.journeys.truth import budgets_of_redis
from tests.words import apply_policies

AGENTS, VENDORS = 200, 50
AMOUNT = 10_000
"""Paise of a payout."""
REST_MAX_S = 300.0
"""Limit from the last webhook until nothing waits any more."""
VERIFY_MAX_S = 600.0
"""Limit for a rebuild of all views and their comparison with the live ones."""
BANK_AGENTS = ("agent-0", "agent-1", "agent-2", "small", "full")
"""Agents of the bank's payouts: three are approved, one is over its limit, one has no room in its day."""
POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60s}}, daily_limit: 1_000_000_000_000}}
policies:
  small: {{per_txn_limit: {AMOUNT - 1}}}
  full: {{daily_limit: {AMOUNT * 10}}}
""" + "".join(f"  agent-{n}: {{daily_limit: 1_000_000_000_000}}\n" for n in range(AGENTS))
LOOK_S = 1.0
READ_MAX = 5_000


class Terms(Struct, frozen=True, kw_only=True):
    """The load of a flood. `kill_every_s` 0: no worker is killed."""

    rate: float = 1000.0
    seconds: float = 120.0
    kill_every_s: float = 10.0
    bank_per_s: float = 20.0
    outcomes: float = 0.05
    claim_idle_s: float = 60.0
    """The product's default."""
    seed: int = 1


class Spread(Struct, frozen=True):
    """The distribution of some times, in ms."""

    p50: float
    p99: float
    p999: float
    most: float

    def __str__(self) -> str:
        return f"{self.p50:,.0f} / {self.p99:,.0f} / {self.p999:,.0f} / {self.most:,.0f} ms"


def spread_of(times_s: Sequence[float]) -> Spread:
    """The distribution; zeros if there are no times."""
    ordered = sorted(times_s) or [0.0]
    last = len(ordered) - 1
    return Spread(*(1000 * ordered[round(part * last)] for part in (0.5, 0.99, 0.999, 1.0)))


class Flooded(Struct, kw_only=True):
    """The result of a flood."""

    terms: Terms
    sent: list[Sent]
    send_s: float
    rest_s: float
    kills: int
    decided: Spread
    undecided: int
    most_unread: int
    cores: dict[str, float]
    load: tuple[float, float]
    entries: int
    violations: list[Violation]

    def __str__(self) -> str:
        answers: dict[int, int] = {}
        for each in self.sent:
            answers[each.answer] = answers.get(each.answer, 0) + 1
        taken = sum(n for code, n in answers.items() if 200 <= code < 300)
        cores = ", ".join(f"{name} {used:.2f}" for name, used in sorted(self.cores.items()))
        by_status = ", ".join(f"{code or 'none'}: {n:,}" for code, n in sorted(answers.items()))
        answered = spread_of([each.answered - each.due for each in self.sent if each.answer])
        late = spread_of([each.sent - each.due for each in self.sent if each.sent])
        lines = [
            f"offered: {self.terms.rate:,.0f} payouts/s for {self.terms.seconds:.0f} s,"
            f" {len(self.sent):,} webhooks; {self.kills} kills of workers",
            f"taken: {taken / self.send_s:,.0f} webhooks/s over {self.send_s:.1f} s; answers {by_status}",
            f"time from when a webhook was due until its answer (p50 / p99 / p99.9 / max): {answered}",
            f"of that, until it was sent: {late}",
            f"append to decision, by the ids of the log: {self.decided};"
            f" {self.undecided} without one (paid by the bank before: a bypass on record)",
            f"most entries unread by a group: {self.most_unread:,};"
            f" caught up {self.rest_s:.1f} s after the last webhook was sent",
            f"{self.entries:,} entries; cores used: {cores};"
            f" load of the machine {self.load[0]:.1f} to {self.load[1]:.1f}",
            *map(str, self.violations),
        ]
        return "\n".join(lines)


async def flood(terms: Terms, say: Callable[[str], None] = lambda _: None) -> Flooded:
    """Start everything, flood it, wait until it is at rest, check it."""
    claim = {"claim_idle": f"{terms.claim_idle_s:g}s"}
    began_load = os.getloadavg()[0]
    async with standing(terms.seed, direct=True, settings=claim, balance=10**13) as stand:
        await stand.bank.webhook(enabled=False)
        order = await _order(stand, terms)
        for name in ("serve", "projector", "worker-1", "worker-2"):
            stand.keep(name)
        await ready(stand)
        await apply_policies(stand.system.redis, POLICIES)
        await stand.bank.webhook(enabled=True)
        say(f"all roles run; {len(order.bank):,} payouts are at the bank")
        meter = Meter(stand)
        measuring = asyncio.create_task(meter.run())
        killed: list[str] = []
        killing = asyncio.create_task(_kill_in_turns(stand, terms, killed, say))
        began = time.monotonic()
        try:
            sent = await _sent(stand, order, meter)
        finally:
            killing.cancel()
            measuring.cancel()
        send_s = time.monotonic() - began
        cores, load = meter.cores(), (began_load, os.getloadavg()[0])
        say(f"{len(sent):,} webhooks sent")
        waits, rest_s = await _rest(stand, {known for known, _ in order.bank}, time.monotonic())
        say("at rest")
        seen = await _evidence(stand, sent, waits)
    waited, undecided = decision_times(seen.log)
    return Flooded(
        terms=terms,
        sent=sent,
        send_s=send_s,
        rest_s=rest_s,
        kills=len(killed),
        decided=spread_of(waited),
        undecided=undecided,
        most_unread=meter.most_unread,
        cores=cores,
        load=load,
        entries=len(seen.log),
        violations=violations(seen),
    )


def decision_times(log: Sequence[Entry]) -> tuple[list[float], int]:
    """Times from a payout's first entry to its decision (s, exact to 1 ms, since ids are times of Redis's clock), and
    the number of payouts without a decision."""
    first: dict[str, int] = {}
    decided: dict[str, int] = {}
    for entry, _, event, _ in history(log):
        if isinstance(event, e.PayoutObserved | e.PayoutDecided):
            of = first if isinstance(event, e.PayoutObserved) else decided
            of.setdefault(event.payout, int(entry.partition("-")[0]))
    return [(decided[name] - at) / 1000 for name, at in first.items() if name in decided], len(
        first.keys() - decided.keys()
    )


# ---- sending ----------------------------------------------------------------------------


async def _order(stand: Stand, terms: Terms) -> Order:
    """What to send. Also makes the payouts that the bank must know."""
    count = int(terms.bank_per_s * terms.seconds)
    made: list[dict[str, Any]] = []
    for number, agent in enumerate(BANK_AGENTS):
        share = (count + len(BANK_AGENTS) - 1 - number) // len(BANK_AGENTS)
        notes = {"agent_id": agent, "vendor_url": f"https://vendor-{number}.example.com/"}
        while share > 0:
            some = min(share, 1000)
            answer = await stand.bank.control(
                "payouts", amount=AMOUNT, count=max(2, some), notes=notes, outcome="processed"
            )
            made += answer["items"][:some]
            share -= some
    in_turns = sorted(range(len(made)), key=lambda at: (at % max(1, count // len(BANK_AGENTS)), at))
    sample = (await stand.bank.control("payouts", amount=AMOUNT, count=2))["items"][0]
    sample |= {"id": PAYOUT.decode(), "status": STATUS.decode()}
    sample["notes"] = {"agent_id": AGENT.decode(), "vendor_url": f"https://{VENDOR.decode()}.example.com/"}
    return Order(
        port=int(stand.system.env["STREAMPROC_PORT"]),
        path="/webhooks/razorpay",
        secret=SECRET,
        rate=terms.rate,
        seconds=terms.seconds,
        template=_envelope(sample, STATUS.decode()),
        agents=AGENTS,
        vendors=VENDORS,
        outcomes=terms.outcomes,
        bank=[(made[at]["id"], _envelope(made[at], "pending")) for at in in_turns],
    )


def _envelope(payout: dict[str, Any], status: str) -> bytes:
    envelope = {
        "entity": "event",
        "account_id": ACCOUNT,
        "event": f"payout.{status}",
        "contains": ["payout"],
        "payload": {"payout": {"entity": payout}},
        "created_at": payout["created_at"],
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


async def _sent(stand: Stand, order: Order, meter: "Meter") -> list[Sent]:
    what, came = stand.home / "order", stand.home / "came"
    what.write_bytes(msgspec.msgpack.encode(order))
    with (stand.home / "sender.log").open("wb") as output:
        process = await processes.start(
            [sys.executable, "-m", "tests.faults.sender", what, came],
            env=dict(os.environ) | {"PYTHONPATH": str(Path.cwd())},
            on_parent_death=9,  # type: ignore[arg-type]
            output=output.fileno(),
        )
    meter.others["sender"] = process.pid
    try:
        async with asyncio.timeout(order.seconds * 3 + REST_MAX_S):
            status = await process.wait()
    finally:
        processes.kill(process)
    assert status == 0, processes.last_line(stand.home / "sender.log")
    return msgspec.msgpack.decode(came.read_bytes(), type=list[Sent])


async def _kill_in_turns(stand: Stand, terms: Terms, killed: list[str], say: Callable[[str], None]) -> None:
    """Kill the two workers in turns."""
    while terms.kill_every_s:
        await asyncio.sleep(terms.kill_every_s)
        name = f"worker-{1 + len(killed) % 2}"
        stand.kill(name)
        killed.append(name)
        say(f"killed {name}")


# ---- looking ----------------------------------------------------------------------------


class Meter:
    """Measures the CPU of every process under load, and how far the groups are behind."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.others = {
            "valkey": stand.redis.pid,
            "postgres": stand.postgres.pid,
            "bank": stand.bank.process.pid,
            "driver": os.getpid(),
        }
        self.most_unread = 0
        self._began = time.monotonic()
        self._used: dict[tuple[str, int], tuple[float, float]] = {}
        """By role and pid: CPU seconds at the first and the last look."""

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._look()
            groups = await self.stand.system.redis.xinfo_groups(self.stand.system.names.log)
            self.most_unread = max(self.most_unread, *(int(group["lag"] or 0) for group in groups))
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        running = [(slot.role, slot.process) for slot in self.stand.slots.values()]
        pids = [(role, process.pid) for role, process in running if process and process.returncode is None]
        for name, pid in [*pids, *self.others.items()]:
            used = own_cpu_s(pid) if name == "driver" else tree_cpu_s(pid)
            if used:
                known = self._used.get((name, pid))
                # A process that was started later began with 0.
                old = time.monotonic() - self._began < 2 * LOOK_S
                self._used[name, pid] = (known[0] if known else used if old else 0.0, used)

    def cores(self) -> dict[str, float]:
        """Mean cores by role."""
        seconds, by_role = time.monotonic() - self._began, dict[str, float]()
        for (name, _), (first, last) in self._used.items():
            by_role[name] = by_role.get(name, 0.0) + (last - first) / seconds
        return by_role


def own_cpu_s(pid: int) -> float:
    """CPU seconds of a process without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _rest(stand: Stand, with_webhook: set[str], since: float) -> tuple[dict[str, int], float]:
    """Wait until nothing waits. Returns what still does after REST_MAX_S, and how long it took (s).

    `with_webhook` are the bank's payouts for which we got a webhook.
    """
    while True:
        waits, _ = await in_the_log(stand)
        at_bank = [each for each in await stand.bank.show("payouts") if each["id"] in with_webhook]
        waits["payouts that are not over at the bank"] = sum(each["status"] not in ENDED for each in at_bank)
        waited = time.monotonic() - since
        if not any(waits.values()) or waited > REST_MAX_S:
            return waits, waited
        await asyncio.sleep(LOOK_S / 2)


async def _evidence(stand: Stand, sent: list[Sent], waits: dict[str, int]) -> Evidence:
    log: list[Entry] = []
    async with LogView(stand.system.redis_url, 0) as view:
        while entries := await view.read(log[-1].id if log else "0-0", READ_MAX, 0):
            log += entries
    shown = await stand.bank.show("payouts")
    names = {payout["id"]: payout["id"] for payout in shown}
    return Evidence(
        log=log,
        archive=await archive_of(stand),
        commands=commands_of(await stand.bank.record(), names),
        answered=[
            Answered(f"payout.{each.status}", each.payout, each.payout, each.status)
            for each in sent
            if 200 <= each.answer < 300
        ],
        bank={payout["id"]: payout["status"] for payout in shown},
        counters=await budgets_of_redis(stand.system),
        waiting=waits,
        letters=await letters_of(stand),
        views=await wrong_views(stand, VERIFY_MAX_S),
        exits=list(stand.exits),
    )


def main() -> int:
    """Run. Returns 0 if everything held."""
    terms = Terms()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.flood", description=__doc__)
    parser.add_argument("--rate", type=float, default=terms.rate, help="payouts per second (1000)")
    parser.add_argument("--seconds", type=float, default=terms.seconds, help="duration (120)")
    parser.add_argument(
        "--kill-every",
        type=float,
        default=terms.kill_every_s,
        help="seconds between two kills (10); 0: no kills",
    )
    parser.add_argument(
        "--bank", type=float, default=terms.bank_per_s, help="payouts per second that the bank knows (20)"
    )
    parser.add_argument(
        "--outcomes", type=float, default=terms.outcomes, help="share of payouts with a second webhook (0.05)"
    )
    parser.add_argument("--claim-idle", type=float, default=terms.claim_idle_s, help="STREAMPROC_CLAIM_IDLE")
    given = parser.parse_args()
    terms = Terms(
        rate=given.rate,
        seconds=given.seconds,
        kill_every_s=given.kill_every,
        bank_per_s=given.bank,
        outcomes=given.outcomes,
        claim_idle_s=given.claim_idle,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {text}", flush=True)

    flooded = asyncio.run(flood(terms, say))
    print(flooded)
    print("everything held" if not flooded.violations else f"{len(flooded.violations)} findings")
    return int(bool(flooded.violations))


if __name__ == "__main__":
    sys.exit(main())

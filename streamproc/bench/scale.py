"""`bench scale`: what a payout costs with more entries in the log, more workers, partitions or agents.

One axis is varied at a time; the others stay at one worker, one partition, 100 agents and a log of 10,000 entries. All
values of an axis have their servers at the same time and take turns, so that a noisy minute affects all of them. Each
turn starts its workers anew and sends the same payouts, all of which are approved.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

import consumers
from streamproc.bench import cost, engine, job
from streamproc.bench.filling import check_room, fill
from streamproc.bench.rig import Announce, home_in, public_directory
from streamproc.bench.site import Role, Site, site
from streamproc.domain.events import PayoutObserved
from streamproc.errors import InputError
from streamproc.host_clock import host_clock_us
from streamproc.log import scripts
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import LogView

CONCURRENCY: Final = 1
WARM_EACH: Final = 256
"""Payouts for each consumer before each turn, which are not counted. A consumer reads so many at once, so every
consumer gets some and reads the policies."""
TURN_MAX_S = 600.0


class Point(Struct, frozen=True):
    """One point of measurement: a value for each axis."""

    entries: int = 10_000
    workers: int = 1
    partitions: int = 1
    agents: int = 100


AXES: Final[dict[str, tuple[int, ...]]] = {
    "entries": (10_000, 100_000, 1_000_000),
    "workers": (1, 2, 4, 8),
    "partitions": (1, 4, 16),
    "agents": (1, 100, 10_000),
}
"""What is measured by default."""


class Run(Struct, frozen=True):
    """One turn of one point. CPU in µs per payout; cores that each process kept busy, and that all programs did."""

    axis: str
    value: int
    round: int
    seconds: float
    payouts_per_s: float
    cpu_us: dict[str, float]
    cores: dict[str, float]
    machine_cores: float


class Measured(Struct, frozen=True):
    """All runs."""

    payouts: int
    rounds: int
    versions: dict[str, str]
    runs: list[Run]


def check(axes: Mapping[str, Sequence[int]], payouts: int, rounds: int) -> None:
    """Raise InputError if this is too much for the machine's memory or for the job's rate limit."""
    check_room(sum(axes.get("entries", ())))
    agents = min([*axes.get("agents", ()), Point().agents])
    sent, most = (payouts + WARM_EACH) * rounds, job.RATE_COUNT * agents
    if sent > most:
        raise InputError(
            f"{rounds} rounds of {payouts} payouts and {WARM_EACH} to warm up are {sent}; {agents} agents may have"
            f" {most}, since more would be rate limited"
        )


async def measure(
    axes: Mapping[str, Sequence[int]], payouts: int, rounds: int, *, announce: Announce
) -> Measured:
    """Measure each axis. Raises JobFailed if a payout is not approved."""
    check(axes, payouts, rounds)
    runs, versions = list[Run](), cost.package_versions()
    with public_directory() as directory:
        for axis, values in axes.items():
            async with AsyncExitStack() as stack:
                stands = []
                for value in values:
                    announce(f"{axis} {value:,}: preparing")
                    home = stack.enter_context(home_in(directory, f"{axis}-{value}"))
                    stands.append(await _stand(stack, home, axis, value))
                for number in range(1, rounds + 1):
                    for stand in stands:
                        announce(f"{axis} {stand.value:,}: round {number} of {rounds}")
                        runs.append(await stand.run(number, payouts))
                versions |= stands[0].versions
    return Measured(payouts, rounds, versions, runs)


async def _stand(stack: AsyncExitStack, home: Path, axis: str, value: int) -> "_Stand":
    point = replace(Point(), **{axis: value})
    policies = job.policy_file() | {
        "policies": {
            agent(n): {"per_txn_limit": job.TXN_LIMIT_PAISE, "daily_limit": job.DAY_LIMIT_PAISE}
            for n in range(point.agents)
        }
    }
    at = await stack.enter_async_context(site(home, partitions=point.partitions, policies=policies))
    for partition in range(point.partitions):
        await fill(at.url, at.client, Names(partition), point.entries // point.partitions)
    return _Stand(at, axis, value, point)


def agent(number: int) -> str:
    """The id of an agent."""
    return f"agent-{number:06d}"


def accounts(partitions: int) -> list[str]:
    """One account for each partition, in their order."""
    by_partition: dict[int, str] = {}
    for n in count():
        name = f"acc_Bench{n:09d}"
        by_partition.setdefault(partition_of(name, partitions), name)
        if len(by_partition) == partitions:
            return [by_partition[partition] for partition in range(partitions)]
    raise AssertionError


def plain(agents: int) -> Iterator[PayoutObserved]:
    """An endless series of payouts of the job that are approved, of so many agents in turn."""
    for number in count():
        event = job.observed(number, host_clock_us(), job.PAYEES)
        notes = event.facts.notes
        if event.facts.amount > job.TXN_LIMIT_PAISE or job.BLOCKED_HOST in notes["vendor_url"]:
            continue
        facts = replace(event.facts, notes=notes | {"agent_id": agent(number % agents)})
        yield replace(event, facts=facts)


class _Stand:
    """One value of an axis, and its servers."""

    def __init__(self, at: Site, axis: str, value: int, point: Point) -> None:
        self._at, self._axis, self._point = at, axis, point
        self.value, self.versions = value, at.versions
        self._accounts = accounts(point.partitions)
        self._payouts = plain(point.agents)

    async def run(self, number: int, payouts: int) -> Run:
        """Start workers, let them share the payouts, and measure."""
        async with AsyncExitStack() as stack:
            roles = await self._at.workers(stack, self._point.workers, CONCURRENCY)
            await self._decide(WARM_EACH * self._point.workers * self._point.partitions, roles)
            ends = [await self._last_id(partition) for partition in range(self._point.partitions)]
            before_s, machine_s = await self._at.server_cpu_s(), cost.machine_cpu_s()
            for role in roles:
                role.begin()
            sender_s = time.process_time()
            seconds = await self._decide(payouts, roles)
            sender_s = time.process_time() - sender_s
            workers_s = {role.name: role.used().cpu_s for role in roles}
            machine_s = cost.machine_cpu_s() - machine_s
            server_s = await self._at.server_cpu_s() - before_s
        await self._check(ends, payouts)
        await self._delete_consumers()
        cpu_us = {"worker": sum(workers_s.values()) * 1e6 / payouts, "valkey": server_s * 1e6 / payouts}
        each_s = {"producer": sender_s, **workers_s, "valkey": server_s}
        return Run(
            axis=self._axis,
            value=self.value,
            round=number,
            seconds=seconds,
            payouts_per_s=payouts / seconds,
            cpu_us=cpu_us,
            cores={name: used / seconds for name, used in each_s.items()},
            machine_cores=machine_s / seconds,
        )

    async def _decide(self, payouts: int, roles: Sequence[Role]) -> float:
        """Append so many payouts and wait until all are decided. Returns the seconds that this took."""
        batches = [self._batch(payouts, partition) for partition in range(self._point.partitions)]
        began = time.monotonic()
        for start in range(0, payouts, scripts.BATCH_MAX):
            for partition, batch in enumerate(batches):
                if some := batch[start : start + scripts.BATCH_MAX]:
                    await scripts.append_once(self._at.client, Names(partition), some)
        await self._at.until(self._all_handled, roles, TURN_MAX_S)
        return time.monotonic() - began

    async def _check(self, ends: Sequence[str], payouts: int) -> None:
        """Raise JobFailed unless all payouts after `ends` were approved."""
        outcomes = Counter[str]()
        for partition, end in enumerate(ends):
            outcomes += await engine.outcomes(self._at.url, partition, end)
        job.check("engine", "the stream", outcomes, Counter({"POLICY_OK": payouts}))

    def _batch(self, payouts: int, partition: int) -> list[scripts.Delivery]:
        """The deliveries of this partition, if so many payouts are shared among all partitions."""
        part = payouts // self._point.partitions + (partition < payouts % self._point.partitions)
        return [self._delivery(next(self._payouts), self._accounts[partition]) for _ in range(part)]

    def _delivery(self, event: PayoutObserved, account: str) -> scripts.Delivery:
        return job.appended(replace(event, account=account)).delivery(b'{"by":"webhook"}')

    async def _all_handled(self) -> bool:
        async with self._at.client.pipeline(transaction=False) as pipe:
            for partition in range(self._point.partitions):
                pipe.xinfo_groups(Names(partition).log)
            answers: list[Any] = await pipe.execute()
        groups = [
            group for rows in answers for group in rows if group["name"].decode() == consumers.GOVERNANCE
        ]
        return all(group["lag"] == 0 and group["pending"] == 0 for group in groups)

    async def _last_id(self, partition: int) -> str:
        async with LogView(self._at.url, partition) as view:
            return await view.last_id()

    async def _delete_consumers(self) -> None:
        """Delete the consumers of the killed workers, as other workers would after a while."""
        for partition in range(self._point.partitions):
            log = Names(partition).log
            for row in await self._at.client.xinfo_consumers(log, consumers.GOVERNANCE):
                await self._at.client.xgroup_delconsumer(log, consumers.GOVERNANCE, row["name"])

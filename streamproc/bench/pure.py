"""`bench govern`: the decision alone, in this process, without Redis, files or network.

Three parts are measured with the same payouts, in batches as a worker has them:

- `rules`: all rules on a complete case.
- `fast_path`: the way that nearly every payout takes (ADR 25). An entry's bytes are decoded and folded, the
  rules are asked, and what is recorded of the decision is encoded for the script.
- `stages`: the whole chain instead, in which each stage writes its event. The counters are the model that `admit.lua`
  is tested against.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

import consumers
from consumers.vet import Reputations
from streamproc.bench import cost, job
from streamproc.bench.rig import Announce
from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import Admission, Ask, Ledger
from streamproc.domain.case import Case, Reputation, case_of
from streamproc.domain.events import Event, PayoutDecided
from streamproc.domain.governance import Verdict, decide
from streamproc.domain.payouts import encode_record
from streamproc.domain.policy import PolicyBook, ScopeState, parse_policy_file, plan_changes
from streamproc.domain.wire import decode_events, encode_events, payout_of
from streamproc.gc_tuning import tune_for_batches
from streamproc.host_clock import host_clock_us
from streamproc.log import grants
from streamproc.log.cache import Cache
from streamproc.log.grants import Grant
from streamproc.log.names import Names
from streamproc.log.templates import OfferFate
from streamproc.log.work import BatchContext, Group, Work, run_chain

PARTS = ("rules", "fast_path", "stages")
POLICY_OK = "POLICY_OK"
NAMES = Names(0)
DAY_US = 86_400 * 1_000_000


class Run(Struct, frozen=True):
    """One part in one round. CPU in µs per payout."""

    part: str
    round: int
    payouts: int
    payouts_per_s: float
    cpu_us: float


class Measured(Struct, frozen=True):
    """All runs. `outcomes` are those of `rules` and `stages`."""

    payouts: int
    rounds: int
    outcomes: dict[str, int]
    versions: dict[str, str]
    runs: list[Run]


class NoCache(Cache):
    """An empty cache instead of Redis's, since the reputations of all vendors are in memory."""

    def __init__(self) -> None:
        """Without a client."""

    async def get_many(self, digests: Sequence[str]) -> list[bytes | None]:
        """Nothing is cached."""
        return [None] * len(digests)

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """Nothing is stored."""

    async def server(self) -> str:
        """There is none."""
        return ""


async def measure(payouts: int, rounds: int, *, announce: Announce) -> Measured:
    """Measure each part in each round. Raises JobFailed if a decision is wrong."""
    at_us, runs = host_clock_us(), list[Run]()
    reputations = Reputations(_clean(at_us))
    await reputations.of(job.vendor_urls(), NoCache(), at_us)
    pure = _Pure(consumers.governance(reputations, zone=job.ZONE), _book(at_us), payouts, at_us)
    tune_for_batches()
    for number in range(rounds + 1):
        announce("warm-up" if number == 0 else f"round {number} of {rounds}")
        runs += [run for run in await pure.round(number) if number > 0]
    outcomes = dict(sorted(job.expected(payouts).items()))
    return Measured(payouts, rounds, outcomes, cost.package_versions(), runs)


def _clean(at_us: int) -> Callable[[Sequence[str]], Any]:
    async def lookup(urls: Sequence[str]) -> Mapping[str, Reputation]:
        return {url: Reputation("clean", checked_at=at_us, fresh_until=at_us + DAY_US) for url in urls}

    return lookup


def _book(at_us: int) -> PolicyBook:
    file = parse_policy_file(json.dumps(job.policy_file()), name="bench.json")
    changes = plan_changes({}, file, prune=False, at=at_us, by="bench", why="bench")
    return PolicyBook(
        {c.scope: ScopeState(version=c.version, own=c.after, effective=c.effective) for c in changes}
    )


class _Pure:
    """The payouts, and all that is needed to decide them."""

    def __init__(self, group: Group, book: PolicyBook, payouts: int, at_us: int) -> None:
        self._group, self._book, self._payouts, self._at_us = group, book, payouts, at_us
        self._entries = [job.payload(n, at_us + n, job.PAYEES) for n in range(payouts)]

    async def round(self, number: int) -> list[Run]:
        """Measure each part once."""
        chain = _Clock(self._payouts)
        works = await self._stages()
        runs = [chain.run("stages", number)]
        self._check(event for work in works for event in work.out)
        cases = await self._cases(works)
        rules = _Clock(self._payouts)
        verdicts = await self._verdicts(cases)
        runs.append(rules.run("rules", number))
        job.check(
            "rules", "memory", Counter(verdict.reason for verdict in verdicts), job.expected(self._payouts)
        )
        fast_path = _Clock(self._payouts)
        decided = await self._fast_path()
        runs.append(fast_path.run("fast_path", number))
        expected = job.expected(self._payouts)
        # On the fast path a script asks the counters, so here no budget is ever full.
        expected[POLICY_OK] += expected.pop("LIMIT_EXCEEDED", 0)
        job.check("fast_path", "memory", decided, expected)
        return runs

    def _check(self, events: Iterator[Event]) -> None:
        outcomes = Counter(event.reason for event in events if type(event) is PayoutDecided)
        job.check("stages", "memory", outcomes, job.expected(self._payouts))

    async def _parts(self) -> AsyncIterator[slice]:
        """The payouts in batches. Between two of them Ctrl-C is heard, which costs one payout some tens of ns."""
        for start in range(0, self._payouts, job.BATCH_MAX):
            await asyncio.sleep(0)
            yield slice(start, start + job.BATCH_MAX)

    async def _batches(self) -> AsyncIterator[list[Work]]:
        async for part in self._parts():
            yield [self._opened(e) for e in self._entries[part]]

    def _opened(self, e: bytes) -> Work:
        """Open an entry as `log/batch.py` does if its payout is new."""
        events = decode_events(e)
        work = Work(b"1-1", events, payout_of(events[0]))
        work.open(b"0", None, work.admission, keep=False)
        work.beneficiary = NOTED
        return work

    def _ctx(self, ledger: Ledger) -> BatchContext:
        async def admit(asks: Sequence[Ask]) -> list[Admission]:
            return [ledger.admit(ask) for ask in asks]

        async def entry(_: str) -> list[Event]:
            return []

        async def book() -> PolicyBook:
            return self._book

        return BatchContext(self._at_us + self._payouts, 0, self._book, admit, NoCache(), book, entry)

    async def _stages(self) -> list[Work]:
        ledger, done = Ledger(), list[Work]()
        async for works in self._batches():
            await run_chain(self._group, works, self._ctx(ledger))
            for work in works:
                encode_events(work.out)
                encode_record(work.known())
            done += works
        return done

    async def _fast_path(self) -> Counter[str]:
        outcomes, ledger = Counter[str](), Ledger()
        async for works in self._batches():
            offers = grants.offers_of(self._group, works, self._ctx(ledger))
            grants.written_out(NAMES, self._group.name, [Grant(work.entry, offer) for work, offer in offers])
            rejected = [offer.outputs(OfferFate.DONE)[0].reason for _, offer in offers if not offer.asks]
            outcomes.update(rejected)
            outcomes[POLICY_OK] += len(offers) - len(rejected)
        return outcomes

    async def _cases(self, works: Sequence[Work]) -> list[Case]:
        """The cases for the rules: each payout as it was observed, with the answers of the counters."""
        ctx, cases = self._ctx(Ledger()), list[Case]()
        async for part in self._parts():
            for work, e in zip(works[part], self._entries[part], strict=True):
                record = replace(self._opened(e).known(), beneficiary=NOTED)
                party = ctx.party(record)
                clean = Reputation("clean", checked_at=self._at_us, fresh_until=self._at_us + DAY_US)
                case = case_of(record, party, zone=job.ZONE, admission=work.admission, reputation=clean)
                cases.append(case)
        return cases

    async def _verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        verdicts = list[Verdict]()
        async for part in self._parts():
            verdicts += [decide(case) for case in cases[part]]
        return verdicts


class _Clock:
    """Measures CPU and time from its creation on."""

    def __init__(self, payouts: int) -> None:
        self._payouts = payouts
        self._cpu_s, self._began = time.process_time(), time.perf_counter()

    def run(self, part: str, number: int) -> Run:
        """The run that ends now."""
        seconds, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_s
        return Run(part, number, self._payouts, self._payouts / seconds, cpu_s * 1e6 / self._payouts)

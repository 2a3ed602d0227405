"""The whole floor: a worker written by hand for this job alone that leaves behind all that the engine leaves.

It reads the engine's log and writes there: for each payout an entry with the same events, its record and admission,
the counters, the registry of beneficiaries, the acknowledgement. What it does without is everything that another job
would need: policies that change, other rules, other windows, more than one pending status, retries, dead letters,
payouts that are known already, a second worker on the partition. What is not this job is an error.

Run as a process, with the argument (`arguments.py`) REDIS_URL.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import date
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
import uvloop
from msgspec import Struct
from redis.asyncio import Redis

import consumers
from streamproc.bench import engine, job
from streamproc.bench.arguments import given
from streamproc.bench.contestant import compete, overlapping
from streamproc.bench.floor import BLOCK_MS
from streamproc.collector import look_less_often
from streamproc.domain.beneficiaries import NOTED, RENEW_S, Names, Pair, look, to_note, with_name
from streamproc.domain.budget import US
from streamproc.errors import JobFailed
from streamproc.log.batch import Limits
from streamproc.log.connection import connected

NAMES, GROUP = engine.NAMES, consumers.GOVERNANCE
PARTS = ("checks", "beneficiaries", "own")
"""Of the engine's scripts, for what is seldom: a beneficiary is noted, own outputs are passed over."""
POLICY_VERSION = "1"
ZONE_S = job.noon_offset_h(time.time()) * 3_600
"""So long before UTC's begins the day that is counted, as the engine's policies have it. Seconds."""
DAY_S = 86_400
PAYEES_KEPT = 4_096
"""Fund accounts whose JSON is kept."""
OURS = b'[{"type":"payout.observed",'
"""What is not an observation (policies, own outputs) is acknowledged unseen."""

Entry = tuple[bytes, bytes]
"""Its id, and its field `e`."""


class Notes(Struct, frozen=True, gc=False):
    """Of a payout's notes, what the job asks."""

    agent_id: str
    vendor_url: str


class Facts(Struct, frozen=True, gc=False):
    """Of what the bank said, what the job asks. Paise."""

    amount: int
    currency: str
    status: str
    fund_account_id: str
    reference_id: str
    notes: Notes


class Observed(Struct, frozen=True, gc=False):
    """Of a `payout.observed`, what the job asks. `at` in µs."""

    at: int
    payout: str
    account: str
    facts: Facts


class Vendor(NamedTuple):
    """A vendor's host, and what is written of its URL and its reputation."""

    host: str
    url: str
    vetted: str
    fresh: str


_decode = msgspec.json.Decoder(list[Observed]).decode
_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_NOTED = _json(NOTED).decode()


@lru_cache(maxsize=PAYEES_KEPT)
def _payee(fund_account: str) -> str:
    return f',"fund_account":{_json(fund_account).decode()},"reference_id":'


@lru_cache(maxsize=4)
def _day(number: int) -> tuple[str, str]:
    """Name and end (Unix s) of a day of the zone."""
    named = date.fromordinal(date(1970, 1, 1).toordinal() + number)
    return named.isoformat(), str((number + 1) * DAY_S - ZONE_S)


class Batch(NamedTuple):
    """What goes to the script: its keys, the rows and all else, packed, and whose beneficiaries are noted."""

    keys: list[str]
    now: int
    packed: bytes
    noted: list[tuple[int, Pair]]


class Clerk:
    """Decides batches and writes them down. It knows policies, reputations and beneficiaries by heart."""

    def __init__(self, client: Redis, sha: str, *, acknowledges: bool) -> None:
        now = time.time_ns() // 1000
        self._client, self._sha, self._acknowledges = client, sha, acknowledges
        self._policies = job.policies()
        self._vendors = {url: _vendor(url, now) for url in job.vendor_urls()}
        self._paid_for: dict[str, Names] = {}
        self._paid_at: dict[str, Names] = {}

    async def batch(self, entries: Sequence[Entry]) -> Batch | None:
        """What is to be written of the observations among these; None where there are none.

        Beneficiaries that are seen for the first time are asked about, one more round trip, which soon no batch has.
        """
        ours = [(entry, _decode(e)[0]) for entry, e in entries if e.startswith(OURS)]
        if not ours:
            return None
        strangers = {
            one.facts.fund_account_id for _, one in ours if one.facts.fund_account_id not in self._paid_for
        }
        hosts = {vendor.host for vendor in self._vendors.values() if vendor.host not in self._paid_at}
        if strangers or hosts:
            await self._meet(list(strangers), list(hosts))
        return self._written(ours, time.time_ns() // 1000)

    async def _meet(self, fund_accounts: list[str], hosts: list[str]) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for one in fund_accounts:
                pipe.hgetall(NAMES.paid_for(job.ACCOUNT, one))
            for one in hosts:
                pipe.hgetall(NAMES.paid_at(job.ACCOUNT, one))
            found = [{name.decode(): int(at) for name, at in one.items()} for one in await pipe.execute()]
        self._paid_for.update(zip(fund_accounts, found, strict=False))
        self._paid_at.update(zip(hosts, found[len(fund_accounts) :], strict=True))

    def _written(self, ours: list[tuple[bytes, Observed]], now: int) -> Batch:
        policies, vendors = self._policies, self._vendors
        paid_for, paid_at, fresh = self._paid_for, self._paid_at, now - RENEW_S * US
        payout_key = f"{NAMES.base}:payout:"
        keys = [NAMES.log, NAMES.number, NAMES.own(GROUP), *(payout_key + one.payout for _, one in ours)]
        numbers: dict[tuple[str, int], int] = {}
        terms: list[Any] = []
        rows: list[Any] = []
        notes: list[Any] = []
        noted: list[tuple[int, Pair]] = []
        for place, (entry, one) in enumerate(ours, 1):
            facts = one.facts
            agent, amount, payee = facts.notes.agent_id, facts.amount, facts.fund_account_id
            policy, vendor = policies[agent], vendors[facts.notes.vendor_url]
            if one.account != job.ACCOUNT or facts.status != "pending" or facts.currency != "INR":
                raise JobFailed(f"payout {one.payout} is not of the job")
            day = (one.at // US + ZONE_S) // DAY_S
            number = numbers.get((agent, day))
            if number is None:
                number = numbers[agent, day] = len(numbers) + 1
                name, ends = _day(day)
                terms += (agent, POLICY_VERSION, name, str(policy.day_limit), ends)
                terms += (len(keys) + 1, len(keys) + 2)
                keys += (NAMES.rate(agent), NAMES.budget(f"agent:{agent}", name))
            vetted, seen, told, reason = vendor.vetted, _NOTED, "", ""
            host = vendor.host
            if amount > policy.txn_limit:
                reason, vetted = "TXN_LIMIT_EXCEEDED", _over(amount, policy.txn_limit)
            elif host in policy.blocked:
                reason, vetted = "DOMAIN_BLOCKED", _blocked(host)
            elif paid_for[payee].get(host, 0) <= fresh or paid_at[host].get(payee, 0) <= fresh:
                pair = Pair(job.ACCOUNT, payee, host)
                seen, told = self._stranger(pair, one.payout, now)
                if told:
                    noted.append((place, pair))
                    notes += (place, len(keys) + 1, host, place, len(keys) + 2, payee)
                    keys += (NAMES.paid_for(job.ACCOUNT, payee), NAMES.paid_at(job.ACCOUNT, host))
            own = vendor.url + _payee(payee) + _json(facts.reference_id).decode()
            rows += (entry.decode(), one.payout, str(amount), str(one.at), number)
            rows += (own, vetted, vendor.fresh, seen, reason, told)
        return Batch(keys, now, _pack((len(ours), terms, rows, notes)), noted)

    def _stranger(self, pair: Pair, payout: str, now: int) -> tuple[str, str]:
        """What is seen of who was not noted lately, and what is noted of an approval, both JSON."""
        seen = look(pair, self._paid_for[pair.fund_account], self._paid_at[pair.vendor], now)
        told = ""
        if to_note(pair, seen):
            fund_account, vendor = _json(pair.fund_account).decode(), _json(pair.vendor).decode()
            told = (
                f',{{"type":"beneficiary.noted","v":1,"at":{now},"payout":"{payout}","account":"{pair.account}",'
                f'"fund_account":{fund_account},"vendor":{vendor}}}'
            )
        return _json(seen).decode(), told

    async def write(self, batch: Batch) -> None:
        """Write it, and remember whom it noted."""
        codes = await self._client.execute_command(
            *("EVALSHA", self._sha, len(batch.keys), *batch.keys),
            *(GROUP, int(self._acknowledges), batch.now, job.ACCOUNT, job.RATE_COUNT, job.RATE_WINDOW_S),
            *(int(Limits().retention_s), batch.packed),
        )
        for place, pair in batch.noted:
            if codes[place - 1] == 0:
                payee, host = pair.fund_account, pair.vendor
                self._paid_for[payee] = with_name(self._paid_for[payee], host, batch.now)
                self._paid_at[host] = with_name(self._paid_at[host], payee, batch.now)


def _vendor(url: str, now: int) -> Vendor:
    until = now + engine.FRESH_US
    return Vendor(
        url.split("/", 3)[2],
        f',"vendor_url":{_json(url).decode()}',
        f',"verdict":"clean","checked_at":{now},"fresh_until":{until}',
        f',"reputation_fresh_until":{until}',
    )


def _over(amount: int, limit: int) -> str:
    return (
        '{"stage":"screening","code":"TXN_LIMIT_EXCEEDED","outcome":"REJECTED",'
        f'"evidence":{{"amount":{amount},"limit":{limit}}}}}'
    )


def _blocked(host: str) -> str:
    return (
        '{"stage":"screening","code":"DOMAIN_BLOCKED","outcome":"REJECTED",'
        f'"evidence":{{"host":"{host}","rule":"{host}"}}}}'
    )


class Decided(NamedTuple):
    """What is to be written, and what only has to be acknowledged."""

    batch: Batch | None
    skipped: list[bytes]


class Worker:
    """Reads, decides and writes; two batches are under way at most."""

    def __init__(self, reader: Redis, client: Redis, sha: str) -> None:
        self._reader, self._client = reader, client
        self._clerk = Clerk(client, sha, acknowledges=True)

    async def run(self) -> None:
        """Work until cancelled."""
        await overlapping(self._read, self._decide, self._finish)

    async def _decide(self, entries: list[Entry]) -> Decided | None:
        batch = await self._clerk.batch(entries)
        skipped = [entry for entry, e in entries if not e.startswith(OURS)]
        return Decided(batch, skipped) if batch is not None or skipped else None

    async def _read(self) -> list[Entry]:
        reply = await self._reader.execute_command(
            *("XREADGROUP", "GROUP", GROUP, "1", "COUNT", job.BATCH_MAX),
            *("BLOCK", BLOCK_MS, "STREAMS", NAMES.log, ">"),
        )
        return [(entry, fields[1]) for entry, fields in reply[0][1]] if reply else []

    async def _finish(self, decided: Decided) -> None:
        if decided.batch is not None:
            await self._clerk.write(decided.batch)
        if decided.skipped:
            await self._client.execute_command("XACK", NAMES.log, GROUP, *decided.skipped)


def script() -> str:
    """whole.lua with the files it shares with the engine's scripts, below its first line as they are there."""
    shared = [files("streamproc.log").joinpath(f"lua/{part}.lua").read_text() for part in PARTS]
    own = files("streamproc.bench").joinpath("whole.lua").read_text()
    return "\n".join(("#!lua", *(text.partition("\n")[2] for text in (*shared, own))))


async def main(url: str) -> None:
    """Compete."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(connected(url, blocking=True))
        client = await stack.enter_async_context(connected(url))
        worker = Worker(reader, client, await client.script_load(script()))
        look_less_often()
        await compete(worker.run())


if __name__ == "__main__":
    uvloop.run(main(*given()))

"""The whole floor: a worker written by hand for this job alone, which leaves behind all that the engine leaves.

It works on the engine's log. For each payout it writes an entry with the same events, the record and the admission, the
counters, the registry of beneficiaries, and the acknowledgement. It lacks all that only other jobs need: policies that
change, other rules, other windows, more than one pending status, retries, dead letters, payouts that are known already,
a second worker on the partition. Anything outside this job is an error.

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
from streamproc.domain.beneficiaries import NOTED, RENEW_S, Noted, Pair, look, to_note, with_name
from streamproc.domain.budget import US
from streamproc.errors import JobFailed
from streamproc.gc_tuning import tune_for_batches
from streamproc.log.batch import Limits
from streamproc.log.connection import connected

NAMES, GROUP = engine.NAMES, consumers.GOVERNANCE
PARTS = ("checks", "beneficiaries", "own")
"""Parts of the engine's scripts that are used here too: they note beneficiaries and pass over own outputs."""
POLICY_VERSION = "1"
ZONE_S = job.noon_offset_h(time.time()) * 3_600
"""Offset from UTC (s) of the time zone in which days are counted, as in the engine's policies."""
DAY_S = 86_400
PAYEES_KEPT = 4_096
"""Fund accounts whose JSON is cached."""
OBSERVATION = b'[{"type":"payout.observed",'
"""Start of the entries that are decided. Other entries (policies, own outputs) are acknowledged without decoding."""

Entry = tuple[bytes, bytes]
"""The id of an entry, and its field `e`."""


class Notes(Struct, frozen=True, gc=False):
    """The parts of a payout's notes that the job needs."""

    agent_id: str
    vendor_url: str


class Facts(Struct, frozen=True, gc=False):
    """The parts of the bank's payout that the job needs. The amount is in paise."""

    amount: int
    currency: str
    status: str
    fund_account_id: str
    reference_id: str
    notes: Notes


class Observed(Struct, frozen=True, gc=False):
    """The parts of a `payout.observed` that the job needs. `at` is in µs."""

    at: int
    payout: str
    account: str
    facts: Facts


class Vendor(NamedTuple):
    """A vendor's host, and the pieces of JSON for its URL and its reputation."""

    host: str
    url: str
    reputation: str
    fresh_until: str


_decode = msgspec.json.Decoder(list[Observed]).decode
_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_NOTED = _json(NOTED).decode()


@lru_cache(maxsize=PAYEES_KEPT)
def _payee(fund_account: str) -> str:
    return f',"fund_account":{_json(fund_account).decode()},"reference_id":'


@lru_cache(maxsize=4)
def _day(number: int) -> tuple[str, str]:
    """Name and end (Unix s) of a day, by its number since 1970."""
    day = date.fromordinal(date(1970, 1, 1).toordinal() + number)
    return day.isoformat(), str((number + 1) * DAY_S - ZONE_S)


class Batch(NamedTuple):
    """Arguments of the script (keys, and packed rows), and the pairs that it notes, each with the number of its row."""

    keys: list[str]
    now: int
    packed: bytes
    noted: list[tuple[int, Pair]]


class Clerk:
    """Decides batches and writes the results. Policies, reputations and beneficiaries are in its memory."""

    def __init__(self, client: Redis, sha: str, *, acknowledges: bool) -> None:
        now = time.time_ns() // 1000
        self._client, self._sha, self._acknowledges = client, sha, acknowledges
        self._policies = job.policies()
        self._vendors = {url: _vendor(url, now) for url in job.vendor_urls()}
        self._paid_for: dict[str, Noted] = {}
        self._paid_at: dict[str, Noted] = {}

    async def batch(self, entries: Sequence[Entry]) -> Batch | None:
        """The batch to be written for the observations among these entries; None if there are none.

        Beneficiaries that are met for the first time are read from Redis in one more round trip. After the first
        batches there are none.
        """
        observations = [(entry, _decode(e)[0]) for entry, e in entries if e.startswith(OBSERVATION)]
        if not observations:
            return None
        payees = {
            event.facts.fund_account_id
            for _, event in observations
            if event.facts.fund_account_id not in self._paid_for
        }
        hosts = {vendor.host for vendor in self._vendors.values() if vendor.host not in self._paid_at}
        if payees or hosts:
            await self._load_registry(list(payees), list(hosts))
        return self._written_out(observations, time.time_ns() // 1000)

    async def _load_registry(self, payees: list[str], hosts: list[str]) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for payee in payees:
                pipe.hgetall(NAMES.paid_for(job.ACCOUNT, payee))
            for host in hosts:
                pipe.hgetall(NAMES.paid_at(job.ACCOUNT, host))
            noted = [{name.decode(): int(at) for name, at in row.items()} for row in await pipe.execute()]
        self._paid_for.update(zip(payees, noted, strict=False))
        self._paid_at.update(zip(hosts, noted[len(payees) :], strict=True))

    def _written_out(self, observations: list[tuple[bytes, Observed]], now: int) -> Batch:
        policies, vendors = self._policies, self._vendors
        paid_for, paid_at, fresh = self._paid_for, self._paid_at, now - RENEW_S * US
        payout_key = f"{NAMES.base}:payout:"
        keys = [
            NAMES.log,
            NAMES.number,
            NAMES.own(GROUP),
            *(payout_key + event.payout for _, event in observations),
        ]
        numbers: dict[tuple[str, int], int] = {}
        terms: list[Any] = []
        rows: list[Any] = []
        notes: list[Any] = []
        noted: list[tuple[int, Pair]] = []
        for place, (entry, event) in enumerate(observations, 1):
            facts = event.facts
            agent, amount, payee = facts.notes.agent_id, facts.amount, facts.fund_account_id
            policy, vendor = policies[agent], vendors[facts.notes.vendor_url]
            if event.account != job.ACCOUNT or facts.status != "pending" or facts.currency != "INR":
                raise JobFailed(f"payout {event.payout} is not of the job")
            day = (event.at // US + ZONE_S) // DAY_S
            number = numbers.get((agent, day))
            if number is None:
                number = numbers[agent, day] = len(numbers) + 1
                name, ends = _day(day)
                terms += (agent, POLICY_VERSION, name, str(policy.day_limit), ends)
                terms += (len(keys) + 1, len(keys) + 2)
                keys += (NAMES.rate(agent), NAMES.budget(f"agent:{agent}", name))
            verdict, beneficiary, noted_event, reason = vendor.reputation, _NOTED, "", ""
            host = vendor.host
            if amount > policy.txn_limit:
                reason, verdict = "TXN_LIMIT_EXCEEDED", _over(amount, policy.txn_limit)
            elif host in policy.blocked:
                reason, verdict = "DOMAIN_BLOCKED", _blocked(host)
            elif paid_for[payee].get(host, 0) <= fresh or paid_at[host].get(payee, 0) <= fresh:
                pair = Pair(job.ACCOUNT, payee, host)
                beneficiary, noted_event = self._not_noted_lately(pair, event.payout, now)
                if noted_event:
                    noted.append((place, pair))
                    notes += (place, len(keys) + 1, host, place, len(keys) + 2, payee)
                    keys += (NAMES.paid_for(job.ACCOUNT, payee), NAMES.paid_at(job.ACCOUNT, host))
            head = vendor.url + _payee(payee) + _json(facts.reference_id).decode()
            rows += (entry.decode(), event.payout, str(amount), str(event.at), number)
            rows += (head, verdict, vendor.fresh_until, beneficiary, reason, noted_event)
        return Batch(keys, now, _pack((len(observations), terms, rows, notes)), noted)

    def _not_noted_lately(self, pair: Pair, payout: str, now: int) -> tuple[str, str]:
        """What rule 13 sees of a pair that was not noted lately, and the event that notes it or ''. Both are JSON."""
        seen = look(pair, self._paid_for[pair.fund_account], self._paid_at[pair.vendor], now)
        noted_event = ""
        if to_note(pair, seen):
            fund_account, vendor = _json(pair.fund_account).decode(), _json(pair.vendor).decode()
            noted_event = (
                f',{{"type":"beneficiary.noted","v":1,"at":{now},"payout":"{payout}","account":"{pair.account}",'
                f'"fund_account":{fund_account},"vendor":{vendor}}}'
            )
        return _json(seen).decode(), noted_event

    async def write(self, batch: Batch) -> None:
        """Write the batch, and remember the beneficiaries that it noted."""
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
    """The batch to be written, and entries that only have to be acknowledged."""

    batch: Batch | None
    skipped: list[bytes]


class Worker:
    """Reads, decides and writes; at most two batches are under way."""

    def __init__(self, reader: Redis, client: Redis, sha: str) -> None:
        self._reader, self._client = reader, client
        self._clerk = Clerk(client, sha, acknowledges=True)

    async def run(self) -> None:
        """Work until cancelled."""
        await overlapping(self._read, self._decide, self._finish)

    async def _decide(self, entries: list[Entry]) -> Decided | None:
        batch = await self._clerk.batch(entries)
        skipped = [entry for entry, e in entries if not e.startswith(OBSERVATION)]
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
    """whole.lua after the files that it shares with the engine's scripts."""
    shared = [files("streamproc.log").joinpath(f"lua/{part}.lua").read_text() for part in PARTS]
    own = files("streamproc.bench").joinpath("whole.lua").read_text()
    return "\n".join(("#!lua", *(text.partition("\n")[2] for text in (*shared, own))))


async def main(url: str) -> None:
    """Compete."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(connected(url, blocking=True))
        client = await stack.enter_async_context(connected(url))
        worker = Worker(reader, client, await client.script_load(script()))
        tune_for_batches()
        await compete(worker.run())


if __name__ == "__main__":
    uvloop.run(main(*given()))

"""The floor: one asyncio worker that is written by hand for this job alone.

It has no retries, no dead letters, no record of how a decision came about, no policy changes, and no crash safety
beyond Redis's pending entries list. Reading, committing and inserting overlap: at most two batches are under way,
commits are in order on one connection, and a batch's audit rows are written while the next batch is decoded and
committed.

Run as a process, with the arguments (`arguments.py`) REDIS_URL [POSTGRES_DSN].
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.resources import files
from typing import Any

import asyncpg
import msgspec
import uvloop
from msgspec import Struct
from redis.asyncio import Redis

from streamproc.bench import job
from streamproc.bench.arguments import given
from streamproc.bench.contestant import compete, overlapping
from streamproc.domain.events import PayoutObserved
from streamproc.log.connection import connected

IN, OUT, GROUP = "payouts", "decisions", "floor"
BLOCK_MS = 1_000
LOAD_BATCH = 500
REASONS = ("POLICY_OK", "RATE_LIMITED", "LIMIT_EXCEEDED")
"""Reasons by the code that hop.lua returns; a higher code stands for the reason that the script was given."""
WINDOW_US = job.RATE_WINDOW_S * 1_000_000
DAY = time.strftime("%Y%m%d", time.gmtime())
"""Named once, since the engine's day does not end during a run either (`job.noon_zone`)."""

AUDIT_TABLE = """
CREATE TABLE audit (
    payout text PRIMARY KEY, agent text NOT NULL, amount bigint NOT NULL, decision text NOT NULL, reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
)"""
AUDIT_ROWS = """
INSERT INTO audit (payout, agent, amount, decision, reason)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[]) ON CONFLICT DO NOTHING"""
AUDIT_COUNTS = "SELECT reason, count(*) FROM audit GROUP BY reason"


class Decision(Struct, omit_defaults=True):
    """The decision event. hop.lua appends the last two fields."""

    payout: str
    agent: str
    amount: int
    at: int
    decision: str = ""
    reason: str = ""


_decode = msgspec.json.Decoder(list[PayoutObserved]).decode
_encode = msgspec.json.Encoder().encode


def decision_start(payout: str, agent: str, amount: int, now_us: int) -> bytes:
    """The start of the decision event, which hop.lua completes."""
    return _encode(Decision(payout, agent, amount, now_us))[:-1]


class Batch:
    """One batch that was read and is not acknowledged yet."""

    __slots__ = ("agents", "amounts", "args", "entries", "keys", "payouts", "verdicts")

    def __init__(
        self, entries: list[Any], policies: dict[str, job.Policy], decode: Callable[[Any], Any] = _decode
    ) -> None:
        now_us = time.time_ns() // 1000
        numbers: dict[str, int] = {}
        payouts: list[str] = []
        agents: list[str] = []
        amounts: list[int] = []
        verdicts: list[str] = []
        rows: list[Any] = []
        for entry, fields in entries:
            event = decode(fields[1])[0]
            payout, facts = event.payout, event.facts
            agent, amount = facts.notes["agent_id"], facts.amount
            verdict = job.rejection(policies.get(agent), amount, facts.notes["vendor_url"])
            number = numbers.setdefault(agent, len(numbers) + 1)
            head = decision_start(payout, agent, amount, now_us)
            rows += (entry, number, payout, amount, verdict, head)
            payouts.append(payout)
            agents.append(agent)
            amounts.append(amount)
            verdicts.append(verdict)
        self.entries = [entry for entry, _ in entries]
        self.payouts, self.agents, self.amounts, self.verdicts = payouts, agents, amounts, verdicts
        self.keys = [key for agent in numbers for key in (f"rate:{agent}", f"budget:{agent}:{DAY}")]
        limits = [policies[agent].day_limit for agent in numbers]
        self.args = [now_us, WINDOW_US, job.RATE_COUNT, len(numbers), *limits, *rows]

    def rows(self, codes: list[int]) -> tuple[list[str], list[str], list[int], list[str], list[str]]:
        """The columns of the audit rows, from the codes that hop.lua returned."""
        reasons = [
            REASONS[code] if code < len(REASONS) else verdict
            for code, verdict in zip(codes, self.verdicts, strict=True)
        ]
        decisions = ["APPROVED" if code == 0 else "REJECTED" for code in codes]
        return self.payouts, self.agents, self.amounts, decisions, reasons


class Hop:
    """The worker. With a connection to Postgres it acknowledges only after the audit rows are written."""

    def __init__(self, reader: Redis, client: Redis, sha: str, db: asyncpg.Connection | None) -> None:
        self._reader, self._client, self._sha, self._db = reader, client, sha, db
        self._group = GROUP if db is None else ""
        self._inserting = asyncio.Lock()
        self._policies = job.policies()

    async def run(self) -> None:
        """Work until cancelled."""
        await overlapping(self._read, self._decide, self._finish)

    async def _decide(self, entries: list[Any]) -> Batch | None:
        return Batch(entries, self._policies) if entries else None

    async def _read(self) -> list[Any]:
        reply = await self._reader.execute_command(
            "XREADGROUP", "GROUP", GROUP, "1", "COUNT", job.BATCH_MAX, "BLOCK", BLOCK_MS, "STREAMS", IN, ">"
        )
        return reply[0][1] if reply else []

    async def _finish(self, batch: Batch) -> None:
        codes = await self._client.execute_command(
            "EVALSHA", self._sha, 2 + len(batch.keys), IN, OUT, *batch.keys, self._group, *batch.args
        )
        if self._db is None:
            return
        async with self._inserting:
            await self._db.execute(AUDIT_ROWS, *batch.rows(codes))
        await self._client.execute_command("XACK", IN, GROUP, *batch.entries)


async def load(client: Redis, payouts: int, payees: int, at_us: int, field: str = "e") -> None:
    """Put the payouts into the stream, under `field`."""
    await client.xgroup_create(IN, GROUP, id="0", mkstream=True)
    for start in range(0, payouts, LOAD_BATCH):
        async with client.pipeline(transaction=False) as pipe:
            for i in range(start, min(payouts, start + LOAD_BATCH)):
                pipe.xadd(IN, {field: job.payload(i, at_us + i, payees)})
            await pipe.execute()


def script() -> str:
    """hop.lua."""
    return files("streamproc.bench").joinpath("hop.lua").read_text()


async def outcomes(client: Redis) -> Counter[str]:
    """Number of decisions in the stream of decisions, by reason."""
    decode = msgspec.json.Decoder(Decision).decode
    rows = await client.execute_command("XRANGE", OUT, "-", "+")
    return Counter(decode(fields[1]).reason for _, fields in rows)


async def main(url: str, dsn: str | None = None) -> None:
    """Compete."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(connected(url, blocking=True))
        client = await stack.enter_async_context(connected(url))
        sha = await client.script_load(script())
        db = await asyncpg.connect(dsn) if dsn else None
        if db is not None:
            stack.push_async_callback(db.close)
        await compete(Hop(reader, client, sha, db).run())


if __name__ == "__main__":
    uvloop.run(main(*given()))

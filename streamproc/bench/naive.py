"""A naive projector: one transaction per event, which inserts one row and updates another."""

from collections.abc import Sequence

import asyncpg

from streamproc.domain.events import Event, PayoutDecided, PayoutObserved
from streamproc.domain.wire import payout_of, type_of

TABLES = (
    "CREATE TABLE naive_payouts (payout text PRIMARY KEY, status text, decision text, reason text, updated_at bigint)",
    "CREATE TABLE naive_audit (id text PRIMARY KEY, payout text, type text, at bigint)",
    "CREATE INDEX naive_audit_payout ON naive_audit (payout)",
)
INSERT = "INSERT INTO naive_audit (id, payout, type, at) VALUES ($1, $2, $3, $4)"
UPSERT = """
    INSERT INTO naive_payouts (payout, status, decision, reason, updated_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (payout) DO UPDATE SET
        status = coalesce(excluded.status, naive_payouts.status),
        decision = coalesce(excluded.decision, naive_payouts.decision),
        reason = coalesce(excluded.reason, naive_payouts.reason),
        updated_at = excluded.updated_at
"""


async def make(db: asyncpg.Connection) -> None:
    """Create its tables."""
    for statement in TABLES:
        await db.execute(statement)


async def project(db: asyncpg.Connection, events: Sequence[tuple[str, int, Event]]) -> None:
    """Fold each event in its own transaction; `events` are (entry id, place in the entry, event)."""
    for entry, place, event in events:
        payout = payout_of(event)
        async with db.transaction():
            await db.execute(INSERT, f"{entry}:{place}", payout, type_of(event), event.at)
            if payout:
                status = event.facts.status if isinstance(event, PayoutObserved) else None
                decided = event if isinstance(event, PayoutDecided) else None
                decision, reason = (decided.decision, decided.reason) if decided else (None, None)
                await db.execute(UPSERT, payout, status, decision, reason, event.at)

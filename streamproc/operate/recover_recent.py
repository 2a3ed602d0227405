"""Restores what only recent entries tell: deliveries' keys, rate slots, the counter, unanswered inputs."""

import re
from collections.abc import Sequence

from consumers.inputs import INPUTS, is_answered
from projections.rebuild import target_at_time
from streamproc.archive.load import rows_after
from streamproc.archive.rows import Row
from streamproc.domain.deliveries import derived_keys
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import (
    BudgetReserved,
    CancelRequested,
    DeadLetterClosed,
    EntrySetAside,
    Fact,
    PayoutDecided,
    PayoutMalformed,
    PayoutRequested,
    ReviewSubmitted,
    VelocityChecked,
)
from streamproc.domain.policy_fields import RATE_WINDOW_S_MAX
from streamproc.domain.recovery import Rates, Stored, Unhandled
from streamproc.domain.wire import Meta, decode_events, decode_meta, tag_of
from streamproc.errors import Unprocessable
from streamproc.log.restore import Restorer
from streamproc.log.scripts import RATE_BACKLOG_S, SEEN_TTL_S
from streamproc.operate.recover_state import MS, ROWS_AT_ONCE, SQL, Counts, OnStage, Sources

NUMBERS_WITHIN = 10_000
"""The highest number is among this many last entries, since workers do not commit further out of order."""
RATE_SCAN_S = RATE_WINDOW_S_MAX + RATE_BACKLOG_S
"""A slot recorded longer ago has left the window, even for a payout that comes late."""

_TOLD: tuple[type[Fact], ...] = (
    *(VelocityChecked, BudgetReserved, PayoutDecided, CancelRequested),
    *(PayoutRequested, ReviewSubmitted, PayoutMalformed, EntrySetAside, DeadLetterClosed),
)
"""Events for which an entry is decoded."""
_of_interest = re.compile(
    b'"type":"(?:' + b"|".join(re.escape(tag_of(kind).encode()) for kind in _TOLD) + b')"'
).search


async def restore_recent(sources: Sources, to: Restorer, counts: Counts, say: OnStage) -> None:
    """Read the archive, from as far back as deliveries are remembered, to its end."""
    scan = _Scan(sources, to, counts)
    first = await target_at_time(sources.archive, sources.partition, sources.now_ms - SEEN_TTL_S * MS)
    at = begin = max(0, min(first.seq, sources.head.seq - NUMBERS_WITHIN))
    while at < sources.head.seq:
        rows = await rows_after(sources.archive, sources.partition, at, ROWS_AT_ONCE)
        rows = [row for row in rows if row.seq <= sources.head.seq]
        await scan.take(rows)
        at = rows[-1].seq
        say("recent entries", at - begin, sources.head.seq - begin)
    await scan.end()


class _Scan:
    """One pass over recent entries, in order."""

    def __init__(self, sources: Sources, to: Restorer, counts: Counts) -> None:
        self._sources, self._to, self._counts = sources, to, counts
        self._rates = Rates()
        self._unanswered = Unhandled(INPUTS, is_answered)
        self._number = 0
        self._rates_from_ms = sources.now_ms - RATE_SCAN_S * MS

    async def take(self, rows: Sequence[Row]) -> None:
        """Restore what follows from each of the next entries, and gather what only the whole scan can tell.

        Raises Unprocessable for an entry that cannot be read, unless a person disowned it.
        """
        checked: list[tuple[VelocityChecked, int]] = []
        for row in rows:
            entry_ms = id_key(row.id)[0]
            try:
                is_wanted = _of_interest(row.e) is not None
                entry = Stored(row.id, decode_meta(row.m), decode_events(row.e) if is_wanted else [])
                await self._seen(row, entry.meta, entry_ms)
            except Unprocessable:
                if not await self._sources.disowned.looked_for(row):
                    raise
                continue
            self._number = max(self._number, entry.meta.settled)
            self._unanswered.see(entry)
            for event in entry.events:
                if type(event) is BudgetReserved:
                    self._number = max(self._number, event.number)
                elif type(event) is VelocityChecked:
                    self._number = max(self._number, event.number)
                    if entry_ms >= self._rates_from_ms:
                        checked.append((event, entry_ms))
        await self._slots(checked)

    async def _seen(self, row: Row, meta: Meta, entry_ms: int) -> None:
        expires_s = entry_ms // MS + SEEN_TTL_S
        if meta.cause or meta.by in INPUTS or expires_s * MS <= self._sources.now_ms:
            return
        for key in meta.keys or derived_keys(decode_events(row.e), meta.body):
            await self._to.seen(key, row.id, expires_s)
            self._counts.seen += 1

    async def _slots(self, checked: Sequence[tuple[VelocityChecked, int]]) -> None:
        if not checked:
            return
        payouts = [event.payout for event, _ in checked]
        rows = await self._sources.place.fetch(SQL["parties"], self._sources.partition, payouts)
        parties = {row["payout"]: (row["agent"], row["received_us"]) for row in rows}
        for event, entry_ms in checked:
            agent, received_at = parties[event.payout]
            self._rates.add(agent, event, received_at, entry_ms)

    async def end(self) -> None:
        """Restore what only the whole scan can tell: rate slots, and which entries each group has not handled."""
        for agent, slots, window_us, last_ms in self._rates.agents():
            expires_s = last_ms // MS + window_us // 1_000_000 + RATE_BACKLOG_S
            if slots and expires_s * MS > self._sources.now_ms:
                await self._to.rate(agent, slots, expires_s)
                self._counts.rates += len(slots)
        for group, entries in self._unanswered.by_group().items():
            await self._sources.want(entries, group)
        await self._to.number(self._number)
        self._counts.number = self._number

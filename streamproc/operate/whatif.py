"""What-if: judges the archive again under a policy file, or, as a test of determinism, under the policies in force
then.

Each partition is read once, in one snapshot, in batches; what was observed long before its decision is looked up.
Nothing is written and no outside system is called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from projections.rebuild import Target, archive_ends, target_at_time
from streamproc.archive.disowned import Disowned, disowned_in
from streamproc.archive.load import entries_by_id, rows_after
from streamproc.archive.lookup import decided_payouts, policy_entries
from streamproc.archive.rows import Row
from streamproc.archive.store import errors_as_job_failed, snapshot
from streamproc.domain.budget import US
from streamproc.domain.events import Event, GovernanceBypassed, PayoutObserved, PayoutRequested
from streamproc.domain.policy import PolicyFile, plan_changes, scopes_after
from streamproc.domain.whatif.comparison import Comparison
from streamproc.domain.whatif.judge import Assumptions
from streamproc.domain.whatif.retrial import Overlay, Retrial, Scopes
from streamproc.domain.whatif.trial import DecodedEntry
from streamproc.domain.wire import Meta
from streamproc.errors import InputError, JobFailed, Unprocessable
from streamproc.operate.moments import us_of

ROWS_AT_ONCE = 2_000
WARM_UP_S = 33 * 86_400
"""How long before `since` reading begins: a month's budget window, plus a day for time zones. Older payouts have no
effect."""


@dataclass
class WhatIfProgress:
    """How far a what-if is: `done` of `total` archived entries are read, `judged` payouts are judged again."""

    done: int = 0
    total: int = 0
    judged: int = 0


class WhatIfResult(Struct, frozen=True):
    """The result, and what was asked. `positions`: archive positions by partition."""

    found: Comparison
    since: datetime
    positions: dict[int, int]


OnWhatIfProgress = Callable[[WhatIfProgress], None]


async def whatif(
    dsn: str,
    file: PolicyFile | None,
    *,
    since: datetime,
    prune: bool = False,
    assume: Assumptions,
    on_progress: OnWhatIfProgress = lambda _: None,
) -> WhatIfResult:
    """Judge every decision since `since` again: under `file` put over what was in force, or under that alone (None).

    Raises InputError if the file could not have been put in force then, JobFailed if the archive cannot be read.
    """
    overlay = None if file is None else overlay_of(file, prune=prune)
    with errors_as_job_failed("nothing was changed"):
        async with snapshot(dsn, name="streamproc whatif") as db:
            ends = await archive_ends(db)
            if not ends:
                raise JobFailed("the archive is empty: there is nothing to judge again")
            warm_ms = (us_of(since) - WARM_UP_S * US) // 1_000
            starts = [await target_at_time(db, end.partition, warm_ms) for end in ends]
            progress = WhatIfProgress(
                total=sum(end.seq - start.seq for start, end in zip(starts, ends, strict=True))
            )
            found = Comparison()
            for start, end in zip(starts, ends, strict=True):
                retrial = Retrial(
                    overlay, assume, since_us=us_of(since), first_number=1 if start.seq == 0 else None
                )
                archive = _Archive(db, end.partition, disowned_in(dsn, end.partition))
                found.take_in(await _retry(archive, retrial, start, end, progress, on_progress))
            return WhatIfResult(found, since, {end.partition: end.seq for end in ends})


def overlay_of(file: PolicyFile, *, prune: bool) -> Overlay:
    """The file put in force over what was. A scope that was `frozen` stays so unless its `frozen` is in the file."""

    def overlay(scopes: Scopes) -> Scopes:
        changes = plan_changes(scopes, _with_freezes(file, scopes), prune=prune, at=0, by="whatif", why="")
        return scopes_after(scopes, *changes)

    return overlay


def _with_freezes(file: PolicyFile, scopes: Scopes) -> PolicyFile:
    def kept(kind: str, named: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        return {name: _frozen_as(f"{kind}:{name}", fields) for name, fields in named.items()}

    def _frozen_as(scope: str, fields: dict[str, object]) -> dict[str, object]:
        was = scopes[scope].own if scope in scopes else None
        if was is None or not was.get("frozen") or "frozen" in fields:
            return fields
        return fields | {"frozen": True}

    return replace(
        file,
        policies=kept("agent", file.policies),
        accounts=kept("account", file.accounts),
        teams=kept("team", file.teams),
    )


def decoded_entry(row: Row, meta: Meta, events: list[Event]) -> DecodedEntry:
    """A row of the archive as a retrial reads it."""
    return DecodedEntry(row.seq, row.id, meta.by, meta.cause, meta.settled or None, events)


class _Archive(NamedTuple):
    """One partition's archive, in one snapshot."""

    db: asyncpg.Connection
    partition: int
    disowned: Disowned

    async def entry(self, row: Row) -> DecodedEntry:
        """A row as a retrial reads it; without events where it cannot be read and a person disowned it.

        Raises JobFailed, naming the entry, for anything else that nobody knows here.
        """
        try:
            return decoded_entry(row, *await self.disowned.read(row))
        except Unprocessable as problem:
            raise JobFailed(f"entry {self.partition}:{row.id} (seq {row.seq}): {problem}") from problem


async def _retry(
    archive: _Archive,
    retrial: Retrial,
    start: Target,
    end: Target,
    progress: WhatIfProgress,
    on_progress: OnWhatIfProgress,
) -> Comparison:
    """Judge one partition's archive again, from `start` to `end`."""
    judged = progress.judged
    if start.seq:
        for row in await policy_entries(archive.db, start.partition, start.seq):
            _feed(retrial, await archive.entry(row))
    after = start.seq
    while after < end.seq and (rows := await rows_after(archive.db, end.partition, after, ROWS_AT_ONCE)):
        # All of them, though not all tell something: what nobody knows here must not be passed over.
        entries = [await archive.entry(row) for row in rows]
        await _look_up(archive, retrial, entries)
        for one in entries:
            _feed(retrial, one)
        progress.done += rows[-1].seq - after
        progress.judged = judged + retrial.found.judged.payouts
        after = rows[-1].seq
        on_progress(progress)
    return retrial.finish()


def _feed(retrial: Retrial, entry: DecodedEntry) -> None:
    try:
        retrial.feed(entry)
    except InputError as problem:
        at = datetime.fromtimestamp(entry.at_ms / 1_000).astimezone().isoformat(timespec="seconds")
        raise InputError(
            f"at {at} the file would have been refused; try a later --since\n{problem}"
        ) from problem


async def _look_up(archive: _Archive, retrial: Retrial, entries: Sequence[DecodedEntry]) -> None:
    """Give the retrial what these entries rest on and it does not have (any more): the payouts that decisions were
    made on, and which bypassed payouts were decided."""
    here = {one.id for one in entries}
    wanted = [one.cause for one in entries if one.cause and one.cause not in here and retrial.misses(one)]
    for start in range(0, len(wanted), ROWS_AT_ONCE):
        some = wanted[start : start + ROWS_AT_ONCE]
        for row in await entries_by_id(archive.db, archive.partition, some):
            for event in (await archive.entry(row)).events:
                if type(event) is PayoutObserved or type(event) is PayoutRequested:
                    retrial.remember(row.id, event)
    bypassed = [
        event.payout for one in entries for event in one.events if isinstance(event, GovernanceBypassed)
    ]
    if bypassed:
        retrial.decided |= await decided_payouts(archive.db, archive.partition, bypassed)

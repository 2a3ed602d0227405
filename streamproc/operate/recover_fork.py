"""Carries over what a log took in after it had lost its tail: facts from outside are kept, decisions are made again.

After a failover that lost the newest entries the log may have gone on with other entries than the archive has: a fork.
Decisions made there rest on budgets and policies that had gone back, and no approval was sent by them, since the
archive did not have it; so they are dropped and made again. What came from outside is kept: what the bank showed and
answered, reviews, policy changes (above all a freeze), tokens, and proposals.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
from msgspec import Struct

from consumers.inputs import INPUTS
from streamproc.archive.load import not_archived, rows_after
from streamproc.domain.attribution import Attribution
from streamproc.domain.deliveries import derived_keys
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import (
    BankCommandAnswered,
    DeadLetterClosed,
    Event,
    NotificationSent,
    PayoutObserved,
    PolicyChanged,
)
from streamproc.domain.payouts import ASKED
from streamproc.domain.policy import ScopeState, scopes_after
from streamproc.domain.policy_changes import replan
from streamproc.domain.proposals import Proposal, proposals_after
from streamproc.domain.tokens import Token, tokens_after
from streamproc.domain.wire import Meta, Newer, encode_events, payout_of, read_entry
from streamproc.errors import InputError, JobFailed, Unprocessable
from streamproc.log.policies import POLICY_WRITER
from streamproc.log.restore import Restorer, rescued_after, rescued_entry
from streamproc.log.stream import Entry
from streamproc.operate.recover_state import SQL, Counts, Sources

ENTRIES_AT_ONCE = 500
_OUTSIDE = (BankCommandAnswered, NotificationSent)
"""Events of groups that happened in the world: the bank answered, a message was sent."""
TIMERS_WRITER = "timers"
"""The writer of fired timers (log/lua/due.lua). They are dropped, since timers are rebuilt and fire again."""

Scopes: TypeAlias = dict[str, ScopeState]
Tokens: TypeAlias = dict[str, Token]
Proposals: TypeAlias = dict[str, Proposal]
_encode = msgspec.json.Encoder().encode


class InForce(Struct, frozen=True):
    """What people have put in force: policies by scope, tokens by name, proposals by id."""

    scopes: Scopes
    tokens: Tokens
    proposals: Proposals


async def carry_over(
    sources: Sources, to: Restorer, in_force: InForce, counts: Counts, note: Callable[[str], None]
) -> InForce:
    """Append to the staged log what came from outside; what people have put in force after it.

    `note` is called with each thing that was not kept.
    """
    fork = _Fork(sources, to, in_force, note)
    after = await _common_end(sources, to)
    while entries := await rescued_after(to.client, to.names, after, ENTRIES_AT_ONCE):
        after = entries[-1].id
        for entry in await not_archived(sources.archive, sources.partition, entries):
            if await fork.take(entry):
                counts.rescued += 1
            else:
                counts.dropped += 1
    return InForce(fork.scopes, fork.tokens, fork.proposals)


async def _common_end(sources: Sources, to: Restorer) -> str:
    """The last archived entry that the old log has too; what follows it there is the fork.

    Found by bisection. Where an earlier recovery left gaps it may find an earlier entry, which only costs time.
    """
    low, high, common = 0, sources.head.seq, ZERO
    while low < high:
        middle = (low + high + 1) // 2
        [row] = await rows_after(sources.archive, sources.partition, middle - 1, 1)
        found = await rescued_entry(to.client, to.names, row.id)
        if found is not None and (found.e, found.m) == (row.e, row.m):
            low, common = middle, row.id
        else:
            high = middle - 1
    return common


class _Fork:
    """Takes in the fork's entries, in order."""

    def __init__(
        self, sources: Sources, to: Restorer, in_force: InForce, note: Callable[[str], None]
    ) -> None:
        self._sources, self._to, self._note = sources, to, note
        self.scopes = dict(in_force.scopes)
        self.tokens = dict(in_force.tokens)
        self.proposals = dict(in_force.proposals)
        self._observed: set[str] = set()

    async def take(self, entry: Entry) -> bool:
        """Append to the new log what is kept of an entry of the old one; False where nothing is.

        Raises JobFailed for an entry that only a later version can read.
        """
        try:
            meta, events = read_entry(entry.e, entry.m)
        except Newer as problem:  # until that is done the old log stays aside, and the partition closed
            if await self._sources.disowned.looked_for(entry):
                self._note(f"entry {entry.id} of the old log was disowned and is not kept")
                return False
            raise JobFailed(
                f"entry {self._sources.partition}:{entry.id} of the old log: {problem}; recover with that version, or"
                " where no version of streamproc wrote it with `--disown` and `--no-later-version`"
            ) from problem
        except Unprocessable as problem:
            self._note(f"entry {entry.id} of the old log cannot be read and is not kept: {problem}")
            return False
        if meta.by == POLICY_WRITER:
            return await self._policies(entry, meta, events)
        if meta.by in INPUTS or meta.cause:
            return await self._facts(entry, meta, events)
        if meta.by == TIMERS_WRITER:
            return False
        for event in events:
            if type(event) is DeadLetterClosed:
                self._note(
                    f"dead letter {event.letter}: its {event.action} by {event.by} is to be done again"
                )
                return False
        self.tokens = tokens_after(self.tokens, events)
        self.proposals = proposals_after(self.proposals, events)
        self._observed.update(payout_of(event) for event in events if type(event) in ASKED)
        return await self._append(entry.e, entry, meta, meta.keys or derived_keys(events, meta.body))

    async def _facts(self, entry: Entry, meta: Meta, events: list[Event]) -> bool:
        """Keep, of what a group wrote, the facts from outside."""
        facts = [
            event
            for event in events
            if type(event) is PayoutObserved
            or (type(event) in _OUTSIDE and await self._is_known(payout_of(event)))
        ]
        if not facts:
            return False
        return await self._append(encode_events(facts), entry, Meta(by=meta.by), ())

    async def _is_known(self, payout: str) -> bool:
        """Whether the payout was observed; before that nothing may be recorded of it."""
        if payout in self._observed:
            return True
        known = await self._sources.archive.fetchval(SQL["knows_payout"], self._sources.partition, payout)
        return bool(known)

    async def _policies(self, entry: Entry, meta: Meta, events: list[Event]) -> bool:
        """Make the same changes on the policies that the archive has, under their next versions."""
        made = [event for event in events if type(event) is PolicyChanged]
        try:
            done = self._replanned(made)
        except InputError:
            done = []
            for change in made:  # one by one, so that one that does not fit does not prevent a freeze
                try:
                    done += self._replanned([change])
                except InputError as problem:
                    self._note(
                        f"the change of {change.scope} by {change.by} ({change.why}) does not fit what was in"
                        f" force: {problem}; apply it again by hand"
                    )
        return bool(done) and await self._append(encode_events(done), entry, meta, ())

    def _replanned(self, made: list[PolicyChanged]) -> list[PolicyChanged]:
        if not made:
            return []
        first, at = made[0], self._sources.now_us
        changes = replan(
            self.scopes, made, Attribution(first.by, first.channel, first.why), at=at,
            confirmed=Attribution(first.confirmed_by, first.confirmed_channel), proposal=first.proposal,
        )  # fmt: skip
        self.scopes = scopes_after(self.scopes, *changes)
        return changes

    async def _append(self, e: bytes, entry: Entry, meta: Meta, keys: tuple[str, ...]) -> bool:
        m: Mapping[str, str] = {"by": meta.by, "actor": meta.actor, "rescued": entry.id}
        return await self._to.append(e, _encode({k: v for k, v in m.items() if v}), keys)

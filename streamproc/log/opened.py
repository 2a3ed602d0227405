"""Entries that were read, before anything is done about them: decoded, and what Redis knows of their payouts.

Both may be done ahead, while another batch is in hand, so that what Redis knew may have changed. For payouts and
policies the commit finds that out, as it does when another worker was faster. For beneficiaries it finds out only that
somebody is noted where nobody was; so knowledge from ahead is used only where no note of the batches between can have
changed it (`known_lately`). What can be offered by what is remembered is not asked about at all (remembered.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, time_ns
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.domain.beneficiaries import NOTED, look
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import BeneficiarySeen, Event
from streamproc.domain.payouts import ASKED
from streamproc.domain.wire import (
    Newer,
    decode_events,
    decode_meta,
    payout_of,
    refuse_newer,
    tag_of,
    written_by,
)
from streamproc.errors import TryAgain, Unprocessable
from streamproc.log import payees, scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.payees import First
from streamproc.log.remembered import Remembered
from streamproc.log.scripts import Raw
from streamproc.log.work import Group, Work, distinct_payouts

NEWER_S = 5.0
"""Delay of an entry that only a later version can read, so that one of its workers may take it up."""
AHEAD_S = 0.25
"""Age (several full batches) beyond which knowledge from ahead is asked anew: decisions bear its time."""

_AS_WRITTEN = b'[{"type":"'
"""How the events of every entry begin that streamproc wrote. What begins otherwise is decoded, to see whether it is
readable."""


class Known(NamedTuple):
    """What Redis knew of some payouts, and of the beneficiaries of those that are seen for the first time."""

    now_us: int
    """Redis's clock."""
    at_ns: int
    """This host's clock when the answer came."""
    at_s: float
    """Its monotonic clock then."""
    asked_s: float
    """Its monotonic clock when the question was sent."""
    rev: bytes
    rows: list[scripts.Row]
    seen: list[First]
    beneficiaries: list[BeneficiarySeen]
    """What was known of the beneficiary of each in `seen`."""
    unpaid: set[str]
    """Those of their hashes in which nobody was noted."""


async def known_of(client: Redis, names: Names, group: Group, works: Sequence[Work]) -> Known:
    """Ask Redis about works of distinct payouts, in one call."""
    payouts = [w.payout for w in works if w.payout]
    seen = [] if group.outputs_are_facts else payees.first_looks(names, works)
    keys = list(dict.fromkeys(key for first in seen for key in first.whom.keys))
    asked_s = monotonic()
    now_us, rev, rows, found = await scripts.load(client, names, payouts, keys)
    at_ns, at_s = time_ns(), monotonic()
    noted = dict(zip(keys, found, strict=True))
    beneficiaries = list[BeneficiarySeen]()
    for first in seen:
        by_account, by_vendor = first.whom.keys
        beneficiaries.append(look(first.whom.pair, noted[by_account], noted[by_vendor], now_us))
    unpaid = {key for key, there in noted.items() if not there}
    return Known(now_us, at_ns, at_s, asked_s, rev, rows, seen, beneficiaries, unpaid)


@dataclass(slots=True, eq=False)
class Opened:
    """Entries that were read together, by what is to be done with them."""

    entries: Sequence[Raw] = ()
    works: list[Work] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)
    """They concern others; they only have to be acknowledged."""
    unreadable: list[tuple[Work, str]] = field(default_factory=list)
    newer: list[Work] = field(default_factory=list)
    """Only a later version can read them; they are deferred."""
    known: Known | None = None
    """What Redis knew of the works in the first pass."""
    from_memory: Sequence[First] = ()
    """Works of the first pass that are offered before Redis is asked about the rest; then `known` is None."""

    def known_lately(self, remembered: Remembered) -> Known | None:
        """`known`, if it is still good: not too old, and all its beneficiaries were noted, in hashes where no batch
        since then noted anybody else."""
        known = self.known
        if known is None or monotonic() - known.at_s >= AHEAD_S:
            return None
        if any(beneficiary is not NOTED for beneficiary in known.beneficiaries):
            return None
        if any(remembered.is_doubted(first, known.asked_s) for first in known.seen):
            return None
        return known


class Opener:
    """Decodes entries for one group, and asks about them ahead."""

    def __init__(self, names: Names, group: Group) -> None:
        self.names, self.group = names, group
        self.remembered = Remembered()
        self._doubted: tuple[int, int] | None = None
        self._mine = written_by(group.name)
        tags = b"|".join(re.escape(tag_of(kind).encode()) for kind in group.consumes)
        self._consumed = re.compile(group.wanted or b'"type":"(?:' + tags + b')"').search

    def doubt(self, upto: str) -> None:
        """Entries up to this id count as taken, however they come: a server that is gone may have delivered them."""
        self._doubted = id_key(upto)

    async def ahead(self, client: Redis, entries: Sequence[Raw]) -> Opened:
        """Open entries ahead of their batch, and ask about the first pass over them, unless most of it is offered
        from memory.

        Nothing is asked ahead for a group whose outputs are facts: a worker that acts on outdated knowledge would call,
        or tell people, a second time.
        """
        opened = self.open(entries, taken=False)
        if opened.works and not self.group.outputs_are_facts:
            batch, _ = self.one_pass(opened.works)
            first = payees.first_looks(self.names, batch) if self.group.fast_path is not None else []
            opened.from_memory = self.remembered.of(first, len(batch))
            if opened.from_memory:
                return opened
            opened.known = await known_of(client, self.names, self.group, batch)
        return opened

    def open(self, entries: Sequence[Raw], *, taken: bool, unsent: frozenset[bytes] = frozenset()) -> Opened:
        """Decode what concerns the group. `taken`: the entries come from retries or from another consumer; `unsent`:
        those of them that were only put off there."""
        opened = Opened(entries)
        for entry in entries:
            fields = entry[1]
            if len(fields) < 4 or fields[0] != b"e" or fields[2] != b"m":
                why = "the entry has no fields `e` and `m`"
                opened.unreadable.append((Work(entry[0], [], "", taken), why))
                continue
            try:
                if self._concerns_us(entry):
                    opened.works.append(work := work_of(entry, taken=taken or self._is_doubted(entry)))
                    work.unsent = entry[0] in unsent
                else:
                    opened.skipped.append(entry[0])
            except Newer as problem:
                again = TryAgain(str(problem), after_s=NEWER_S)
                had = taken or self._is_doubted(entry)
                opened.newer.append(Work(entry[0], [], taken=had, unsent=entry[0] in unsent, problem=again))
            except Unprocessable as problem:
                opened.unreadable.append((Work(entry[0], [], "", taken), str(problem)))
        return opened

    def one_pass(self, works: Sequence[Work]) -> tuple[list[Work], list[Work]]:
        """The works to handle together, one of each payout and at most `works_max`, and the rest in order."""
        batch, rest = distinct_payouts(works)
        most = self.group.works_max
        return batch[:most], [*batch[most:], *rest]

    def is_own(self, entry: Raw) -> bool:
        """Whether the group wrote it: then it was handled in the pass that wrote it."""
        return len(entry[1]) >= 4 and entry[1][3].startswith(self._mine)

    def _is_doubted(self, entry: Raw) -> bool:
        return self._doubted is not None and id_key(entry[0].decode()) <= self._doubted

    def _concerns_us(self, entry: Raw) -> bool:
        """Whether the group handles it, without decoding the events: it is not our own output, and of a type that we
        consume.

        Raises Newer where a later version may consume it, and Unprocessable for what nobody can read.
        """
        e, m = entry[1][1], entry[1][3]
        if m.startswith(self._mine):
            return False
        decode_meta(m)  # raises: what the views could not read is not handled either
        if self._consumed(e) is not None:
            return True
        refuse_newer(e)
        if not e.startswith(_AS_WRITTEN):
            # Raises for what nobody can read, so that it becomes a dead letter and people see it.
            decode_events(e)
        return False


def work_of(entry: Raw, *, taken: bool) -> Work:
    """An entry's work. Raises Newer and Unprocessable."""
    events = decode_events(entry[1][1])
    payout = ""
    for event in events:
        payout = payout or payout_of(event)
    if not payout and not ASKED.isdisjoint(map(type, events)):
        # Its record would belong to no payout.
        raise Unprocessable("the request for a payout has no payout id")
    return Work(entry[0], events, payout, taken, e=entry[1][1], m=entry[1][3])


async def events_in(client: Redis, names: Names, entry: str) -> list[Event]:
    """The events of another entry of the log; none where it is not in the log any more.

    Raises TryAgain where only a later version can read it: then one of its workers has to handle this work too.
    """
    with named_errors():
        rows = await client.execute_command("XRANGE", names.log, entry, entry, "COUNT", 1)
    try:
        return decode_events(rows[0][1][1]) if rows and len(rows[0][1]) >= 4 else []
    except Newer as problem:
        raise TryAgain(f"entry {entry}: {problem}", after_s=NEWER_S) from problem

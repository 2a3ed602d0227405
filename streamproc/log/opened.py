"""What was read, before anything is done about it: decoded, and what Redis knows of its payouts.

Both may be done while another batch is in hand. What Redis knew then may have changed since. Of payouts and policies
the commit finds that, as it finds what another worker did; of beneficiaries only that somebody is noted where nobody
was. So what was known ahead of one is used only where nothing that is noted meanwhile changes it (batch.py). What can
be offered by what is remembered is not asked about at all (unasked.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, time_ns
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.domain.beneficiaries import look
from streamproc.domain.events import BeneficiarySeen, Event
from streamproc.domain.payouts import ASKED
from streamproc.domain.wire import Newer, decode_events, decode_meta, payout_of, refuse_newer, tag_of
from streamproc.errors import TryAgain, Unprocessable
from streamproc.log import payees, scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.payees import First
from streamproc.log.scripts import Raw
from streamproc.log.unasked import Unasked
from streamproc.log.work import Group, Work, distinct_payouts

NEWER_S = 5.0
"""Between two looks at an entry that only a later version can read: one of its workers may take it up in between."""
AHEAD_S = 0.25
"""What Redis knew longer ago, which is several full batches, is asked anew: what is decided bears that time."""

_FIELDS = [b"e", b"m"]
"""By their names, as the archive finds them: another order is nobody's of ours."""
_AS_WRITTEN = b'[{"type":"'
"""How every entry's events begin. What begins otherwise is read, since nobody of ours wrote it."""


class Known(NamedTuple):
    """What Redis knew of some payouts, and of the beneficiaries of those that are looked at for the first time."""

    now_us: int
    """Redis's clock then,"""
    at_ns: int
    """this host's, when the answer came,"""
    at_s: float
    """and its monotonic clock;"""
    asked_s: float
    """that when it was asked."""
    rev: bytes
    rows: list[scripts.Row]
    seen: list[First]
    noted: dict[str, dict[str, int]]

    def beneficiaries(self) -> list[BeneficiarySeen]:
        """What is known of those in `seen`."""
        return [
            look(one.pair, self.noted[one.by_account], self.noted[one.by_vendor], self.now_us)
            for one in self.seen
        ]


async def known_of(client: Redis, names: Names, group: Group, works: Sequence[Work]) -> Known:
    """Ask Redis about works of distinct payouts."""
    payouts = [w.payout for w in works if w.payout]
    seen = [] if group.outputs_are_facts else payees.first_looks(names, works)
    keys = list(dict.fromkeys(key for first in seen for key in (first.by_account, first.by_vendor)))
    asked_s = monotonic()
    now_us, rev, rows, found = await scripts.load(client, names, payouts, keys)
    noted = dict(zip(keys, found, strict=True))
    return Known(now_us, time_ns(), monotonic(), asked_s, rev, rows, seen, noted)


@dataclass(slots=True, eq=False)
class Opened:
    """Entries that were read together."""

    entries: Sequence[Raw] = ()
    works: list[Work] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)
    """They only have to be acknowledged."""
    unreadable: list[tuple[Work, str]] = field(default_factory=list)
    newer: list[Work] = field(default_factory=list)
    """Only a later version can read them."""
    known: Known | None = None
    """What Redis knew of the first pass over `works`."""
    unasked: Sequence[First] = ()
    """Of that pass, what is to be offered before Redis is asked about the rest; then `known` is None."""

    def known_lately(self, unasked: Unasked) -> Known | None:
        """`known`, once, where it is not too old, and the batches before noted nothing where it was looked at."""
        known, self.known = self.known, None
        if (
            known is None
            or monotonic() - known.at_s >= AHEAD_S
            or unasked.is_doubted(known.seen, known.asked_s)
        ):
            return None
        return known


class Opener:
    """Opens entries for one group."""

    def __init__(self, names: Names, group: Group) -> None:
        self.names, self.group = names, group
        self.unasked = Unasked()
        self._mine = b'{"by":"' + group.name.encode() + b'"'
        tags = b"|".join(re.escape(tag_of(kind).encode()) for kind in group.consumes)
        self._consumed = re.compile(group.wanted or b'"type":"(?:' + tags + b')"').search

    async def ahead(self, client: Redis, entries: Sequence[Raw]) -> Opened:
        """Open entries that were read, and ask about the first pass over them, unless most of it is offered unasked.

        Not for a group whose outputs are facts: who is told of by what was known before a call would call again.
        """
        opened = self.open(entries, taken=False)
        if opened.works and not self.group.outputs_are_facts:
            batch, _ = self.one_pass(opened.works)
            first = payees.first_looks(self.names, batch) if self.group.straight is not None else []
            opened.unasked = self.unasked.of(first, len(batch))
            if opened.unasked:
                return opened
            opened.known = await known_of(client, self.names, self.group, batch)
        return opened

    def open(self, entries: Sequence[Raw], *, taken: bool) -> Opened:
        """Decode what concerns the group. `taken`: the entries come from retries or from another consumer."""
        opened = Opened(entries)
        for entry in entries:
            if entry[1][:3:2] != _FIELDS:
                why = "the entry has no fields `e` and `m`"
                opened.unreadable.append((Work(entry[0], [], "", taken), why))
                continue
            try:
                if self._concerns_us(entry):
                    opened.works.append(work_of(entry, taken=taken))
                else:
                    opened.skipped.append(entry[0])
            except Newer as problem:
                again = TryAgain(str(problem), after_s=NEWER_S)
                opened.newer.append(Work(entry[0], [], taken=taken, problem=again))
            except Unprocessable as problem:
                opened.unreadable.append((Work(entry[0], [], "", taken), str(problem)))
        return opened

    def one_pass(self, works: Sequence[Work]) -> tuple[list[Work], list[Work]]:
        """Those that are handled together, one of each payout and as many as a pass takes, and the rest in order."""
        batch, rest = distinct_payouts(works)
        most = self.group.works_max
        return batch[:most], [*batch[most:], *rest]

    def is_own(self, entry: Raw) -> bool:
        """Whether the group wrote it, so that it was handled in the same pass."""
        return len(entry[1]) >= 4 and entry[1][3].startswith(self._mine)

    def _concerns_us(self, entry: Raw) -> bool:
        """Without decoding: not our own output, and of a type that we consume. Raises Newer: a later version may.
        Raises Unprocessable for what nobody can read."""
        if self.is_own(entry):
            return False
        e = entry[1][1]
        decode_meta(entry[1][3])  # what the views cannot read is not handled
        if self._consumed(e) is not None:
            return True
        refuse_newer(e)
        if not e.startswith(_AS_WRITTEN):
            decode_events(e)  # what cannot be read is set aside, where people see it
        return False


def work_of(entry: Raw, *, taken: bool) -> Work:
    """An entry's work. Raises Newer and Unprocessable."""
    events = decode_events(entry[1][1])
    payout = ""
    for event in events:
        payout = payout or payout_of(event)
    if not payout and not ASKED.isdisjoint(map(type, events)):
        raise Unprocessable("a payout is asked for that has no id")  # its record would be of no payout
    return Work(entry[0], events, payout, taken, m=entry[1][3])


async def events_in(client: Redis, names: Names, entry: str) -> list[Event]:
    """The events of an entry that another one names; none where it is not in the log any more.

    TryAgain: only a later version can read it, so one of its workers is to handle the other one too.
    """
    with named_errors():
        rows = await client.execute_command("XRANGE", names.log, entry, entry, "COUNT", 1)
    try:
        return decode_events(rows[0][1][1]) if rows and len(rows[0][1]) >= 4 else []
    except Newer as problem:
        raise TryAgain(f"entry {entry}: {problem}", after_s=NEWER_S) from problem

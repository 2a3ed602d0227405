"""The Lua scripts as typed functions. A script that one module alone calls has its function there (`Script(`)."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from streamproc.domain.budget import NOTHING_ASKED, Admission, Ask, BudgetAnswer, RateAnswer, RateAsk, Window
from streamproc.log.connection import shielded
from streamproc.log.names import Names, Note
from streamproc.log.script import Script

BATCH_MAX = 512
"""Entries in one script call: some 40 ms of the server's one thread at the 60 to 75 µs a payout that
the two big scripts were measured at. A batch is half of it (docs/performance-history.md)."""
SEEN_TTL_S = 16 * 86_400
"""A delivery is remembered longer than the bank's support can replay one (15 days)."""

DEFERRED_S_MAX = 1800.0
"""Longest deferral, whoever asks for more. What is due later than that was deferred by an earlier version, and Redis's
clock went back since."""
RATE_BACKLOG_S = 86_400
"""How long rate slots outlive their window, as in counters.lua: after a backlog of a day they are still there."""

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_decode_windows = msgspec.json.Decoder(tuple[Window, ...]).decode

Raw = tuple[bytes, list[bytes]]
"""An entry as Redis gives it: id, and [field, value, ...]."""


_append_once, _load, _admit, _commit = (
    Script("append_once", "checks"),
    Script("load", "checks"),
    Script("admit", "checks", "counters"),
    Script("commit", "checks", "beneficiaries", "own"),
)
_due, _pass = Script("due", "checks"), Script("pass", "checks", "own")
_defer, _due_retries = (
    Script(name, "checks", "this_server", "retry_clock") for name in ("defer", "due_retries")
)
_change_state = Script("change_state", "checks")
_open, _leave, _server = Script("open", "checks"), Script("leave"), Script("server", "checks", "this_server")


class Keys:
    """KEYS of one call: each key once, addressed by its 1-based index."""

    def __init__(self, *fixed: str) -> None:
        self.list = list(fixed)
        self._index = {key: i for i, key in enumerate(fixed, 1)}

    def index(self, key: str) -> int:
        """The 1-based index of `key` in KEYS; a new key is added at the end."""
        known = self._index.get(key)
        if known is None:
            self.list.append(key)
            known = self._index[key] = len(self.list)
        return known


Row = list[bytes | None]
"""A payout's hash as `load` gives it: version, record, admission."""
NO_ROW: Row = [None, None, None]
"""A payout that Redis does not know."""


@dataclass(slots=True)
class Delivery:
    """What a producer appends: its idempotency keys, and the entry's fields `e` (events) and `m` (metadata) as JSON."""

    keys: Sequence[str]
    e: bytes
    m: bytes
    keys_derived: bool = False
    """Whether `e` and `m` imply the keys. Else they are put into `m`: the archive alone must be enough to know them."""


@dataclass(slots=True)
class Loaded:
    """What Redis knows of a payout. `version` b'0': nothing."""

    version: bytes
    record: bytes | None
    admission: Admission


class Deferral(NamedTuple):
    """An entry to defer for at least `least_s`. `counts`: it failed by itself, so the attempt counts. `unsent`: whether
    nothing was sent outside for it so far; None where nobody asks."""

    entry: bytes
    least_s: float
    counts: bool
    unsent: bool | None = None


class Due(NamedTuple):
    """Deferred entries that are due, and those of them that were deferred as unsent each time."""

    entries: list[Raw]
    unsent: frozenset[bytes] = frozenset()


class Backoff(NamedTuple):
    """Doubles from `first_s`, less up to half of it (jitter); limited apart for attempts and for waits."""

    first_s: float
    longest_s: float
    longest_wait_s: float


class Committed(IntEnum):
    """What became of one input of a commit; STALE: nothing was written, since its payout or the policies changed."""

    ALREADY = 0
    DONE = 1
    STALE = 2


_STATUSES = tuple(Committed)

UNCHECKED = b"-1"
"""Instead of a version: the commit does not ask whether the payout has moved on. For entries about no payout."""
FOR_GOOD = -1
"""Lifts the time limit of a record that was finished and is open again."""


@dataclass(slots=True)
class Handover:
    """One input of a commit with all that its handling leaves behind. `commit.lua` says what the parts mean."""

    entry: bytes
    payout: str = ""
    version: bytes = UNCHECKED
    record: bytes = b""
    keep_s: int = 0
    """0: no time limit is set; FOR_GOOD: one that was set is lifted."""
    e: bytes = b""
    m: bytes = b"{"
    settle: str = ""
    fees: int = 0
    windows: Sequence[Window] = ()
    taken: bool = False
    problem: str = ""
    timers: list[tuple[int, bytes]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    recalled: bytes = b""


async def append_once(
    client: Redis, names: Names, deliveries: Sequence[Delivery], *, log: str = ""
) -> list[tuple[str, bool]]:
    """Append each delivery unless one of its keys was seen; (entry id, whether it is new) for each.

    `log`: another stream of the partition, one that is being built.
    """
    keys: list[str] = [log or names.log]
    args: list[Any] = [SEEN_TTL_S]
    for delivery in deliveries:
        keys += [names.seen(key) for key in delivery.keys]
        args += [
            len(delivery.keys),
            delivery.e,
            delivery.m if delivery.keys_derived else _with_keys(delivery),
        ]
    reply = await _append_once(client, keys, args)
    return [(reply[i].decode(), reply[i + 1] == 1) for i in range(0, len(reply), 2)]


def _with_keys(delivery: Delivery) -> bytes:
    m = delivery.m
    return m[:-1] + b',"keys":' + _encode(delivery.keys) + b"}" if delivery.keys else m


async def open_partition(
    client: Redis, names: Names, groups: Sequence[str], *, made_before: bool, from_end: Collection[str] = ()
) -> str:
    """Make what is missing at the first start; the name of a group that was made and is gone, or ''.

    Groups in `from_end` begin at the end of a log that others have read. Raises LogBroken where the stream was made and
    is gone, or is being rebuilt.
    """
    at_end = [group for group in groups if group in from_end]
    others = [group for group in groups if group not in from_end]
    args = [int(made_before), len(at_end), *at_end, *others]
    gone: bytes = await _open(client, [names.log, names.groups, names.recovery], args)
    return gone.decode()


async def load(
    client: Redis, names: Names, payouts: Sequence[str], beneficiaries: Sequence[str] = ()
) -> tuple[int, bytes, list[Row], list[dict[str, int]]]:
    """Redis's clock (µs), the policy revision, a row for each payout (see `loaded`), and name -> time (µs) of each
    beneficiary."""
    keys = [names.policy, *(names.payout(p) for p in payouts), *beneficiaries]
    reply = await _load(client, keys, [len(payouts)])
    rows, found = reply[2 : 2 + len(payouts)], reply[2 + len(payouts) :]
    return int(reply[0]), reply[1], [row or NO_ROW for row in rows], [_noted(flat) for flat in found]


def _noted(flat: list[bytes]) -> dict[str, int]:
    return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}


def loaded(row: Row) -> Loaded:
    """What a payout's row says. Raises ValueError where it is not what these scripts write."""
    version, record, admission = row
    return Loaded(version or b"0", record, _admission(admission) if admission else NOTHING_ASKED)


def _admission(kept: bytes, asked: tuple[Window, ...] = ()) -> Admission:
    """An admission as admit.lua keeps it. `asked`: the windows of the ask, for an answer that does not repeat them."""
    rate, budget, recorded = kept.split(b"|", 2)
    rate_answer = budget_answer = None
    if rate:
        number, used, *terms, limited = rate.split()  # without terms where an older version admitted it
        rate_answer = RateAnswer(int(number), int(used), limited == b"1", *map(int, terms))
    if budget:
        nth, amount, exceeded, *amounts = map(int, budget.split())
        before = tuple(zip(amounts[::2], amounts[1::2], strict=True))
        windows = _decode_windows(recorded) if recorded else asked
        budget_answer = BudgetAnswer(nth, amount, exceeded, windows, before)
    return Admission(rate_answer, budget_answer)


def kept_admission(admission: Admission) -> bytes:
    """An admission as admit.lua keeps it: the inverse of `_admission`."""
    rate = budget = recorded = b""
    if (slot := admission.rate) is not None:
        terms = slot.count, slot.window_us
        rate = b"%d %d %d %d %d" % (slot.number, slot.used, *terms, slot.limited)
    if (room := admission.budget) is not None:
        amounts = (amount for pair in room.before for amount in pair)
        budget = b" ".join(b"%d" % n for n in (room.number, room.amount, room.exceeded, *amounts))
        recorded = _encode(room.windows)
    return b"|".join((rate, budget, recorded))


async def admit(client: Redis, names: Names, asks: Sequence[Ask], *, keep_budgets_s: int) -> list[Admission]:
    """Take rate slots and reserve budget. A payout that was answered before gets its recorded answer."""
    keys = Keys(names.number, names.log)
    # Compared by identity: callers share these objects among payouts, and hashing their contents costs 1 µs a payout.
    numbers: dict[tuple[int, int], int] = {}
    terms: list[Any] = []
    rows: list[Any] = []
    for ask in asks:
        both = (id(ask.rate), id(ask.windows))
        number = numbers.get(both)
        if number is None:
            number = numbers[both] = len(numbers) + 1
            terms += terms_of(names, keys, ask.rate, ask.windows)
        payout = keys.index(names.payout(ask.payout))
        rows += (payout, ask.payout, str(ask.amount), str(ask.received_at), number)
    reply = await _admit(client, keys.list, (keep_budgets_s, _pack((terms, rows))))
    return [_admission(kept, ask.windows or ()) for ask, kept in zip(asks, reply, strict=True)]


def terms_of(names: Names, keys: Keys, rate: RateAsk | None, windows: tuple[Window, ...] | None) -> list[Any]:
    """What is asked for, as counters.lua has it; payouts of one agent mostly share it."""
    terms: list[Any] = [0, 0, 0, 0]
    if rate is not None:
        terms = [keys.index(names.rate(rate.agent)), rate.count, rate.window_us, int(rate.hold)]
    if windows is None:
        return [*terms, -1, ""]
    terms += [len(windows), _encode(windows).decode()]
    for window in windows:
        limit = -1 if window.limit is None else window.limit
        terms += [keys.index(names.budget(window.scope, window.window)), limit, window.ends_at]
    return terms


async def commit(
    client: Redis, names: Names, group: str, handovers: Sequence[Handover], *, rev: bytes = b""
) -> list[Committed]:
    """Acknowledge the inputs and append their outputs, BATCH_MAX in one call; what became of each.

    `rev` is the policy revision that the outputs were decided under; b'' if they are facts that no policy changes.
    """
    statuses: list[Committed] = []
    for start in range(0, len(handovers), BATCH_MAX):
        chunk = handovers[start : start + BATCH_MAX]
        # No call is cut off half way: a worker that is cancelled waits for the answer first.
        statuses += await shielded(_commit_chunk(client, names, group, chunk, rev))
    return statuses


async def may_commit(client: Redis, names: Names, group: str) -> None:
    """Raise what a commit would raise: LogUnavailable where the server lacks room or is a replica, or its user a right.

    What is done outside while no commit is possible is done again with every attempt.
    """
    await _commit_chunk(client, names, group, [], b"")


async def _commit_chunk(
    client: Redis, names: Names, group: str, handovers: Sequence[Handover], rev: bytes
) -> list[Committed]:
    retries, tries, own = names.retries(group), names.tries(group), names.own(group)
    keys = Keys(names.log, names.number, names.timers, names.dead, retries, tries, names.policy, own)
    args: list[Any] = [group, len(handovers), rev]
    for h in handovers:
        payout = keys.index(names.payout(h.payout)) if h.payout else 0
        rare = _rare(names, keys, h)
        args += (h.entry, payout, h.version, h.record, h.e, h.m, len(rare), *rare)
    return [_STATUSES[status] for status in await _commit(client, keys.list, args)]


def _rare(names: Names, keys: Keys, h: Handover) -> list[Any]:
    """The arguments that only few inputs have; none for the others, since every argument costs."""
    if not (h.keep_s or h.settle or h.taken or h.problem or h.timers or h.notes or h.recalled):
        return []
    indexes = [keys.index(names.budget(w.scope, w.window)) for w in h.windows] if h.settle else []
    timers = [x for timer in h.timers for x in timer]
    notes = [x for key, name, at, first in h.notes for x in (keys.index(key), name, at, int(first))]
    counts = len(indexes), len(h.timers), len(h.notes), h.fees
    return [h.keep_s, h.settle, int(h.taken), h.problem, *counts, h.recalled, *indexes, *timers, *notes]


async def fire_due(client: Redis, names: Names) -> int:
    """Append an entry for each timer that is due, BATCH_MAX at most; returns how many were appended."""
    return int(await _due(client, [names.log, names.timers], [BATCH_MAX]))


async def defer(
    client: Redis, names: Names, group: str, entries: Sequence[Deferral], backoff: Backoff, consumer: str = ""
) -> list[int]:
    """Defer entries; how often each was deferred so far, by attempts that counted or by waits; 0 for what is not
    pending with `consumer` any more, if one is named: it is left alone."""
    args = [int(seconds * 1e6) for seconds in (backoff.first_s, backoff.longest_s, backoff.longest_wait_s)]
    flat = [
        x
        for d in entries
        for x in (
            d.entry,
            int(min(d.least_s, DEFERRED_S_MAX) * 1e6),
            int(d.counts),
            random.randint(500, 1000),
            "" if d.unsent is None else int(d.unsent),
        )
    ]
    return [int(n) for n in await _defer(client, _retry_keys(names, group), [group, consumer, *args, *flat])]


async def due_retries(client: Redis, names: Names, group: str, consumer: str, *, limit: int) -> Due:
    """Claim for `consumer` the deferred entries whose next attempt is due, `limit` at most."""
    args = [group, consumer, limit, int(DEFERRED_S_MAX * 1e6)]
    rows = await _due_retries(client, _retry_keys(names, group), args)
    return Due([entry for entry, _ in rows], frozenset(entry[0] for entry, unsent in rows if unsent))


def _retry_keys(names: Names, group: str) -> list[str]:
    return [names.log, names.retries(group), names.tries(group), names.retry_clock(group)]


async def pass_own(client: Redis, names: Names, group: str) -> int:
    """Move the group's position past its own outputs, as far as they come next in the log; returns how many."""
    return int(await _pass(client, [names.log, names.own(group)], [group]))


async def delivered_before(client: Redis, names: Names) -> str:
    """The id up to which entries may have been delivered by an earlier server, or by this one before it was restarted
    or was a replica: after a failover they may come as if nobody had had them."""
    upto: bytes = await _server(client, [names.log, names.server], [])
    return upto.decode()


async def leave(client: Redis, names: Names, group: str, consumer: str) -> bool:
    """Remove a consumer that has nothing pending; False where it has."""
    return bool(await _leave(client, [names.log], [group, consumer]) == 1)


async def change_state(
    client: Redis,
    names: Names,
    state: str,
    *,
    rev: bytes,
    e: bytes,
    m: bytes,
    fields: Sequence[tuple[str, bytes]],
) -> str | None:
    """Append events about what the hash `state` keeps (policies, tokens or proposals) and set its fields (b'': remove);
    the entry's id, or None when `rev` is no longer current."""
    flat = [x for pair in fields for x in pair]
    done, answer = await _change_state(client, [names.log, state], [rev, e, m, *flat])
    return answer.decode() if done == 1 else None

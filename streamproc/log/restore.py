"""Rebuilds a partition in Redis, for `streamproc recover`, which decides what is written.

set_aside -> [ wipe, write everything, the log under another name ] -> put_in_place

Between the two steps the partition has no log, so every script of a worker or producer that still runs answers NOLOG
and writes nothing. A run that is killed leaves it so; the next one wipes what was written and begins again. Versions
and the policies' revision are new numbers, so that nothing a worker read before can be committed afterwards.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from streamproc.domain.beneficiaries import KEPT_S, NAMES_MAX
from streamproc.domain.budget import US, Admission
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import TimerFired
from streamproc.domain.payouts import PayoutRecord, encode_record
from streamproc.domain.policy import ScopeState
from streamproc.domain.proposals import Proposal
from streamproc.domain.tokens import Token
from streamproc.domain.wire import encode_events
from streamproc.errors import JobFailed
from streamproc.log import scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import LATE, META, UNRECONCILED, Names
from streamproc.log.proposals import proposal_fields
from streamproc.log.script import Script
from streamproc.log.stream import BEGUN, Entry, entry_of
from streamproc.log.tokens import token_fields

COMMANDS_MAX = 1_000
ARGUMENTS_MAX = 10_000
"""Commands sent at once, and their arguments in all: some ms of the server's one thread."""
IDS_MAX = 500
"""Members or ids in one command."""
SCAN_COUNT = 1_000
"""Keys that one SCAN visits: about a millisecond."""
ASKED = "asked:"
"""Begins the mark of an account that the bank was asked about. Its value is the recovery that it was asked after."""
CONSUMER = "recover"
"""Consumer that entries given back to a group are pending with, until a worker takes them over."""

_set_aside, _put_in_place = Script("set_aside", "checks"), Script("put_in_place", "checks")
_reconciled = Script("reconciled", "checks")
_encode = msgspec.json.Encoder().encode


async def mark_recovering(client: Redis, partitions: int, run: int) -> None:
    """From now on roles refuse to open this log. Workers that have it open may go on with a partition that is in place
    before the others, so it is marked already that the bank has to be asked."""
    marks: Any = {"partitions": str(partitions), "recovering": str(run), UNRECONCILED: str(run)}
    with named_errors():
        await client.hset(META, mapping=marks)
        await client.hdel(META, BEGUN)  # from now on the archive may know what Redis does not


async def mark_recovered(client: Redis, partitions: Sequence[int], run: int) -> None:
    """Roles may open the log again. The bank still has to be asked."""
    marks: Any = {f"made:{p}": "1" for p in partitions} | {UNRECONCILED: str(run)}
    with named_errors():
        await client.hset(META, mapping=marks)
        await client.hdel(META, "recovering")


async def unreconciled_run(client: Redis) -> int | None:
    """The last recovery, if the bank still has to be asked after it."""
    with named_errors():
        run: Any = await client.hget(META, UNRECONCILED)
    return int(run) if run else None


async def mark_asked(client: Redis, account: str, run: int) -> None:
    """The bank was asked about this account since that recovery; others may still have to be."""
    with named_errors():
        await client.hset(META, ASKED + account, str(run))


async def accounts_asked(client: Redis, run: int | None) -> list[str]:
    """The accounts that the bank was asked about since that recovery; none if `run` is None."""
    with named_errors():
        found: Any = await client.hgetall(META)
    at, prefix = str(run).encode(), ASKED.encode()
    return [
        name.removeprefix(prefix).decode()
        for name, asked_after in found.items()
        if name.startswith(prefix) and asked_after == at
    ]


async def mark_reconciled(client: Redis, run: int) -> None:
    """The bank was asked about every account since that recovery. Nothing is marked if another one has come since."""
    await _reconciled(client, [META], [run, ASKED])


class LogMarks(msgspec.Struct, frozen=True):
    """The marks of the log. `partitions` None: it has none."""

    partitions: int | None
    recovering: bool
    unreconciled: bool


async def read_marks(client: Redis) -> LogMarks:
    """The marks of the log."""
    with named_errors():
        found: Any = await client.hgetall(META)
    known = found.get(b"partitions")
    return LogMarks(int(known) if known else None, b"recovering" in found, UNRECONCILED.encode() in found)


async def groups_gone(client: Redis, names: Names, wanted: Sequence[str]) -> list[str]:
    """Groups that were made, or are wanted, and do not exist."""
    with named_errors():
        present = {row["name"].decode() for row in await client.xinfo_groups(names.log)}
        marks: Any = await client.hkeys(names.groups)
    return sorted(({mark.decode() for mark in marks} | set(wanted)) - present)


async def rescued_after(client: Redis, names: Names, after: str, count: int) -> list[Entry]:
    """Entries of the log that was set aside, after an id."""
    with named_errors():
        rows = await client.execute_command("XRANGE", names.rescued, f"({after}", "+", "COUNT", count)
    return [entry_of(row) for row in rows]


async def rescued_entry(client: Redis, names: Names, entry: str) -> Entry | None:
    """One entry of the log that was set aside."""
    with named_errors():
        rows = await client.execute_command("XRANGE", names.rescued, entry, entry)
    return entry_of(rows[0]) if rows else None


class Restorer:
    """Writes one partition. What it wrote counts only after `put_in_place`."""

    def __init__(self, client: Redis, names: Names, run: int) -> None:
        self.client = client
        self.names = names
        self._run = run
        self._commands: list[tuple[Any, ...]] = []
        self._arguments = 0
        self.stamp = str(run).encode()
        """Version of every payout and revision of the policies: a time in µs, so that it differs from all earlier
        ones."""

    # ---- begin and end ----

    async def set_aside(self) -> bool:
        """Take the log away from everybody; whether there was one."""
        keys = [self.names.log, self.names.rescued, self.names.recovery]
        return bool(await _set_aside(self.client, keys, [self._run]) == 1)

    async def wipe(self) -> None:
        """Remove all keys of the partition except the log set aside, the counter, and what outside systems gave us:
        reputations, and the bank's newest token, which may be the only one that it still takes."""
        names, cursor = self.names, 0
        kept, given = {names.rescued, names.recovery, names.number}, (names.reputation(""), names.vault(""))
        while True:
            with named_errors():
                answer: Any = await self.client.scan(cursor, match=f"{names.base}:*", count=SCAN_COUNT)
                cursor, found = answer[0], [key.decode() for key in answer[1]]
                gone = [key for key in found if key not in kept and not key.startswith(given)]
                if gone:
                    await self.client.unlink(*gone)
            if cursor == 0:
                return

    async def put_in_place(self, *, keep_rescued_s: float) -> None:
        """Make the staged log the log. Raises JobFailed if another run has taken over."""
        await self.flush()
        names = self.names
        keys = [names.staged, names.log, names.rescued, names.recovery]
        if await _put_in_place(self.client, keys, [self._run, int(keep_rescued_s)]) != 1:
            raise JobFailed("another `streamproc recover` has taken over; let that one finish")

    async def flush(self) -> None:
        """Send the collected commands. Raises JobFailed if another run has taken over."""
        if not self._commands:
            return
        await self._still_mine()
        with named_errors():
            # One transaction, since otherwise the server syncs its file after every few commands.
            async with self.client.pipeline(transaction=True) as pipe:
                for command in self._commands:
                    pipe.execute_command(*command)
                self._commands.clear()
                self._arguments = 0
                await pipe.execute()

    async def _still_mine(self) -> None:
        with named_errors():
            run = await self.client.hget(self.names.recovery, "run")
        if run != self.stamp:
            raise JobFailed("another `streamproc recover` has taken over; let that one finish")

    async def _put(self, *command: Any) -> None:
        self._commands.append(command)
        self._arguments += len(command)
        if len(self._commands) >= COMMANDS_MAX or self._arguments >= ARGUMENTS_MAX:
            await self.flush()

    # ---- what there is to write ----

    async def payout(
        self, record: PayoutRecord, admission: Admission, *, expires_at_s: int | None = None
    ) -> None:
        """Write a payout's hash as commit.lua and admit.lua leave it, to expire at `expires_at_s` (Unix s) or never."""
        key = self.names.payout(record.payout)
        fields: list[Any] = ["v", self.stamp, "s", encode_record(record)]
        if admission.rate is not None or admission.budget is not None:
            fields += ["a", scripts.kept_admission(admission)]
        if record.reservation is not None and record.reservation.state != "reserved":
            fields += ["q", record.reservation.state]
            if record.reservation.fees:
                fields += ["f", record.reservation.fees]
        await self._put("HSET", key, *fields)
        if expires_at_s is not None:
            await self._put("EXPIREAT", key, expires_at_s)

    async def budget(self, scope: str, window: str, reserved: int, committed: int, expires_at_s: int) -> None:
        """Write what is reserved and committed in a budget window, in paise."""
        key = self.names.budget(scope, window)
        await self._put("HSET", key, "r", reserved, "c", committed)
        await self._put("EXPIREAT", key, expires_at_s)

    async def beneficiary(
        self, account: str, fund_account: str, vendors: Mapping[str, int], now_us: int
    ) -> None:
        """The hosts that a fund account was paid for: host -> when last noted (µs)."""
        await self._noted(self.names.paid_for(account, fund_account), vendors, now_us)

    async def vendor(self, account: str, vendor: str, accounts: Mapping[str, int], now_us: int) -> None:
        """The fund accounts where a vendor was paid: fund account -> when last noted (µs)."""
        await self._noted(self.names.paid_at(account, vendor), accounts, now_us)

    async def _noted(self, key: str, names: Mapping[str, int], now_us: int) -> None:
        newest = sorted(names.items(), key=lambda name: (name[1], name[0]))[-NAMES_MAX:]
        expires_at_s = newest[-1][1] // US + KEPT_S
        if expires_at_s * US > now_us:
            await self._put("HSET", key, *(x for name in newest for x in name))
            await self._put("EXPIREAT", key, expires_at_s)

    async def rate(self, agent: str, slots: Mapping[str, int], expires_at_s: int) -> None:
        """An agent's rate slots: payout -> time counted (µs)."""
        key, flat = self.names.rate(agent), [x for payout, at in slots.items() for x in (at, payout)]
        for start in range(0, len(flat), 2 * IDS_MAX):
            await self._put("ZADD", key, *flat[start : start + 2 * IDS_MAX])
        await self._put("EXPIREAT", key, expires_at_s)

    async def seen(self, key: str, entry: str, expires_at_s: int) -> None:
        """Write that a delivery with this idempotency key is in the log, as `entry`."""
        await self._put("SET", self.names.seen(key), entry, "EXAT", expires_at_s)

    async def timer(self, timer: TimerFired) -> None:
        """A timer that has not fired."""
        await self._put("ZADD", self.names.timers, timer.at, encode_events([timer]))

    async def policies(self, scopes: Mapping[str, ScopeState]) -> None:
        """The policies in force."""
        await self._put("HSET", self.names.policy, "rev", self.stamp)
        for scope, state in scopes.items():
            await self._put("HSET", self.names.policy, scope, _encode(state))

    async def tokens(self, tokens: Sequence[Token]) -> None:
        """The tokens of the HTTP API."""
        if tokens:
            await self._put("HSET", self.names.tokens, "rev", self.stamp)
        for field, value in token_fields(tokens):
            await self._put("HSET", self.names.tokens, field, value)

    async def proposals(self, proposals: Sequence[Proposal]) -> None:
        """Policy changes that wait for a second person."""
        if proposals:
            await self._put("HSET", self.names.proposals, "rev", self.stamp)
        for field, value in proposal_fields(proposals):
            await self._put("HSET", self.names.proposals, field, value)

    async def letter(self, letter: str, entry: Entry, group: str, problem: str) -> None:
        """A dead letter. To be called in ascending order of ids."""
        fields = ("entry", entry.id, "group", group, "e", entry.e, "m", entry.m, "problem", problem)
        await self._put("XADD", self.names.dead, letter, *fields)

    async def entry(self, entry: Entry) -> None:
        """An entry under its own id. To be called in ascending order of ids."""
        await self._put("XADD", self.names.staged, entry.id, "e", entry.e, "m", entry.m)

    async def groups(
        self, groups: Iterable[str], at: str, entries: int, *, late: Collection[str] = ()
    ) -> None:
        """The groups, which have read the `entries` up to the id `at`, the newest restored one. `late`: those that are
        marked as begun after a log that was there, since they get nothing of it again."""
        for group in groups:
            await self._put(
                *("XGROUP", "CREATE", self.names.staged, group, at or ZERO, "MKSTREAM"),
                *("ENTRIESREAD", entries),
            )
            await self._put("HSET", self.names.groups, group, LATE if group in late else "1")

    async def pending(self, group: str, entries: Sequence[str]) -> None:
        """Restored entries that the group may not have handled: a worker takes them up at once."""
        for start in range(0, len(entries), IDS_MAX):
            ids = entries[start : start + IDS_MAX]
            await self._put("XCLAIM", self.names.staged, group, CONSUMER, 0, *ids, "FORCE", "JUSTID")
            await self._put("ZADD", self.names.retries(group), *(x for i in ids for x in (0, i)))

    async def number(self, highest: int) -> None:
        """The counter of admissions and settlements: after the highest that is known, here or in the archive."""
        with named_errors():
            known = int(await self.client.get(self.names.number) or 0)
        if max(known, highest):
            await self._put("SET", self.names.number, max(known, highest))

    async def cursor(self, producer: str, position: int) -> None:
        """How far a polling producer has read."""
        await self._put("SET", self.names.cursor(producer), position)

    # ---- what comes after what was restored ----

    async def append(self, e: bytes, m: bytes, keys: Sequence[str] = ()) -> bool:
        """Append to the log that is built, unless one of the keys is in it already; whether it is new."""
        await self.flush()
        await self._still_mine()
        delivery = scripts.Delivery(keys, e, m)
        [(_, new)] = await scripts.append_once(self.client, self.names, [delivery], log=self.names.staged)
        return new

"""How far a polling producer has read, and its state: kept in Redis for the next poller and for operators."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from streamproc.domain.budget import US
from streamproc.domain.entry_ids import id_key
from streamproc.errors import TryAgain
from streamproc.log.connection import session
from streamproc.log.names import META, UNRECONCILED, Names, partition_of
from streamproc.log.script import Script

_move_cursor = Script("move_cursor", "checks")

LETTERS_MAX = 16
"""Dead letters that are looked at for those of one group; where there are as many, one of them may be beyond."""


class Covered(Struct, frozen=True):
    """That the bank's list was read whole again and again, without a gap, into the log of one server. Times are Unix
    seconds by Redis's clock.

    A server whose data was set back to an older moment was started again, or has no pass since: what it forgot is on
    the list from where its cursor is.
    """

    server: str = ""
    """The server, and its run, that had the log when the last good pass began; empty if there was none, or a recovery
    was not complete then."""
    since: int = 0
    """When the first of these passes had ended."""
    until: int = 0
    """When the next one is to have ended."""

    def by_pass(self, server: str, now_s: int, next_s: int) -> "Covered":
        """This after a good pass that ended now; the next one ends by `next_s`."""
        is_same = self.server == server and self.since <= now_s <= self.until
        return Covered(server, self.since if is_same else now_s + 1, next_s)

    def knows(self, server: str, now_s: int, asked_s: int, handled_s: float) -> bool:
        """Whether the records have what was at the bank before a request of `asked_s`, as far as the list showed it.
        They have what a pass has appended `handled_s` after it."""
        return self.server == server != "" and now_s <= self.until and asked_s >= self.since + handled_s


class PollState(Struct, frozen=True, kw_only=True):
    """What an account's poller did last. Times are Unix seconds by Redis's clock, 0 for never."""

    holder: str
    """The process that polls: host, process id."""
    term: int
    pass_at: int
    """When the last pass ended, whether it failed or not."""
    next_at: int
    """When the next pass is to begin."""
    good_at: int = 0
    """When the last pass that did not fail ended."""
    failures: int = 0
    """Passes that failed in a row."""
    failing_since: int = 0
    problem: str = ""
    """Why the last of them failed."""
    listed: int = 0
    new: int = 0
    malformed: int = 0
    looked_at: int = 0
    unknown: tuple[str, ...] = ()
    """Open payouts that the bank says it does not know, with its words."""
    covered: Covered = Covered()


class ReconcileState(Struct, frozen=True, kw_only=True):
    """When a scheduled reconciliation began and ended last, Unix seconds, and what it found."""

    tried_at: int = 0
    done_at: int = 0
    mismatches: int = 0


class Requested(NamedTuple):
    """A payout that was requested, and what is known of it."""

    payout: str
    at: int
    """When it was requested (µs)."""
    version: bytes
    """Of the record in hand."""


def poll_cursor_name(account: str) -> str:
    """What the cursor of an account's poller is called."""
    return f"poll:{account}"


def server_of(told: Mapping[str, Any]) -> str:
    """The server, its run and its time as a primary, by what INFO tells: another one may have been set back."""
    return f"{told['run_id']} {told['master_replid']}"


def _is_of(group: str, letter: list[bytes]) -> bool:
    """Whether a dead letter, as its fields and values, is of a group."""
    return dict(zip(letter[::2], letter[1::2], strict=True)).get(b"group") == group.encode()


class PollCursor:
    """The Unix second up to which the bank's list of an account was read, and the state of who reads it."""

    def __init__(self, url: str, *, account: str, partitions: int) -> None:
        self._url = url
        self._names = names = Names(partition_of(account, partitions))
        self._key = names.cursor(poll_cursor_name(account))
        self._state = names.cursor(f"poller:{account}")
        self._reconciled = names.cursor(f"reconcile:{account}")

    async def load(self) -> int | None:
        """The position; None where the list was never read."""
        async with session(self._url) as client:
            value = await client.get(self._key)
        return int(value) if value else None

    async def save(self, position: int, *, after: int | None) -> None:
        """The list was read up to `position`, from `after` on, where this reader found or left the cursor.

        Raises TryAgain where that was set back meanwhile, as by a recovery: what was read before may be lost.
        """
        async with session(self._url, home=self._key) as client:
            moved = await _move_cursor(client, [self._key], ["" if after is None else after, position])
        if moved != 1:
            raise TryAgain(
                "the cursor of the list was set back meanwhile; the next pass begins where it is now"
            )

    async def server(self) -> str:
        """The server that has the account's log: its run, and its time as a primary. '' from a recovery until the bank
        was asked about every account: what that adds last is still to be handled when it ends."""
        async with (
            session(self._url, home=self._key) as client,
            client.pipeline(transaction=False) as pipe,
        ):
            pipe.hget(META, UNRECONCILED)
            pipe.execute_command("INFO", "server", "replication")
            unreconciled, told = await pipe.execute()
        return "" if unreconciled is not None else server_of(told)

    async def knows_what_came_before(self, requested: Requested, group: str, handled_s: float) -> bool:
        """Whether the record in hand has what the bank had before the request, since the list is read all the time.

        After a recovery it has not until the bank was asked about every account. `handled_s`: after how long `group`
        has what a pass has appended in the payouts' records, unless it still has something older than that in hand,
        which it may have put off, or has made a dead letter of something.
        """
        names = self._names
        async with (
            session(self._url, home=self._key) as client,
            client.pipeline(transaction=False) as pipe,
        ):
            pipe.hget(META, UNRECONCILED)
            pipe.get(self._state)
            pipe.execute_command("INFO", "server", "replication")
            pipe.time()
            # In this order: what is handled in between has changed the record, or become a dead letter.
            pipe.xpending(names.log, group)
            pipe.execute_command("XRANGE", names.dead, "-", "+", "COUNT", LETTERS_MAX)
            pipe.hget(names.payout(requested.payout), "v")
            unreconciled, value, told, (now_s, _), pending, letters, version = await pipe.execute()
        oldest_ms = id_key(pending["min"].decode())[0] if pending["min"] else inf
        if unreconciled is not None or oldest_ms < requested.at / 1_000 - handled_s * 1_000:
            return False
        if len(letters) >= LETTERS_MAX or any(_is_of(group, fields) for _, fields in letters):
            return False
        covered = msgspec.json.decode(value, type=PollState).covered if value else Covered()
        is_covered = covered.knows(server_of(told), now_s, requested.at // US, handled_s)
        return is_covered and (version or b"0") == requested.version

    async def save_state(self, state: PollState) -> None:
        """Save the poller's state."""
        async with session(self._url) as client:
            await client.set(self._state, msgspec.json.encode(state))

    async def state(self) -> PollState | None:
        """The poller's state; None where no pass has ever ended."""
        async with session(self._url) as client:
            value = await client.get(self._state)
        return msgspec.json.decode(value, type=PollState) if value else None

    async def reconciled(self) -> ReconcileState:
        """When the bank was last compared with us by schedule."""
        async with session(self._url) as client:
            found: dict[Any, Any] = await client.hgetall(self._reconciled)
        return ReconcileState(**{name.decode(): int(value) for name, value in found.items()})

    async def save_reconciled(self, **state: int) -> None:
        """Keep some fields of a ReconcileState."""
        async with session(self._url) as client:
            await client.hset(self._reconciled, mapping=dict[Any, Any](state))

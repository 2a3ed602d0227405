"""What the restorer writes is what the scripts write, and another run ends it."""

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain.beneficiaries import KEPT_S
from streamproc.domain.budget import US, Admission, BudgetAnswer, RateAnswer, Window
from streamproc.domain.events import TimerFired
from streamproc.domain.payouts import PayoutRecord, encode_record
from streamproc.domain.policy import ScopeState
from streamproc.domain.proposals import Proposal
from streamproc.domain.record import Reservation
from streamproc.domain.tokens import Token
from streamproc.domain.wire import encode_events
from streamproc.errors import JobFailed, LogBroken
from streamproc.log import restore, scripts
from streamproc.log.connection import connected
from streamproc.log.names import LATE, META, SHARED_PARTITION, Names
from streamproc.log.policies import read_scopes
from streamproc.log.proposals import read_proposals
from streamproc.log.restore import (
    CONSUMER,
    IDS_MAX,
    LogMarks,
    Restorer,
    groups_gone,
    mark_reconciled,
    mark_recovered,
    mark_recovering,
    read_marks,
    rescued_after,
    rescued_entry,
)
from streamproc.log.scripts import RATE_BACKLOG_S
from streamproc.log.stream import BEGUN, Entry, open_log
from streamproc.log.tokens import read_tokens
from tests.words import NOW

numbers = st.integers(0, 2**53 - 1)
windows = st.builds(Window, st.text(max_size=9), st.just("2026-09"), st.none() | numbers, numbers)
budgets = st.lists(st.tuples(windows, st.tuples(numbers, numbers)), min_size=1, max_size=3).map(
    lambda rows: BudgetAnswer(7, 5, -1, tuple(w for w, _ in rows), tuple(b for _, b in rows))
)
admissions = st.builds(
    Admission, st.none() | st.builds(RateAnswer, numbers, numbers, st.booleans()), st.none() | budgets
)


@given(admission=admissions)
def test_an_admission_is_read_back_as_it_was_kept(admission: Admission) -> None:
    assert scripts.loaded([b"1", None, scripts.kept_admission(admission)]).admission == admission


def test_slots_outlive_their_window_as_long_as_the_script_says() -> None:
    text = files("streamproc.log").joinpath("lua/counters.lua").read_text()
    assert f"local BACKLOG_S = {RATE_BACKLOG_S} " in text


async def test_of_two_runs_the_later_one_writes_and_the_earlier_one_is_told(redis_url: str) -> None:
    async with connected(redis_url) as client:
        first, second = Restorer(client, Names(0), 1), Restorer(client, Names(0), 2)
        await first.set_aside()
        await first.seen("a", "1-1", 4_000_000_000)
        await second.set_aside()
        with pytest.raises(JobFailed, match="taken over"):
            await first.flush()
        with pytest.raises(JobFailed, match="taken over"):
            await first.put_in_place(keep_rescued_s=60)
        with pytest.raises(JobFailed, match="taken over"):
            await Restorer(client, Names(0), 1).put_in_place(keep_rescued_s=60)  # nothing is left to write
        with pytest.raises(JobFailed, match="taken over"):
            await Restorer(client, Names(0), 1).append(b"[]", b"{}")
        assert not await client.exists(Names(0).staged)
        assert await client.keys("*seen*") == []
        await second.groups(["governance"], "", 0)
        await second.put_in_place(keep_rescued_s=60)
        assert await client.exists(Names(0).log)


async def test_what_people_change_has_a_revision_after_a_recovery_that_nobody_read_before(
    redis_url: str,
) -> None:
    """A change that was planned before it, on what is gone, would else be taken for one planned on what is restored."""
    stamp, names = 1_790_000_000_000_000, Names(SHARED_PARTITION)
    token = Token(name="one", scope="agent", digest="d" * 64, created_at=NOW)
    proposal = Proposal(
        id="prop_1", changes=[], loosens=[], by="asha", why="", channel="cli", proposed_at=NOW, expires_at=NOW
    )
    async with connected(redis_url) as client:
        restorer = Restorer(client, names, stamp)
        await restorer.set_aside()
        await restorer.tokens([token])
        await restorer.proposals([proposal])
        await restorer.policies({"agent:bot": ScopeState(version=1, own={}, effective={})})
        await restorer.flush()
        rev = b"%d" % stamp
        assert await read_tokens(client) == (rev, {token.name: token})
        assert await read_proposals(client) == (rev, {proposal.id: proposal})
        assert await read_scopes(client, names) == (
            rev,
            {"agent:bot": ScopeState(version=1, own={}, effective={})},
        )


RESERVED = Reservation(state="reserved", amount=250_000, number=7, windows=[])


@pytest.mark.parametrize(
    ("reservation", "settled"),
    [
        (None, {}),
        (RESERVED, {}),
        (replace(RESERVED, state="released"), {b"q": b"released"}),
        (replace(RESERVED, state="committed", fees=590), {b"q": b"committed", b"f": b"590"}),
    ],
    ids=["none", "reserved", "released", "committed"],
)
@pytest.mark.parametrize("rate", [None, RateAnswer(7, 3, True)], ids=["not admitted", "admitted"])
async def test_a_restored_payout_is_settled_as_it_was_and_once_and_has_a_version_that_nobody_read_before(
    redis_url: str, reservation: Reservation | None, settled: dict[bytes, bytes], rate: RateAnswer | None
) -> None:
    """What was committed or released before would else be so once more: its budget had room that was spent."""
    record = PayoutRecord(payout="pout_1", account="acc", received_at=1, reservation=reservation)
    admission, stamp = Admission(rate, None), 1_790_000_000_000_000
    async with connected(redis_url) as client:
        restorer = Restorer(client, Names(0), stamp)
        await restorer.set_aside()
        await restorer.payout(record, admission)
        await restorer.flush()
        kept = await client.hgetall(Names(0).payout("pout_1"))
    admitted = {b"a": scripts.kept_admission(admission)} if rate is not None else {}
    assert kept == {b"v": b"%d" % stamp, b"s": encode_record(record), **admitted, **settled}


async def test_budgets_groups_timers_and_what_is_not_handled_are_where_the_scripts_look_for_them(
    redis_url: str,
) -> None:
    names, noted_us = Names(0), 3_900_000_000 * US
    timer = TimerFired(at=NOW + 5, payout="pout_1", timer="hold_expiry")
    async with connected(redis_url) as client:
        restorer = Restorer(client, names, 7)
        await restorer.set_aside()
        await restorer.budget("agent:a", "d1", 300, 200, 4_000_000_000)
        await restorer.vendor("acc", "one.example", {"fa_1": noted_us}, 1)
        await restorer.timer(timer)
        for n in (1, 2, 3):
            await restorer.entry(Entry(f"{n}-1", b"[%d]" % n, b"{}"))
        await restorer.groups(["g", "late"], "3-1", 3, late=["late"])
        await restorer.pending("g", ["1-1", "3-1"])
        await restorer.put_in_place(keep_rescued_s=60)
        assert await client.hgetall(names.budget("agent:a", "d1")) == {b"r": b"300", b"c": b"200"}
        assert await client.hgetall(names.paid_at("acc", "one.example")) == {b"fa_1": b"%d" % noted_us}
        assert await client.zrange(names.timers, 0, -1, withscores=True) == [
            (encode_events([timer]), float(timer.at))
        ]
        assert await client.xrange(names.log, "2-1", "2-1") == [[b"2-1", [b"e", b"[2]", b"m", b"{}"]]]
        assert await client.hgetall(names.groups) == {b"g": b"1", b"late": LATE.encode()}
        groups = await client.xinfo_groups(names.log)
        assert [(row["name"], row["last-delivered-id"], row["lag"], row["pending"]) for row in groups] == [
            (b"g", b"3-1", 0, 2), (b"late", b"3-1", 0, 0),
        ]  # fmt: skip
        rows = await client.xpending_range(names.log, "g", "-", "+", 9)
        assert [(row["message_id"], row["consumer"]) for row in rows] == [
            (b"1-1", CONSUMER.encode()), (b"3-1", CONSUMER.encode()),
        ]  # fmt: skip
        assert await client.zrange(names.retries("g"), 0, -1, withscores=True) == [
            (b"1-1", 0.0),
            (b"3-1", 0.0),
        ]


@pytest.mark.parametrize(("limit", "at_once"), [("COMMANDS_MAX", 2), ("ARGUMENTS_MAX", 10)])
async def test_what_is_restored_is_sent_in_parts_that_do_not_hold_up_the_server(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, limit: str, at_once: int
) -> None:
    monkeypatch.setattr(restore, limit, at_once)
    async with connected(redis_url) as client:
        restorer = Restorer(client, Names(0), 1)
        await restorer.set_aside()
        for n, sent in enumerate((0, 2, 2, 4, 4), start=1):
            await restorer.seen(f"k{n}", "1-1", 4_000_000_000)  # five arguments
            assert len(await client.keys("*seen*")) == sent
        await restorer.flush()
        assert len(await client.keys("*seen*")) == 5


async def test_what_is_restored_ends_when_it_would_have_ended(redis_url: str) -> None:
    """Else memory would fill with what nobody needs, or a limit would forget what it counted."""
    names, end, noted_us = Names(0), 4_000_000_000, 3_900_000_000 * US
    async with connected(redis_url) as client:
        restorer = Restorer(client, names, 1)
        await restorer.set_aside()
        ended, open_ = (PayoutRecord(payout=p, account="acc", received_at=1) for p in ("ended", "open"))
        await restorer.payout(ended, Admission(None, None), expires_at_s=end)
        await restorer.payout(open_, Admission(None, None))
        await restorer.budget("agent:a", "d1", 1, 2, end)
        await restorer.rate("a", {f"pout_{n}": n for n in range(2 * IDS_MAX + 1)}, end)
        await restorer.seen("k", "1-1", end)
        await restorer.beneficiary("acc", "fa_1", {"one.example": noted_us, "two.example": noted_us - 1}, 1)
        await restorer.vendor("acc", "gone.example", {"fa_1": noted_us}, noted_us + KEPT_S * US)
        await restorer.flush()
        payee = names.paid_for("acc", "fa_1")
        keys = [names.payout("ended"), names.budget("agent:a", "d1"), names.rate("a"), names.seen("k"), payee]
        ends = [await client.expiretime(key) for key in keys]
        assert ends == [end, end, end, end, noted_us // US + KEPT_S]
        assert await client.expiretime(names.payout("open")) == -1
        assert await client.zcard(names.rate("a")) == 2 * IDS_MAX + 1
        assert await client.hlen(payee) == 2
        assert not await client.exists(names.paid_at("acc", "gone.example"))


async def test_from_a_recovery_on_nobody_knows_when_the_log_began_and_the_bank_is_to_be_asked(
    redis_url: str,
) -> None:
    """An intent that is older than what is known of its log may have been paid: it is not taken for a new one."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=("g",))
        assert await client.hexists(META, BEGUN)
        await mark_recovering(client, 1, 7)
        assert not await client.hexists(META, BEGUN)
        assert await read_marks(client) == LogMarks(1, recovering=True, unreconciled=True)
        with pytest.raises(LogBroken, match="recover"):
            await open_log(client, partitions=1, groups=("g",))
        await mark_recovered(client, [0], 7)
        assert await read_marks(client) == LogMarks(1, recovering=False, unreconciled=True)
        await open_log(client, partitions=1, groups=("g",))
        assert not await client.hexists(META, BEGUN)
        await mark_reconciled(client, 6)
        assert await read_marks(client) == LogMarks(1, recovering=False, unreconciled=True), (
            "of an earlier recovery"
        )
        await mark_reconciled(client, 7)
        assert await read_marks(client) == LogMarks(1, recovering=False, unreconciled=False)


async def test_what_was_lost_is_opened_after_a_recovery_by_as_many_partitions_as_it_was_recovered_for(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        assert await read_marks(client) == LogMarks(None, recovering=False, unreconciled=False)
        await mark_recovering(client, 2, 7)
        assert await read_marks(client) == LogMarks(2, recovering=True, unreconciled=True)
        await mark_recovered(client, [0, 1], 7)
        with pytest.raises(LogBroken, match="this log was made with 2"):
            await open_log(client, partitions=1, groups=("g",))
        # Its partitions count as made, so that one that is not there is not taken for one that never was.
        with pytest.raises(LogBroken, match="the log of partition 0 is gone"):
            await open_log(client, partitions=2, groups=("g",))


async def test_a_log_is_set_aside_once_and_its_entries_are_read_from_there(redis_url: str) -> None:
    names = Names(0)
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=("g", "h"))
        for n in (1, 2, 3):
            await client.xadd(names.log, {"e": f"[{n}]", "m": "{}"}, id=f"{n}-1")
        await client.xgroup_destroy(names.log, "h")
        assert await groups_gone(client, names, ["g", "new"]) == ["h", "new"]
        assert await groups_gone(client, names, []) == ["h"]
        for run in (1, 2):  # the second one takes over from the first
            assert await Restorer(client, names, run).set_aside()
        assert not await client.exists(names.log)
        assert [entry.id for entry in await rescued_after(client, names, "1-1", 1)] == ["2-1"]
        assert [entry.e for entry in await rescued_after(client, names, "1-1", 9)] == [b"[2]", b"[3]"]
        two = await rescued_entry(client, names, "2-1")
        assert two is not None
        assert (two.id, two.e) == ("2-1", b"[2]")
        assert await rescued_entry(client, names, "2-2") is None
        assert not await Restorer(client, Names(1), 1).set_aside()  # there was none
        last = Restorer(client, names, 2)
        await last.groups(["g"], "", 0)
        await last.put_in_place(keep_rescued_s=60)
        assert 0 < await client.ttl(names.rescued) <= 60  # people may still look at it


async def test_numbers_go_on_after_the_highest_that_anybody_knows(redis_url: str) -> None:
    """A number that was given twice would put two decisions in one place of the order."""
    async with connected(redis_url) as client:
        restorer = Restorer(client, Names(0), 1)
        await restorer.set_aside()
        for archived, number in ((0, None), (7, b"7"), (5, b"7"), (9, b"9")):
            await restorer.number(archived)
            await restorer.flush()
            assert await client.get(Names(0).number) == number


async def test_wiping_takes_everything_but_what_is_still_wanted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log that was set aside above all, which may be the only copy of its end; and the bank's token, since with it
    the bank may have voided the one in the settings."""
    monkeypatch.setattr(restore, "SCAN_COUNT", 1)
    async with connected(redis_url) as client:
        names = Names(1)
        kept = {
            *(names.rescued, names.number, names.reputation("x"), names.vault("x"), names.recovery),
            *(Names(10).number, Names(0).policy),
        }
        for key in (
            names.policy,
            names.seen("k"),
            names.payout("p"),
            names.timers,
            names.cursor("poll:x"),
            *kept,
        ):
            await client.set(key, "1")
        await Restorer(client, names, 1).wipe()
        assert {key.decode() for key in await client.keys("*")} == kept

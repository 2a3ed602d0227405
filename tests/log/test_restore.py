"""What the restorer writes is what the scripts write, and another run ends it."""

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain.beneficiaries import KEPT_S
from streamproc.domain.budget import US, Admission, BudgetAnswer, RateAnswer, Window
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import JobFailed, LogBroken
from streamproc.log import scripts
from streamproc.log.connection import connected
from streamproc.log.names import META, Names
from streamproc.log.restore import (
    IDS_MAX,
    Meta,
    Restorer,
    mark_reconciled,
    mark_recovered,
    mark_recovering,
    read_meta,
)
from streamproc.log.scripts import RATE_BACKLOG_S
from streamproc.log.stream import BEGUN, open_log

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
        assert await client.keys("*seen*") == []
        await second.groups(["governance"], "", 0)
        await second.put_in_place(keep_rescued_s=60)
        assert await client.exists(Names(0).log)


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
        assert await read_meta(client) == Meta(1, recovering=True, unreconciled=False)
        with pytest.raises(LogBroken, match="recover"):
            await open_log(client, partitions=1, groups=("g",))
        await mark_recovered(client, [0], 7)
        assert await read_meta(client) == Meta(1, recovering=False, unreconciled=True)
        await open_log(client, partitions=1, groups=("g",))
        assert not await client.hexists(META, BEGUN)
        await mark_reconciled(client)
        assert await read_meta(client) == Meta(1, recovering=False, unreconciled=False)


async def test_numbers_go_on_after_the_highest_that_anybody_knows(redis_url: str) -> None:
    """A number that was given twice would put two decisions in one place of the order."""
    async with connected(redis_url) as client:
        restorer = Restorer(client, Names(0), 1)
        await restorer.set_aside()
        for archived, number in ((0, None), (7, b"7"), (5, b"7"), (9, b"9")):
            await restorer.number(archived)
            await restorer.flush()
            assert await client.get(Names(0).number) == number


async def test_wiping_takes_everything_but_what_is_still_wanted(redis_url: str) -> None:
    async with connected(redis_url) as client:
        names = Names(1)
        kept = {names.number, names.reputation("x"), names.recovery, Names(10).number, Names(0).policy}
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

"""What the restorer writes is what the scripts write, and another run ends it."""

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain.budget import Admission, BudgetAnswer, RateAnswer, Window
from streamproc.errors import JobFailed
from streamproc.log import scripts
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.restore import Restorer
from streamproc.log.scripts import RATE_BACKLOG_S

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

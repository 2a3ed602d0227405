"""The same history gives the same log: with one group or many, with the fast path or not, delivered once or twice."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record
from streamproc.log.work import Group
from tests.engine import split
from tests.model.playing import Crew, Input, counters, drawn, history_of, stories
from tests.model.stepping import World, governance, the_tests_clock
from tests.properties.test_fast_path import payouts

pytestmark = pytest.mark.timeout(600)  # seconds, on a busy machine; alone each test takes a few

QUICK = 25
"""Examples in the default suite."""
LONG = 150
"""Examples of `make faults-all`."""
EXAMPLES = [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.soak)]


def each(examples: int) -> settings:
    """The quick examples are the same each time, the long ones are new each time."""
    return settings(
        max_examples=examples,
        derandomize=examples == QUICK,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        report_multiple_bugs=False,
    )


def run(what: Coroutine[Any, Any, None]) -> None:
    with the_tests_clock():
        asyncio.run(what)


async def played(url: str, groups: Sequence[Group], history: Sequence[Input]) -> tuple[Any, Any]:
    async with Crew(World(url), groups) as crew:
        await crew.play(history)
        return stories(await crew.world.rows()), await counters(crew.world)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_one_group_for_each_stage_writes_what_one_group_writes(unsynced: str, examples: int) -> None:
    @each(examples)
    @given(drawn)
    def whatever_happens(what: list[Any]) -> None:
        run(_split_or_not(unsynced, history_of(what)))

    whatever_happens()


async def _split_or_not(url: str, history: list[Input]) -> None:
    one, state = await played(url, [governance(fast_path=False)], history)
    assert await played(url, [governance()], history) == (one, state)
    apart, state_apart = await played(url, list(split(governance()).values()), history)
    assert _but_requests(apart) == _but_requests(one)
    assert state_apart == state
    for payout, story in one.items():
        assert set(story) <= set(apart[payout]), payout


def _but_requests(stories: dict[str, list[str]]) -> dict[str, list[str]]:
    """The stories without requests to cancel. A stage in a group of its own gets entries that others have folded, so it
    cannot tell whether a queued payout was queued when it was decided or only later: it asks the bank once more."""
    return {
        payout: [text for text in story if '"payout.cancel_requested"' not in text]
        for payout, story in stories.items()
    }


@pytest.mark.parametrize("examples", EXAMPLES)
def test_told_twice_is_told_once(unsynced: str, examples: int) -> None:
    """First deliveries keep their order. A reviewer's answer is not repeated, which the producer's key prevents."""

    @each(examples)
    @given(drawn, st.data())
    def whatever_happens(what: list[Any], data: st.DataObject) -> None:
        history = history_of(what)
        more: list[Input] = []
        for place, first in enumerate(history):
            more.append(first)
            repeated = data.draw(st.lists(st.integers(0, place), max_size=3))
            more += [again for i in repeated if _comes_again(again := history[i])]
        run(_twice_or_once(unsynced, history, more))

    whatever_happens()


def _comes_again(first: Input) -> bool:
    return not isinstance(first, str | e.ReviewSubmitted)


async def _twice_or_once(url: str, once: list[Input], more: list[Input]) -> None:
    written: list[Any] = []
    for history in (once, more):
        async with Crew(World(url), [governance()]) as crew:
            await crew.play(history)
            rows = [row for row in await crew.world.rows() if row.meta.by == "governance"]
            written.append((stories(rows), await counters(crew.world)))
    assert written[0][0] == written[1][0]
    assert written[0][1] == written[1][1]


plenty = payouts.filter(lambda event: event.facts.status == "pending")
later = st.tuples(
    st.integers(0, 9),
    st.sampled_from(["queued", "processing", "processed", "rejected", "cancelled", "failed", "reversed"]),
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_order_of_the_banks_webhooks_does_not_matter_nor_how_often_they_come(
    unsynced: str, examples: int
) -> None:
    """After a payout was shown and decided, decisions, reservations and counters end up the same."""

    @each(examples)
    @given(st.lists(plenty, min_size=1, max_size=5), st.lists(later, min_size=1, max_size=8), st.data())
    def whatever_happens(made: list[Any], moves: list[tuple[int, str]], data: st.DataObject) -> None:
        first = {event.payout: event for event in made}
        once = history_of([*first.values(), *(("status", which, status) for which, status in moves)])[
            len(first) :
        ]
        times = [event for event in once for _ in range(data.draw(st.integers(1, 3)))]
        other = data.draw(st.permutations(times))
        run(_in_any_order(unsynced, list(first.values()), once, other))

    whatever_happens()


async def _in_any_order(url: str, first: list[Input], once: list[Input], other: list[Input]) -> None:
    ends: list[Any] = []
    for later_on, rests in ((once, True), (other, False)):
        async with Crew(World(url), [governance()]) as crew:
            await crew.play(first)
            for event in later_on:
                await crew.tell(event)
                if rests:
                    await crew.rest()
            await crew.rest()
            state = await counters(crew.world)
            records = {key: decode_record(row[0]) for key, row in state.items() if ":payout:" in key}
            # A sum that was committed and released again is 0; one that never was is missing.
            budgets = {
                key: {field: sum_ for field, sum_ in row.items() if int(sum_)}
                for key, row in state.items()
                if ":budget:" in key
            }
            ends.append((records, budgets))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] == ends[1][1]

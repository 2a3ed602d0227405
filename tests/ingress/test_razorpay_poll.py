import asyncio
import logging
import random
from collections.abc import Callable, Iterable

import pytest

from streamproc.clients.limiter import NoTurn
from streamproc.clients.razorpay import PAGE_COUNT_MAX, Page
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.events import BankPayout, PayoutMalformed, PayoutObserved
from streamproc.errors import LogUnavailable, TryAgain, Unprocessable
from streamproc.ingress import razorpay_poll
from streamproc.ingress.razorpay_list import TRY_WAIT_S_MAX, read_list
from streamproc.ingress.razorpay_poll import (
    FIRST_LOOK_S,
    LONG_LOOK_EVERY_S,
    OVERLAP_S,
    SHORT_OVERLAP_S,
    Listing,
    Pass,
    Poller,
)
from streamproc.ingress.razorpay_watch import Looked, Watcher
from streamproc.log.stream import Append, Appended
from tests.deadline import DEADLINE_S
from tests.ingress.recorder import Recorder

Item = BankPayout | MalformedPayout


NOW_S = Recorder().now_s


def payout(number: int, status: str = "pending", *, ago_s: int = 60) -> BankPayout:
    return BankPayout(
        id=f"pout_{number}", amount=1_000, currency="INR", status=status, created_at=NOW_S - ago_s
    )


class Bank:
    """A list by creation time, newest first, that answers page by page, or fails when told to."""

    def __init__(self, *items: Item) -> None:
        self.items = list(items)
        self.asked: list[tuple[int, int, int]] = []
        self.failure: Callable[[int], Exception | None] = lambda _call: None
        self.before_call: Callable[[int], None] = lambda _call: None
        self.at_s: int | None = None
        """What time it is at the bank, if it says so."""

    async def list_page(
        self, account_number: str, *, from_s: int, to_s: int, skip: int, count: int = PAGE_COUNT_MAX
    ) -> Page:
        assert (account_number, count) == ("7878780080316316", PAGE_COUNT_MAX)
        self.before_call(len(self.asked))
        self.asked.append((from_s, to_s, skip))
        if failure := self.failure(len(self.asked)):
            raise failure
        fitting = [item for item in self.items if from_s <= created(item) <= to_s]
        items = sorted(fitting, key=created, reverse=True)[skip : skip + count]
        return Page(items=items, raw_count=len(items), at_s=self.at_s)


def created(item: Item) -> int:
    return item.created_at if isinstance(item, BankPayout) else NOW_S - 60


class Desk:
    """A poller with its bank, its door and its cursor."""

    def __init__(self, *items: Item, interval_s: float = 3_600, watch: Watcher | None = None) -> None:
        self.bank = Bank(*items)
        self.door = Recorder()
        self.door.sync = self._sync  # type: ignore[method-assign]
        self.cursor: int | None = None
        self.server_name = "server"
        self.saved = list[int]()
        self.slept_s = 0
        self.is_active, self.told = True, list[tuple[Pass, int, float]]()
        self.tell_problem: Exception | None = None
        self.listing = Listing(
            self.bank, self.door, self, account="acc_1", account_number="7878780080316316", watch=watch
        )
        self.poller = Poller(
            self.listing, interval_s=interval_s, is_active=lambda: self.is_active, tell=self._tell
        )

    async def _sync(self) -> None:
        self.door.now_s += self.slept_s
        self.slept_s = 0

    async def server(self) -> str:
        return self.server_name

    async def load(self) -> int | None:
        return self.cursor

    async def save(self, position: int, *, after: int | None) -> None:
        assert after == self.cursor
        self.cursor = position
        self.saved.append(position)

    async def _tell(self, done: Pass, failures: int, wait_s: float) -> None:
        if self.tell_problem is not None:
            raise self.tell_problem
        self.told.append((done, failures, wait_s))


class Open:
    """The open payouts, as a pass is told of them."""

    def __init__(self, looked: Looked | None = None) -> None:
        self.looked, self.noted = looked, list[Item]()

    async def note(self, items: Iterable[Item]) -> None:
        self.noted += items

    async def look(self) -> Looked:
        if self.looked is None:
            raise TryAgain("the list of open payouts is away")
        return self.looked


async def test_after_its_host_slept_a_poller_that_appended_nothing_lists_up_to_now() -> None:
    """Its clock stood still meanwhile. Up to then there was nothing to append, and only an append asked for the time:
    so it listed up to the same moment again and again."""
    desk = Desk()
    await desk.poller.poll_once()
    asleep_at_s, desk.slept_s = desk.door.now_s, 8 * 3600
    await desk.poller.poll_once()
    assert desk.bank.asked[-1][1] == desk.cursor == asleep_at_s + 8 * 3600


async def test_a_payout_is_told_of_by_the_clock_as_it_is_when_it_is_appended() -> None:
    """The clock was found to be another one in the turn between, so the door took a time for right that was not."""

    class Stepping(Recorder):
        def now_us(self) -> int:
            asyncio.get_running_loop().call_soon(setattr, self, "now_s", self.now_s + 86_400)
            return super().now_us()

        async def append(self, what: Append, /) -> Appended:
            assert [event.at for event in what.events] == [self.now_s * 1_000_000]
            return await super().append(what)

    desk = Desk(payout(1), payout(2))
    desk.door = desk.listing._producer = Stepping()
    assert (await desk.poller.poll_once()).new == 2


async def test_the_first_pass_looks_a_day_back_and_leaves_the_cursor_at_now() -> None:
    desk = Desk()
    await desk.poller.poll_once()
    assert desk.bank.asked == [(desk.door.now_s - FIRST_LOOK_S, desk.door.now_s, 0)]
    assert desk.cursor == desk.door.now_s


async def test_the_next_pass_begins_an_overlap_before_the_cursor() -> None:
    desk = Desk()
    await desk.poller.poll_once()
    before = desk.door.now_s
    desk.door.now_s += 60
    await desk.poller.poll_once()
    assert desk.bank.asked[-1] == (before - SHORT_OVERLAP_S, before + 60, 0)
    desk.door.now_s += LONG_LOOK_EVERY_S
    await desk.poller.poll_once()
    assert desk.bank.asked[-1] == (before + 60 - OVERLAP_S, before + 60 + LONG_LOOK_EVERY_S, 0)


async def test_short_looks_in_between_do_not_put_off_the_long_one() -> None:
    desk = Desk()
    began_s, starts = desk.door.now_s, list[int]()
    for second in range(0, LONG_LOOK_EVERY_S + 1, LONG_LOOK_EVERY_S // 3):
        desk.door.now_s = began_s + second
        cursor = desk.cursor
        await desk.poller.poll_once()
        if cursor is not None:
            starts.append(cursor - desk.bank.asked[-1][0])
    assert starts == [SHORT_OVERLAP_S, SHORT_OVERLAP_S, OVERLAP_S]


@pytest.mark.parametrize("by", ["another start of Redis", "a recovery"])
async def test_where_the_log_was_set_back_the_next_look_is_long(by: str) -> None:
    """A payout that the list had shown late, and that the log has lost, was appended two minutes later only. By then it
    was taken for known that nothing was forgotten any more."""
    desk = Desk()
    await desk.poller.poll_once()
    desk.door.now_s += 60
    await desk.poller.poll_once()
    if by == "a recovery":
        desk.cursor = desk.door.now_s - 1
    else:
        desk.server_name = "server, started anew"
    cursor = desk.cursor
    assert cursor is not None
    desk.door.now_s += 1
    await desk.poller.poll_once()
    assert desk.bank.asked[-1][0] == cursor - OVERLAP_S


async def test_where_the_first_look_after_the_log_was_set_back_failed_on_its_way_the_next_one_is_long_too() -> (
    None
):
    """It had saved the cursor of a part, which then was no longer before where the poller had left it."""
    desk = Desk(*[payout(number, ago_s=number // 5) for number in range(150)])
    await desk.poller.poll_once()
    desk.door.now_s += 1
    desk.cursor = NOW_S - 30
    desk.saved.clear()
    desk.bank.failure = lambda _call: Unprocessable("away") if desk.saved else None
    assert (await desk.poller.poll_once()).problem
    cursor, asked = desk.cursor, len(desk.bank.asked)
    assert cursor is not None
    assert cursor > NOW_S - 30
    desk.bank.failure = lambda _call: None
    await desk.poller.poll_once()
    assert desk.bank.asked[asked][0] == cursor - OVERLAP_S


async def test_a_long_look_that_failed_is_made_by_the_next_pass() -> None:
    desk = Desk()
    await desk.poller.poll_once()
    cursor = desk.cursor
    assert cursor is not None
    desk.door.now_s += LONG_LOOK_EVERY_S
    desk.bank.failure = lambda _call: Unprocessable("away")
    await desk.poller.poll_once()
    desk.bank.failure = lambda _call: None
    desk.door.now_s += 1
    await desk.poller.poll_once()
    assert desk.bank.asked[-1][0] == cursor - OVERLAP_S


async def test_a_cursor_in_the_future_does_not_turn_the_window_around() -> None:
    desk = Desk()
    desk.cursor = desk.door.now_s + 10_000
    await desk.poller.poll_once()
    from_s, to_s, _ = desk.bank.asked[0]
    assert from_s == to_s - OVERLAP_S
    assert desk.cursor == to_s, "it is put right, or what comes before it is listed for ever"


async def test_after_the_clock_went_back_a_pass_looks_far_back_at_once() -> None:
    desk = Desk()
    await desk.poller.poll_once()
    desk.cursor = desk.door.now_s = desk.door.now_s - 3600
    await desk.poller.poll_once()
    assert desk.bank.asked[-1][0] == desk.door.now_s - OVERLAP_S


@pytest.mark.parametrize("at_once", [1, PAGE_COUNT_MAX + 1])
async def test_what_is_made_while_our_clock_is_ahead_of_the_banks_is_listed(at_once: int) -> None:
    """Also in passes that do not look far back, and after our clock was set right."""
    desk = Desk()
    ahead_s, bank_s = 2 * 3600, NOW_S
    desk.door.now_s = bank_s + ahead_s
    made = set[str]()
    for second in (0, 30, 60):
        desk.bank.at_s = bank_s + second
        desk.door.now_s = desk.bank.at_s + (ahead_s if second < 60 else 0)
        new = [payout(1_000 * second + n, ago_s=-second) for n in range(at_once)]
        desk.bank.items += new
        made |= {one.id for one in new}
        assert (await desk.poller.poll_once()).problem == ""
        assert (seen(desk), desk.cursor) == (made, desk.bank.at_s)


@pytest.mark.parametrize("at_once", [1, PAGE_COUNT_MAX + 1])
async def test_a_bank_whose_date_stands_still_does_not_hold_the_cursor(at_once: int) -> None:
    """Each pass listed all since then, and from a thousand pages on none came to what was new."""
    desk = Desk()
    desk.bank.at_s = NOW_S - 3600
    for second in (0, 600, 1200):
        desk.door.now_s = NOW_S + second
        desk.bank.items += [payout(1_000 * second + n, ago_s=60 - second) for n in range(at_once)]
        assert (await desk.poller.poll_once()).problem == ""
        assert desk.cursor == NOW_S + second - 60


async def test_payouts_of_every_status_are_observed_once_with_the_webhooks_keys() -> None:
    desk = Desk(payout(1), payout(2, "processed"))
    done = await desk.poller.poll_once()
    assert (done.pages, done.listed, done.new, done.malformed, done.problem) == (1, 2, 2, 0, "")
    assert [append.keys for append in desk.door.appends] == [("st:pout_1:pending",), ("st:pout_2:processed",)]
    event = desk.door.events[0]
    assert isinstance(event, PayoutObserved)
    assert (event.account, event.source, event.at) == ("acc_1", "poll", desk.door.now_us())
    assert (await desk.poller.poll_once()).new == 0
    assert len(desk.door.events) == 2


def seen(desk: Desk) -> set[str]:
    return {event.payout for event in desk.door.events if isinstance(event, PayoutObserved)}


@pytest.mark.parametrize("total", [PAGE_COUNT_MAX - 1, PAGE_COUNT_MAX, PAGE_COUNT_MAX + 1, 1_000])
async def test_a_list_of_any_length_is_read_whole(total: int) -> None:
    desk = Desk(*[payout(number, ago_s=number) for number in range(total)])
    done = await desk.poller.poll_once()
    assert (done.problem, done.new, len(seen(desk))) == ("", total, total)
    assert desk.cursor == desk.door.now_s


async def test_a_list_in_no_order_that_is_shuffled_between_calls_loses_nothing() -> None:
    chance = random.Random(7)
    desk = Desk(*[payout(number, ago_s=chance.randrange(3_000)) for number in range(800)])
    places = {number: chance.random() for number in range(10_000)}

    def shuffle(_call: int) -> None:
        places.update({number: chance.random() for number in places})

    desk.bank.before_call = shuffle

    async def in_any_order(
        _number: str, *, from_s: int, to_s: int, skip: int, count: int = PAGE_COUNT_MAX
    ) -> Page:
        shuffle(0)
        fitting = [item for item in desk.bank.items if from_s <= created(item) <= to_s]
        fitting.sort(key=lambda item: places[int(name(item))])
        return Page(items=fitting[skip : skip + count], raw_count=len(fitting[skip : skip + count]))

    desk.bank.list_page = in_any_order  # type: ignore[method-assign]
    done = await desk.poller.poll_once()
    assert (done.problem, len(seen(desk))) == ("", 800)


def name(item: Item) -> str:
    assert isinstance(item, BankPayout)
    return item.id.removeprefix("pout_")


async def test_payouts_made_between_two_pages_lose_none_of_those_before() -> None:
    """Newest first, all in one second: what is made meanwhile pushes the others to the next page."""
    desk = Desk(*[payout(number) for number in range(250)])

    def make(call: int) -> None:
        if 2 <= call <= 4:
            desk.bank.items += [payout(1_000 + 10 * call + number) for number in range(10)]

    desk.bank.before_call = make
    done = await desk.poller.poll_once()
    assert (done.problem, len(seen(desk))) == ("", len(desk.bank.items))


async def test_a_crowded_second_is_read_once_a_reading_shows_nothing_new_and_not_before() -> None:
    bank = Bank(*[payout(number, ago_s=0) for number in range(150)])

    def make(call: int) -> None:
        if call == 3:  # in the second of the readings that skip
            bank.items.append(payout(1_000, ago_s=0))

    bank.before_call = make
    parts = [part async for part in read_list(bank, "7878780080316316", from_s=NOW_S, to_s=NOW_S)]
    shown = {item.id for part in parts for item in part.items if isinstance(item, BankPayout)}
    assert "pout_1000" in shown
    assert len(parts) == 7  # the first page, and three readings of two: the third shows nothing new
    assert [part.upto for part in parts] == [None] * 6 + [NOW_S]


async def test_a_page_that_failed_is_not_asked_for_again_before_its_wait_is_over() -> None:
    bank = Bank()
    bank.failure = lambda _call: TryAgain("busy", after_s=TRY_WAIT_S_MAX)
    parts = read_list(bank, "7878780080316316", from_s=NOW_S, to_s=NOW_S)
    reading = asyncio.ensure_future(anext(parts))
    for _ in range(100):  # whatever can go on without time passing
        await asyncio.sleep(0)
    assert len(bank.asked) == 1
    reading.cancel()


async def test_a_second_whose_list_never_stands_still_fails_and_keeps_the_cursor_before_it() -> None:
    desk = Desk(*[payout(number) for number in range(PAGE_COUNT_MAX)])
    desk.bank.before_call = lambda call: desk.bank.items.append(payout(1_000 + call))
    done = await desk.poller.poll_once()
    assert "changed in each of" in done.problem
    assert desk.cursor is not None
    assert desk.cursor < NOW_S - 50


async def test_a_bad_item_is_recorded_alone_and_once_and_the_page_goes_on() -> None:
    bad = MalformedPayout("pout_2", "amount 1 paise is too little", "f" * 16)
    desk = Desk(payout(1), bad, payout(3))
    done = await desk.poller.poll_once()
    assert (done.new, done.malformed) == (3, 1)
    assert [type(event) for event in desk.door.events] == [PayoutObserved, PayoutMalformed, PayoutObserved]
    assert (await desk.poller.poll_once()).new == 0


@pytest.mark.parametrize("failure", [TryAgain("bank is away", after_s=7), Unprocessable("400 count")])
async def test_a_failure_is_counted_and_the_cursor_stays_at_what_was_read_whole(failure: Exception) -> None:
    desk = Desk(*[payout(number, ago_s=1 + number) for number in range(150)])
    desk.cursor = before = NOW_S - 3_000
    desk.bank.failure = lambda call: failure if call == 3 else None
    done = await desk.poller.poll_once()
    assert done.problem == str(failure)
    assert desk.poller.failures_in_a_row == 1
    assert before <= desk.cursor <= desk.bank.asked[2][0] + 1  # where the window that failed begins
    assert (await desk.poller.poll_once()).problem == ""
    assert (desk.cursor, desk.poller.failures_in_a_row) == (desk.door.now_s, 0)
    assert len(seen(desk)) == 150


async def test_the_cursor_goes_back_nowhere_in_the_overlap_that_is_listed_again() -> None:
    """A pass that ended there would have what was read before listed again and again."""
    desk = Desk(*[payout(number, ago_s=number) for number in range(600)])
    desk.cursor = NOW_S - 10
    assert (await desk.poller.poll_once()).pages > 6
    assert desk.saved == sorted({NOW_S, *desk.saved})
    assert desk.saved[0] > NOW_S - 10


async def test_a_page_that_fails_now_and_then_is_asked_for_again_within_the_pass() -> None:
    desk = Desk(*[payout(number, ago_s=number) for number in range(500)])
    desk.bank.failure = lambda call: TryAgain("500", after_s=0.001) if call % 3 else None
    done = await desk.poller.poll_once()
    assert (done.problem, len(seen(desk))) == ("", 500)


async def test_while_the_log_is_away_the_cursor_stays() -> None:
    desk = Desk(payout(1))
    desk.door.is_away = True
    assert (await desk.poller.poll_once()).problem
    assert desk.cursor is None
    desk.door.is_away = False
    assert (await desk.poller.poll_once()).new == 1


async def test_a_pass_that_is_too_long_is_a_failure_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(razorpay_poll, "CALLS_MAX", 12)
    desk = Desk(*[payout(number, ago_s=20 * number) for number in range(900)])
    desk.cursor = NOW_S - 20 * 900
    passes = [await desk.poller.poll_once() for _ in range(4)]
    problems = [done.problem for done in passes]
    assert "after 12 pages" in problems[0]
    assert max(done.pages for done in passes) == 12
    assert problems[-1] == ""
    assert len(seen(desk)) == 900


async def test_a_pass_that_ends_with_the_last_page_it_may_ask_for_is_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(razorpay_poll, "CALLS_MAX", 1)
    desk = Desk(payout(1))
    done = await desk.poller.poll_once()
    assert (done.pages, done.problem, desk.cursor) == (1, "", desk.door.now_s)


async def test_after_failures_it_never_polls_faster_than_the_interval() -> None:
    desk = Desk(interval_s=60)
    desk.bank.failure = lambda _call: TryAgain("away", after_s=50)
    for _ in range(20):
        assert desk.poller._wait_s(await desk.poller.poll_once()) >= 60


async def test_a_longer_wait_that_the_bank_asks_for_is_kept() -> None:
    desk = Desk(interval_s=1)
    desk.bank.failure = lambda _call: TryAgain("429", after_s=600)
    assert desk.poller._wait_s(await desk.poller.poll_once()) >= 600


async def test_an_error_that_nobody_named_stops_the_poller() -> None:
    desk = Desk()
    desk.bank.failure = lambda _call: KeyError("a defect")
    with pytest.raises(KeyError):
        await asyncio.wait_for(desk.poller.run(asyncio.Event()), DEADLINE_S)


async def test_it_polls_again_after_the_interval_until_it_is_stopped() -> None:
    desk, stopping = Desk(interval_s=0.01), asyncio.Event()
    running = asyncio.create_task(desk.poller.run(stopping))
    async with asyncio.timeout(DEADLINE_S):
        while len(desk.bank.asked) < 3:
            await asyncio.sleep(0.01)
    stopping.set()
    await asyncio.wait_for(running, DEADLINE_S)


async def test_stopping_ends_a_pass_that_hangs_and_a_long_wait() -> None:
    for hangs in (True, False):
        desk, stopping = Desk(interval_s=3_600), asyncio.Event()
        if hangs:
            desk.bank.list_page = hang  # type: ignore[method-assign]
        running = asyncio.create_task(desk.poller.run(stopping))
        await asyncio.sleep(0)
        stopping.set()
        await asyncio.wait_for(running, DEADLINE_S)
        assert desk.poller.failures_in_a_row == 0, "what is given up has not failed"
        assert len(desk.bank.asked) <= 1


async def hang(*_: object, **__: object) -> Page:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


# ---- what one pass does beside the list ----


async def test_what_is_listed_is_noted_as_watched_and_what_is_watched_is_looked_at() -> None:
    watched = Open(Looked(looks=3))
    done = await Desk(payout(1), payout(2), watch=watched).poller.poll_once()
    assert {item.id for item in watched.noted if isinstance(item, BankPayout)} == {"pout_1", "pout_2"}
    assert (done.looked.looks, done.problem) == (3, "")


async def test_a_pass_whose_look_at_open_payouts_failed_has_failed_though_the_list_was_read() -> None:
    desk = Desk(payout(1), watch=Open())
    done = await desk.poller.poll_once()
    assert (done.problem, done.new) == ("the list of open payouts is away", 1)
    assert (desk.cursor, desk.poller.failures_in_a_row) == (desk.door.now_s, 1)


async def test_operators_read_of_failures_of_payouts_unknown_to_the_bank_and_of_looks_without_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked = Looked(looks=5, unknown=("pout_8: no such id",), failed=("pout_9: 500", "pout_10: 500"))
    await Desk(watch=Open(looked)).poller.poll_once()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the bank does not know a payout that is open here: pout_8: no such id"),
        (logging.WARNING, "2 of 5 open payouts got no answer; pout_9: 500"),
    ]
    caplog.clear()
    desk = Desk()
    desk.bank.failure = lambda _call: Unprocessable("400 count")
    for _ in range(2):
        await desk.poller.poll_once()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "poll failed, 1 in a row: 400 count"),
        (logging.WARNING, "poll failed, 2 in a row: 400 count"),
    ]


async def test_a_good_pass_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await Desk(payout(1), watch=Open(Looked(looks=1))).poller.poll_once()
    assert [record.getMessage() for record in caplog.records] == []


# ---- turns ----


async def test_who_stands_by_asks_the_bank_nothing_and_looks_again_after_the_interval() -> None:
    desk = Desk(payout(1), interval_s=7)
    desk.is_active = False
    assert await desk.poller._turn() == 7
    assert (desk.bank.asked, desk.door.appends, desk.cursor, desk.told) == ([], [], None, [])


async def test_each_pass_is_told_with_its_failures_in_a_row_and_the_wait_after_it() -> None:
    desk = Desk(payout(1), interval_s=7)
    desk.bank.failure = lambda call: Unprocessable("400 count") if call == 1 else None
    waits = [await desk.poller._turn() for _ in range(2)]
    assert [(done.problem, done.new, failures) for done, failures, _ in desk.told] == [
        ("400 count", 0, 1),
        ("", 1, 0),
    ]
    assert [wait_s for _, _, wait_s in desk.told] == waits
    assert waits[1] == 7


@pytest.mark.parametrize("failure", [LogUnavailable("Redis is away"), NoTurn("no turn: Redis is away")])
async def test_a_redis_that_is_away_is_asked_again_after_the_interval_however_often_it_was(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 1.0)
    desk = Desk(interval_s=7)
    desk.bank.failure = lambda _call: failure
    assert [await desk.poller._turn() for _ in range(12)] == [7] * 12
    assert desk.poller.failures_in_a_row == 12


async def test_only_failures_of_the_bank_make_the_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 1.0)
    desk = Desk(interval_s=7)
    failures = iter(
        [Unprocessable("500"), LogUnavailable("away"), Unprocessable("500"), Unprocessable("500")]
    )
    desk.bank.failure = lambda _call: next(failures, None)
    assert [await desk.poller._turn() for _ in range(5)] == [7, 7, 14, 28, 7]
    desk.bank.failure = lambda _call: Unprocessable("500")
    assert await desk.poller._turn() == 7, "a good pass ends the backoff"


async def test_a_result_that_cannot_be_told_does_not_end_the_poller(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(interval_s=7)
    desk.tell_problem = LogUnavailable("Redis is away")
    assert await desk.poller._turn() == 7
    assert [record.getMessage() for record in caplog.records] == [
        "the result of this poll could not be written to Redis: Redis is away"
    ]

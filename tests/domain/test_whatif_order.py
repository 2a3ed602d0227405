"""The order of numbers is given back to a log, whatever order it was committed in, in bounded memory."""

import random

from streamproc.domain.whatif.order import InOrder


def through(order: InOrder[object], items: list[tuple[int | None, object]]) -> list[object]:
    """What comes out, in order."""
    out: list[object] = []
    for number, item in items:
        order.put(number, item)
        out += order.ready()
    return [*out, *order.rest()]


def test_numbers_come_out_in_order_however_they_went_in() -> None:
    numbers = list(range(1, 200))
    random.Random(5).shuffle(numbers)
    assert through(InOrder(), [(n, n) for n in numbers]) == sorted(numbers)


def test_an_item_is_ready_as_soon_as_all_before_it_are() -> None:
    order: InOrder[str] = InOrder()
    order.put(2, "second")
    assert list(order.ready()) == []
    order.put(1, "first")
    assert list(order.ready()) == ["first", "second"]


def test_what_has_no_number_comes_after_all_that_was_there_before_it() -> None:
    assert through(InOrder(), [(2, "b"), (None, "-"), (1, "a"), (3, "c")]) == ["a", "b", "-", "c"]
    assert through(InOrder(), [(None, "-"), (1, "a")]) == ["-", "a"]


def test_items_of_one_number_keep_their_order() -> None:
    assert through(InOrder(), [(2, "b1"), (2, "b2"), (1, "a"), (2, "b3")]) == ["a", "b1", "b2", "b3"]


def test_a_number_that_never_comes_is_waited_for_so_long_and_no_longer() -> None:
    order: InOrder[int] = InOrder(waiting_max=3)
    out = through(order, [(n, n) for n in (1, 3, 4, 5, 6, 2, 7)])
    assert out == [1, 3, 4, 5, 6, 2, 7]
    assert order.skipped == 1
    patient: InOrder[int] = InOrder(waiting_max=4)
    assert through(patient, [(n, n) for n in (1, 3, 4, 5, 6, 2, 7)]) == [1, 2, 3, 4, 5, 6, 7]
    assert patient.skipped == 0


def test_a_log_that_is_read_from_its_middle_begins_with_the_lowest_number_there_is() -> None:
    assert through(InOrder(first=None), [(n, n) for n in (502, 501, 504, 503)]) == [501, 502, 503, 504]


def test_what_has_no_number_takes_none_from_those_that_have_one() -> None:
    order: InOrder[str] = InOrder()
    order.put(None, "-")
    assert list(order.ready()) == ["-"]
    order.put(2, "b")
    assert list(order.ready()) == []
    order.put(1, "a")
    order.put(None, "-")
    assert list(order.ready()) == ["a", "b", "-"]
    order.put(4, "d")
    assert list(order.ready()) == []
    order.put(3, "c")
    assert list(order.ready()) == ["c", "d"]


def test_each_number_that_never_came_is_counted_once() -> None:
    order: InOrder[int] = InOrder(waiting_max=1)
    assert through(order, [(n, n) for n in (1, 1, 3, 4, 8, 9)]) == [1, 1, 3, 4, 8, 9]
    assert order.skipped == 1 + 3
    order.put(2, 2)  # it comes after all, too late
    order.put(11, 11)
    assert list(order.rest()) == [2, 11]
    assert order.skipped == 1 + 3 + 1
    at_the_end: InOrder[int] = InOrder()
    for n in (1, 1, 3, 3, 7):
        at_the_end.put(n, n)
    assert list(at_the_end.rest()) == [1, 1, 3, 3, 7]
    assert at_the_end.skipped == 1 + 3

"""Puts a log's items into the order of their numbers. Pure.

Workers admit payouts in one order and commit them in another; the true order is that of the dense numbers that the
counters gave out. Items go in as the log has them and come out by number. A missing number delays the others until too
many wait for it; then it is taken for lost (in a crash before it was recorded) and skipped.
"""

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

WAITING_MAX = 20_000
"""Items that may wait for a missing number, some 3 kB each: as many as are admitted and committed while a dead
worker's entry waits to be taken over."""


class InOrder(Generic[T]):
    """Items by their numbers. `first` is the first number; None if it is not known."""

    def __init__(self, first: int | None = 1, waiting_max: int = WAITING_MAX) -> None:
        self._next = first
        self._waiting_max = waiting_max
        self._heap: list[tuple[int, int, T]] = []
        self._put = 0
        self._highest = 0
        self.skipped = 0
        """Numbers that never came."""

    def put(self, number: int | None, item: T) -> None:
        """Add an item; one without a number comes after all numbers put before it."""
        self._put += 1
        if number is not None:
            self._highest = max(self._highest, number)
        # `_put` keeps ties in the order of their arrival, and items from being compared.
        heapq.heappush(self._heap, (self._highest if number is None else number, self._put, item))

    def ready(self) -> Iterator[T]:
        """The items that are next."""
        while self._heap:
            number = self._heap[0][0]
            if self._next is None or number > self._next:
                if len(self._heap) <= self._waiting_max:
                    return
                self._skip_to(number)
            yield self._pop()

    def waiting(self) -> Iterator[T]:
        """The items that wait for a lower number, in no order."""
        return (item for _, _, item in self._heap)

    def rest(self) -> Iterator[T]:
        """All remaining items, at the end of the log."""
        while self._heap:
            self._skip_to(self._heap[0][0])
            yield self._pop()

    def _skip_to(self, number: int) -> None:
        if self._next is not None and number > self._next:
            self.skipped += number - self._next
        self._next = number if self._next is None else max(self._next, number)

    def _pop(self) -> T:
        number, _, item = heapq.heappop(self._heap)
        assert self._next is not None
        # Unnumbered items share the number before them, which has come out by then.
        if number == self._next:
            self._next += 1
        return item

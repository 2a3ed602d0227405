"""A process that collects rarely still frees old objects that are garbage in a cycle."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from streamproc import gc_tuning
from tests.deadline import DEADLINE_S


class Circle:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # again, as tests/conftest.py did
    gc.enable()


@pytest.mark.parametrize("collect", [gc_tuning.tune_for_batches, gc_tuning.tune_for_one_job])
async def test_what_died_when_it_was_old_goes_with_the_next_look_at_everything(
    monkeypatch: pytest.MonkeyPatch, collect: Callable[[], None]
) -> None:
    monkeypatch.setattr(gc_tuning, "WHOLE_S", 0.01)
    collect()
    gone = asyncio.Event()
    circle = Circle()
    gc.collect()  # it is old now
    finalizer = weakref.finalize(circle, gone.set)
    del circle
    assert finalizer.alive
    async with asyncio.timeout(DEADLINE_S):
        await gone.wait()


def test_without_a_loop_nothing_is_scheduled() -> None:
    gc_tuning.tune_for_batches()
    assert gc.get_threshold()[0] == gc_tuning.YOUNG_MAX


@pytest.mark.parametrize("young_max", [gc_tuning.YOUNG_MAX, gc_tuning.YOUNG_OF_FOLDS_MAX])
def test_the_young_are_looked_at_once_there_are_so_many(young_max: int) -> None:
    gc_tuning.tune_for_batches(young_max)
    before = gc.get_stats()[0]["collections"]
    kept: list[list[object]] = [[] for _ in range(young_max * 9 // 10)]
    assert gc.get_stats()[0]["collections"] == before
    kept += [[] for _ in range(young_max // 5)]
    assert gc.get_stats()[0]["collections"] == before + 1

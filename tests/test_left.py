"""What a test may leave behind: logging and the collector are put back, the rest is named."""

import asyncio
import gc
import logging
import os
import signal

import pytest
import uvicorn

from streamproc import gc_tuning
from streamproc.cli.logline import log_to_stderr
from tests import left
from tests.deadline import DEADLINE_S


def levels(*names: str) -> list[object]:
    return [
        (logger.level, logger.propagate, list(logger.handlers)) for logger in map(logging.getLogger, names)
    ]


def test_logging_is_as_before_after_a_command_and_after_a_server_of_its_own_defaults() -> None:
    names = ("", "httpx", "asyncio", "uvicorn", "uvicorn.error")
    before = levels(*names)
    with left.logging_put_back():
        log_to_stderr(logging.ERROR)
        uvicorn.Config(lambda: None, log_level="critical")
        assert levels(*names) != before
    assert levels(*names) == before


def test_a_logger_that_is_new_is_left_as_if_nobody_had_set_it() -> None:
    with left.logging_put_back():
        new = logging.getLogger("tests.left.new")
        new.setLevel(logging.CRITICAL)
        assert not new.isEnabledFor(logging.WARNING)  # which the logger remembers
        new.propagate = False
    assert (new.level, new.propagate, new.isEnabledFor(logging.WARNING)) == (logging.NOTSET, True, True)


def test_garbage_is_collected_as_before_after_a_role_and_after_a_builder() -> None:
    before = gc.get_threshold()
    with left.collector_put_back():
        gc_tuning.tune_for_batches()
        assert gc.get_threshold() != before
        gc.disable()
    assert (gc.isenabled(), gc.get_threshold()) == (True, before)


def test_what_is_not_put_back_is_named_with_what_it_is_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    before = left.process_state()
    assert left.changed(before) == {}
    monkeypatch.setenv("STREAMPROC_LEFT", "1")
    monkeypatch.chdir(tmp_path)
    handler, umask = signal.signal(signal.SIGUSR1, signal.SIG_IGN), os.umask(0o027)
    try:
        assert {*left.changed(before)} == {"environment", "working directory", "umask", "signal handlers"}
    finally:
        os.umask(umask)
        signal.signal(signal.SIGUSR1, handler)


def test_the_handler_that_a_runner_installs_for_its_own_time_is_none_that_is_left() -> None:
    before = left.process_state()
    asyncio.run(asyncio.wait_for(asyncio.sleep(0), DEADLINE_S))
    assert left.changed(before) == {}

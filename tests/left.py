"""What a test may leave to the tests after it in its process, where it would decide how they end.

Logging and the collector of garbage are put back, since commands, roles and servers set them for the whole process as
they should. Nothing of ours sets the rest: a test that does must put it back itself, and fails if it does not.
"""

import asyncio
import gc
import locale
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PYTEST_ITSELF = "PYTEST_CURRENT_TEST"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Afterwards each logger is as it was before. One that is new is as if nobody had set it.

    Filters stay, since ours are added when a module is imported, and that may be in a test.
    """
    before = {logger: _set(logger) for logger in _loggers()}
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    for logger in _loggers():
        was = before.get(logger) or (logging.NOTSET, True, False, [])
        if _set(logger) == was:
            continue
        level, logger.propagate, logger.disabled, logger.handlers = was
        logger.setLevel(level)  # a method, since it empties the cache of levels too


@contextmanager
def collector_put_back() -> Iterator[None]:
    """Afterwards garbage is collected as often as before. What a role froze stays frozen."""
    enabled, thresholds = gc.isenabled(), gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    if enabled:
        gc.enable()


def process_state() -> dict[str, object]:
    """What else belongs to the whole process, by a name for people."""
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "environment": {name: value for name, value in os.environ.items() if name != PYTEST_ITSELF},
        "working directory": Path.cwd(),
        "sys.path": list(sys.path),
        "umask": umask,
        "signal handlers": {number.name: signal.getsignal(number) for number in SIGNALS},
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion limit": sys.getrecursionlimit(),
        "timeout of sockets": socket.getdefaulttimeout(),
        "event loop policy": type(asyncio.get_event_loop_policy()),
    }


def changed(before: dict[str, object]) -> dict[str, object]:
    """What of `process_state()` is no more as before, as it is now."""
    return {name: now for name, now in process_state().items() if now != before[name]}


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):  # the others only hold a place
            yield logger


def _set(logger: logging.Logger) -> tuple[int, bool, bool, list[logging.Handler]]:
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers)

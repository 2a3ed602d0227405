"""Modules that a library only tries to import, and does without: kept out of a process that would never use them.

httpx brings its command line along (with rich and pygments), redis-py the OpenTelemetry SDK. Every role and command
would pay for both at its start, in CPU and in memory.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def absent(module: str) -> Iterator[None]:
    """While it lasts `module` cannot be imported, unless somebody has imported it before. Not for several threads."""
    modules: dict[str, Any] = sys.modules
    if module in modules:
        yield
        return
    modules[module] = None  # an import of it is an ImportError, as where it is not installed
    try:
        yield
    finally:
        del modules[module]

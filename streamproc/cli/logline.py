"""Log lines on stderr: for people on a terminal, one JSON object a line for everything else."""

import json
import logging
import sys
from datetime import UTC, datetime

_QUIET = ("httpx", "httpcore", "asyncio", "alembic")
"""Their information lines are of no use, or hold whole URLs, and Safe Browsing's key travels in one."""


def log_to_stderr(level: int) -> None:
    """Send lines of `level` and worse to stderr. Safe to call again with another level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForPeople() if sys.stderr.isatty() else _ForMachines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _at(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class _ForPeople(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = _at(record).strftime("%H:%M:%S.%f")[:-3]
        line = f"{at} {record.levelname.lower():7} {record.name}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _ForMachines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _at(record).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)

"""Log lines on stderr: for people on a terminal, one JSON object a line for everything else. Secrets are masked.

A line about a payout has its trace id (`extra={"payout": …}`); decisions are logged as a batch and written a line each.
"""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from streamproc.printer import TERMINAL_VARIABLE
from streamproc.telemetry.masks import Masks

if TYPE_CHECKING:
    from streamproc.telemetry.lines import DecisionLine

_QUIET = ("httpx", "httpcore", "asyncio", "alembic", "mcp")
"""Loggers whose INFO lines are of no use, or hold whole URLs, one of which has Safe Browsing's key."""

NAMES_KEPT = 1024
"""Names of agents and reviewers whose masked form is cached: those of one batch come again in the next."""


def log_to_stderr(level: int, secrets: Iterable[str] = ()) -> None:
    """Send lines of `level` and worse to stderr, without `secrets`. Safe to call again with another level."""
    handler = logging.StreamHandler(sys.stderr)
    masks = Masks(secrets)
    is_read = sys.stderr.isatty() or os.environ.get(TERMINAL_VARIABLE)
    handler.setFormatter(_ForPeople(masks) if is_read else _ForMachines(masks))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _at(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class _Masking(logging.Formatter, ABC):
    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self._masks = masks
        self._masked_name = lru_cache(NAMES_KEPT)(masks)

    def format(self, record: logging.LogRecord) -> str:
        decisions: Sequence[DecisionLine] | None = getattr(record, "decisions", None)
        if decisions is None:
            return self.line(record)
        return self.decision_lines(record, self._named(decisions))

    def _named(self, decisions: "Sequence[DecisionLine]") -> "Sequence[DecisionLine]":
        """Decisions with masked names, since an agent's name is whatever the bank's notes claim. Name by name: a batch
        has few, and in a whole line a mask could begin in one name and end in another."""
        names = {one.agent for one in decisions} | {one.by for one in decisions}
        masked = {name: shown for name in names if (shown := self._masked_name(name)) != name}
        if not masked:
            return decisions
        from msgspec.structs import replace

        return [
            replace(one, agent=masked.get(one.agent, one.agent), by=masked.get(one.by, one.by))
            for one in decisions
        ]

    @abstractmethod
    def line(self, record: logging.LogRecord) -> str:
        """A record as a line."""

    @abstractmethod
    def decision_lines(self, record: logging.LogRecord, decisions: "Sequence[DecisionLine]") -> str:
        """A line for each decision of a batch."""


class _ForPeople(_Masking):
    """For a terminal, which would obey what strangers wrote: an agent's name must not look like another line."""

    def line(self, record: logging.LogRecord) -> str:
        line = f"{self._head(record)} {record.name}: {_shown(record.getMessage())}"
        if record.exc_info:
            # Indented, so that no part of a message in it looks like the head of a line.
            traceback = self.formatException(record.exc_info).split("\n")
            line = "\n  ".join([line, *map(_shown, traceback)])
        return self._masks(line)

    def decision_lines(self, record: logging.LogRecord, decisions: "Sequence[DecisionLine]") -> str:
        from streamproc.domain.money import rupees  # here, since `--help` needs none of these

        head, lines = self._head(record), list[str]()
        for one in decisions:
            by = f" by {_shown(one.by)}" if one.by else ""
            what = (
                f"{one.payout}: {one.decision} {one.reason}{by}, {rupees(one.amount)} of {_shown(one.agent)}"
            )
            lines.append(f"{head} {what}")
        return "\n".join(lines)

    def _head(self, record: logging.LogRecord) -> str:
        return f"{_at(record).strftime('%H:%M:%S.%f')[:-3]} {record.levelname.lower():7}"


class _ForMachines(_Masking):
    def line(self, record: logging.LogRecord) -> str:
        line = {**self._head(record), "message": _whole(self._masks(record.getMessage()))}
        if payout := getattr(record, "payout", ""):
            from streamproc.domain.traces import trace_id

            line |= {"payout": payout, "trace_id": trace_id(payout)}
        if record.exc_info:
            line["exception"] = _whole(self._masks(self.formatException(record.exc_info)))
        return _json(line)

    def decision_lines(self, record: logging.LogRecord, decisions: "Sequence[DecisionLine]") -> str:
        from msgspec.json import Encoder

        # All in one call, and the head put before each: no JSON has a line's end within it.
        lines = "\n" + Encoder().encode_lines(decisions).decode()[:-1]
        return lines.replace("\n{", "\n" + _json(self._head(record))[:-1] + ",")[1:]

    def _head(self, record: logging.LogRecord) -> dict[str, str]:
        return {
            "at": _at(record).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }


def _shown(text: str) -> str:
    """Text in one line of a terminal, without what a terminal obeys."""
    from streamproc.domain.plain import clean

    return clean(text, len(text))


def _whole(text: str) -> str:
    """Text as UTF-8 can have it. Halves of a pair, which a file's name may have, are written as escapes: a line that
    cannot be encoded would be lost."""
    return text.encode(errors="backslashreplace").decode()


def _json(value: object) -> str:
    """The one encoder of all lines, so that they have one spelling to search for."""
    from msgspec.json import encode  # eight times as fast as json, and used for every decision

    return encode(value).decode()

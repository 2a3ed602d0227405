"""What the SDK logs while nobody takes what it exports: one line a minute and logger, instead of one for each try.

It tries again within seconds, in every process, and an outage of a collector may last for days. The lines about
payouts must not drown in that.
"""

import logging
import os
import time
from collections.abc import Callable
from math import inf

SAY_S = 60.0
"""Between two lines of one logger."""
SPOKEN = "http/protobuf"
"""The one protocol that is spoken here."""
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.sdk._shared_internal",  # the queue of spans
)

log = logging.getLogger(__name__)


class Seldom(logging.Filter):
    """Lets one line through every SAY_S, with what it means and how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_s, self._unsaid = -inf, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is logged."""
        now_s = self._clock()
        if now_s < self._said_s + SAY_S:
            self._unsaid += 1
            return False
        more = f"; {self._unsaid} such lines were left out" if self._unsaid else ""
        record.msg = f"{record.getMessage()} (payouts do not wait for that; said once in {SAY_S:g} s{more})"
        record.args = ()
        self._said_s, self._unsaid = now_s, 0
        return True


def say_seldom() -> None:
    """Let the SDK's exporters log seldom. May be called again."""
    for logger in map(logging.getLogger, _LOGGERS):
        if not any(isinstance(one, Seldom) for one in logger.filters):
            logger.addFilter(Seldom())


def warn_of_protocol(signal: str) -> None:
    """Log it if the environment asks for a protocol for this signal (TRACES, METRICS) that is not spoken here."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if asked := os.environ.get(name, "").strip():
            if asked.lower() != SPOKEN:
                log.warning("%s=%s is not spoken here: %s is, mostly on port 4318", name, asked, SPOKEN)
            return

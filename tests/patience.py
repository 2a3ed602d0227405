"""Limits of the product, longer in tests: a machine that pauses is not a store that is away.

The product's own are a few seconds, since its callers wait no longer. A test waits as long as it takes: of thousands
one meets a pause of three seconds, and it is about something else. What is about such a limit sets it, or has the
product's by `pytest.mark.own_limits`. Processes that a test starts have the product's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from streamproc.archive import pool, store
from streamproc.ingress import razorpay_webhook, refusals, slack_review
from streamproc.log import connection
from streamproc.operate import readiness
from streamproc.telemetry import exposure

PATIENT_S = 30.0
"""Longer than machines pause, and below what tests wait for what must come."""
LIMITS: tuple[tuple[ModuleType, str, float], ...] = (
    (connection, "COMMAND_TIMEOUT_S", PATIENT_S),
    (connection, "BLOCK_MARGIN_S", PATIENT_S),
    (pool, "CONNECT_S", PATIENT_S),
    (pool, "QUERY_TIMEOUT_S", PATIENT_S),
    (store, "CONNECT_TIMEOUT_S", PATIENT_S),
    (razorpay_webhook, "APPEND_S_MAX", PATIENT_S),
    (refusals, "APPEND_S_MAX", PATIENT_S),
    (slack_review, "BODY_READ_S_MAX", PATIENT_S),
    (slack_review, "ANSWER_S_MAX", PATIENT_S),
    (slack_review, "MODAL_S_MAX", PATIENT_S / 2),  # within the one above
    (readiness, "CHECK_S", PATIENT_S),
    (exposure, "ANSWER_S_MAX", PATIENT_S),
)
OWN = {(module.__name__, name): getattr(module, name) for module, name, _ in LIMITS}


@contextmanager
def limits(*, own: bool) -> Iterator[None]:
    """The product's own limits, or longer ones."""
    with pytest.MonkeyPatch.context() as patched:
        for module, name, patient_s in LIMITS:
            patched.setattr(module, name, OWN[module.__name__, name] if own else patient_s)
        yield

"""What `/readyz` reports, one check for each dependency; and `/healthz`."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from msgspec import Struct

ALIVE: Final = b'{"status":"alive"}'
"""What `/healthz` answers, of whatever process: it still answers, and nothing else was asked."""


class Check(Struct, frozen=True):
    """One dependency. `detail` is for an operator and holds no secret."""

    name: str
    ok: bool
    detail: str = ""
    required: bool = True
    """Whether this role is useless without it. Postgres is not required for webhooks."""


Ready: TypeAlias = Callable[[], Awaitable[list[Check]]]
"""Asks every dependency; answers within seconds, and reports a failure rather than raising it."""

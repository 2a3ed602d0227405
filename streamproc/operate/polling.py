"""The poller's state for operators; `doctor` and `/readyz` use the same."""

from typing import NamedTuple

from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor, PollState
from streamproc.settings import Settings

FAILING_S_MAX = 120.0
"""Failures for longer than this count as bad; a single page that timed out is made good by the next pass."""
LATE_S = 120.0
"""How much later than announced the next pass may be: a pass may take two minutes at the bank's limit."""


class PollerView(NamedTuple):
    """`ok` False: an operator must act; `seen`: whether a poller ever polled."""

    ok: bool
    seen: bool
    detail: str


async def poller_view(settings: Settings) -> PollerView:
    """The state of the poller of the settings' account. Raises LogUnavailable."""
    cursor = PollCursor(
        settings.redis_url, account=settings.razorpay_account_id, partitions=settings.partitions
    )
    state = await cursor.state()
    if state is None:
        return PollerView(False, False, "no poller has polled this account yet")
    async with connected(settings.redis_url) as client:
        return view_of(state, await clock_us(client) / 1_000_000)


def view_of(state: PollState, now_s: float) -> PollerView:
    """The state in words. `now_s` is Redis's clock, like the state's times."""
    good = f"last good pass {_ago(now_s - state.good_at)} ago" if state.good_at else "no pass was good yet"
    if now_s > state.next_at + LATE_S:
        return PollerView(False, True, f"nobody polls since {_ago(now_s - state.pass_at)}; {good}")
    if state.pass_at > now_s + LATE_S:
        return PollerView(False, True, "nobody has polled since Redis's clock went back")
    if state.failures:
        for_s = now_s - state.failing_since
        detail = f"fails since {_ago(for_s)}, {state.failures} in a row; {good}; the last: {state.problem}"
        return PollerView(for_s <= FAILING_S_MAX, True, detail)
    detail = f"{good}, {state.listed} listed, {state.new} new, {state.looked_at} older ones looked at"
    if state.malformed:
        detail += f", {state.malformed} malformed (see `streamproc dead list`)"
    if state.unknown:
        return PollerView(False, True, f"{detail}; the bank does not know {'; '.join(state.unknown)}")
    return PollerView(True, True, f"{detail}; {state.holder} polls (term {state.term})")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

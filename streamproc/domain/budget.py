"""Budget windows and rate slots: how much may still be spent, and how often. Amounts are paise, times µs.

`Ledger.admit` is the model of `log/lua/admit.lua`: the same history gives the same answers, which a property test
checks. A what-if counts with `Counters` alone.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from msgspec import Struct

from streamproc.domain.money import WINDOW_MAX_PAISE
from streamproc.domain.policy import Policy, ScopeLimits

US = 1_000_000
QUARTER_US = 15 * 60 * US
"""Every zone's offset in use is a multiple of 15 minutes, so a window's names can be cached by the quarter."""
_ZONES_CACHED = 4096
OF_VENDORS = "vendor:"
"""How the scope of a vendor's window begins. It counts what all agents with such a limit pay there."""

FIRST_ZONE_S = 14 * 3600
"""A day begins, and ends, this long before UTC's in the zone where it begins first."""
LAST_ZONE_S = 12 * 3600
"""A window's name has no zone; in no zone does it end later than this after it ended in UTC."""


class Window(Struct, frozen=True, array_like=True):
    """One budget window that a payout is charged to. `limit` None: no limit but WINDOW_MAX_PAISE; `ends_at`: Unix
    seconds."""

    scope: str
    window: str
    limit: int | None
    ends_at: int


class RateAsk(Struct, frozen=True):
    """At most `count` payouts of `agent` in any `window_us`. `hold`: without a slot, still go on to the budget."""

    agent: str
    count: int
    window_us: int
    hold: bool


class Ask(Struct, frozen=True):
    """What one payout asks for: a rate slot, room in its windows, or both."""

    payout: str
    amount: int
    received_at: int
    rate: RateAsk | None = None
    windows: tuple[Window, ...] | None = None


class RateAnswer(Struct, frozen=True):
    """`used`: payouts in the window before this one; `limited`: there was no slot.

    `count` and `window_us` are the terms asked for; a policy that changes later does not change the answer.
    """

    number: int
    used: int
    limited: bool
    count: int = 0
    window_us: int = 0


class BudgetAnswer(Struct, frozen=True):
    """What was answered to `amount`, which is what is reserved, whatever is seen of the payout later.

    `exceeded`: index of the first window without room, or -1; `before`: (reserved, committed) of each window.
    """

    number: int
    amount: int
    exceeded: int
    windows: tuple[Window, ...]
    before: tuple[tuple[int, int], ...]

    @property
    def granted(self) -> bool:
        """Whether the amount is reserved in every window."""
        return self.exceeded < 0


class Admission(Struct, frozen=True):
    """The counters' answer to a payout, for good. A part that was not asked for yet is None."""

    rate: RateAnswer | None = None
    budget: BudgetAnswer | None = None


NOTHING_ASKED = Admission()


@lru_cache(maxsize=_ZONES_CACHED)
def _calendar(zone: str, quarter: int) -> tuple[tuple[str, int], tuple[str, int], tuple[str, int]]:
    """Names and ends (Unix s) of the day, the ISO week and the month that contain the quarter hour."""
    moment = datetime.fromtimestamp(quarter * 900, ZoneInfo(zone))
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    year, week, weekday = moment.isocalendar()
    next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (
        (moment.strftime("%Y-%m-%d"), int((midnight + timedelta(days=1)).timestamp())),
        (f"{year}-W{week:02d}", int((midnight + timedelta(days=8 - weekday)).timestamp())),
        (moment.strftime("%Y-%m"), int(next_month.timestamp())),
    )


def calendar_names(zone: str, now_s: float) -> dict[str, str]:
    """The windows of a zone that contain a time (Unix s): name -> day, week or month."""
    names = (name for name, _ in _calendar(zone, int(now_s) // 900))
    return dict(zip(names, ("day", "week", "month"), strict=True))


def window_end_s(name: str) -> int:
    """When (Unix s) the day `2026-09-21`, week `2026-W39` or month `2026-09` has ended in every zone."""
    year, _, rest = name.partition("-")
    if rest.startswith("W"):
        after = date.fromisocalendar(int(year), int(rest[1:]), 1) + timedelta(days=7)
    elif "-" in rest:
        after = date.fromisoformat(name) + timedelta(days=1)
    else:
        after = (date(int(year), int(rest), 1) + timedelta(days=32)).replace(day=1)
    return int(datetime(after.year, after.month, after.day, tzinfo=UTC).timestamp()) + LAST_ZONE_S


def must_be_counted(window: str, now_s: float, retention_s: float) -> bool:
    """Whether a window's counter must still exist, by the window's name: it may still run in some zone, or is still
    kept in all."""
    last_end_s = window_end_s(window)
    first_end_s = last_end_s - LAST_ZONE_S - FIRST_ZONE_S
    return now_s < min(last_end_s, first_end_s + retention_s)


class Limits(Struct, frozen=True):
    """The policies that limit a payout's budgets: its agent's, and those of its account and team, if there are any."""

    policy: Policy
    account: ScopeLimits | None = None
    team: ScopeLimits | None = None


def windows_of(
    limits: Limits, *, agent: str, account: str, vendor: str, received_at: int, zone: str
) -> tuple[Window, ...]:
    """The windows that a payout is charged to: always the agent's day; any other only if it is limited.

    `vendor` is empty for a payout that no vendor's window is charged with. `zone` is for policies that name none.
    """
    policy = limits.policy
    own_zone = policy.timezone or zone
    day, week, month = _calendar(own_zone, received_at // QUARTER_US)
    windows = [Window(f"agent:{agent}", day[0], policy.daily_limit, day[1])]
    scope = f"agent:{agent}"
    if policy.weekly_limit is not None:
        windows.append(Window(scope, week[0], policy.weekly_limit, week[1]))
    if policy.monthly_limit is not None:
        windows.append(Window(scope, month[0], policy.monthly_limit, month[1]))
    if policy.vendor_daily_limit is not None and vendor:
        windows.append(Window(f"{OF_VENDORS}{vendor}", day[0], policy.vendor_daily_limit, day[1]))
    if limits.team is not None and policy.team:
        windows += _scope_windows(f"team:{policy.team}", limits.team, received_at, zone)
    if limits.account is not None:
        windows += _scope_windows(f"account:{account}", limits.account, received_at, zone)
    return tuple(windows)


def _scope_windows(scope: str, limits: ScopeLimits, received_at: int, zone: str) -> list[Window]:
    names = _calendar(limits.timezone or zone, received_at // QUARTER_US)
    wanted = (limits.daily_limit, limits.weekly_limit, limits.monthly_limit)
    return [
        Window(scope, name, limit, ends)
        for (name, ends), limit in zip(names, wanted, strict=True)
        if limit is not None
    ]


@dataclass
class Counters:
    """Budgets and rate slots of one partition in memory, counted exactly as the scripts count them."""

    budgets: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(scope, window) -> reserved, committed."""
    rates: dict[str, deque[int]] = field(default_factory=dict)
    """agent -> times of its slots (µs), which never fall."""

    def take_slot(self, ask: RateAsk, received_at: int) -> tuple[int, bool]:
        """How many slots of the window were used before this payout, and whether it found none."""
        slots = self.rates.setdefault(ask.agent, deque())
        # Workers admit out of order. A late payout counts at the newest slot's time, so no window ever holds too many.
        now = max(received_at, slots[-1]) if slots else received_at
        while slots and slots[0] <= now - ask.window_us:
            slots.popleft()
        used = len(slots)
        if used < ask.count:
            slots.append(now)
        return used, used >= ask.count

    def reserve(self, windows: Sequence[Window], amount: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Reserve in all windows or in none: index of the first one without room or -1, and what was in each before."""
        before = tuple(self.budgets.get((w.scope, w.window), (0, 0)) for w in windows)
        for i, (window, (reserved, committed)) in enumerate(zip(windows, before, strict=True)):
            limit = WINDOW_MAX_PAISE if window.limit is None else window.limit
            if reserved + committed + amount > limit:
                return i, before
        for window, (reserved, committed) in zip(windows, before, strict=True):
            self.budgets[window.scope, window.window] = (reserved + amount, committed)
        return -1, before

    def settle(
        self,
        windows: Sequence[Window],
        amount: int,
        held: str,
        settlement: str,
        *,
        charged: int = 0,
        fees: int = 0,
    ) -> bool:
        """Commit or release what is `held` ('reserved' or 'committed'); False if that is not due.

        `charged`: fees committed with the amount so far; `fees`: all fees to be committed with it.
        """
        may = settlement == "released" or fees > charged
        if held != "reserved" and not (held == "committed" and may):
            return False
        for window in windows:
            if (window.scope, window.window) not in self.budgets:
                continue  # ended long ago, and is not kept any more
            reserved, committed = self.budgets[window.scope, window.window]
            if held == "reserved":
                reserved -= amount
            else:
                committed -= amount + charged
            if settlement == "committed":
                committed += amount + fees
            self.budgets[window.scope, window.window] = (reserved, committed)
        return True


@dataclass
class Ledger:
    """The model of `admit.lua`: the counters, and what each payout was answered."""

    number: int = 0
    counters: Counters = field(default_factory=Counters)
    admissions: dict[str, Admission] = field(default_factory=dict)
    settled: dict[str, str] = field(default_factory=dict)
    fees: dict[str, int] = field(default_factory=dict)

    @property
    def budgets(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(scope, window) -> reserved, committed."""
        return self.counters.budgets

    def admit(self, ask: Ask) -> Admission:
        """Answer each part of an ask once; the same payout always gets the same answer."""
        known = self.admissions.get(ask.payout, Admission())
        rate, budget, number = known.rate, known.budget, self.number + 1
        if ask.rate is not None and rate is None:
            used, limited = self.counters.take_slot(ask.rate, ask.received_at)
            rate = RateAnswer(number, used, limited, ask.rate.count, ask.rate.window_us)
        stopped = rate is not None and rate.limited and ask.rate is not None and not ask.rate.hold
        if ask.windows is not None and budget is None and not stopped:
            exceeded, before = self.counters.reserve(ask.windows, ask.amount)
            budget = BudgetAnswer(number, ask.amount, exceeded, ask.windows, before)
            if exceeded < 0:
                self.settled[ask.payout] = "reserved"
        admission = Admission(rate, budget)
        if admission != known:
            self.number = number
            self.admissions[ask.payout] = admission
        return admission

    def settle(self, payout: str, settlement: str, fees: int = 0) -> bool:
        """Commit or release a reservation; False if there is none, or it is settled so already."""
        budget = self.admissions.get(payout, Admission()).budget
        held, charged = self.settled.get(payout, ""), self.fees.get(payout, 0)
        if budget is None or not self.counters.settle(
            budget.windows, budget.amount, held, settlement, charged=charged, fees=fees
        ):
            return False
        self.number += 1
        self.settled[payout] = settlement
        self.fees[payout] = fees if settlement == "committed" else 0
        return True

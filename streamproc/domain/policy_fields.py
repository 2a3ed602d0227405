"""The fields of a policy: their defaults, and how their written form is read.

A written policy is a mapping of field names to JSON values. Reading reports all problems at once, each with its place,
so that a person can correct a file in one go. Amounts are integer paise: floats never hold money.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias, cast, get_args

from msgspec import Struct

from streamproc.domain.anomaly import AnomalyProfile, read_profile, written_profile
from streamproc.domain.domains import parse_rule
from streamproc.domain.duration import duration_s
from streamproc.domain.intent_rules import FUND_ACCOUNT_ID
from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.policy_report import Path, Report, shown, unknown
from streamproc.domain.time_zone import time_zone

Fields: TypeAlias = dict[str, object]
Reader: TypeAlias = Callable[[object], object]
Weekday: TypeAlias = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
"""As `datetime.weekday` counts them."""

DAY_S = 86_400
HOLD_TTL_S_MIN = 60
"""With less, nobody could answer a hold in time."""
HOLD_TTL_S_MAX = 90 * DAY_S
"""With more, payout records would outlive the log's retention."""
RATE_WINDOW_S_MAX = DAY_S
"""Longest rate window: budgets limit longer times."""
RATE_COUNT_MAX = 10_000
"""Most payouts in a rate window: each is one member of a sorted set in Redis."""
RULES_MAX = 10_000
"""Most domain rules in one list."""

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,63}")
_PATHS_BEGIN, _PATHS_END = ("proposals",), ("history", "budget")
"""An agent's name may have a `/`, and must not begin or end like other paths below /v1/policies and /v1/agents."""
_NO_STEP = frozenset({"", ".", ".."})
"""Parts of a path that clients and proxies remove."""
_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)


class RateLimit(Struct, frozen=True):
    """At most `count` payouts in any `window_s` seconds; a count of 0 turns the rule off."""

    count: int = 10
    window_s: int = 60


class Policy(Struct, frozen=True, kw_only=True):
    """What one agent may do. Limits are paise; None is no limit, 0 is a limit."""

    daily_limit: int | None = None
    weekly_limit: int | None = None
    monthly_limit: int | None = None
    per_txn_limit: int | None = None
    require_approval_above: int | None = None
    dual_approval_above: int | None = None
    vendor_daily_limit: int | None = None
    hold_ttl_s: int = DAY_S
    allowed_domains: tuple[str, ...] = ()
    blocked_domains: tuple[str, ...] = ()
    require_vendor_url: bool = False
    rate_limit: RateLimit = RateLimit()
    on_rate_limit: Literal["reject", "hold"] = "reject"
    on_reputation_unavailable: Literal["hold", "reject"] = "hold"
    require_verified_identity: bool = False
    new_beneficiary: Literal["ignore", "hold"] = "ignore"
    changed_beneficiary: Literal["ignore", "hold"] = "ignore"
    require_entity: bool = False
    anomaly: bool = False
    anomaly_profile: AnomalyProfile | None = None
    hours: tuple[int, int] | None = None
    """From and to, in minutes since midnight; if from is later than to, it spans midnight."""
    days: tuple[Weekday, ...] = ()
    """Empty means every day."""
    timezone: str | None = None
    currencies: tuple[str, ...] = ("INR",)
    team: str | None = None
    queued_hold: Literal["cancel", "allow"] = "cancel"
    count_fees: bool = False
    """Whether the bank's fees count in budget windows, once they are known."""
    frozen: bool = False

    @property
    def held_above(self) -> int | None:
        """Larger payouts wait for a person. Where two people are needed, one is needed too, so this is the lower of
        both thresholds, or the one that is set."""
        one, two = self.require_approval_above, self.dual_approval_above
        return two if one is None or (two is not None and two < one) else one


class ScopeLimits(Struct, frozen=True, kw_only=True):
    """What an account or a team may spend in total. Limits are paise; None is no limit."""

    daily_limit: int | None = None
    weekly_limit: int | None = None
    monthly_limit: int | None = None
    timezone: str | None = None
    frozen: bool = False
    fee_fund_accounts: tuple[str, ...] = ()
    """Accounts only: fund accounts of the bank's own payouts for fees."""


class _Problems(ValueError):
    """Several problems inside one value, each with its place in it."""

    def __init__(self, problems: list[tuple[Path, str]]) -> None:
        super().__init__("; ".join(problem for _, problem in problems))
        self.problems = problems


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what}, not {shown(value)}")
    return value


def _paise(value: object) -> int:
    paise = _whole(value, "amounts are integer paise")
    if not 0 <= paise <= AMOUNT_MAX_PAISE:
        raise ValueError(f"must be 0 to {AMOUNT_MAX_PAISE} paise, not {shown(paise)}")
    return paise


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def identifier(value: object) -> str:
    """An id of an agent, account or team, or a reviewer's name."""
    if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
        raise ValueError(
            f"{shown(value)}: an id is 1 to 64 of A-Z a-z 0-9 . _ @ : / - and starts with one of A-Z a-z 0-9"
        )
    return value


def agent_with_policy(value: object) -> str:
    """An agent's id that may have a policy: one that no path of the HTTP API can confuse with something else."""
    name = identifier(value)
    steps = name.split("/")
    if (
        steps[0] in _PATHS_BEGIN
        or (len(steps) > 1 and steps[-1] in _PATHS_END)
        or not _NO_STEP.isdisjoint(steps)
    ):
        raise ValueError(
            f"{name!r} would be another path of the HTTP API: an agent with a policy does not begin with proposals/,"
            " end in /history or /budget, or have an empty part, . or .. between its /"
        )
    return name


def fund_account(value: object) -> str:
    """The bank's id of a fund account."""
    if not isinstance(value, str) or not FUND_ACCOUNT_ID.fullmatch(value):
        raise ValueError(f"must be a fund account id like fa_00000000000001, not {shown(value)}")
    return value


def _optional(reader: Reader) -> Reader:
    return lambda value: None if value is None else reader(value)


def _one_of(*words: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be {' or '.join(words)}, not {shown(value)}")
        return value

    return read


def _seconds(least: int, most: int) -> Reader:
    def read(value: object) -> int:
        seconds = duration_s(value, bare=True) if isinstance(value, str) else value
        if not isinstance(seconds, int) or isinstance(seconds, bool):
            raise ValueError(f"must be whole seconds or like 90s, 15m, 24h, 7d, not {shown(value)}")
        if not least <= seconds <= most:
            raise ValueError(f"must be {least} to {most} seconds, not {shown(seconds)}")
        return seconds

    return read


def items(value: object, reader: Reader, most: int = RULES_MAX) -> list[object]:
    """Read a list, each entry by *reader*; ValueError carries every entry's problem."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, not {shown(value)}")
    if len(value) > most:
        raise ValueError(f"has {len(value)} entries, the limit is {most}")
    read: list[object] = []
    problems: list[tuple[Path, str]] = []
    for index, item in enumerate(value):
        try:
            read.append(reader(item))
        except ValueError as problem:
            problems.append(((index,), str(problem)))
    if problems:
        raise _Problems(problems)
    return read


def _list_of(reader: Reader, *, least: int = 0) -> Reader:
    def read(value: object) -> tuple[object, ...]:
        entries = items(value, reader)
        if len(entries) < least:
            raise ValueError("must name at least one")
        return tuple(entries)

    return read


def _rule(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a domain rule is text, not {shown(value)}")
    return parse_rule(value).text


def _currency(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[A-Z]{3}", value):
        raise ValueError(f"a currency is three capital letters like INR, not {shown(value)}")
    return value


def _rate(value: object) -> RateLimit:
    if not isinstance(value, dict):
        raise ValueError(f"must be like {{count: 10, window: 60}}, not {shown(value)}")
    problems: list[tuple[Path, str]] = [
        ((str(key),), unknown(str(key), ("count", "window")))
        for key in value
        if key not in ("count", "window")
    ]
    count, window_s = RateLimit().count, RateLimit().window_s
    try:
        count = _whole(value.get("count"), "must be a whole number")
        if not 0 <= count <= RATE_COUNT_MAX:
            problems.append((("count",), f"must be 0 to {RATE_COUNT_MAX}, not {shown(count)}"))
    except ValueError as problem:
        problems.append((("count",), str(problem)))
    try:
        window_s = cast(int, _seconds(1, RATE_WINDOW_S_MAX)(value.get("window", window_s)))
    except ValueError as problem:
        problems.append((("window",), str(problem)))
    if problems:
        raise _Problems(problems)
    return RateLimit(count, window_s)


def _hours(value: object) -> tuple[int, int]:
    match = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be like '09:00-18:00', not {shown(value)}")
    from_h, from_m, to_h, to_m = map(int, match.groups())
    begins, ends = from_h * 60 + from_m, to_h * 60 + to_m
    if max(from_m, to_m) > 59 or begins >= 1_440 or ends > 1_440 or begins == ends:
        raise ValueError(f"must be two different times of a day, 00:00 to 24:00, not {shown(value)}")
    return begins, ends


def _timezone(value: object, *, is_in_force: bool = False) -> str:
    try:
        return time_zone(value if isinstance(value, str) else "", is_in_force=is_in_force)
    except ValueError as problem:
        raise ValueError(f"{problem}, not {shown(value)}") from None


_LIMIT = _optional(_paise)
SCOPE_FIELDS: dict[str, Reader] = {
    "daily_limit": _LIMIT,
    "weekly_limit": _LIMIT,
    "monthly_limit": _LIMIT,
    "timezone": _optional(_timezone),
    "frozen": _flag,
}
POLICY_FIELDS: dict[str, Reader] = SCOPE_FIELDS | {
    "per_txn_limit": _LIMIT,
    "require_approval_above": _LIMIT,
    "dual_approval_above": _LIMIT,
    "vendor_daily_limit": _LIMIT,
    "hold_ttl": _seconds(HOLD_TTL_S_MIN, HOLD_TTL_S_MAX),
    "allowed_domains": _list_of(_rule),
    "blocked_domains": _list_of(_rule),
    "require_vendor_url": _flag,
    "rate_limit": _rate,
    "on_rate_limit": _one_of("reject", "hold"),
    "on_reputation_unavailable": _one_of("hold", "reject"),
    "require_verified_identity": _flag,
    "new_beneficiary": _one_of("ignore", "hold"),
    "changed_beneficiary": _one_of("ignore", "hold"),
    "require_entity": _flag,
    "anomaly": _flag,
    "anomaly_profile": _optional(lambda value: read_profile(value, _timezone)),
    "hours": _optional(_hours),
    "days": _list_of(_one_of(*WEEKDAYS)),
    "currencies": _list_of(_currency, least=1),
    "team": _optional(identifier),
    "queued_hold": _one_of("cancel", "allow"),
    "count_fees": _flag,
}
ACCOUNT_FIELDS: dict[str, Reader] = SCOPE_FIELDS | {"fee_fund_accounts": _list_of(fund_account)}
_zone_in_force = partial(_timezone, is_in_force=True)
_IN_FORCE: dict[str, Reader] = {
    "timezone": _optional(_zone_in_force),
    "anomaly_profile": _optional(lambda value: read_profile(value, _zone_in_force)),
}
"""How what is in force is read where a file may not say so any more."""
_ATTRIBUTE = {"hold_ttl": "hold_ttl_s"}
_FIELD = {attribute: field for field, attribute in _ATTRIBUTE.items()}
_RISING = (
    ("per_txn_limit", "daily_limit", "weekly_limit", "monthly_limit"),
    ("require_approval_above", "dual_approval_above"),
)
"""Fields whose values, if set, may not fall from left to right."""


def read_policy(fields: object, report: Report, path: Path, *, is_in_force: bool = False) -> Policy:
    """An agent's policy from its fields; problems go to *report*, and the result is then meaningless."""
    values = _read(fields, POLICY_FIELDS | _IN_FORCE if is_in_force else POLICY_FIELDS, report, path)
    return Policy(**{_ATTRIBUTE.get(name, name): value for name, value in values.items()})  # type: ignore[arg-type]


def read_limits(
    fields: object, report: Report, path: Path, *, of_account: bool = False, is_in_force: bool = False
) -> ScopeLimits:
    """An account's or a team's limits; problems go to *report*, and the result is then meaningless."""
    readers = ACCOUNT_FIELDS if of_account else SCOPE_FIELDS
    if is_in_force:
        readers = readers | {"timezone": _IN_FORCE["timezone"]}
    return ScopeLimits(**_read(fields, readers, report, path))  # type: ignore[arg-type]


def _read(fields: object, readers: Mapping[str, Reader], report: Report, path: Path) -> Fields:
    if not isinstance(fields, dict):
        report.add(path, f"must be a mapping of fields, not {shown(fields)}")
        return {}
    values: Fields = {}
    for name, value in fields.items():
        if name not in readers:
            known = f"{name!r} is a field of agents only; here are {', '.join(readers)}"
            report.add((*path, name), known if name in POLICY_FIELDS else unknown(str(name), readers))
            continue
        try:
            values[name] = readers[name](value)
        except _Problems as several:
            for below, problem in several.problems:
                report.add((*path, name, *below), problem)
        except ValueError as one:
            report.add((*path, name), str(one))
    _check_order(values, report, path)
    return values


def _check_order(values: Fields, report: Report, path: Path) -> None:
    for names in _RISING:
        present = [(name, cast(int, values[name])) for name in names if values.get(name) is not None]
        for (smaller, low), (larger, high) in pairwise(present):
            if low > high:
                report.add((*path, smaller), f"{smaller} {low} is above {larger} {high}")


def effective_policy(
    defaults: Mapping[str, object], own: Mapping[str, object], *, is_in_force: bool = False
) -> Policy:
    """*own* over *defaults* over the meaning of absent fields. InputError names every problem."""
    report = Report("policy")
    policy = read_policy({**defaults, **own}, report, (), is_in_force=is_in_force)
    report.refuse_if_any()
    return policy


def fields_of(policy: Policy) -> Fields:
    """Every field of *policy* as a file would write it; `policy.changed` records that as effective."""
    attributes = (_ATTRIBUTE.get(name, name) for name in POLICY_FIELDS)
    return dict(written(attribute, getattr(policy, attribute)) for attribute in attributes)


def written(attribute: str, value: object) -> tuple[str, object]:
    """An attribute of a policy as a file would write it: the field's name and value."""
    if isinstance(value, RateLimit):
        value = {"count": value.count, "window": value.window_s}
    elif isinstance(value, AnomalyProfile):
        value = written_profile(value)
    elif attribute == "hours" and value is not None:
        value = "-".join(f"{at // 60:02d}:{at % 60:02d}" for at in cast("tuple[int, int]", value))
    elif isinstance(value, tuple):
        value = list(value)
    return _FIELD.get(attribute, attribute), value

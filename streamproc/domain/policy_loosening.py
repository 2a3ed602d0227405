"""Finds changes of policies that let more through than before and so may need a second person (ADR 23). Pure.

An agent's policy is compared with its defaults filled in, everything else as written. Whatever is not certainly as
tight as before counts as looser: a doubt costs only a second look. `hold_ttl` alone never counts: how long people may
think about a hold makes no money easier to get.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast, get_args

from msgspec.structs import fields, replace

from streamproc.domain.anomaly import AnomalyProfile
from streamproc.domain.domains import DomainRule, parse_rule
from streamproc.domain.plain import listed
from streamproc.domain.policy_changes import ScopeState
from streamproc.domain.policy_events import Loosening, PolicyChanged
from streamproc.domain.policy_fields import (
    Fields,
    Policy,
    RateLimit,
    ScopeLimits,
    Weekday,
    read_limits,
    read_policy,
    written,
)
from streamproc.domain.policy_report import Report

Looser: TypeAlias = Callable[[Any, Any], str]
"""Says why the new value may let more through than the old one; empty if it certainly does not."""

_DAY_MINUTES = 24 * 60
RULES_SHOWN, RULE_SHOWN_CHARS = 3, 60
"""Domain rules that are named, and how much of each: whoever confirms has to read them."""


def _limit(old: int | None, new: int | None) -> str:
    if old is None or (new is not None and new <= old):
        return ""
    return "the limit is gone" if new is None else "the limit is raised"


def _must_stay(strict: object, why: str) -> Looser:
    """For a field with two values, one of which is strict."""
    return lambda old, new: why if old == strict and new != strict else ""


def _changed(why: str) -> Looser:
    return lambda old, new: "" if old == new else why


def _nothing(_old: object, _new: object) -> str:
    return ""


def _team(old: str | None, new: str | None) -> str:
    return "" if old in (None, new) else "another team, or none, limits it"


def _rate(old: RateLimit, new: RateLimit) -> str:
    if old.count == 0 or (0 < new.count <= old.count and new.window_s >= old.window_s):
        return ""
    return "the rate limit is off" if new.count == 0 else "more payouts fit in some time"


def _profile(old: AnomalyProfile | None, new: AnomalyProfile | None) -> str:
    if old is None or old == new:
        return ""
    if new is None:
        return "there is nothing left to compare its payouts with"
    if replace(old, threshold=new.threshold) != new:
        return "its usual payouts are measured anew"
    return "the threshold is raised" if new.threshold > old.threshold else ""


def _within(why: str, everything: Iterable[object]) -> Looser:
    """For a list of what is allowed; an empty one allows everything."""

    def looser(old: Sequence[object], new: Sequence[object]) -> str:
        return why if set(new or everything) - set(old or everything) else ""

    return looser


def _hours(old: tuple[int, int] | None, new: tuple[int, int] | None) -> str:
    return "it may pay at more hours" if _minutes(new) - _minutes(old) else ""


def _minutes(hours: tuple[int, int] | None) -> set[int]:
    begins, ends = hours or (0, _DAY_MINUTES)
    if begins < ends:
        return set(range(begins, ends))
    return set(range(begins, _DAY_MINUTES)) | set(range(ends))


def _allowed(old: Sequence[str], new: Sequence[str]) -> str:
    if not new:
        return "every domain is allowed" if old else ""
    # Without a list every host but IP addresses and localhost is allowed, as with `*`.
    wider = _uncovered(new, old or ("*",))
    return f"allows {_named(wider)}" if wider else ""


def _blocked(old: Sequence[str], new: Sequence[str]) -> str:
    gone = _uncovered(old, new, block=True)
    return f"does not block {_named(gone)} any more" if gone else ""


def _named(rules: Sequence[str]) -> str:
    return listed([rule[:RULE_SHOWN_CHARS] for rule in rules], RULES_SHOWN)


def _uncovered(texts: Sequence[str], by: Sequence[str], *, block: bool = False) -> list[str]:
    """The rules in *texts* that match something that no rule of *by* does. Lists may be long: each is read once."""
    same = set(by)
    others = [text for text in texts if text not in same]
    if not others:
        return []
    hosts: dict[str, set[str]] = {"everything": set(), "host": set(), "tree": set(), "subdomains": set()}
    for rule in map(parse_rule, by):
        hosts[rule.covers].add(rule.host)
    return [text for text in others if not _covered(parse_rule(text), hosts, block=block)]


def _covered(rule: DomainRule, by: Mapping[str, set[str]], *, block: bool) -> bool:
    """Whether a single rule of *by* (hosts by what they cover) matches everything that *rule* matches.

    `*` covers a rule that names an IP address or localhost only when blocking: to be allowed, these must be named.
    """
    if by["everything"] and (block or rule.covers == "everything" or not _names_no_domain(rule.host)):
        return True
    if rule.covers == "everything":
        return False
    labels = rule.host.split(".")
    above = (".".join(labels[n:]) for n in range(1, len(labels)))
    return (
        rule.host in by["tree"]
        or rule.host in by.get(rule.covers, ())
        or any(host in by["tree"] or host in by["subdomains"] for host in above)
    )


def _names_no_domain(host: str) -> bool:
    """Whether it is an IP address, localhost, or a name under that."""
    last = host.rpartition(".")[2]
    return host.startswith("[") or last == "localhost" or last.isdigit()


_OFF = "what it asked for is not asked any more"
_LIMITS: Mapping[str, Looser] = {
    "daily_limit": _limit,
    "weekly_limit": _limit,
    "monthly_limit": _limit,
    "timezone": _changed("its days begin at another time"),
    "frozen": _must_stay(True, "it is not frozen any more"),
}
OF_POLICY: Mapping[str, Looser] = {
    **_LIMITS,
    "per_txn_limit": _limit,
    "require_approval_above": _limit,
    "dual_approval_above": _limit,
    "vendor_daily_limit": _limit,
    "hold_ttl_s": _nothing,
    "allowed_domains": _allowed,
    "blocked_domains": _blocked,
    "require_vendor_url": _must_stay(True, _OFF),
    "rate_limit": _rate,
    "on_rate_limit": _must_stay("reject", "held, and not rejected"),
    "on_reputation_unavailable": _must_stay("reject", "held, and not rejected"),
    "require_verified_identity": _must_stay(True, _OFF),
    "new_beneficiary": _must_stay("hold", _OFF),
    "changed_beneficiary": _must_stay("hold", _OFF),
    "require_entity": _must_stay(True, _OFF),
    "anomaly": _must_stay(True, _OFF),
    "anomaly_profile": _profile,
    "hours": _hours,
    "days": _within("it may pay on more days", get_args(Weekday)),
    "currencies": _within("more currencies are allowed", ()),
    "team": _team,
    "queued_hold": _must_stay("cancel", "a held payout that the bank has queued is not cancelled"),
    "count_fees": _must_stay(True, "the bank's fees do not count"),
}
OF_LIMITS: Mapping[str, Looser] = {
    **_LIMITS,
    "fee_fund_accounts": lambda old, new: "payouts there are not governed" if set(new) - set(old) else "",
}
"""By field of Policy and of ScopeLimits. A field that is missing here counts as looser whenever it changes."""


_COUNTS_AS = frozenset({"fund_accounts", "public_keys"})
"""Bindings by which a payout counts as an agent's own: adding one loosens."""
_KEEPS_OUT = frozenset({"slack", "owners"})
"""Bindings of people who may not decide an agent's holds: removing one loosens."""


def loosened(current: Mapping[str, ScopeState], changes: Iterable[PolicyChanged]) -> list[Loosening]:
    """Everything by which *changes*, planned on *current*, may let more through; empty if they only tighten."""
    return [one for change in changes for one in _of_change(current.get(change.scope), change)]


def _of_change(state: ScopeState | None, change: PolicyChanged) -> Iterator[Loosening]:
    scope, old, new = change.scope, None if state is None else state.own, change.after
    kind, _, name = scope.partition(":")
    match kind, name:
        case "freeze", _:
            yield from _of_freeze(scope, old, new)
        case "agent", _:
            yield from _of_agent(scope, None if state is None else state.effective, change.effective)
        case "defaults", "":
            yield from _of_fields(scope, OF_POLICY, _policy(old or {}), _policy(new or {}))
        case "account" | "team", _:
            yield from _of_fields(scope, OF_LIMITS, _limits(old or {}), _limits(new or {}))
        case "reviewers", "":
            yield from _of_reviewers(old or {}, new or {})
        case "agents", "":
            yield from _of_bindings(old or {}, new or {})
        case "changes", "":
            yield from _of_second_person(old, new)
        case _:
            yield Loosening(
                scope=scope, field="", before=old, after=new, why="nobody here knows what it means"
            )


def _of_freeze(scope: str, old: Fields | None, new: Fields | None) -> Iterator[Loosening]:
    if new is None:
        yield Loosening(scope=scope, field="", before=old, after=None, why="the freeze is lifted")


def _of_second_person(old: Fields | None, new: Fields | None) -> Iterator[Loosening]:
    if two_people(old) and not two_people(new):
        why = "a second person is not asked any more"
        yield Loosening(scope="changes", field="loosening", before="two_people", after=None, why=why)


def two_people(own: Mapping[str, object] | None) -> bool:
    """Whether the scope `changes` requires a second person for loosening."""
    return (own or {}).get("loosening") == "two_people"


def _of_agent(scope: str, old: Fields | None, new: Fields | None) -> Iterator[Loosening]:
    if new is None:
        return  # without a policy everything is rejected
    if old is None:
        yield Loosening(scope=scope, field="", before=None, after=None, why="it had no policy")
        return
    yield from _of_fields(scope, OF_POLICY, _policy(old), _policy(new))


def _of_fields(
    scope: str, looser: Mapping[str, Looser], old: Policy | ScopeLimits, new: Policy | ScopeLimits
) -> Iterator[Loosening]:
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        why = looser.get(field.name, _changed("nobody here knows what it means"))(before, after)
        if why:
            name, was, will = *written(field.name, before), written(field.name, after)[1]
            yield Loosening(scope=scope, field=name, before=was, after=will, why=why)


def _of_reviewers(old: Fields, new: Fields) -> Iterator[Loosening]:
    for name, will in new.items():
        was = old.get(name)
        if was is None:
            yield Loosening(
                scope="reviewers", field=name, before=None, after=will, why="may decide holds now"
            )
        elif _slack(will) and _slack(will) != _slack(was):
            why = "another Slack user answers as this reviewer"
            yield Loosening(scope="reviewers", field=name, before=was, after=will, why=why)


def _slack(reviewer: object) -> object:
    return cast("Fields", reviewer).get("slack")


def _of_bindings(old: Fields, new: Fields) -> Iterator[Loosening]:
    for agent in sorted(old.keys() | new.keys()):
        was, will = (cast("dict[str, list[str]]", bound.get(agent) or {}) for bound in (old, new))
        for field in sorted(was.keys() | will.keys()):
            before, after = set(was.get(field, ())), set(will.get(field, ()))
            why = ""
            if field not in _KEEPS_OUT and after - before:
                why = "more counts as this agent's"
            elif field not in _COUNTS_AS and before - after:
                why = "who was the agent's own may decide its holds"
            if why:
                lists = {"before": was.get(field), "after": will.get(field)}
                yield Loosening(scope="agents", field=f"{agent}.{field}", why=why, **lists)


def _policy(own: Fields) -> Policy:
    # The report is empty: problems were refused when the change was planned.
    return read_policy(own, Report(""), ())


def _limits(own: Fields) -> ScopeLimits:
    return read_limits(own, Report(""), (), of_account=True)

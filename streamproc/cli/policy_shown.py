"""What a change of policies comes to, for people and for scripts."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.domain.events import PolicyChanged
    from streamproc.domain.policy_events import Loosening
    from streamproc.operate.policies import FieldChange
    from streamproc.operate.proposals import Applied


def partitions_json(applied: "list[Applied]") -> list[dict[str, object]]:
    """What changed on each partition, for scripts."""
    from streamproc.operate.policies import change_json

    return [
        {"partition": one.partition, "entry": one.entry, "changes": [change_json(c) for c in one.changes]}
        for one in applied
    ]


def applied_lines(applied: "list[Applied]") -> list[str]:
    """What changed, for people."""
    lines: list[str] = []
    told: list[tuple[Any, ...]] = []
    for one in applied:
        # What is the same on all partitions, which is nearly always everything, is printed once.
        changes = tuple((c.scope, c.version, repr(c.before), repr(c.after)) for c in one.changes)
        if not one.changes or changes in told:
            continue
        told.append(changes)
        where = f" (partition {one.partition})" if told[1:] else ""
        lines += [line + where for change in one.changes for line in change_lines(change)]
    return lines or ["nothing to change: these policies are in force already"]


def change_lines(change: "PolicyChanged") -> list[str]:
    """One change: its scope and version, then a line for each field."""
    from streamproc.domain.policy_events import headline
    from streamproc.operate.policies import changed_fields

    fields = [
        f"  {f.field}: {short_text(f.before)} -> {short_text(f.after)}{_from_now(change, f)}"
        for f in changed_fields(change)
    ]
    return [headline(change), *(fields or ["  (through the defaults)"])]


def profiles_wanted(applied: "list[Applied]") -> list[str]:
    """What is to be done for agents whose policies ask rule 15 and have no profile, each once."""
    from streamproc.operate.policies import profiles_wanted as wanted

    return wanted(change for one in applied for change in one.changes)


_COUNTED_WHERE_LIMITED = frozenset({"weekly_limit", "monthly_limit", "vendor_daily_limit"})
"""An agent's windows that are counted only if they are limited; its day always is. For teams and accounts it is all."""


def _from_now(change: "PolicyChanged", field: "FieldChange") -> str:
    """A warning for a new limit: payouts made before in its window are not counted, which nobody would expect."""
    of_many = change.scope.startswith(("team:", "account:"))
    counted_here = field.field in _COUNTED_WHERE_LIMITED or (of_many and field.field == "daily_limit")
    is_new = field.before is None and (of_many or change.before is not None)
    return (
        " (counts from now on, nothing of what its first window had before)"
        if counted_here and is_new
        else ""
    )


def value_text(value: object) -> str:
    """A field's value as a policy file has it."""
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def short_text(value: object) -> str:
    """As `value_text`; of a profile, whose hundred numbers nobody compares by eye, what they come to: whoever confirms
    a new one has to see whether amounts or the threshold have grown."""
    if not isinstance(value, dict) or not {"payouts", "until", "threshold", "amounts"} <= value.keys():
        return value_text(value)
    from streamproc.domain.money import rupees

    usual = rupees(value["amounts"][-1])
    return f"{value['payouts']} payouts until {value['until']}, 95 % up to {usual}, threshold {value['threshold']}"


def in_force_text(value: object, now_us: int) -> str:
    """As `short_text`; of a profile with its age."""
    text = short_text(value)
    if text == value_text(value):
        return text
    assert isinstance(value, dict)
    from streamproc.domain.calibration import profile_age

    return f"{text} ({profile_age(value['until'], now_us).days} days old; all its numbers: --json)"


def loosens_lines(loosens: "Sequence[Loosening]") -> list[str]:
    """What a change loosens, for people."""
    return [
        f"  loosens {one.scope} {one.field}".rstrip()
        + f": {short_text(one.before)} -> {short_text(one.after)} ({one.why})"
        for one in loosens
    ]

"""The result of a what-if: old and new outcomes by count and amount, what changed and why, what was assumed. Pure."""

from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from msgspec import Struct

CHANGES_MAX = 100_000
"""Changed payouts kept one by one, some 500 bytes each; more are only counted."""

K = TypeVar("K")
Outcome: TypeAlias = tuple[str, str]
"""Decision and primary reason."""


class ChangedPayout(Struct, frozen=True, kw_only=True):
    """A payout with another outcome. `rules`: what the rules decided first; `end`: after people and time."""

    payout: str
    agent: str
    vendor: str
    amount: int
    at: int
    old_rules: Outcome
    new_rules: Outcome
    old_end: Outcome
    new_end: Outcome


@dataclass(slots=True)
class Sum:
    """A number of payouts and the sum of their paise."""

    payouts: int = 0
    amount: int = 0

    def add(self, amount: int) -> None:
        """Add one payout."""
        self.payouts += 1
        self.amount += amount

    def take_in(self, other: "Sum") -> None:
        """Add another sum."""
        self.payouts += other.payouts
        self.amount += other.amount


def _add(mine: "dict[K, Sum]", theirs: "dict[K, Sum]") -> None:
    for key, found in theirs.items():
        mine.setdefault(key, Sum()).take_in(found)


Matrix: TypeAlias = dict[tuple[str, str], Sum]
"""(old decision, new decision) -> how many."""


@dataclass
class Comparison:
    """Adds up the results of all partitions."""

    judged: Sum = field(default_factory=Sum)
    rules: Matrix = field(default_factory=dict)
    """What the rules decided, before any person did."""
    ends: Matrix = field(default_factory=dict)
    """The outcome in the end."""
    moves: dict[tuple[Outcome, Outcome], Sum] = field(default_factory=dict)
    """Old and new outcome of the rules with their reasons, if they differ."""
    changes: list[ChangedPayout] = field(default_factory=list)
    changed: Sum = field(default_factory=Sum)
    assumed: dict[str, Sum] = field(default_factory=dict)
    unjudged: dict[str, Sum] = field(default_factory=dict)
    """Payouts that are not judged again, by the reason."""
    counters_differ: list[str] = field(default_factory=list)
    """Payouts that, under the same policies, found other counters than the log says. Any of them means a defect."""
    counters_differing: int = 0
    skipped_numbers: int = 0

    def close(self, change: ChangedPayout) -> None:
        """Count a payout whose end is known, changed or not."""
        amount = change.amount
        self.judged.add(amount)
        self.rules.setdefault((change.old_rules[0], change.new_rules[0]), Sum()).add(amount)
        self.ends.setdefault((change.old_end[0], change.new_end[0]), Sum()).add(amount)
        if change.old_rules != change.new_rules:
            self.moves.setdefault((change.old_rules, change.new_rules), Sum()).add(amount)
        if change.old_rules != change.new_rules or change.old_end != change.new_end:
            self.changed.add(amount)
            if len(self.changes) < CHANGES_MAX:
                self.changes.append(change)

    def assume(self, what: str, amount: int) -> None:
        """Count an assumption about something that cannot be known."""
        self.assumed.setdefault(what, Sum()).add(amount)

    def leave_out(self, why: str, amount: int) -> None:
        """Count a payout that cannot be judged again."""
        self.unjudged.setdefault(why, Sum()).add(amount)

    def differ(self, payout: str) -> None:
        """Note a payout that found other counters under the same policies."""
        self.counters_differing += 1
        if len(self.counters_differ) < CHANGES_MAX:
            self.counters_differ.append(payout)

    def take_in(self, other: "Comparison") -> None:
        """Add another partition's result."""
        self.judged.take_in(other.judged)
        self.changed.take_in(other.changed)
        _add(self.rules, other.rules)
        _add(self.ends, other.ends)
        _add(self.moves, other.moves)
        _add(self.assumed, other.assumed)
        _add(self.unjudged, other.unjudged)
        self.changes += other.changes[: CHANGES_MAX - len(self.changes)]
        self.counters_differ += other.counters_differ[: CHANGES_MAX - len(self.counters_differ)]
        self.counters_differing += other.counters_differing
        self.skipped_numbers += other.skipped_numbers

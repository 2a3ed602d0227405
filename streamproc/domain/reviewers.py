"""Who may answer holds, and in whose name: reviewers, their Slack accounts, and agents, who never may. Pure.

A click in Slack is only a claim by an account, `slack:U…`. The account's owner is looked up in the policies in force
when the answer is decided, so a reviewer who was removed meanwhile has no say (ADR 21).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, cast

from msgspec import Struct

from streamproc.domain.attribution import folded
from streamproc.domain.payouts import UNKNOWN_AGENT
from streamproc.domain.policy_report import Path

SLACK = "slack:"
"""Prefix of a Slack user's id, for answers from Slack. No reviewer's name begins so."""
SLACK_USER = re.compile(r"[UW][A-Za-z0-9]{1,31}")
"""A Slack user's id, in a policy file and in a click."""

Own: TypeAlias = Callable[[str], Mapping[str, object] | None]
"""A scope's fields as written (`reviewers`, `agents`, `agent:<id>`); None if there is no such scope."""


class Conflict(Struct, frozen=True):
    """A reviewer who is an agent: the places in the file that may say so, the likeliest first, and what is wrong."""

    paths: tuple[Path, ...]
    problem: str


class Reviewers:
    """The people of one policy book."""

    def __init__(self, own: Own) -> None:
        self.slack: Mapping[str, str] = _slack_users(own)
        """Name -> Slack user id, or empty."""
        times = Counter(self.slack.values())
        # An id of two reviewers counts for none: one person under two names could give both halves of a dual approval.
        self._names = {user: name for name, user in self.slack.items() if user and times[user] == 1}
        self._agents = {user: agent for agent, user in _listed(own, "slack")}
        # As people mean them: an owner `Vikram` who is the reviewer `vikram` would decide the own agent's payouts.
        self._owners = {(agent, folded(name)) for agent, name in _listed(own, "owners")}
        self._own = own

    def name_of(self, by: str) -> str:
        """The name of the account's owner; `by` itself if the account belongs to nobody, or `by` is a name."""
        return self._names.get(by.removeprefix(SLACK), by) if by.startswith(SLACK) else by

    def why_not(self, by: str, agent: str) -> str:
        """Why `by`, a name or `slack:U…`, may not answer for a payout of `agent`, in one line; '' if they may."""
        name = self.name_of(by)
        user = by.removeprefix(SLACK) if by.startswith(SLACK) else ""
        if user in self._agents:
            return f"Slack user {user} is the agent {self._agents[user]}'s own account, and an agent never reviews"
        if name not in self.slack or name.startswith(SLACK):
            return f"{f'Slack user {user}' if user else name} is not in the list of reviewers"
        if folded(name) == folded(agent):
            return f"{name} asked for this payout and cannot review it"
        if is_agent(self._own, name):
            return f"{name} is an agent, and an agent never reviews"
        if self.slack[name] in self._agents:
            agent = self._agents[self.slack[name]]
            return f"the Slack account of {name} is the agent {agent}'s own, and an agent never reviews"
        if (agent, folded(name)) in self._owners:
            return f"{name} acts for the agent {agent} and cannot review its payouts"
        return ""


def is_agent(own: Own, name: str) -> bool:
    """Whether a policy or a binding makes the name an agent's."""
    return name == UNKNOWN_AGENT or own(f"agent:{name}") is not None or name in (own("agents") or {})


def conflicts(own: Own) -> list[Conflict]:
    """Every reviewer who is an agent, by name or by Slack account, and who therefore could never review."""
    agents = {user: agent for agent, user in _listed(own, "slack")}
    found: list[Conflict] = []
    for name, user in _slack_users(own).items():
        if is_agent(own, name):
            paths: tuple[Path, ...] = (("reviewers", name), ("policies", name), ("agents", name))
            found.append(Conflict(paths, f"{name!r} is an agent's id, and an agent can never review"))
        if user in agents:
            paths = (("reviewers", name, "slack"), ("agents", agents[user], "slack"))
            whose = f"the agent {agents[user]}'s own account"
            found.append(
                Conflict(paths, f"Slack user {user} of reviewer {name!r} is {whose}: it can never review")
            )
    return found


def _slack_users(own: Own) -> dict[str, str]:
    reviewers = cast("Mapping[str, Mapping[str, object]]", own("reviewers") or {})
    return {name: str(fields.get("slack", "")) for name, fields in reviewers.items()}


def _listed(own: Own, field: str) -> Iterator[tuple[str, str]]:
    """Each agent with each value of a list among its bindings."""
    agents = cast("Mapping[str, Mapping[str, list[str]]]", own("agents") or {})
    for agent, fields in agents.items():
        for value in fields.get(field, ()):
            yield agent, value

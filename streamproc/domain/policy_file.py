"""Reads a policy file, YAML (so JSON too) or TOML, into checked plain values.

YAML is read from its events, and only null, true, false, decimal integers and text are scalars: YAML 1.1 would read
`050000` as octal, `1:30` as ninety and `no` as false, and a limit must be what it looks like. Aliases and tags are
refused: with them a small text could grow without bound.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, cast

import yaml
from msgspec import Struct

from streamproc.domain.agent_note import public_key
from streamproc.domain.attribution import folded
from streamproc.domain.payouts import UNKNOWN_AGENT
from streamproc.domain.policy_fields import (
    Fields,
    Reader,
    agent_with_policy,
    fund_account,
    identifier,
    items,
    read_limits,
    read_policy,
)
from streamproc.domain.policy_report import Path, Report, shown, unknown
from streamproc.domain.reviewers import SLACK, SLACK_USER
from streamproc.domain.toml_lines import toml_lines

FILE_CHARS_MAX = 1_048_576
"""Longest policy file, in characters: some ten thousand agents."""
DEPTH_MAX = 8
"""Deepest nesting of a file; the format needs 4."""
KEY_PARTS_MAX = 64
"""Most parts of a dotted name in a TOML file: Python reads a key in time that grows with their square. More than a key
needs (see DEPTH_MAX), and than the labels of a host in a rule, which look the same."""
BOUND_MAX = 10_000
"""Most fund accounts, or public keys, bound to one agent."""

SECTIONS = ("defaults", "policies", "accounts", "teams", "reviewers", "agents", "changes")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9]+([eE][-+]?[0-9]+)?|[-+]?[0-9]+\.")
"""What YAML reads as a float, except .inf and .nan, which stay text; no field takes either."""
_INTEGER_CHARS_MAX = 40
_LONG_KEY = re.compile(
    rf"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{KEY_PARTS_MAX}}}""", re.ASCII
)
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


class PolicyFile(Struct, frozen=True, kw_only=True):
    """A checked policy file. Fields are JSON values exactly as written; None is a missing section."""

    name: str
    policies: dict[str, Fields] = {}
    accounts: dict[str, Fields] = {}
    teams: dict[str, Fields] = {}
    defaults: Fields | None = None
    reviewers: dict[str, Fields] | None = None
    """Name -> {} or {slack: user id}."""
    agents: dict[str, Fields] | None = None
    """Agent -> {fund_accounts: [...], public_keys: [...], slack: [...], owners: [...]}."""
    changes: Fields | None = None
    """{loosening: one_person | two_people}: whether what loosens waits for a second person (ADR 23)."""
    lines: dict[Path, int] = {}
    """Where each path was written."""


def parse_policy_file(text: str, *, name: str) -> PolicyFile:
    """Read and check a policy file; TOML if *name* ends in `.toml`, else YAML.

    Raises InputError with every problem found, each with its line and its field.
    """
    report = Report(name)
    return _checked(_document(text, report), report)


def parse_fields(text: str, *, name: str) -> Fields:
    """Read the fields of one policy, as for a PATCH; their meaning is checked when they are merged."""
    report = Report(name)
    document = _document(text, report)
    if not isinstance(document, dict) or not document:
        report.add((), "must be a mapping of fields, like {daily_limit: 500000}")
    report.refuse_if_any()
    return cast("Fields", document)


def _document(text: str, report: Report) -> object:
    if len(text) > FILE_CHARS_MAX:
        report.add((), f"the file has {len(text)} characters, the limit is {FILE_CHARS_MAX}")
        report.refuse_if_any()
    return _toml(text, report) if report.name.lower().endswith(".toml") else _yaml(text, report)


def _checked(document: object, report: Report) -> PolicyFile:
    if not isinstance(document, dict) or not document:
        report.add((), f"a policy file is a mapping with some of {', '.join(SECTIONS)}")
        report.refuse_if_any()
    sections = cast("dict[str, object]", document)
    for section in sections:
        if section not in SECTIONS:
            report.add((section,), unknown(section, SECTIONS))
    policies, accounts, teams = (_entries_of(sections, s, report) for s in ("policies", "accounts", "teams"))
    for agent, fields in policies.items():
        read_policy(fields, report, ("policies", agent))
    for section, scopes in (("accounts", accounts), ("teams", teams)):
        for scope, fields in scopes.items():
            read_limits(fields, report, (section, scope), of_account=section == "accounts")
    defaults = _or_empty(sections["defaults"]) if "defaults" in sections else None
    if defaults is not None:
        read_policy(defaults, report, ("defaults",))
    reviewers = _reviewers(sections["reviewers"], report) if "reviewers" in sections else None
    agents = _bindings(sections, report) if "agents" in sections else None
    changes = _of_changes(sections["changes"], report) if "changes" in sections else None
    report.refuse_if_any()
    return PolicyFile(
        name=report.name,
        policies=cast("dict[str, Fields]", policies),
        accounts=cast("dict[str, Fields]", accounts),
        teams=cast("dict[str, Fields]", teams),
        defaults=cast("Fields | None", defaults),
        reviewers=reviewers,
        agents=agents,
        changes=changes,
        lines=dict(report.lines),
    )


def _or_empty(value: object) -> object:
    return {} if value is None else value


def _entries_of(sections: dict[str, object], section: str, report: Report) -> dict[str, object]:
    """The entries of a section that maps ids; an id without a value has no fields of its own."""
    entries = _or_empty(sections.get(section))
    if not isinstance(entries, dict):
        report.add((section,), f"must map ids to fields, not {shown(entries)}")
        return {}
    read = agent_with_policy if section == "policies" else identifier
    for name in entries:
        try:
            read(name)
        except ValueError as problem:
            report.add((section, name), str(problem))
        if section == "policies" and name == UNKNOWN_AGENT:
            report.add(
                (section, name), "is who a payout belongs to that names no agent: it can have no policy"
            )
    return {name: _or_empty(fields) for name, fields in entries.items()}


def _reviewers(value: object, report: Report) -> dict[str, Fields]:
    if isinstance(value, list):
        names: dict[str, object] = {}
        for index, name in enumerate(value):
            if not isinstance(name, str):
                report.add(("reviewers", index), f"a reviewer is a name, not {shown(name)}")
            elif name in names:
                report.add(("reviewers", index), f"{name!r} is listed twice")
            else:
                names[name] = {}
        value = names
    reviewers = _entries_of({"reviewers": value}, "reviewers", report)
    slack_users: dict[str, str] = {}
    alike: dict[str, str] = {}
    for name, fields in reviewers.items():
        path = ("reviewers", name)
        if alike.setdefault(folded(name), name) != name:
            # As with one Slack account: people are compared so where a second person confirms a proposal, too.
            report.add(path, f"is the same name as {alike[folded(name)]!r} but for case, blanks or width")
        if name.startswith(SLACK):
            report.add(
                path, f"begins with {SLACK!r}, as an answer from Slack does; give a name, with {{slack: U…}}"
            )
        if not isinstance(fields, dict):
            report.add(path, f"must be like {{slack: U012ABCDEF}}, not {shown(fields)}")
            continue
        for field, user in fields.items():
            _check_slack(field, user, (*path, field), slack_users, report)
    return cast("dict[str, Fields]", reviewers)


def _check_slack(field: str, user: object, path: Path, taken: dict[str, str], report: Report) -> None:
    if field != "slack":
        report.add(path, unknown(field, ("slack",)))
        return
    try:
        user = _slack_user(user)
    except ValueError as problem:
        report.add(path, str(problem))
        return
    if user in taken:
        # One person with two names could give both answers of a dual approval.
        report.add(path, f"Slack user {user} is already the reviewer {taken[user]!r}")
    else:
        taken[user] = str(path[1])


def _slack_user(value: object) -> str:
    if not isinstance(value, str) or not SLACK_USER.fullmatch(value):
        raise ValueError(f"must be a Slack user id like U012ABCDEF, not {shown(value)}")
    return value


def _api_key(value: object) -> str:
    raise ValueError(
        "cannot be checked: the bank does not show which API key made a payout; bind fund_accounts or public_keys"
    )


_BINDINGS: dict[str, Reader] = {
    "fund_accounts": fund_account,
    "public_keys": public_key,
    "api_keys": _api_key,
    "slack": _slack_user,
    "owners": identifier,
}


def _bindings(sections: dict[str, object], report: Report) -> dict[str, Fields]:
    agents = _entries_of(sections, "agents", report)
    for agent, fields in agents.items():
        if not isinstance(fields, dict):
            report.add(("agents", agent), f"must be like {{fund_accounts: [fa_1]}}, not {shown(fields)}")
            continue
        for field, values in fields.items():
            path = ("agents", agent, field)
            if field not in _BINDINGS:
                report.add(path, unknown(field, _BINDINGS))
                continue
            try:
                items(values, _BINDINGS[field], BOUND_MAX)
            except ValueError as problem:
                report.add(path, str(problem))
    return cast("dict[str, Fields]", agents)


def _of_changes(value: object, report: Report) -> Fields:
    fields, words = _or_empty(value), ("one_person", "two_people")
    if not isinstance(fields, dict):
        report.add(("changes",), f"must be like {{loosening: two_people}}, not {shown(fields)}")
        return {}
    for field, wanted in fields.items():
        if field != "loosening":
            report.add(("changes", field), unknown(field, ("loosening",)))
        elif wanted not in words:
            report.add(("changes", field), f"must be {' or '.join(words)}, not {shown(wanted)}")
    return cast("Fields", fields)


def _toml(text: str, report: Report) -> object:
    if (long := _LONG_KEY.search(text)) is not None:
        line = text.count("\n", 0, long.start()) + 1
        report.add_line(line, (), f"nested too deeply: a name has more than {KEY_PARTS_MAX} parts")
        report.refuse_if_any()
    try:
        document = tomllib.loads(text)
    except RecursionError:
        report.add((), "nested too deeply")
    except ValueError as problem:  # TOMLDecodeError, and integers that are too long for Python
        report.add((), f"not TOML: {problem}")
    report.refuse_if_any()
    report.lines = toml_lines(text)
    return document


def _yaml(text: str, report: Report) -> object:
    lines: dict[Path, int] = {}
    report.lines = lines
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder(yaml.parse(text, Loader=loader), report, lines).document()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        report.add_line(None if mark is None else mark.line + 1, (), f"not YAML: {problem.problem}")
    except (yaml.YAMLError, UnicodeError) as problem:
        report.add((), f"not YAML: {str(problem).splitlines()[0]}")
    report.refuse_if_any()
    return None


class _Builder:
    """Builds plain values from YAML events, noting the line of each path."""

    def __init__(self, events: Iterator[Any], report: Report, lines: dict[Path, int]) -> None:
        self._events = events
        self._report = report
        self._lines = lines

    def document(self) -> object:
        """The one document, or None if there is none."""
        next(self._events)  # the stream starts
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)  # the document ends
        more = next(self._events)
        if not isinstance(more, yaml.StreamEndEvent):
            self._report.add_line(_line(more), (), "a policy file is one document, without a second ---")
        return value

    def _value(self, event: Any, path: Path) -> object:
        self._lines.setdefault(path, _line(event))
        if len(path) > DEPTH_MAX:
            self._report.add_line(_line(event), (), f"nested deeper than {DEPTH_MAX}")
            self._report.refuse_if_any()
        if isinstance(event, yaml.AliasEvent):
            self._report.add_line(_line(event), path, "aliases (*name) are refused; write the value out")
            return None
        if event.tag not in (None, "!"):
            self._report.add_line(_line(event), path, "tags (!name) are refused")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: Path) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _mapping(self, path: Path) -> Fields:
        values: Fields = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._report.add_line(_line(event), path, "a key is text")
                self._report.refuse_if_any()
            key, line = event.value, _line(event)
            here = (*path, key)
            if key in values:
                self._report.add_line(line, here, f"written twice, first on line {self._lines[here]}")
                self._value(next(self._events), here)
                continue
            self._lines[here] = line
            values[key] = self._value(next(self._events), here)
        return values


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _INTEGER_CHARS_MAX:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
            return float(text.replace("_", ""))
    return text

"""`streamproc policy`: put policies in force, show them, and how they came to be."""

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.context import operator_settings
from streamproc.cli.whatif import whatif
from streamproc.errors import InputError

if TYPE_CHECKING:
    from streamproc.domain.events import PolicyChanged
    from streamproc.domain.policy import PolicyFile, ScopeState
    from streamproc.operate.policies import Applied


@click.group()
def policy() -> None:
    """Policies of agents: limits, domains, approvals."""


policy.add_command(whatif)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--prune", is_flag=True, help="Remove agents, accounts and teams that FILE does not name.")
@click.option("--by", default=None, metavar="NAME", help="Who changes it; your login name by default.")
@click.option("--why", default="", metavar="TEXT", help="Why, for the audit.")
@output.json_option
def apply(file: Path, prune: bool, by: str | None, why: str, as_json: bool) -> None:
    """Put the policies of FILE (YAML or TOML, - for stdin) in force.

    The next decision uses them. A file with a mistake is refused whole, with each mistake's line. What is in
    force already changes nothing.

    \b
    Example:
      streamproc policy apply ops/demo/policies.yaml --why "new vendor list"
    """
    settings = operator_settings()
    from streamproc.operate import policies
    from streamproc.operate.site import opened

    parsed = read_policy_file(file)

    async def body() -> "list[Applied]":
        async with opened(settings) as site:
            return await policies.apply(site, parsed, prune=prune, by=by or getpass.getuser(), why=why)

    applied = output.run(body())
    if as_json:
        rows = [
            {
                "partition": one.partition,
                "entry": one.entry,
                "changes": [policies.change_json(c) for c in one.changes],
            }
            for one in applied
        ]
        output.say_json({"changed": any(one.changes for one in applied), "partitions": rows})
        return
    for line in _applied_lines(applied):
        click.echo(line)


def read_policy_file(file: Path) -> "PolicyFile":
    """A policy file, checked; `-` is stdin. Raises InputError with every mistake in it."""
    from streamproc.domain.policy import parse_policy_file

    return parse_policy_file(_read(file), name=str(file))


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise InputError(f"{file} cannot be read: {why}") from problem


def _applied_lines(applied: "list[Applied]") -> list[str]:
    lines: list[str] = []
    told: list[tuple[Any, ...]] = []
    for one in applied:
        # What partitions have in common, which is nearly always everything, is told once.
        changes = tuple((c.scope, c.version, repr(c.before), repr(c.after)) for c in one.changes)
        if not one.changes or changes in told:
            continue
        told.append(changes)
        where = f" (partition {one.partition})" if told[1:] else ""
        lines += [line + where for change in one.changes for line in _change_lines(change)]
    return lines or ["nothing to change: these policies are in force already"]


def _change_lines(change: "PolicyChanged") -> list[str]:
    from streamproc.operate.policies import changed_fields

    verb = "added" if change.before is None else "removed" if change.after is None else "changed"
    fields = [f"  {f.field}: {_value(f.before)} -> {_value(f.after)}" for f in changed_fields(change)]
    return [f"{change.scope} {verb}, version {change.version}", *(fields or ["  (through the defaults)"])]


def _value(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


@policy.command()
@click.argument("agent", required=False)
@output.json_option
def show(agent: str | None, as_json: bool) -> None:
    """Show the policies in force, or one AGENT's with the defaults filled in.

    \b
    Example:
      streamproc policy show
      streamproc policy show procurement-bot
    """
    settings = operator_settings()
    from streamproc.operate import policies
    from streamproc.operate.site import opened

    async def body() -> "dict[str, ScopeState]":
        async with opened(settings) as site:
            if agent is None:
                return await policies.in_force(site)
            return await policies.policy_of(site, agent)

    scopes = output.run(body())
    if as_json:
        rows = [_state_json(scope, state) for scope, state in sorted(scopes.items())]
        frozen = scopes.get(f"freeze:agent:{agent}")
        one = {**rows[0], "freeze": None if frozen is None else frozen.own} if agent is not None else {}
        output.say_json({"policies": rows} if agent is None else one)
        return
    if not scopes:
        click.echo("no policies: every payout is REJECTED NO_POLICY; see `streamproc policy apply --help`")
    for scope, state in sorted(scopes.items()):
        for line in _state_lines(scope, state, effective=scope == f"agent:{agent}"):
            click.echo(line)


def _state_json(scope: str, state: "ScopeState") -> dict[str, object]:
    kind, _, name = scope.partition(":")
    named = {"agent": name} if kind == "agent" else {}
    return {"scope": scope, **named, "version": state.version, "own": state.own, "effective": state.effective}


def _state_lines(scope: str, state: "ScopeState", *, effective: bool) -> list[str]:
    own = state.own or {}
    fields = (state.effective or {}) if effective else own
    lines = [f"{scope}, version {state.version}"]
    for name in sorted(fields):
        inherited = "" if name in own or not effective else "  (by default)"
        lines.append(f"  {name}: {_value(fields[name])}{inherited}")
    return lines


@policy.command()
@click.argument("agent")
@output.json_option
def history(agent: str, as_json: bool) -> None:
    """Show every change of one AGENT's policy: what, who, why, when.

    \b
    Example:
      streamproc policy history procurement-bot
    """
    settings = operator_settings()
    from streamproc.operate import policies
    from streamproc.operate.site import iso, opened

    async def body() -> "tuple[list[PolicyChanged], str]":
        async with opened(settings) as site:
            return await policies.history(site, agent)

    changes, note = output.run(body())
    if as_json:
        output.say_json(
            {"agent": agent, "changes": [policies.change_json(c) for c in changes], "note": note or None}
        )
        return
    output.note(note)
    for change in changes:
        head, *fields = _change_lines(change)
        why = f": {change.why}" if change.why else ""
        click.echo("\n".join([f"{iso(change.at)}  {head} by {change.by}{why}", *fields]))

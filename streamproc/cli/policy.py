"""`streamproc policy`: put policies in force, show them and their history."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli import output, person, proposal
from streamproc.cli.calibrate import calibrate
from streamproc.cli.context import ask_site, operator_settings
from streamproc.cli.policy_shown import (
    applied_lines,
    change_lines,
    in_force_text,
    loosens_lines,
    partitions_json,
    profiles_wanted,
)
from streamproc.cli.policy_source import read_policy_file, read_text
from streamproc.cli.whatif import whatif

if TYPE_CHECKING:
    from streamproc.domain.attribution import Attribution
    from streamproc.domain.events import PolicyChanged
    from streamproc.domain.policy import ScopeState
    from streamproc.domain.proposals import Proposal
    from streamproc.operate.changes import Planner, Preview
    from streamproc.operate.proposals import Applied
    from streamproc.operate.site import Site


@click.group()
def policy() -> None:
    """Policies of agents: limits, domains, approvals."""


for command in (calibrate, whatif, proposal.proposals, proposal.confirm, proposal.withdraw):
    policy.add_command(command)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--prune", is_flag=True, help="Remove agents, accounts and teams that FILE does not name.")
@person.by_option("Who changes it.", required=False)
@person.why_option(required=False)
@click.option("--dry-run", is_flag=True, help="Say what would change and what of it loosens; change nothing.")
@output.json_option
def apply(file: Path, prune: bool, by: str, why: str, dry_run: bool, as_json: bool) -> None:
    """Put the policies of FILE (YAML or TOML, - for stdin) in force.

    The next decision uses them. A file with a mistake is refused as a whole, with each mistake's line. What is in force
    already stays as it is. If the policies in force say `changes: {loosening: two_people}` and the file loosens
    anything, all of it waits until somebody else confirms it (`policy confirm`).

    \b
    Example:
      streamproc policy apply ops/demo/policies.yaml --why "new vendor list"
    """
    from streamproc.operate import policies

    parsed = read_policy_file(file)
    attribution = person.attribution(by, why)
    _make(policies.of_file(parsed, attribution, prune=prune), attribution, dry_run, as_json)


@policy.command()
@click.argument("agent")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@person.by_option("Who changes it.", required=False)
@person.why_option(required=False)
@click.option("--dry-run", is_flag=True, help="Say what would change and what of it loosens; change nothing.")
@output.json_option
def patch(agent: str, file: Path, by: str, why: str, dry_run: bool, as_json: bool) -> None:
    """Change only the fields of AGENT's policy that FILE names.

    FILE is YAML or TOML, - for stdin. A field that is null is removed, so the default applies again. The agent must
    have a policy.

    \b
    Example:
      echo '{daily_limit: 900000, hours: null}' | streamproc policy patch procurement-bot -
    """
    from streamproc.domain.policy_file import parse_fields
    from streamproc.operate import policies

    fields = parse_fields(read_text(file), name=str(file))
    attribution = person.attribution(by, why)
    _make(policies.of_patch(f"agent:{agent}", fields, attribution), attribution, dry_run, as_json)


def _make(plan: "Planner", attribution: "Attribution", dry_run: bool, as_json: bool) -> None:
    from streamproc.operate import changes

    async def preview_or_make(site: "Site") -> "list[Applied] | Proposal | Preview":
        if dry_run:
            return await changes.preview(site, plan)
        return await changes.make(site, plan, attribution)

    made = ask_site(preview_or_make)
    if isinstance(made, list):
        _say_applied(made, as_json)
    elif isinstance(made, changes.Preview):
        _say_preview(made, as_json)
    else:
        proposal.say_waits(made, as_json)


def _say_applied(applied: "list[Applied]", as_json: bool) -> None:
    notes = profiles_wanted(applied)
    if as_json:
        changed = any(one.changes for one in applied)
        output.say_json({"changed": changed, "partitions": partitions_json(applied), "notes": notes})
        return
    for line in applied_lines(applied):
        click.echo(line)
    for note in notes:
        output.note(note)


def _say_preview(seen: "Preview", as_json: bool) -> None:
    import msgspec

    notes = profiles_wanted(seen.changes)
    if as_json:
        loosens = msgspec.to_builtins(seen.loosens)
        found = {"waits": seen.waits, "loosens": loosens, "partitions": partitions_json(seen.changes)}
        output.say_json({"changed": False, **found, "notes": notes})
        return
    for line in (*applied_lines(seen.changes), *loosens_lines(seen.loosens)):
        click.echo(line)
    waits = "; it would wait for a second person" if seen.waits else ""
    for note in (*notes, f"nothing was changed{waits}"):
        output.note(note)


@policy.command()
@click.argument("agent", required=False)
@output.json_option
def show(agent: str | None, as_json: bool) -> None:
    """Show the policies in force, or one AGENT's.

    One agent's policy is shown with the defaults filled in.

    \b
    Example:
      streamproc policy show
      streamproc policy show procurement-bot
    """
    from streamproc.log.clock import clock_us
    from streamproc.operate import policies

    async def body(site: "Site") -> "tuple[dict[str, ScopeState], int]":
        scopes = await (policies.in_force(site) if agent is None else policies.policy_of(site, agent))
        return scopes, await clock_us(site.client)

    scopes, now_us = ask_site(body)
    if as_json:
        rows = [policies.state_json(scope, state) for scope, state in sorted(scopes.items())]
        frozen = scopes.get(f"freeze:agent:{agent}")
        one = {**rows[0], "freeze": None if frozen is None else frozen.own} if agent is not None else {}
        output.say_json({"policies": rows} if agent is None else one)
        return
    if not scopes:
        click.echo("no policies: every payout is REJECTED NO_POLICY; see `streamproc policy apply --help`")
    for scope, state in sorted(scopes.items()):
        for line in _state_lines(scope, state, now_us, effective=scope == f"agent:{agent}"):
            click.echo(line)


def _state_lines(scope: str, state: "ScopeState", now_us: int, *, effective: bool) -> list[str]:
    own = state.own or {}
    fields = (state.effective or {}) if effective else own
    lines = [f"{scope}, version {state.version}"]
    for name in sorted(fields):
        inherited = "" if name in own or not effective else "  (by default)"
        lines.append(f"  {name}: {in_force_text(fields[name], now_us)}{inherited}")
    return lines


@policy.command()
@click.argument("scope")
@output.json_option
def history(scope: str, as_json: bool) -> None:
    """Show a SCOPE's changes and freezes: what, who, why, when.

    SCOPE is an agent's id, account:ID, team:ID, defaults, reviewers, agents (what is bound to them) or changes (who may
    make them). If an agent has the name of a scope, both are shown.

    \b
    Example:
      streamproc policy history procurement-bot
      streamproc policy history reviewers
    """
    settings = operator_settings()
    from streamproc.domain.attribution import named
    from streamproc.domain.policy_changes import is_scope
    from streamproc.domain.shown import iso
    from streamproc.operate import policies
    from streamproc.operate.site import opened

    async def body() -> "tuple[list[PolicyChanged], str]":
        async with opened(settings) as site:
            return await policies.history(site, scope)

    changes, note = output.run(body())
    if as_json:
        about = {"scope" if is_scope(scope) else "agent": scope}
        rows = [policies.change_json(change) for change in changes]
        output.say_json({**about, "changes": rows, "note": note or None})
        return
    output.note(note)
    for change in changes:
        head, *fields = change_lines(change)
        who = named(change.by, change.channel)
        if change.confirmed_by:
            who += f", confirmed by {named(change.confirmed_by, change.confirmed_channel)}"
        why = f": {change.why}" if change.why else ""
        click.echo("\n".join([f"{iso(change.at)}  {head} by {who}{why}", *fields]))

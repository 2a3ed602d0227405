"""`streamproc policy proposals`, `confirm`, `withdraw`: changes that loosen something and wait for a second person."""

from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output, person
from streamproc.cli.context import ask_site
from streamproc.cli.policy_shown import applied_lines, loosens_lines, partitions_json, short_text
from streamproc.errors import JobFailed

if TYPE_CHECKING:
    from streamproc.domain.proposals import Proposal

_id = click.argument("proposal_id", metavar="ID")
_by = person.by_option()


def say_waits(proposal: "Proposal", as_json: bool) -> None:
    """Print that a proposal waits, and that nothing of it is in force."""
    from streamproc.operate.proposals import proposal_json

    if as_json:
        # It was proposed just now, so its state needs no clock.
        output.say_json({"changed": False, "proposal": proposal_json(proposal, proposal.proposed_at)})
        return
    click.echo(f"{proposal.id} waits for a second person; nothing is in force yet. It loosens:")
    for line in loosens_lines(proposal.loosens):
        click.echo(line)
    click.echo(f"within 24 hours another person must run: streamproc policy confirm {proposal.id} --by NAME")


@click.command()
@output.json_option
def proposals(as_json: bool) -> None:
    """Show changes that wait for a second person.

    Those that waited in the last week are shown too.

    \b
    Example:
      streamproc policy proposals
    """
    from streamproc.domain.attribution import named
    from streamproc.operate import proposals

    found = ask_site(proposals.listed)
    if as_json:
        output.say_json({"items": found})
        return
    if not found:
        click.echo("no proposals")
    for one in found:
        why = f": {one['why']}" if one["why"] else ""
        proposer = named(one["by"], one["channel"])
        click.echo(f"{one['id']}  {_state(one)}; proposed by {proposer} at {one['proposed_at']}{why}")
        for loose in one["loosens"]:
            what = f"{loose['scope']} {loose['field']}".rstrip()
            click.echo(
                f"  {what}: {short_text(loose['before'])} -> {short_text(loose['after'])} ({loose['why']})"
            )


def _state(one: dict[str, Any]) -> str:
    """A proposal's state, with who ended it or until when it waits."""
    from streamproc.domain.attribution import named

    state: str = one["state"]
    if ended := one["confirmed_by"] or one["withdrawn_by"]:
        return f"{state} by {named(ended, one['confirmed_channel'] or one['withdrawn_channel'] or '')}"
    return f"{state}, until {one['expires_at']}" if state == "waiting" else state


@click.command()
@_id
@_by
@output.json_option
def confirm(proposal_id: str, by: str, as_json: bool) -> None:
    """Confirm a proposed change as its second person.

    The change is then in force. The proposer cannot confirm it; one other person is enough. After a crash run it again:
    nothing is done twice. Names on the command line are only claimed, so your login and this host are recorded with
    your name. A change proposed over HTTP must be confirmed over HTTP, by another token's owner.

    \b
    Example:
      streamproc policy confirm prop_0123456789abcdef --by vikram
    """
    from streamproc.operate import proposals

    done = ask_site(lambda site: proposals.confirm(site, proposal_id, person.attribution(by)))
    if as_json:
        changed = any(one.changes for one in done.applied)
        rows = partitions_json(done.applied)
        output.say_json({"changed": changed, "partitions": rows, "left": done.left})
    else:
        for line in applied_lines(done.applied):
            click.echo(line)
    if done.left:
        raise JobFailed("; ".join(done.left))


@click.command()
@_id
@_by
@person.why_option(required=False)
@output.json_option
def withdraw(proposal_id: str, by: str, why: str, as_json: bool) -> None:
    """Withdraw a waiting change: none of it takes effect.

    Whoever may change policies may withdraw any of them.

    \b
    Example:
      streamproc policy withdraw prop_0123456789abcdef --by asha --why "the season is over"
    """
    from streamproc.operate import proposals

    ended = ask_site(lambda site: proposals.withdraw(site, proposal_id, person.attribution(by, why)))
    if as_json:
        output.say_json(proposals.proposal_json(ended, ended.closed_at))
    else:
        click.echo(f"{ended.id} is withdrawn")

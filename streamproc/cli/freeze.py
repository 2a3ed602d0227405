"""`streamproc freeze` and `unfreeze`: stop an agent, an account or a team at once, whatever its policy says."""

import click

from streamproc.cli import output, person, proposal
from streamproc.cli.context import ask_site
from streamproc.errors import JobFailed

_kind = click.argument("kind", type=click.Choice(["agent", "account", "team"]))
_id = click.argument("name", metavar="ID")
_by = person.by_option()
_why = person.why_option()


@click.command()
@_kind
@_id
@_by
@_why
@output.json_option
def freeze(kind: str, name: str, by: str, why: str, as_json: bool) -> None:
    """Freeze an agent, an account or a team.

    Its payouts are REJECTED FROZEN. A freeze binds the next decision, reviewers' approvals, and payouts that are
    approved but not yet sent to the bank: these are rejected there. A command that was already sent, or a payout that
    the bank pays by itself (`queued`), cannot be recalled. No policy file lifts a freeze; only `streamproc unfreeze`
    does. Your login and this host are recorded with the name.

    \b
    Example:
      streamproc freeze agent procurement-bot --by asha --why "pays the same invoice again and again"
    """
    _freeze(kind, name, by, why, frozen=True, as_json=as_json)


@click.command()
@_kind
@_id
@_by
@_why
@output.json_option
def unfreeze(kind: str, name: str, by: str, why: str, as_json: bool) -> None:
    """Lift the freeze of an agent, an account or a team.

    What was rejected meanwhile stays rejected. Exit code 1 if its policy says `frozen: true`, which keeps it frozen. If
    the policies say `changes: {loosening: two_people}`, somebody else must confirm it first (`policy confirm`). Your
    login and this host are recorded beside the name.

    \b
    Example:
      streamproc unfreeze agent procurement-bot --by asha --why "fixed in release 12"
    """
    _freeze(kind, name, by, why, frozen=False, as_json=as_json)


def _freeze(kind: str, name: str, by: str, why: str, *, frozen: bool, as_json: bool) -> None:
    from streamproc.operate import freezes

    done = ask_site(
        lambda site: freezes.freeze(site, f"{kind}:{name}", person.attribution(by, why), frozen=frozen)
    )
    if done.proposal is not None:
        proposal.say_waits(done.proposal, as_json)
        return
    if as_json:
        output.say_json(
            {"scope": done.scope, "frozen": frozen, "changed": bool(done.changed), "notes": done.notes}
        )
    elif done.changed:
        click.echo(f"{done.scope} is {'frozen' if frozen else 'no longer frozen'}")
    else:
        already = "was frozen already; this freeze is recorded too"
        click.echo(f"{done.scope} {already}" if frozen else f"nothing to change: {done.scope} has no freeze")
    for note in done.notes:
        if not frozen:
            raise JobFailed(note)
        output.note(note)

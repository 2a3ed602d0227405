"""`streamproc hold`: which payouts wait for a person, and a person's answer."""

from typing import Literal

import click

from streamproc.cli import output, person
from streamproc.cli.context import ask_site
from streamproc.errors import JobFailed

LIMIT_MAX = 1_000

_by = person.by_option("The reviewer, as the policy lists them.")
_reason = person.why_option(name="--reason")


@click.group()
def hold() -> None:
    """Payouts that wait for a person."""


@hold.command("list")
@click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=100, show_default=True, help="How many to show."
)
@click.option("--after", default=None, metavar="PAYOUT", help="Continue after this payout's hold.")
@output.json_option
def list_(limit: int, after: str | None, as_json: bool) -> None:
    """List the payouts that wait for a reviewer, longest wait first.

    \b
    Example:
      streamproc hold list
    """
    from streamproc.domain.domains import with_host
    from streamproc.domain.money import rupees
    from streamproc.domain.shown import hold_json, iso_or_none
    from streamproc.operate import holds

    found = ask_site(lambda site: holds.list_holds(site, after=after, limit=limit))
    output.note(found.note)
    if as_json:
        output.say_json({"items": [hold_json(record) for record in found.items], "next": found.next})
        return
    rows = [
        (
            r.payout,
            r.agent,
            rupees(r.amount),
            ", ".join(r.reasons),
            with_host(r.vendor_url) or "-",
            iso_or_none(r.hold_expires_at),
            ", ".join(review.by for review in r.reviews if review.action == "approve") or "-",
            "yes" if r.told else "NO",
        )
        for r in found.items
    ]
    output.say_table(
        ("PAYOUT", "AGENT", "AMOUNT", "REASONS", "VENDOR", "EXPIRES", "APPROVED BY", "TOLD"),
        rows,
        empty="nothing is held",
    )
    if found.next:
        output.note(f"there are more: --after {found.next}")


@hold.command()
@click.argument("payout")
@_by
@_reason
@output.json_option
def approve(payout: str, by: str, reason: str, as_json: bool) -> None:
    """Approve a held PAYOUT, so that it may be paid.

    Whatever may have changed since is checked again. Above the policy's dual_approval_above another reviewer must
    approve too. Exit code 1 if the approval does not count, or if the payout is rejected after all.

    On the command line a name is only claimed: nothing checks that --by is who types it, also where two must approve.
    The login and the host are recorded with the answer; `explain` and `audit list` show them. Over HTTP a reviewer's
    token, and in Slack the account, says who it is.

    \b
    Example:
      streamproc hold approve pout_00000000000001 --by asha --reason "invoice 1042 checked"
    """
    _answer(payout, "approve", by, reason, as_json=as_json)


@hold.command()
@click.argument("payout")
@_by
@_reason
@output.json_option
def reject(payout: str, by: str, reason: str, as_json: bool) -> None:
    """Reject a held PAYOUT, so that it is never paid.

    Its budget is released. The name is only claimed, as with `hold approve`; the login and the host are recorded with
    the answer.

    \b
    Example:
      streamproc hold reject pout_00000000000001 --by asha --reason "unknown vendor"
    """
    _answer(payout, "reject", by, reason, as_json=as_json)


def _answer(
    payout: str, action: Literal["approve", "reject"], by: str, reason: str, *, as_json: bool
) -> None:
    import msgspec

    from streamproc.operate import holds

    outcome = ask_site(lambda site: holds.answer(site, payout, action, person.attribution(by, reason)))
    if as_json:
        output.say_json(msgspec.to_builtins(outcome))
    elif outcome.decision is None:
        more = "1 more approval is" if outcome.needed == 1 else f"{outcome.needed} more approvals are"
        click.echo(f"{payout}: counted; {more} needed")
    else:
        click.echo(f"{payout}: {outcome.decision} {outcome.reason}")
    if action == "approve" and outcome.decision == "REJECTED":
        raise JobFailed(f"the approval came too late: {payout} is now rejected for {outcome.reason}")

"""`streamproc policy calibrate`: measures what an agent usually pays, for rule 15."""

from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output, person, proposal
from streamproc.cli.context import ask_site, operator_settings
from streamproc.cli.policy_shown import loosens_lines, partitions_json
from streamproc.domain.calibration import SHARE_HELD, SHARE_HELD_MAX

if TYPE_CHECKING:
    from streamproc.domain.calibration import Scored
    from streamproc.operate.calibrate import Calibrated

HIGHEST_SHOWN = 5
"""Of the payouts that would have been held, those with the highest scores."""


@click.command()
@click.argument("agent")
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="WHEN",
    help="Measure payouts received since then: a time before now (12h, 30d) or ISO 8601.",
)
@click.option(
    "--share-held",
    type=click.IntRange(0, SHARE_HELD_MAX),
    default=SHARE_HELD,
    show_default=True,
    metavar="PER_MILLE",
    help="How many of 1000 of these payouts the threshold may hold, unless that takes one above 670.",
)
@person.by_option("Who changes it.", required=False)
@person.why_option(required=False)
@click.option("--dry-run", is_flag=True, help="Measure and show; change nothing.")
@output.json_option
def calibrate(
    agent: str, since: str, share_held: int, by: str, why: str, dry_run: bool, as_json: bool
) -> None:
    """Measure what AGENT usually pays, and when.

    The profile (`anomaly_profile`) becomes part of the agent's policy. With `anomaly: true`, a payout whose score is
    above the profile's threshold is HELD ANOMALY_DETECTED. It is measured from the payouts that the rules or a reviewer
    approved; there must be 50, and of more than 10,000 a sample is taken. If the policies in force say
    `changes: {loosening: two_people}`, measuring anew waits until somebody else confirms it (`policy confirm`).

    \b
    Example:
      streamproc policy calibrate procurement-bot --dry-run
      streamproc policy calibrate procurement-bot --since 90d --why "first quarter"
    """
    settings = operator_settings()
    from streamproc.domain.proposals import Proposal
    from streamproc.operate import calibrate as job
    from streamproc.operate.moments import moment

    begin = moment("--since", since)
    done = ask_site(
        lambda site: job.calibrate(
            site,
            agent,
            since=begin,
            share_held=share_held,
            zone=settings.timezone,
            attribution=person.attribution(by, why),
            dry_run=dry_run,
        ),
        settings,
    )
    if as_json:
        output.say_json(_document(agent, done))
        return
    _print(agent, done)
    if isinstance(done.made, Proposal):
        proposal.say_waits(done.made, as_json=False)


def _document(agent: str, done: "Calibrated") -> dict[str, Any]:
    import msgspec

    from streamproc.domain.anomaly import written_profile
    from streamproc.domain.proposals import Proposal
    from streamproc.domain.shown import iso
    from streamproc.operate.changes import Preview
    from streamproc.operate.proposals import proposal_json

    above, made = done.measured.above, done.made
    told = {
        "agent": agent,
        "profile": written_profile(done.measured.profile),
        "would_hold": len(above),
        "views": {"until": iso(done.reach.until), "behind_s": done.reach.behind_s},
        "highest": [_scored_json(one) for one in above[:HIGHEST_SHOWN]],
        "anomaly": done.is_asked,
    }
    if isinstance(made, Proposal):
        return told | {"changed": False, "proposal": proposal_json(made, made.proposed_at)}
    if isinstance(made, Preview):
        loosens = msgspec.to_builtins(made.loosens)
        return told | {"changed": False, "waits": made.waits, "loosens": loosens}
    return told | {"changed": any(one.changes for one in made), "partitions": partitions_json(made)}


def _scored_json(one: "Scored") -> dict[str, Any]:
    from streamproc.domain.shown import iso

    past, score = one
    return {
        "payout": past.payout,
        "received_at": iso(past.received_at),
        "amount": past.amount,
        "score": score.score,
        "amount_score": score.amount,
        "time_score": score.time,
    }


def _print(agent: str, done: "Calibrated") -> None:
    from streamproc.domain.calibration import too_short
    from streamproc.domain.money import rupees
    from streamproc.domain.policy_events import headline
    from streamproc.domain.proposals import Proposal
    from streamproc.domain.shown import iso
    from streamproc.operate.changes import Preview

    profile, above, made = done.measured.profile, done.measured.above, done.made
    was = f" (was {done.was.threshold})" if done.was is not None else ""
    click.echo(f"agent {agent}: {profile.payouts:,} approved payouts from {profile.since} to {profile.until}")
    click.echo(f"  {_reach_text(done.reach.until, done.reach.behind_s)}")
    click.echo(f"  half up to {rupees(profile.amounts[10])}, 95 % up to {rupees(profile.amounts[-1])}")
    click.echo(f"  {_busiest(profile.weekday_hours, profile.weekend_hours)} ({profile.timezone})")
    click.echo(f"  threshold {profile.threshold}{was}: {len(above):,} of them would have been held")
    if above:
        rows = [
            (p.payout, iso(p.received_at), rupees(p.amount), str(s.score), str(s.amount), str(s.time))
            for p, s in above[:HIGHEST_SHOWN]
        ]
        output.say_table(["PAYOUT", "RECEIVED", "AMOUNT", "SCORE", "BY AMOUNT", "BY TIME"], rows, empty="")
    if isinstance(made, Preview):
        for line in loosens_lines(made.loosens):
            click.echo(line)
        output.note(f"nothing was changed{'; it would wait for a second person' if made.waits else ''}")
    elif not isinstance(made, Proposal):
        changes = dict.fromkeys(headline(change) for one in made for change in one.changes)
        for line in changes or ["nothing to change: this profile is in force already"]:
            click.echo(line)
    if short := too_short(profile):
        output.note(short)
    if not done.is_asked:
        output.note(f"the policy says anomaly: false, so nothing of {agent} is held by it yet")


def _reach_text(until: int, behind_s: float) -> str:
    from streamproc.domain.shown import iso

    if not behind_s:
        return f"the views, from which they are, show the whole log up to {iso(until)}"
    behind = output.age(int(behind_s * 1_000))
    return f"the views, from which they are, show the log up to {iso(until)} and are {behind} behind it"


def _busiest(weekday: tuple[int, ...], weekend: tuple[int, ...]) -> str:
    hours = [
        (count, day, hour)
        for day, of in (("weekdays", weekday), ("weekends", weekend))
        for hour, count in enumerate(of)
    ]
    count, day, hour = max(hours, key=lambda one: one[0])
    return f"busiest hour: {hour:02d}:00 on {day}, with {count:,}; {sum(weekend):,} on weekends"

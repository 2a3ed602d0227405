"""`streamproc policy whatif`: judges the past again under other policies."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.context import archive_settings
from streamproc.cli.policy_source import read_policy_file
from streamproc.errors import InputError, JobFailed

if TYPE_CHECKING:
    from streamproc.domain.whatif.comparison import Matrix, Sum
    from streamproc.operate.whatif import WhatIfResult

SHOWN_MAX = 20
"""Changed payouts in the table, the largest first; `--json` has all."""
DECISIONS = ("APPROVED", "HELD", "REJECTED")


@click.command()
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="WHEN",
    help="Judge what was decided since then: a time before now (12h, 30d) or ISO 8601.",
)
@click.option(
    "--prune", is_flag=True, help="Leave out the agents, accounts and teams that FILE does not name."
)
@click.option(
    "--in-force",
    is_flag=True,
    help="Instead of FILE: under the policies that were in force. Exit code 1 if anything changes.",
)
@click.option(
    "--new-holds",
    type=click.Choice(["wait", "approve"]),
    default="wait",
    show_default=True,
    help="Holds that only FILE makes, which nobody was asked about: unanswered until they expire, or approved.",
)
@click.option(
    "--unknown-reputation",
    type=click.Choice(["clean", "unavailable"]),
    default="clean",
    show_default=True,
    help="What to assume about vendors that were never looked up.",
)
@click.option(
    "--unknown-entity",
    type=click.Choice(["verified", "unavailable"]),
    default="verified",
    show_default=True,
    help="What to assume about contacts of whom no register of legal entities was asked.",
)
@output.json_option
def whatif(
    file: Path | None,
    since: str,
    prune: bool,
    in_force: bool,
    new_holds: str,
    unknown_reputation: str,
    unknown_entity: str,
    as_json: bool,
) -> None:
    """Judge past payouts again under the policies of FILE.

    They are judged as if these policies had been in force. Budgets and rates evolve under FILE: what it rejects leaves
    room for later payouts. Scopes that FILE does not name are as they were at each time, and freezes of that time stay.
    Reviewers and the bank do what they did. The answer counts old and new outcomes, names each changed payout with its
    reason, and says what was assumed. It reads only the archive, changes nothing and calls nothing outside.

    \b
    Example:
      streamproc policy whatif policies-next.yaml --since 90d
      streamproc policy whatif policies-next.yaml --since 2026-10-01 --json
      streamproc policy whatif --in-force --since 90d
    """
    if (file is None) == (not in_force):
        raise InputError("name a policy FILE, or --in-force for the policies that were in force")
    settings = archive_settings()
    from streamproc.cli.progress import ProgressDisplay
    from streamproc.domain.whatif.judge import Assumptions
    from streamproc.operate.moments import moment
    from streamproc.operate.whatif import WhatIfProgress
    from streamproc.operate.whatif import whatif as job

    parsed = None if file is None else read_policy_file(file)
    begin = moment("--since", since)
    if begin > datetime.now(UTC) and not in_force:
        raise InputError(f"--since {since} is in the future: nothing was decided since then")
    # The types are click's choices.
    assume = Assumptions(settings.timezone, unknown_reputation, new_holds, unknown_entity)  # type: ignore[arg-type]
    with ProgressDisplay("whatif", "payouts") as display:

        def hear(progress: WhatIfProgress) -> None:
            display.show("judging", progress.done, progress.total, progress.judged)

        answer = output.run(
            job(
                settings.postgres_dsn.reveal(),
                parsed,
                since=begin,
                prune=prune,
                assume=assume,
                on_progress=hear,
            )
        )
    if as_json:
        output.say_json(_document(answer, str(file) if file is not None else None))
    else:
        _print(answer)
    if in_force:
        _refuse_change(answer)


def _refuse_change(answer: "WhatIfResult") -> None:
    found = answer.found
    if not found.judged.payouts:
        raise JobFailed("nothing was judged: the archive has no decision since then, so nothing is shown")
    if found.changed.payouts or found.counters_differing:
        raise JobFailed(
            f"under the policies that were in force {found.changed.payouts} payouts come out otherwise, and"
            f" {found.counters_differing} find other counters; the log cannot be trusted to be replayed,"
            " or an earlier version decided by other rules (CHANGELOG.md)"
        )


# ---- for machines -----------------------------------------------------------------------


def _document(answer: "WhatIfResult", file: str | None) -> dict[str, Any]:
    from streamproc.domain.shown import iso
    from streamproc.operate.moments import us_of

    found = answer.found
    return {
        "file": file,
        "since": iso(us_of(answer.since)),
        "positions": {str(partition): seq for partition, seq in answer.positions.items()},
        "judged": _sum(found.judged),
        "changed": _sum(found.changed),
        "rules": _matrix(found.rules),
        "outcomes": _matrix(found.ends),
        "moves": [
            {"old": list(old), "new": list(new), **_sum(moved)}
            for (old, new), moved in sorted(found.moves.items(), key=_largest)
        ],
        "payouts": [
            {
                "payout": change.payout,
                "agent": change.agent,
                "vendor": change.vendor,
                "amount": change.amount,
                "at": iso(change.at),
                "old": {"decision": change.old_rules[0], "reason": change.old_rules[1]},
                "new": {"decision": change.new_rules[0], "reason": change.new_rules[1]},
                "old_outcome": {"decision": change.old_end[0], "reason": change.old_end[1]},
                "new_outcome": {"decision": change.new_end[0], "reason": change.new_end[1]},
            }
            for change in found.changes
        ],
        "assumptions": [{"what": what, **_sum(many)} for what, many in sorted(found.assumed.items())],
        "not_judged": [{"why": why, **_sum(many)} for why, many in sorted(found.unjudged.items())],
        "counters_differing": found.counters_differing,
    }


def _sum(many: "Sum") -> dict[str, int]:
    return {"payouts": many.payouts, "amount": many.amount}


def _matrix(matrix: "Matrix") -> dict[str, dict[str, dict[str, int]]]:
    """Old decision -> new decision -> count and amount; every cell, empty ones too."""
    from streamproc.domain.whatif.comparison import Sum

    return {old: {new: _sum(matrix.get((old, new), Sum())) for new in DECISIONS} for old in DECISIONS}


def _largest(item: "tuple[Any, Sum]") -> tuple[int, Any]:
    return (-item[1].amount, item[0])


# ---- for people -------------------------------------------------------------------------


def _print(answer: "WhatIfResult") -> None:
    from streamproc.domain.money import rupees
    from streamproc.domain.shown import iso
    from streamproc.operate.moments import us_of

    found = answer.found
    at = ", ".join(f"{partition}:{seq}" for partition, seq in answer.positions.items())
    click.echo(
        f"{found.judged.payouts:,} payouts of {rupees(found.judged.amount)}, decided since"
        f" {iso(us_of(answer.since))}, judged again (archive up to {at});"
        f" {found.changed.payouts:,} of {rupees(found.changed.amount)} come out otherwise"
    )
    _print_matrix("WHAT THE RULES SAY", found.rules)
    if found.ends != found.rules:
        _print_matrix("AFTER REVIEWERS AND TIME", found.ends)
    if found.moves:
        click.echo("")
        rows = [
            (f"{many.payouts:,}", rupees(many.amount), " ".join(old), " ".join(new))
            for (old, new), many in sorted(found.moves.items(), key=_largest)
        ]
        output.say_table(["PAYOUTS", "AMOUNT", "WAS", "WOULD BE"], rows, empty="")
        click.echo("")
        largest = sorted(found.changes, key=lambda change: (-change.amount, change.payout))
        shown = [
            (c.payout, c.agent, rupees(c.amount), " ".join(c.old_end), " ".join(c.new_end))
            for c in largest[:SHOWN_MAX]
        ]
        output.say_table(["LARGEST", "AGENT", "AMOUNT", "CAME TO", "WOULD COME TO"], shown, empty="")
        if len(largest) > SHOWN_MAX:
            output.note(f"the {SHOWN_MAX} largest of {found.changed.payouts:,}; --json names them all")
    for title, sums in (("assumed", found.assumed), ("not judged", found.unjudged)):
        for what, many in sorted(sums.items()):
            click.echo(f"{title}: {what} ({many.payouts:,} payouts, {rupees(many.amount)})")


def _print_matrix(title: str, matrix: "Matrix") -> None:
    from streamproc.domain.money import rupees
    from streamproc.domain.whatif.comparison import Sum

    def cell(old: str, new: str) -> str:
        many = matrix.get((old, new), Sum())
        return f"{many.payouts:,}  {rupees(many.amount)}" if many.payouts else "-"

    click.echo("")
    rows = [(f"was {old}", *(cell(old, new) for new in DECISIONS)) for old in DECISIONS]
    output.say_table([title, *(f"would be {new}" for new in DECISIONS)], rows, empty="")

"""`streamproc reconcile`: compares the bank, the log and the budgets."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from streamproc.cli import output
from streamproc.cli.context import operator_settings
from streamproc.cli.progress import ProgressDisplay
from streamproc.errors import JobFailed

if TYPE_CHECKING:
    from streamproc.operate.reconcile import Reconciled


@click.command()
@click.option(
    "--since",
    default="7d",
    show_default=True,
    metavar="WHEN",
    help="Compare what the bank made since then: a time before now (24h, 7d) or ISO 8601.",
)
@output.json_option
def reconcile(since: str, as_json: bool) -> None:
    """Compare bank, log and budgets, and record each mismatch.

    Compares every payout that the bank made in the period with what is known here, and each budget counter with its
    fold of the log. Payouts that are open or moved here but are not in the bank's list are fetched. What is unknown
    here (a payout, its status, UTR, fees or tax) is appended as if its webhook had come. Each mismatch becomes an event
    (`audit list --kind alert`), once. Nothing else is corrected. Exit code 1 if anything does not agree. A poller does
    this by itself every STREAMPROC_RECONCILE_INTERVAL.

    \b
    Example:
      streamproc reconcile --since 24h
      streamproc reconcile --json | jq .mismatches
    """
    from streamproc.operate.moments import moment
    from streamproc.operate.reconcile import reconcile as job

    now = datetime.now(UTC)
    since_s = round((now - moment("--since", since, now)).total_seconds())
    settings = operator_settings()
    with ProgressDisplay("reconcile", "payouts") as display:
        done = output.run(
            job(
                settings,
                since_s=since_s,
                on_seen=lambda n: display.show("comparing", n),
            )
        )
    if as_json:
        from dataclasses import asdict

        import msgspec

        begin, end = _period(done)
        said = {"since": begin, "until": end, "mismatches": msgspec.to_builtins(done.mismatches)}
        output.say_json(asdict(done) | said)
    else:
        _print(done)
    for text in done.left:
        output.note(text)
    if done.mismatches:
        raise JobFailed(f"{len(done.mismatches)} mismatches; each is an event of kind reconcile.mismatch")
    if done.left:
        raise JobFailed("what was compared agrees, but not everything was compared")


def _period(done: "Reconciled") -> tuple[str, str]:
    """From when to when was compared, in ISO 8601."""
    from streamproc.domain.shown import iso

    return iso(done.since * 1_000_000), iso(done.until * 1_000_000)


def _print(done: "Reconciled") -> None:
    rows = [
        [m.kind, m.payout or m.subject, m.ours or "nothing", m.theirs or "nothing"] for m in done.mismatches
    ]
    if rows:
        output.say_table(("KIND", "PAYOUT OR WINDOW", "OURS", "THEIRS"), rows, empty="")
    begin, end = _period(done)
    click.echo(
        f"{begin} to {end}: {done.listed} payouts listed, {done.fetched} fetched, {done.windows} budget windows;"
        f" {len(done.mismatches)} mismatches, {done.appended} payouts were news"
    )

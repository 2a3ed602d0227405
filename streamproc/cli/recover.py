"""`streamproc recover`: rebuilds Redis from the archive."""

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output, person
from streamproc.cli.progress import ProgressDisplay
from streamproc.errors import JobFailed
from streamproc.run_file import discover
from streamproc.settings import PREFIX, Settings, load

if TYPE_CHECKING:
    from streamproc.operate.disown import Statement
    from streamproc.operate.recover import Recovered, RecoveryPlan
    from streamproc.operate.recover_bank import BankAsked


@click.command()
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it is never asked."
)
@click.option("--without-bank", is_flag=True, help="Do not ask the bank what happened meanwhile.")
@click.option(
    "--disown",
    multiple=True,
    metavar="ID",
    help="State, as `log disown` does, that this unreadable entry is not ours; may be repeated.",
)
@click.option("--by", default="", metavar="NAME", help="Who states that, for the audit.")
@click.option("--why", default="", metavar="TEXT", help="How it is known, for the audit.")
@click.option("--no-later-version", is_flag=True, help="With --disown: as for `log disown`.")
@output.json_option
def recover(
    yes: bool,
    without_bank: bool,
    disown: tuple[str, ...],
    by: str,
    why: str,
    no_later_version: bool,
    as_json: bool,
) -> None:
    """Rebuild Redis from the archive, then ask the bank.

    The bank is asked what happened since. Use it when roles say that the log is gone or behind its archive. First stop
    the workers: they decide on outdated budgets and policies. Their decisions are dropped here, but their rejections
    may reach the bank. Also stop the projector, which writes to the archive. Under `up` stop all of it: this command
    starts the stores itself.

    Budgets, reservations, rate slots, payouts, deliveries seen, policies, timers and dead letters are restored. Entries
    that a worker may not have handled are handled again. What came from outside into a log that had lost its end is
    kept. You may kill this command and run it again. It stops at an entry that cannot be read. If something other than
    streamproc wrote that entry into Redis, state so with --disown, --by and --why; `log disown` needs an open log.

    The bank is asked about the account in the settings. If other accounts have open payouts, they are named: run this
    again with the settings of each.

    \b
    Example:
      streamproc recover
      streamproc recover --yes --json
    """
    from streamproc.operate.disown import statement

    settings = discover(load(os.environ))
    said = [statement(one, person.attribution(by, why), no_later_version=no_later_version) for one in disown]
    done, asked = output.run(_recover(settings, said, yes=yes, without_bank=without_bank))
    left = [*done.left, *(asked.left if asked is not None else ())]
    if as_json:
        output.say_json(_as_json(done, asked, left))
    else:
        _print(done, asked)
        if done.gone_after:
            output.note(done.gone_after)
    if not without_bank and asked is None:
        output.note(
            f"the bank was not asked: {PREFIX}RAZORPAY_KEY_ID is not set here. Run this again where it is; the poller"
            " lists what was made since the archive's end"
        )
    if left:
        again = " `streamproc recover` asks the bank again." if asked is not None and asked.left else ""
        raise JobFailed(f"recovered; left to do: {'; '.join(left)}.{again}")


async def _recover(
    settings: Settings, disowned: "list[Statement]", *, yes: bool, without_bank: bool
) -> "tuple[Recovered, BankAsked | None]":
    from streamproc.log.connection import connected
    from streamproc.log.restore import mark_reconciled, unreconciled_run
    from streamproc.operate.recover import Recovered, look, rebuild, refuse_unneeded
    from streamproc.operate.recover_bank import ask_bank, is_configured
    from streamproc.operate.stores import reachable

    async with reachable(settings) as found:
        plan, done, asked = await look(found), Recovered(), None
        await refuse_unneeded(found, plan, disowned)
        if not plan.bank_only:
            _ask(plan, yes=yes)
        with ProgressDisplay("recover", "events") as display:
            if not plan.bank_only:
                done = await rebuild(found, plan, disowned=disowned, on_progress=display.hear)
        with ProgressDisplay("recover", "payouts") as display:
            if without_bank:
                async with connected(found.redis_url) as client:
                    if (run := await unreconciled_run(client)) is not None:
                        await mark_reconciled(client, run)
            elif is_configured(found):
                asked = await ask_bank(found, on_asked=partial(display.show, "asking the bank"))
        return done, asked


def _ask(plan: "RecoveryPlan", *, yes: bool) -> None:
    """Say what is wrong, and go on unless a person at a terminal objects."""
    for one in plan.broken:
        click.echo(f"partition {one.partition}: {one.problem}", err=True)
    if plan.gone_after:
        click.echo(plan.gone_after, err=True)
    if plan.interrupted:
        click.echo("an earlier recovery was started but did not complete", err=True)
    if yes:
        return
    question = f"Are the workers stopped? Rebuild Redis from {plan.entries} archived entries (a million take minutes)"
    output.confirm(question)


def _as_json(done: "Recovered", asked: "BankAsked | None", left: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    speed = int(done.entries / done.seconds) if done.seconds > 0 else 0
    return asdict(done) | {
        "left": left,
        "entries_per_s": speed,
        "bank": asdict(asked) if asked is not None else None,
    }


def _print(done: "Recovered", asked: "BankAsked | None") -> None:
    names = (
        *("partition", "archived", "payouts", "budgets", "beneficiaries"),
        *("policies", "seen", "timers", "letters"),
    )
    rows = [
        [*(getattr(one, name) for name in names), sum(one.pending.values()), one.rescued]
        for one in done.partitions
    ]
    if rows:
        columns = [*(name.upper() for name in names), "TO HANDLE AGAIN", "KEPT OF THE OLD LOG"]
        output.say_table(columns, rows, empty="")
        click.echo(
            f"rebuilt from {done.entries} archived entries in {done.seconds:.1f} s; workers may be started"
        )
    if asked is not None:
        click.echo(
            f"the bank was asked about {asked.asked} open payouts and listed {asked.listed}; {asked.new} were news"
        )

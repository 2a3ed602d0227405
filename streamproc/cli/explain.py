"""`streamproc explain`: the whole story of one payout."""

from typing import TYPE_CHECKING

import click

from streamproc.cli import output
from streamproc.cli.context import archive_settings, ask_site

if TYPE_CHECKING:
    from streamproc.operate.explain import Story
    from streamproc.operate.site import Site


@click.command()
@click.argument("payout")
@click.option(
    "--as-of",
    "as_of",
    metavar="WHEN",
    help="What was known then: a time (ISO 8601), a seq, or partition:seq.",
)
@output.json_option
def explain(payout: str, as_of: str | None, as_json: bool) -> None:
    """Show the whole history of a PAYOUT.

    What was asked, what each rule found and on what evidence, under which policy version, the budget before and
    after, who reviewed it and why, what the bank was told and what it answered. It comes from the archive and from
    what is not archived yet; while Postgres is away, from Redis alone.

    \b
    Example:
      streamproc explain pout_00000000000001
      streamproc explain pout_00000000000001 --json
      streamproc explain pout_00000000000001 --as-of 2026-11-22T18:00:00+05:30
    """
    from streamproc.operate import explain as told
    from streamproc.operate.story import tell

    async def explained(site: "Site") -> "Story":
        if as_of is not None:
            dsn = archive_settings().postgres_dsn.reveal()
            return await told.explain_as_of(site, dsn, payout, as_of)
        return await told.explain(site, payout)

    story = ask_site(explained, run=output.run_or_undo)
    if as_json:
        output.say_json(told.as_json(story))
    else:
        click.echo("\n".join(map(output.visible, tell(story))))

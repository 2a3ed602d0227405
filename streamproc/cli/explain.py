"""`streamproc explain`: one payout's story."""

from typing import TYPE_CHECKING

import click

from streamproc.cli import output
from streamproc.cli.context import operator_settings

if TYPE_CHECKING:
    from streamproc.operate.explain import Story


@click.command()
@click.argument("payout")
@output.json_option
def explain(payout: str, as_json: bool) -> None:
    """Tell the whole story of a PAYOUT.

    What was asked, what each rule found and on what evidence, under which policy version, the budget before and
    after, who reviewed it and why, what the bank was told and what it answered. It comes from the archive and from
    what is not archived yet; while Postgres is away, from Redis alone.

    \b
    Example:
      streamproc explain pout_00000000000001
      streamproc explain pout_00000000000001 --json
    """
    settings = operator_settings()
    from streamproc.operate import explain as told
    from streamproc.operate.site import opened
    from streamproc.operate.story import tell

    async def body() -> "Story":
        async with opened(settings) as site:
            return await told.explain(site, payout)

    story = output.run(body())
    if as_json:
        output.say_json(told.as_json(story))
    else:
        click.echo("\n".join(tell(story)))

"""`streamproc pay`: ask for a payout through the gateway."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.caller import api_url, small_text, token_of
from streamproc.domain.money import AMOUNT_MAX_PAISE, AMOUNT_MIN_PAISE
from streamproc.errors import InputError, JobFailed

if TYPE_CHECKING:
    from streamproc.operate.pay import TakenPayout


class Paise(click.ParamType[int]):
    """An amount in ASCII digits. What else Python reads as a number may be meant otherwise, as rupees."""

    name = "paise"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The amount in paise; a refusal that says the unit for anything but a whole number within the limits."""
        if not re.fullmatch(r"[0-9]{1,18}", value) or not AMOUNT_MIN_PAISE <= int(value) <= AMOUNT_MAX_PAISE:
            allowed = f"{AMOUNT_MIN_PAISE} to {AMOUNT_MAX_PAISE}"
            self.fail(f"{value!r} is no whole number of paise from {allowed}", param, ctx)
        return int(value)


@click.command()
@click.option(
    "--amount",
    required=True,
    type=Paise(),
    metavar="PAISE",
    help="In paise: 800000 is ₹8,000.00.",
)
@click.option(
    "--to",
    required=True,
    metavar="FA|FILE",
    help="A fund account (fa_…), or a JSON file: the bank's `fund_account`.",
)
@click.option(
    "--currency",
    default="INR",
    show_default=True,
    metavar="CODE",
    help="One that the policy allows; the bank pays INR only.",
)
@click.option("--mode", default="IMPS", show_default=True, help="IMPS, NEFT, RTGS or UPI.")
@click.option(
    "--purpose",
    default="payout",
    show_default=True,
    help="A purpose that the account has at the bank, such as `vendor bill`.",
)
@click.option("--vendor-url", default="", metavar="URL", help="URL of the vendor who is paid.")
@click.option(
    "--narration",
    default="",
    metavar="TEXT",
    help="What the bank prints: at most 30 of A-Z a-z 0-9 and blanks.",
)
@click.option(
    "--note",
    "notes",
    multiple=True,
    metavar="NAME=TEXT",
    help="A note at the bank; may be given several times.",
)
@click.option("--key", default="", metavar="KEY", help="Idempotency-Key: the same key is the same payout.")
@click.option(
    "--token",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file with the token; or set STREAMPROC_TOKEN.",
)
@click.option(
    "--url", default="", metavar="URL", help="The API; by default the system that the settings name."
)
@click.option("--wait", is_flag=True, help="Wait until it is decided.")
@output.json_option
def pay(token: Path | None, to: str, key: str, url: str, wait: bool, as_json: bool, **given: Any) -> None:
    """Request a payout, as an agent does. Nothing is at the bank before it is approved.

    Exit code 0 if it is accepted (with --wait: approved or held), 1 if it is refused, 2 for wrong use. Without
    --key each call is another payout: after a lost answer, give the key that was printed.

    \b
    Example:
      streamproc pay --amount 800000 --to fa_00000000000001 --token token.txt --wait
    """
    from streamproc.operate import pay as job
    from streamproc.run_file import discover
    from streamproc.settings import load

    settings = discover(load(os.environ))
    order = _order(to, **given)  # first: to be told that it cannot be sent, nobody needs a token
    secret, where = token_of(settings, token), api_url(settings, url)
    key = key or job.new_key()

    async def body() -> "TakenPayout":
        return await job.pay(where, secret, order, key=key, wait=wait)

    try:
        taken = output.run(body())
    except click.Abort:
        output.note(f"whether it was taken is not known: ask again with --key {key}")
        raise
    shown = taken.payout
    if as_json:
        output.say_json({**shown, "key": key})
    else:
        decided = f"{shown['decision']} {shown['reason']}" if shown["decision"] else "taken, not decided yet"
        click.echo(f"{shown['payout']}: {decided} (key {key})")
    if shown["decision"] == "REJECTED":
        raise JobFailed(f"{shown['payout']} is rejected: {', '.join(shown['reasons'])}")


def _order(
    to: str, *, vendor_url: str, narration: str, notes: tuple[str, ...], **fields: Any
) -> dict[str, Any]:
    """The request's body; `fields` are those that always have a value."""
    order = fields
    order |= {name: text for name, text in (("vendor_url", vendor_url), ("narration", narration)) if text}
    pairs = [note.partition("=") for note in notes]
    if any(not name or not equals for name, equals, _ in pairs):
        raise InputError("--note must be NAME=TEXT")
    if pairs:
        order["notes"] = {name: text for name, _, text in pairs}
    if to.startswith("fa_"):
        return {**order, "fund_account_id": to}
    return {**order, "fund_account": _beneficiary(Path(to))}


def _beneficiary(path: Path) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(small_text(path, "--to"), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):  # the latter: nested too deeply
        raise InputError(
            f"--to {path}: the file must hold one JSON object, like the bank's `fund_account`"
        ) from None

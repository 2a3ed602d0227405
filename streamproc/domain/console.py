"""Where people look at a payout: the page at `/console/` (ADR 36). Pure."""

from typing import Final
from urllib.parse import quote

PATH: Final = "/console/"


def link_to(public_url: str, payout: str) -> str:
    """The URL at which a person sees a payout and may answer; empty without `public_url` or a payout.

    The payout is behind `#`, so that no proxy on the way logs it.
    """
    return f"{public_url}{PATH}#{quote(payout, safe='')}" if public_url and payout else ""

"""What alerts people, and what of it they are told. Pure."""

import re

from msgspec import Struct

from streamproc.domain.events import (
    EntrySetAside,
    Event,
    GovernanceBypassed,
    PayoutDecided,
    ReconcileMismatch,
)
from streamproc.domain.money import rupees
from streamproc.domain.shown import evidence_texts

ALERTED = frozenset({"RISK_HIGH", "DOMAIN_BLOCKED", "LIMIT_EXCEEDED", "NO_POLICY", "FROZEN"})
"""Rejections that people are told of."""

_PAISE = re.compile(r"\b([0-9]{1,18}) (paise|reserved|committed)\b")
"""Money in what a mismatch says of both sides."""


class Alarm(Struct, frozen=True):
    """One alert. `code`, `agent` and `account` are what those of one digest have in common; `subject` is this one's id.

    `facts`: label and text, of strangers too; whoever shows them makes them plain.
    """

    code: str
    agent: str
    account: str
    subject: str
    amount: int = 0
    payout: str = ""
    facts: tuple[tuple[str, str], ...] = ()


def alarm_of(event: Event, entry: str) -> Alarm | None:
    """The alert that an event of the entry `partition:id` gives, or None."""
    facts: tuple[tuple[str, str], ...]
    if type(event) is PayoutDecided:
        if event.decision != "REJECTED" or event.reason not in ALERTED:
            return None
        shown = ", ".join(evidence_texts(event.findings[-1])) if event.findings else ""
        # Anybody can make up a name that has no policy, so those are alike whatever they say they are.
        agent = "" if event.reason == "NO_POLICY" else event.agent
        facts = (("payout", event.payout), ("agent", f"{event.agent} ({event.identity})"), ("found", shown))
        return Alarm(event.reason, agent, event.account, event.payout, event.amount, event.payout, facts)
    if type(event) is GovernanceBypassed:
        at_bank = event.bank_payout or event.payout
        facts = (("payout", at_bank), ("agent", event.agent), ("the bank says", event.status))
        return Alarm("BYPASSED", event.agent, event.account, at_bank, event.amount, event.payout, facts)
    if type(event) is EntrySetAside:
        facts = (("payout", event.payout), ("group", event.group), ("problem", event.problem))
        return Alarm("SET_ASIDE", "", "", event.entry, payout=event.payout, facts=facts)
    if type(event) is ReconcileMismatch:
        what = f"{event.kind}{f' of {event.subject}' if event.subject else ''}"
        ours, theirs = _in_rupees(event.ours), _in_rupees(event.theirs)
        facts = (("payout", event.payout), ("mismatch", what), ("ours", ours), ("theirs", theirs))
        return Alarm("MISMATCH", "", event.account, entry, payout=event.payout, facts=facts)
    return None


def _in_rupees(text: str) -> str:
    """As people write money; of a plain number of paise a message would show the last four digits only."""
    return _PAISE.sub(
        lambda found: rupees(int(found[1])) + ("" if found[2] == "paise" else f" {found[2]}"), text
    )

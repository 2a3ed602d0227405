"""One payout's whole story: what was asked, what each rule found, who decided, what the bank did."""

from typing import Any

import msgspec
from msgspec import Struct

from streamproc.domain.events import Event, Finding, PayoutObserved
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import type_of
from streamproc.errors import JobFailed
from streamproc.log.inspect import record_of
from streamproc.operate.history import StoryEvent, history_of, history_until
from streamproc.operate.past import targets_of
from streamproc.operate.site import Site, iso


class Story(Struct, frozen=True):
    """The record and the events it comes from, in log order; `notes` say what may be missing."""

    record: PayoutRecord
    events: list[StoryEvent]
    notes: list[str]


async def explain(site: Site, payout: str) -> Story:
    """The story of a payout. Raises JobFailed for one that nobody has seen."""
    history = await history_of(site, payout)
    notes = list(history.notes)
    if history.events and isinstance(history.events[0].event, PayoutObserved):
        record = fold(found.event for found in history.events)
    else:
        record = await record_of(site.client, site.partitions, payout)
        if record is not None:
            notes.append("the beginning of its story is not in Redis any more; its state is")
    if record is None:
        where = f" ({'; '.join(notes)})" if notes else ""
        raise JobFailed(f"payout {payout} is not known here{where}")
    return Story(record, history.events, notes)


async def explain_as_of(site: Site, dsn: str, payout: str, when: str) -> Story:
    """The story of a payout as it was known then; `when` as in `past.targets_of`.

    Raises JobFailed where nothing was known of it.
    """
    targets = await targets_of(dsn, when)
    history = await history_until(site, payout, {target.partition: target.seq for target in targets})
    record = fold(found.event for found in history.events)
    if record is None:
        raise JobFailed(f"payout {payout} was not known at {when}")
    where = ", ".join(f"{target.partition}:{target.seq}" for target in targets)
    return Story(record, history.events, [f"as it was known at {when} (archive position {where})"])


def findings_of(story: Story) -> list[Finding]:
    """Everything found so far: the decision's findings, or before one those of the last stage that spoke."""
    found: list[Finding] = story.record.findings
    if story.record.decision is None:
        for told in story.events:
            found = getattr(told.event, "findings", found)
    return found


def as_json(story: Story) -> dict[str, Any]:
    """What `explain --json` prints: a contract that scripts rely on. Amounts in paise, times ISO 8601."""
    record = story.record
    return {
        "payout": record.payout,
        "account": record.account,
        "agent": record.agent,
        "identity": record.identity,
        "amount": record.amount,
        "currency": record.currency,
        "vendor_url": record.vendor_url,
        "received_at": iso(record.received_at),
        "decision": record.decision,
        "reason": record.reason,
        "reasons": record.reasons,
        "findings": [finding_json(finding) for finding in findings_of(story)],
        "policy_version": record.policy_version,
        "state": record.state,
        "bank_status": record.bank_status,
        "reservation": _reservation_json(record),
        "reviews": [
            {"by": r.by, "action": r.action, "why": r.why, "channel": r.channel, "at": iso(r.at)}
            for r in record.reviews
        ],
        "events": [event_json(told.id, told.event) for told in story.events],
        "notes": story.notes,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """A rule that fired, with every field written out."""
    return {
        "stage": finding.stage,
        "code": finding.code,
        "outcome": finding.outcome,
        "evidence": finding.evidence,
    }


def event_json(identity: str, event: Event) -> dict[str, Any]:
    """An event as scripts see it: `data` is everything but its type and its time."""
    data = msgspec.to_builtins(event)
    return {"id": identity, "type": type_of(event), "at": iso(data.pop("at")), "data": _without_type(data)}


def _without_type(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "type"}


def _reservation_json(record: PayoutRecord) -> dict[str, Any] | None:
    held = record.reservation
    if held is None:
        return None
    return {
        "state": held.state,
        "amount": held.amount,
        "fees": held.fees,
        "number": held.number,
        "windows": [
            {
                "scope": use.scope,
                "window": use.window,
                "limit": use.limit,
                "reserved": use.reserved,
                "committed": use.committed,
            }
            for use in held.windows
        ],
    }

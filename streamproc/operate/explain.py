"""One payout's whole story: what was asked, what each rule found, who decided, what the bank did."""

from typing import Any

from msgspec import Struct

from streamproc.domain.events import Finding, PayoutObserved, PayoutRequested
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.shown import event_json as event_json
from streamproc.domain.shown import finding_json as finding_json
from streamproc.domain.shown import payout_json
from streamproc.domain.traces import trace_id
from streamproc.errors import JobFailed
from streamproc.log.inspect import record_of
from streamproc.operate.history import StoryEvent, history_of, history_until, name_at_bank
from streamproc.operate.past import targets_of
from streamproc.operate.site import Site


class Story(Struct, frozen=True):
    """The record and the events it comes from, in log order; `notes` say what may be missing."""

    record: PayoutRecord
    events: list[StoryEvent]
    notes: list[str]


async def explain(site: Site, payout: str) -> Story:
    """The story of a payout, by our name for it or the bank's. Raises JobFailed for one that nobody has seen."""
    history = await history_of(site, payout)
    if not history.events and (name := await name_at_bank(site, payout)):
        payout, history = name, await history_of(site, name)
    notes = list(history.notes)
    begins = {PayoutRequested, PayoutObserved}
    if is_intent(payout) and any(type(found.event) is PayoutRequested for found in history.events):
        begins = {PayoutRequested}  # else nobody asked for it: somebody used such a reference
    if history.events and type(history.events[0].event) in begins:
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
    payout = await name_at_bank(site, payout) or payout
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
    return {
        **payout_json(story.record),
        "trace_id": trace_id(story.record.payout),
        "findings": [finding_json(finding) for finding in findings_of(story)],
        "events": [event_json(told.id, told.event) for told in story.events],
        "notes": story.notes,
    }

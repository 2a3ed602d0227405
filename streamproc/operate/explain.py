"""One payout's whole story: what was asked for, what each rule found, who decided, what the bank did."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import (
    EntrySetAside,
    Finding,
    NotificationSent,
    PayoutMalformed,
    PayoutObserved,
    PayoutRequested,
)
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import CHANGING, UNKNOWN_AGENT, PayoutRecord, fold
from streamproc.domain.plain import plain
from streamproc.domain.shown import event_json, finding_json, payout_json
from streamproc.domain.traces import trace_id
from streamproc.errors import JobFailed
from streamproc.log.inspect import dead_letters, record_of
from streamproc.operate.history import (
    STORY_ENTRIES_MAX,
    History,
    StoryEvent,
    history_of,
    history_until,
    name_at_bank,
)
from streamproc.operate.past import targets_of
from streamproc.operate.site import Site

LETTERS_MAX = 1_000
"""Dead letters that are searched for one, from the time on at which it was set aside."""
_CHANGING = CHANGING - {NotificationSent}
"""Events that a record is made of. Not a notification: an alert may be about what was never observed."""


class Story(Struct, frozen=True):
    """A payout's record and its events in log order; `notes` say what may be missing.

    `governed` False: all that is known is that the bank showed it malformed (rule 1), so the record says little.
    """

    record: PayoutRecord
    events: list[StoryEvent]
    notes: list[str]
    governed: bool = True


async def explain(site: Site, payout: str) -> Story:
    """The story of a payout, by our id or the bank's. Raises JobFailed if it was never seen."""
    history = await history_of(site, payout, entries_max=STORY_ENTRIES_MAX)
    if _first(history.events) is None and (name := await name_at_bank(site, payout)):
        payout, history = name, await history_of(site, name, entries_max=STORY_ENTRIES_MAX)
    notes = list(history.notes)
    record = await _record(site, payout, history, notes)
    if record is None and (story := _malformed(history.events, notes)) is not None:
        story.notes.extend(await _letters(site, story.events))
        return story
    if record is None:
        where = f" ({'; '.join(notes)})" if notes else ""
        raise JobFailed(f"payout {plain(payout)} is not known here{where}")
    return Story(record, history.events, notes)


async def _record(site: Site, payout: str, history: History, notes: list[str]) -> PayoutRecord | None:
    """How a payout stands: by its events, or by Redis where these are not all there. None where neither knows it."""
    if history.is_cut:
        return await site.record(payout)  # the events end too early to say how the payout stands
    events, begins = history.events, {PayoutRequested, PayoutObserved}
    if is_intent(payout) and any(type(found.event) is PayoutRequested for found in events):
        begins = {PayoutRequested}  # else nobody asked for it: somebody used such a reference
    first = _first(events)
    if first is not None and type(first.event) in begins:
        return fold(found.event for found in events)
    record = await record_of(site.client, site.partitions, payout)
    if record is not None:
        notes.append("the beginning of its story is not in Redis any more; its state is")
    return record


def _first(events: Sequence[StoryEvent]) -> StoryEvent | None:
    """The first event that a record can begin with; before it the payout may have been shown malformed."""
    return next((found for found in events if type(found.event) in _CHANGING), None)


def _malformed(events: list[StoryEvent], notes: Sequence[str]) -> Story | None:
    """The story of a payout that the bank only ever showed malformed."""
    shown = next((found.event for found in events if type(found.event) is PayoutMalformed), None)
    if shown is None:
        return None
    record = PayoutRecord(
        payout=shown.payout,
        account=shown.account,
        agent=UNKNOWN_AGENT,
        received_at=shown.at,
        updated_at=shown.at,
    )
    return Story(record, events, [*notes, f"rule 1, it is not governed: {shown.problem}"], governed=False)


async def _letters(site: Site, events: Sequence[StoryEvent]) -> list[str]:
    """The dead letters about these events that are still there."""
    found = []
    for told in events:
        if type(aside := told.event) is EntrySetAside:
            partition, entry, _ = told.id.split(":")
            # One script writes the letter and the event that says so.
            letters = await dead_letters(
                site.client, site.names_of(int(partition)), limit=LETTERS_MAX, since_ms=id_key(entry)[0]
            )
            found += [
                f"dead letter {partition}:{item.id} of {item.group} (`streamproc dead show {partition}:{item.id}`)"
                for item in letters
                if (item.entry, item.group) == (aside.entry, aside.group)
            ]
    return list(dict.fromkeys(found))


async def explain_as_of(site: Site, dsn: str, payout: str, when: str) -> Story:
    """The story of a payout as it was known at `when` (see `past.targets_of`). Raises JobFailed if it was not known
    then."""
    targets = await targets_of(dsn, when)
    payout = await name_at_bank(site, payout) or payout
    history = await history_until(site, payout, {target.partition: target.seq for target in targets})
    where = ", ".join(f"{target.partition}:{target.seq}" for target in targets)
    notes = [f"as it was known at {when} (archive position {where})", *history.notes]
    record = fold(found.event for found in history.events)
    story = Story(record, history.events, notes) if record is not None else _malformed(history.events, notes)
    if story is None:
        raise JobFailed(f"payout {payout} was not known at {when}")
    return story


def findings_of(story: Story) -> list[Finding]:
    """All findings so far: those of the decision, or before it those of the last stage."""
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

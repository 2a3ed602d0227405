"""A payout's story for people: one paragraph for each thing that happened, in log order. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from streamproc.domain import events as e
from streamproc.domain.attribution import named
from streamproc.domain.domains import with_host
from streamproc.domain.intent import masked
from streamproc.domain.money import rupees
from streamproc.domain.notice import amount_text
from streamproc.domain.payouts import PayoutRecord, is_terminal
from streamproc.domain.plain import plain
from streamproc.domain.shown import evidence_texts, iso, iso_or_none
from streamproc.domain.traces import trace_id
from streamproc.operate.explain import Story

_STAGE_PASSED: Mapping[type[e.Fact], str] = {
    e.PayoutScreened: "screening, rules 2 to 9: nothing against it",
    e.VelocityChecked: "velocity, rule 10: passes",
    e.ReputationChecked: "reputation, rules 11 to 14: nothing against it",
    e.BudgetReserved: "budget, rule 16: there is room in every window",
}


def tell(story: Story) -> list[str]:
    """The story as lines of text."""
    head = _headline(story.record) if story.governed else [f"{story.record.payout}  not governed"]
    lines = [*head, *(f"  note: {note}" for note in story.notes), ""]
    said: set[tuple[str, str]] = set()
    for told in story.events:
        lines.append(f"{iso(told.event.at)}  {told.id}")
        lines += [f"    {line}" for line in _paragraph(told.event, said)]
    return lines


def _headline(record: PayoutRecord) -> Iterator[str]:
    undecided = "never decided" if is_terminal(record) else "not decided yet"
    outcome = f"{record.decision} {record.reason}" if record.decision else undecided
    yield f"{record.payout}  {amount_text(record.amount, record.currency)}  {outcome}"
    yield f"  agent {record.agent or '-'} ({record.identity}), policy version {record.policy_version or '-'}"
    yield f"  vendor {with_host(record.vendor_url) or '-'}"
    yield f"  state {record.state}, the bank says {record.bank_status or 'nothing yet'}"
    yield f"  trace {trace_id(record.payout)}"
    if record.intent is not None:
        nothing = "not known yet" if record.decision == "APPROVED" and not record.failure else "not there"
        yield f"  at the bank it is {record.bank_payout or nothing}"
    if record.failure:
        yield f"  it was not created: {record.failure}"
    if record.reservation is not None:
        held = record.reservation
        fees = f" with fees {rupees(held.fees)}" if held.fees else ""
        yield f"  budget: {rupees(held.amount)} {held.state}{fees}"


def _paragraph(event: e.Event, said: set[tuple[str, str]]) -> Iterable[str]:
    match event:
        case e.PayoutObserved():
            return _observed(event)
        case e.PayoutRequested():
            return _requested(event)
        case e.PayoutScreened() | e.VelocityChecked() | e.ReputationChecked() | e.BudgetReserved():
            return _stage(event, said)
        case e.PayoutDecided():
            return _decided(event, said)
        case e.ReviewSubmitted() | e.ReviewCounted() | e.ReviewRefused():
            return [_review(event)]
        case e.BankCommandAnswered():
            return [_answered(event)]
        case e.PayoutSettled():
            places = ", ".join(f"{scope} {window}" for scope, window in event.windows)
            fees = f", the bank's fees {rupees(event.fees)}" if event.fees else ""
            return [f"budget {event.settlement}: {rupees(event.amount)} in {places} ({event.why}{fees})"]
        case _:
            return [_other(event)]


def _requested(event: e.PayoutRequested) -> Iterator[str]:
    intent = event.intent
    yield f"agent {event.agent} asks for {amount_text(event.amount, event.currency)} (token {event.token})"
    payee = intent.beneficiary
    to = intent.fund_account_id
    if payee is not None:
        to = f"{payee.account_type} {masked(payee.account_number or payee.vpa)}"
    yield f"to {to} by {intent.mode}, purpose {intent.purpose}, vendor {with_host(event.vendor_url) or '-'}"
    notes = ", ".join(f"{name}={value}" for name, value in intent.notes.items())
    if notes:
        yield f"notes: {notes}"


def _observed(event: e.PayoutObserved) -> Iterator[str]:
    facts = event.facts
    via = f"{event.source} {event.bank_event}".strip()
    what = "it" if facts.id == event.payout else facts.id
    yield f"the bank shows {what} {facts.status} (by {via}): {amount_text(facts.amount, facts.currency)}"
    notes = ", ".join(f"{name}={value}" for name, value in facts.notes.items())
    if notes:
        yield f"notes: {notes}"
    details = (("the bank's reason", facts.reason), ("UTR", facts.utr))
    said = ", ".join(f"{name} {value}" for name, value in details if value)
    if said:
        yield said
    if facts.fees:
        yield f"fees {rupees(facts.fees)}, of which tax {rupees(facts.tax)}"


def _stage(
    event: e.PayoutScreened | e.VelocityChecked | e.ReputationChecked | e.BudgetReserved,
    said: set[tuple[str, str]],
) -> Iterator[str]:
    fresh = list(_fresh(event.findings, said))
    yield from fresh or [_STAGE_PASSED[type(event)]]
    match event:
        case e.PayoutScreened():
            yield f"agent {event.agent} ({event.identity}), policy version {event.policy_version}"
        case e.VelocityChecked() if event.limit:
            yield f"{event.used} of {event.limit} in {event.window_s} s before this one"
        case e.VelocityChecked():
            yield "the policy has no rate limit"
        case e.ReputationChecked():
            yield from _vetted(event)
        case e.BudgetReserved():
            yield f"reserved {rupees(event.amount)}, admission {event.number}"
            yield from (f"  {line}" for line in windows_lines(event.windows, event.amount))


def _vetted(event: e.ReputationChecked) -> Iterator[str]:
    if event.verdict == "no_url":
        yield "there is no vendor URL to ask about"
    else:
        checked = iso_or_none(event.checked_at)
        yield f"Safe Browsing: {event.verdict}" + (f", asked {checked}" if checked else "")
    entity = event.entity
    if entity is not None:
        checked = iso_or_none(entity.checked_at)
        contact = f"the bank names the contact {entity.contact}" if entity.contact else ""
        texts = (contact, entity.lei, entity.name, entity.status, entity.registration, entity.problem)
        said = ", ".join(plain(text) for text in texts if text)
        told = f" ({said})" if said else ""
        yield f"legal entity: {entity.verdict}{told}" + (f", asked {checked}" if checked else "")


def windows_lines(windows: Sequence[e.WindowUse], amount: int) -> Iterator[str]:
    """Each budget window before and after a payout was charged to it."""
    for use in windows:
        before = use.reserved + use.committed
        limit = "no limit" if use.limit is None else f"of {rupees(use.limit)}"
        yield f"{use.scope} {use.window}: before {rupees(before)}, after {rupees(before + amount)} {limit}"


def _fresh(findings: Iterable[e.Finding], said: set[tuple[str, str]]) -> Iterator[str]:
    """Findings that were not told before, since each stage repeats those of earlier stages."""
    for finding in findings:
        if (finding.stage, finding.code) not in said:
            said.add((finding.stage, finding.code))
            yield f"{finding.stage}: {finding.outcome} {finding.code}{_behind(finding)}"


def _behind(finding: e.Finding) -> str:
    return "".join(f", {said}" for said in evidence_texts(finding))


def _decided(event: e.PayoutDecided, said: set[tuple[str, str]]) -> Iterator[str]:
    yield from _fresh(event.findings, said)
    by = f" by {event.by}" if event.by else ""
    yield f"decided {event.decision} {event.reason}{by} under policy version {event.policy_version}"
    if len(event.codes) > 1:
        yield f"all reasons: {', '.join(event.codes)}"
    if event.hold_expires_at:
        yield f"waits for a reviewer until {iso(event.hold_expires_at)}"


def _review(event: e.ReviewSubmitted | e.ReviewCounted | e.ReviewRefused) -> str:
    match event:
        case e.ReviewSubmitted():
            return f"{event.by} says {event.action} by {event.channel}: {event.why}"
        case e.ReviewRefused():
            return f"the {event.action} of {event.by} does not count: {event.problem}"
        case e.ReviewCounted():
            who = f"{event.by} ({event.via})" if event.via else event.by
            more = f", {event.needed} more needed" if event.needed else ""
            return f"the {event.action} of {who} counts{more}: {event.why}"


def _answered(event: e.BankCommandAnswered) -> str:
    status = f" with HTTP {event.http_status}" if event.http_status else ""
    problem = " ".join(part for part in (event.code, event.problem) if part)
    said = f" ({problem})" if problem else ""
    where = f"the bank says {event.bank_status}"
    if event.bank_payout:
        where = f"it is {event.bank_payout} there, and {event.bank_status}"
    if event.command == "create" and event.outcome == "not_needed":
        where = "it was looked for at the bank, long enough: nothing is there"
    if event.command == "create" and event.outcome == "refused":
        where = "nothing is there, so it failed"
    return f"bank command {event.command}: {event.outcome}{status}{said}; {where}"


def _other(event: e.Event) -> str:
    match event:
        case e.TimerFired():
            return f"timer {event.timer} is due"
        case e.GovernanceBypassed():
            if event.bank_payout:
                return (
                    f"BYPASSED: {event.bank_payout}, another payout under this reference, of {rupees(event.amount)}, is"
                    f" {event.status} at the bank"
                )
            return f"BYPASSED: the bank says {event.status}, and it was never approved here"
        case e.BankFeeRecorded():
            return f"a fee that the bank collects itself, to {event.fund_account}: not governed, not charged"
        case e.ReconcileMismatch():
            ours, theirs = event.ours or "nothing", event.theirs or "nothing"
            return f"MISMATCH {event.kind}: we had {ours}, the bank shows {theirs} (found by reconcile)"
        case e.EntrySetAside():
            return f"set aside by {event.group}: {event.problem} (entry {event.entry}; see `streamproc dead list`)"
        case e.PayoutStopped():
            sent = "an earlier attempt may have reached it" if event.maybe_sent else "it was never sent"
            return (
                f"not sent to the bank: {event.finding.code}{_behind(event.finding)}; {event.command}: {sent}"
            )
        case e.CancelRequested():
            return f"to be cancelled: {event.why}"
        case e.BeneficiaryNoted():
            vendor = f" for {event.vendor}" if event.vendor else ""
            return f"fund account {event.fund_account} is known on this account from now on{vendor}"
        case e.DeadLetterClosed():
            done = "gave back to its group" if event.action == "redrive" else "discarded"
            why = f": {event.why}" if event.why else ""
            return f"{named(event.by, event.channel)} {done} dead letter {event.letter} ({event.group}){why}"
        case e.EntryDisowned():
            return f"{named(event.by, event.channel)} stated that none of us wrote entry {event.entry}: {event.why}"
        case e.AccessRefused():
            return f"refused by {event.channel}, {event.what}: {event.problem}"
        case e.NotificationSent():
            many = f" for {event.count} alerts" if event.count != 1 else ""
            return f"told by {event.channel} ({event.kind}{many}): {event.ref}"
        case e.NotificationFailed():
            then = "given up" if event.given_up else "it is tried again"
            return f"nobody could be told ({event.kind}), {then}: {event.problem}"
        case e.PayoutMalformed():
            return f"malformed: {event.problem}"
        case _:
            return type(event).__name__

"""What a work leaves behind when its entry is acknowledged: record, outputs, settlement, timers, notes."""

from streamproc.domain.payouts import encode_record, is_terminal
from streamproc.domain.wire import encode_events
from streamproc.log import payees
from streamproc.log.names import Names
from streamproc.log.scripts import Handover
from streamproc.log.work import Work


class Leaves:
    """Of the works of one group. Finished records are kept for `retention_s`."""

    def __init__(self, names: Names, group: str, retention_s: int) -> None:
        self._names, self._retention_s = names, retention_s
        self.caused = b'{"by":"' + group.encode() + b'","cause":"'
        """Field `m` of what it emits, up to the id of the entry that caused it."""

    def meta(self, work: Work) -> bytes:
        """Field `m` of what a work emits, without its closing brace."""
        return self.caused + work.entry + b'"'

    def handover(self, work: Work) -> Handover:
        """What the commit says of it."""
        handover = Handover(entry=work.entry, taken=work.taken)
        changed = work.record is not None and work.record != work.loaded
        if changed or work.out or work.looked_at:
            handover.payout = work.payout
            handover.version = work.version
        if work.record is not None and (changed or work.out):
            handover.record = encode_record(work.record)
            handover.keep_s = self._retention_s if is_terminal(work.record) else 0
        if work.out:
            handover.e = encode_events(work.out)
            handover.m = self.meta(work)
        if work.settle and work.admission.budget is not None:
            handover.settle, handover.windows = work.settle, work.admission.budget.windows
            handover.fees = work.fees
        handover.notes = payees.notes_of(self._names, work.out)
        handover.timers = [(timer.at, encode_events([timer])) for timer in work.timers]
        return handover

"""Who asked for a payout, and how sure we are.

A payout seen at the bank only claims its agent in `notes.agent_id`. The claim is `verified` where the
fund account is bound to that agent in the policy file's `agents:`; otherwise it stays `claimed`.
"""

from streamproc.domain.events import Identity
from streamproc.domain.payouts import UNKNOWN_AGENT, PayoutRecord
from streamproc.domain.policy import PolicyBook


def identity_of(record: PayoutRecord, book: PolicyBook) -> Identity:
    """How far the agent named on a payout can be believed."""
    if record.agent == UNKNOWN_AGENT:
        return "unknown"
    if book.bindings.verified_agent(record.agent, record.fund_account):
        return "verified"
    return "claimed"

"""Who asked for a payout, how sure we are, and whose policies hold for it.

A payout seen at the bank only claims its agent in `notes.agent_id`. The claim is `verified` where the fund account is
bound to that agent in the policy file's `agents:`, or where the payout carries that agent's signature; otherwise it
stays `claimed`. Of an intent the agent is who its token says.
"""

from msgspec import Struct

from streamproc.domain.agent_note import message
from streamproc.domain.events import Identity
from streamproc.domain.payouts import UNKNOWN_AGENT, PayoutRecord
from streamproc.domain.policy import AgentPolicy, Freeze, PolicyBook, ScopeLimits


class Party(Struct, frozen=True):
    """Whose payout it is, and the policies that apply to it: its agent's, its account's and its team's."""

    identity: Identity
    agent: AgentPolicy | None
    account: ScopeLimits | None
    team: ScopeLimits | None
    freeze: Freeze | None = None


def party_of(record: PayoutRecord, book: PolicyBook) -> Party:
    """Whose payout this is, under the policies of *book*."""
    return party_as(identity_of(record, book), record, book)


def party_as(identity: Identity, record: PayoutRecord, book: PolicyBook) -> Party:
    """As `party_of`, with a known identity: all else depends on the record's agent and account alone."""
    agent = None if record.agent == UNKNOWN_AGENT else book.agent(record.agent)
    team_name = agent.policy.team if agent is not None else None
    team = book.team(team_name) if team_name else None
    freeze = book.freeze(record.agent, record.account, team_name)
    return Party(identity, agent, book.account(record.account), team, freeze)


def identity_of(record: PayoutRecord, book: PolicyBook) -> Identity:
    """How sure it is that the named agent asked for a payout."""
    if record.intent is not None:
        return "verified"
    if record.agent == UNKNOWN_AGENT:
        return "unknown"
    if book.bindings.verified_agent(record.agent, record.fund_account):
        return "verified"
    if record.agent_sig and record.reference_id and record.fund_account and _is_signed(record, book):
        return "verified"
    return "claimed"


def _is_signed(record: PayoutRecord, book: PolicyBook) -> bool:
    signed = message(
        agent=record.agent,
        amount=record.amount,
        currency=record.currency,
        fund_account=record.fund_account,
        reference_id=record.reference_id,
    )
    return book.bindings.signed_by(record.agent, signed, record.agent_sig)

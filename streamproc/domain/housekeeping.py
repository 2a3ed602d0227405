"""Events about running the system, not a payout: comparisons, dead letters, tokens, refusals."""

from typing import Literal

from streamproc.domain.facts import Fact, MismatchKind, TokenScope


class ReconcileMismatch(Fact, frozen=True, kw_only=True, tag="reconcile.mismatch"):
    """The bank, or the fold of the log, differs from what we know. An alarm: nothing is corrected because of it.

    `unknown_here`, `behind`: neither webhook nor poller told us (of the payout; its status, UTR, fees or tax); it was
    appended now. `ahead`: we were told more than the bank shows, or another UTR. `budget`: `ours` is the counter,
    `theirs` its fold, `payout` is empty, `subject` names the window.
    """

    payout: str
    account: str
    kind: MismatchKind
    ours: str
    theirs: str
    subject: str = ""


class ReconcileDone(Fact, frozen=True, kw_only=True, tag="reconcile.done"):
    """A comparison of bank, log and budgets was completed. Times are Unix seconds; `left`: what was not compared."""

    account: str
    since: int
    until: int
    listed: int
    fetched: int
    windows: int
    mismatches: int
    left: list[str] = []


class EntrySetAside(Fact, frozen=True, kw_only=True, tag="entry.set_aside"):
    """A group could not handle an entry; it is a dead letter now."""

    payout: str
    group: str
    entry: str
    stage: str
    problem: str


class DeadLetterClosed(Fact, frozen=True, kw_only=True, tag="dead_letter.closed"):
    """A person gave a dead letter's entry back to its group, or discarded it.

    Version 1 had no `why`, version 2 no channel.
    """

    v: int = 3
    payout: str
    group: str
    entry: str
    letter: str
    action: Literal["redrive", "discard"]
    by: str
    why: str = ""
    channel: str = ""


class EntryDisowned(Fact, frozen=True, kw_only=True, tag="entry.disowned"):
    """A person stated that no version of streamproc wrote an entry that cannot be read; readers pass over it.

    `digest` is of the entry's bytes (streamproc/archive/disowned.py), so that the statement holds for no other bytes.
    Version 1 knew no channel.
    """

    v: int = 2
    entry: str
    digest: str
    by: str
    why: str
    channel: str = ""


class TokenCreated(Fact, frozen=True, kw_only=True, tag="token.created"):
    """A bearer token of the HTTP API was made. The token itself is nowhere; `digest` is its SHA-256 in hex.

    Version 1 knew no reviewer, version 2 no channel.
    """

    v: int = 3
    name: str
    scope: TokenScope
    agent: str = ""
    """Whose intents it may submit and read; only where the scope is `agent`."""
    account: str = ""
    digest: str
    expires_at: int
    """µs; 0: never."""
    by: str
    reviewer: str = ""
    """Who answers holds by it, as the policy's `reviewers` has the name; empty: the token's own name."""
    channel: str = ""
    """By which `by` made it (domain/attribution.py)."""


class TokenRevoked(Fact, frozen=True, kw_only=True, tag="token.revoked"):
    """A token is not valid any more. Version 1 knew no channel."""

    v: int = 2
    name: str
    by: str
    channel: str = ""


class AccessRefused(Fact, frozen=True, kw_only=True, tag="access.refused"):
    """Somebody asked for what is not theirs, or forged a request. Refusals that are alike within ten seconds are one
    event.

    It is in partition 0 and about no payout: whoever is refused may name any payout, so `payout_named` is in the audit
    only.
    """

    channel: Literal["slack", "api"]
    subject: str
    """A token's name, `slack:U…`, or empty if it is not known who it was."""
    what: str
    """The route or action."""
    payout_named: str = ""
    problem: str
    count: int
    """Refusals that are alike since the last such event, this one included."""

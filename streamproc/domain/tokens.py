"""Bearer tokens of the HTTP API: what each may do, and how events make and end them. Pure.

A token is 256 bits of chance, so its SHA-256 tells nothing and cannot be searched for: no slow hash is needed, and the
hash itself is the key it is found by (ADR 14).
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.attribution import Attribution
from streamproc.domain.events import Event, TokenCreated, TokenRevoked, TokenScope
from streamproc.domain.payouts import UNKNOWN_AGENT
from streamproc.domain.policy_fields import identifier
from streamproc.domain.reviewers import SLACK
from streamproc.errors import InputError

PREFIX = "spt_"
"""So that a token is known by scanners for secrets, and by a person who finds one."""
TOKENS_MAX = 10_000
"""Tokens that are kept, revoked ones too: they are read whole when one is made. Some 300 bytes each."""
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
"""What a token looks like: 32 bytes in base64 for URLs. Anything else is looked up nowhere."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Action: TypeAlias = Literal["request", "read own", "read all", "review", "administer"]
ALLOWED: Mapping[TokenScope, frozenset[Action]] = {
    "agent": frozenset({"request", "read own"}),
    "viewer": frozenset({"read own", "read all"}),
    "approver": frozenset({"read own", "read all", "review"}),
    "admin": frozenset({"read own", "read all", "review", "administer"}),
}
"""An agent can never review nor administer, and nobody else can ask for a payout: an intent belongs to an agent."""


class Token(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token as it is known: by its hash, never by itself. Times in µs."""

    name: str
    scope: TokenScope
    agent: str = ""
    account: str = ""
    digest: str
    created_at: int
    expires_at: int = 0
    revoked_at: int = 0
    by: str = ""
    reviewer: str = ""

    @property
    def person(self) -> str:
        """Who acts by it: its reviewer, or its own name. Two tokens of one reviewer are one person."""
        return self.reviewer or self.name

    @property
    def channel(self) -> str:
        """The channel of what is done by it."""
        return f"api:{self.name}"

    def attribution(self, why: str = "") -> Attribution:
        """What is done by it."""
        return Attribution(self.person, self.channel, why)

    def opens(self, now_us: int) -> bool:
        """Whether it is good now."""
        return not self.revoked_at and (not self.expires_at or now_us < self.expires_at)

    def may(self, action: Action) -> bool:
        """Whether its scope allows this."""
        return action in ALLOWED[self.scope]


def digest_of(secret: str) -> str:
    """What is kept of a token."""
    return sha256(secret.encode()).hexdigest()


def tokens_after(tokens: Mapping[str, Token], events: Iterable[Event]) -> dict[str, Token]:
    """The tokens by name, after what happened."""
    known = dict(tokens)
    for event in events:
        if type(event) is TokenCreated:
            known[event.name] = Token(
                name=event.name,
                scope=event.scope,
                agent=event.agent,
                account=event.account,
                digest=event.digest,
                created_at=event.at,
                expires_at=event.expires_at,
                by=event.by,
                reviewer=event.reviewer,
            )
        elif type(event) is TokenRevoked and event.name in known:
            token = known[event.name]
            known[event.name] = replace(token, revoked_at=token.revoked_at or event.at)
    return known


def plan_creation(tokens: Mapping[str, Token], wanted: TokenCreated) -> TokenCreated:
    """The event, if it may happen. Raises InputError for a wrong or taken name, or an agent that fits no scope."""
    if not NAME.fullmatch(wanted.name):
        raise InputError(f"a token's name is 1 to 64 of A-Z a-z 0-9 . _ -, not {wanted.name[:80]!r}")
    if wanted.name in tokens:
        was = (
            "was revoked, and its name stays its own"
            if tokens[wanted.name].revoked_at
            else "is there already"
        )
        raise InputError(f"token {wanted.name} {was}; choose another name")
    if len(tokens) >= TOKENS_MAX:
        raise InputError(f"there are {len(tokens)} tokens, the limit is {TOKENS_MAX}")
    if wanted.reviewer:
        _check_reviewer(wanted)
    if wanted.scope == "agent":
        _check_agent(wanted)
    elif wanted.agent or wanted.account:
        raise InputError(
            f"only a token of scope agent belongs to an agent and an account, not {wanted.scope}"
        )
    return wanted


def _check_reviewer(wanted: TokenCreated) -> None:
    if "review" not in ALLOWED[wanted.scope]:
        raise InputError(f"a token of scope {wanted.scope} answers no holds, so it has no --reviewer")
    if wanted.reviewer.startswith(SLACK):
        raise InputError(
            f"--reviewer {wanted.reviewer[:80]!r}: give the reviewer's name, not the account in Slack"
        )
    try:
        identifier(wanted.reviewer)
    except ValueError as problem:
        raise InputError(str(problem)) from problem


def _check_agent(wanted: TokenCreated) -> None:
    if not wanted.agent or not wanted.account:
        missing = "--agent" if not wanted.agent else "--account (or STREAMPROC_RAZORPAY_ACCOUNT_ID)"
        raise InputError(f"a token of scope agent needs {missing}")
    for value in (wanted.agent, wanted.account):
        try:
            identifier(value)
        except ValueError as problem:
            raise InputError(str(problem)) from problem
    if wanted.agent == UNKNOWN_AGENT:
        raise InputError(f"agent {UNKNOWN_AGENT} stands for payouts that name no agent; it gets no token")


def plan_revocation(
    tokens: Mapping[str, Token], name: str, attribution: Attribution, *, at: int
) -> TokenRevoked | None:
    """The event; None where the token is revoked already. Raises InputError for a name that nobody has."""
    token = tokens.get(name)
    if token is None:
        raise InputError(f"there is no token {name[:80]!r}; `streamproc token list` has their names")
    return (
        None
        if token.revoked_at
        else TokenRevoked(at=at, name=name, by=attribution.by, channel=attribution.channel)
    )

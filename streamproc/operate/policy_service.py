"""Policies, freezes and budgets for the HTTP API: what the command line does, for a caller that a token names."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from streamproc.api.policies import Made
from streamproc.domain.attribution import Attribution
from streamproc.domain.budget import Limits, windows_of
from streamproc.domain.policy import PolicyBook
from streamproc.domain.policy_changes import (
    FREEZE,
    NONE_YET,
    Stale,
    check_version,
    patch_scope,
    put_policy,
)
from streamproc.domain.proposals import Proposal
from streamproc.errors import InputError
from streamproc.log.clock import clock_us
from streamproc.log.inspect import counted_in
from streamproc.log.names import Names, partition_of
from streamproc.log.policies import read_scopes
from streamproc.log.tokens import read_tokens
from streamproc.operate import freezes, policies, proposals
from streamproc.operate.changes import Planner, Scopes, make
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.policies import NeverHad, change_json, state_json
from streamproc.operate.proposals import Applied
from streamproc.operate.site import Site

CHANGE_S_MAX = 20.0
"""Limit of a change on every partition. One that is cut off is answered with 503, and is safe to repeat."""


class PolicyService:
    """`zone` is for policies that name none; `account` is that which this installation pays from, where it is known."""

    def __init__(self, gateway: SiteGateway, *, zone: str, account: str) -> None:
        self._gateway = gateway
        self._zone = zone
        self._account = account

    async def policy(self, agent: str) -> dict[str, Any] | None:
        """An agent's policy in force; None: it has none."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            scopes = await policies.in_force_for(site, agent)
        state, frozen = scopes.get(f"agent:{agent}"), scopes.get(f"freeze:agent:{agent}")
        if state is None:
            return None
        return {**state_json(f"agent:{agent}", state), "freeze": None if frozen is None else frozen.own}

    async def change(
        self,
        agent: str,
        fields: Mapping[str, Any],
        attribution: Attribution,
        *,
        replaces: bool,
        version: int | None,
    ) -> Made:
        """Put fields in force, instead of or into the agent's own. Raises Stale, NoPolicy, InputError."""
        scope, found = f"agent:{agent}", 0
        by, why = attribution.by, attribution.why

        def wanted(scopes: Scopes, at: int) -> list[Any]:
            if replaces:
                return put_policy(scopes, agent, dict(fields), at=at, by=by, why=why)
            return patch_scope(scopes, scope, fields, at=at, by=by, why=why)

        def plan(partition: int, scopes: Scopes, at: int) -> list[Any]:
            nonlocal found
            # Versions are each partition's own; that of the first is the one that is shown.
            if partition == 0:
                found = scopes[scope].version if scope in scopes else 0
                if _is_done(scopes, scope, version, partial(wanted, scopes, at)):
                    return []
            return wanted(scopes, at)

        made = await self._make(plan, attribution)
        if made.proposal is not None or made.version:
            return made
        return replace(made, version=found)

    async def _make(self, plan: Planner, attribution: Attribution) -> Made:
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            made = await make(site, plan, attribution)
        if isinstance(made, Proposal):
            return Made(proposal=proposals.proposal_json(made, made.proposed_at))
        return _made(made)

    async def history(self, name: str, *, of_agent: bool) -> tuple[list[dict[str, Any]], str] | None:
        """The changes of an agent or a scope, the oldest first, and what may be missing; None: there are none."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            try:
                changes, note = await policies.history(site, name, of_agent=of_agent)
            except NeverHad:
                return None
        return [change_json(change) for change in changes], note

    async def proposals(self) -> list[dict[str, Any]]:
        """The proposals that are kept, the newest first."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            return await proposals.listed(site)

    async def confirm(self, proposal: str, attribution: Attribution) -> Made:
        """Put a proposal in force, as its second person. Raises NotThere, SamePerson, Refused, InputError."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            done = await proposals.confirm(site, proposal, attribution)
        return _made(done.applied, done.left)

    async def withdraw(self, proposal: str, attribution: Attribution) -> dict[str, Any]:
        """End a waiting proposal. Raises NotThere, Refused."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            ended = await proposals.withdraw(site, proposal, attribution)
        return proposals.proposal_json(ended, ended.closed_at)

    async def freezes(self) -> list[dict[str, Any]]:
        """The freezes in force."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            return await freezes.frozen_now(site)

    async def freeze(
        self, scope: str, attribution: Attribution, *, frozen: bool
    ) -> tuple[dict[str, Any], Made]:
        """Freeze a scope, or lift its freeze."""
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            done = await freezes.freeze(site, scope, attribution, frozen=frozen)
        shown = {
            "scope": done.scope, "frozen": done.frozen, "changed": bool(done.changed), "notes": done.notes,
        }  # fmt: skip
        waits = done.proposal
        if waits is None:
            return shown, Made()
        return shown, Made(proposal=proposals.proposal_json(waits, waits.proposed_at))

    async def budget(self, agent: str, account: str) -> list[dict[str, Any]] | None:
        """The windows that limit the agent now; None: it has no policy. InputError for an account that must be named,
        or that nothing here knows."""
        account = account or self._account
        async with asyncio.timeout(CHANGE_S_MAX), self._gateway.site() as site:
            if not account and site.partitions > 1:
                raise InputError("is missing: an agent's budget is counted for each account")
            if not await self._knows(site, account):
                raise InputError(
                    f"{account} is not known here: this installation pays from {self._account}, and no policy, freeze"
                    " or token names it"
                )
            return await _windows_now(site, agent, account, zone=self._zone)

    async def _knows(self, site: Site, account: str) -> bool:
        """Whether an account may have payouts here. Without a setting that names ours any may: webhooks name theirs."""
        if account == self._account or not self._account:
            return True
        _, scopes = await read_scopes(site.client, Names(partition_of(account, site.partitions)))
        if any(scope in scopes for scope in (f"account:{account}", f"{FREEZE}account:{account}")):
            return True
        _, known = await read_tokens(site.client)
        return any(token.account == account for token in known.values())


def _is_done(scopes: Scopes, scope: str, version: int | None, wanted: Callable[[], list[Any]]) -> bool:
    """Whether the scope has left the version that a change is of, and all is as wanted all the same.

    Then an earlier try of the request may have had effect, and its answer was lost (RFC 9110, 13.1.1), or it was broken
    off and this one is to finish it. Raises Stale if the scope has left that version otherwise.
    """
    try:
        if version is not None:
            check_version(scopes, scope, version)
    except Stale:
        with suppress(InputError):
            if version != NONE_YET and not wanted():
                return True
        raise
    return False


def _made(applied: Sequence[Applied], left: Sequence[str] = ()) -> Made:
    """The changes of one partition for all: they differ only where a crash had left one behind."""
    changes = next((one.changes for one in applied if one.changes), [])
    first = applied[0].changes
    agents = [change.version for change in first if change.scope.startswith("agent:")]
    version = agents[0] if len(agents) == 1 else 0
    shown = [change_json(one) for one in changes]
    return Made(version=version, changes=shown, left=[*left, *policies.profiles_wanted(changes)])


async def _windows_now(site: Site, agent: str, account: str, *, zone: str) -> list[dict[str, Any]] | None:
    """The windows that limit an agent, with what Redis has in each; None: the agent has no policy. `zone` is for
    policies that name none.

    Of one account's partition, where its payouts are counted. Vendors' windows are not among them: they depend on the
    payout.
    """
    names = Names(partition_of(account, site.partitions))
    _, scopes = await read_scopes(site.client, names)
    book = PolicyBook(scopes)
    policy = book.agent(agent)
    if policy is None:
        return None
    team = book.team(policy.policy.team) if policy.policy.team else None
    windows = windows_of(
        Limits(policy.policy, book.account(account), team),
        agent=agent,
        account=account,
        vendor="",
        received_at=await clock_us(site.client),
        zone=zone,
    )
    limited = [window for window in windows if window.limit is not None]
    counted = await counted_in(site.client, names, [(window.scope, window.window) for window in limited])
    return [
        {
            "scope": window.scope,
            "window": window.window,
            "limit": window.limit,
            "reserved": reserved,
            "committed": committed,
            "remaining": max(0, (window.limit or 0) - reserved - committed),
        }
        for window, (reserved, committed) in zip(limited, counted, strict=True)
    ]

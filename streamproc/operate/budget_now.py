"""What an agent may still spend: the windows that limit it now, as Redis counts them."""

from typing import Any

from streamproc.domain.budget import windows_of
from streamproc.domain.policy import build_book
from streamproc.log.inspect import clock_us, counted_in
from streamproc.log.names import Names, partition_of
from streamproc.log.policies import read_scopes
from streamproc.operate.site import Site


async def windows_now(site: Site, agent: str, account: str, *, zone: str) -> list[dict[str, Any]] | None:
    """The windows that limit an agent, with what Redis has in each; None: the agent has no policy. `zone` is for
    policies that name none.

    Of one account's partition, where its payouts are counted. Vendors' windows are not among them: they depend on the
    payout.
    """
    names = Names(partition_of(account, site.partitions))
    _, scopes = await read_scopes(site.client, names)
    book = build_book(scopes)
    policy = book.agent(agent)
    if policy is None:
        return None
    windows = windows_of(
        agent=agent,
        account=account,
        vendor="",
        policy=policy.policy,
        account_limits=book.account(account),
        team_limits=book.team(policy.policy.team) if policy.policy.team else None,
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

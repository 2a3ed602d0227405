"""What a payout asks of the partition's counters: a rate slot, and room in its budget windows. Pure."""

from streamproc.domain.budget import US, Ask, Limits, RateAnswer, RateAsk, Window, windows_of
from streamproc.domain.case import Case
from streamproc.domain.domains import vendor_name
from streamproc.domain.events import VelocityChecked, WindowUse
from streamproc.domain.payouts import PayoutRecord

INLINE = "inline"
"""Stands for the vendor where the beneficiary came inline and without a URL."""


def ask_of(
    payout: PayoutRecord, rate: RateAsk | None = None, windows: tuple[Window, ...] | None = None
) -> Ask:
    """What a payout asks for, on these terms."""
    return Ask(payout.payout, payout.amount, payout.received_at, rate, windows)


def rate_ask(case: Case) -> RateAsk | None:
    """The rate slot to take; None where the policy limits no rate."""
    assert case.agent is not None
    policy = case.agent.policy
    if policy.rate_limit.count == 0:
        return None
    return RateAsk(
        case.payout.agent,
        policy.rate_limit.count,
        policy.rate_limit.window_s * US,
        policy.on_rate_limit == "hold",
    )


def slot_of(event: VelocityChecked) -> RateAnswer:
    """The counters' answer as the log has it."""
    return RateAnswer(event.number, event.used, event.used >= event.limit, event.limit, event.window_s * US)


def vendor_charged(case: Case) -> str:
    """The vendor whose window is charged; empty where the policy does not limit vendors."""
    assert case.agent is not None
    if case.agent.policy.vendor_daily_limit is None:
        return ""
    # Inline beneficiaries without a URL share one window: an account number must not become a name.
    inline = INLINE if case.payout.intent is not None else ""
    return vendor_name(case.payout.vendor_url, case.payout.fund_account) or inline


def charged_windows(case: Case, vendor: str, zone: str) -> tuple[Window, ...]:
    """The windows that the payout is charged to. `zone` is for policies that name none."""
    assert case.agent is not None
    return windows_of(
        Limits(case.agent.policy, case.account, case.team),
        agent=case.payout.agent,
        account=case.payout.account,
        vendor=vendor,
        received_at=case.payout.received_at,
        zone=zone,
    )


def uses(windows: tuple[Window, ...], before: tuple[tuple[int, int], ...]) -> list[WindowUse]:
    """The windows with what was in them before the payout, as the log records it."""
    return [
        WindowUse(scope=w.scope, window=w.window, limit=w.limit, reserved=reserved, committed=committed)
        for w, (reserved, committed) in zip(windows, before, strict=True)
    ]

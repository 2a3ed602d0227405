"""Measures an agent's profile for rule 15 from its approved payouts, and puts it in its policy."""

from datetime import datetime

from msgspec import Struct

from streamproc.archive.lookup import approved_payouts
from streamproc.domain.anomaly import PAYOUTS_MAX, PAYOUTS_MIN, AnomalyProfile, written_profile
from streamproc.domain.attribution import Attribution
from streamproc.domain.calibration import Calibration, PastPayout, calibrated
from streamproc.domain.policy import effective_policy
from streamproc.domain.policy_changes import PROFILE
from streamproc.domain.proposals import Proposal
from streamproc.errors import JobFailed
from streamproc.operate.changes import Preview, make, preview
from streamproc.operate.policies import of_patch, policy_of
from streamproc.operate.proposals import Applied
from streamproc.operate.site import Site


class Calibrated(Struct, frozen=True):
    """What was measured, and what became of it: in force on each partition, only looked at, or a proposal."""

    measured: Calibration
    was: AnomalyProfile | None
    """The profile before."""
    is_asked: bool
    """Whether the policy asks rule 15 at all."""
    made: list[Applied] | Preview | Proposal


async def calibrate(
    site: Site,
    agent: str,
    *,
    since: datetime,
    share_held: int,
    zone: str,
    attribution: Attribution,
    dry_run: bool = False,
) -> Calibrated:
    """Measure the agent's payouts since a time, and put the profile in force; with `dry_run` only measure.

    `share_held` is per mille; `zone` is for a policy that names none. Raises JobFailed where the agent has no policy or
    too few approved payouts, and where Postgres cannot be asked.
    """
    scope = f"agent:{agent}"
    policy = effective_policy({}, (await policy_of(site, agent))[scope].effective or {})
    rows = await site.ask_postgres(approved_payouts, agent, since, PAYOUTS_MAX)
    if rows is None:
        raise JobFailed(f"the agent's payouts are in Postgres: {site.postgres_problem}")
    if len(rows) < PAYOUTS_MIN:
        raise JobFailed(
            f"agent {agent} has {len(rows)} approved payouts since {since:%Y-%m-%dT%H:%M:%SZ}, and a profile needs"
            f" {PAYOUTS_MIN}: name an earlier --since, or wait"
        )
    history = [PastPayout(*row) for row in rows]
    measured = calibrated(history, zone=policy.timezone or zone, share_held=share_held)
    plan = of_patch(scope, {PROFILE: written_profile(measured.profile)}, attribution)
    made = await preview(site, plan) if dry_run else await make(site, plan, attribution)
    return Calibrated(measured, policy.anomaly_profile, policy.anomaly, made)

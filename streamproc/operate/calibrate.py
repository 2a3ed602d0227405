"""Measures an agent's profile for rule 15 from its approved payouts, and puts it in its policy."""

from datetime import datetime

from msgspec import Struct

from streamproc.archive.lookup import approved_payouts
from streamproc.archive.read import views_upto
from streamproc.domain.anomaly import PAYOUTS_MAX, PAYOUTS_MIN, AnomalyProfile, written_profile
from streamproc.domain.attribution import Attribution
from streamproc.domain.calibration import Calibration, PastPayout, calibrated
from streamproc.domain.entry_ids import id_key
from streamproc.domain.policy import effective_policy
from streamproc.domain.policy_changes import PROFILE
from streamproc.domain.proposals import Proposal
from streamproc.domain.shown import iso
from streamproc.errors import JobFailed
from streamproc.log.clock import clock_us
from streamproc.log.inspect import newest_entries
from streamproc.log.names import Names
from streamproc.operate.changes import Preview, make, preview
from streamproc.operate.policies import of_patch, policy_of
from streamproc.operate.proposals import Applied
from streamproc.operate.site import Site


class Reach(Struct, frozen=True):
    """Up to when the views, from which the payouts are, show the log (µs, by Redis's clock), and how much older that is
    than the log's newest entry: 0 if they show all of it."""

    until: int
    behind_s: float


class Calibrated(Struct, frozen=True):
    """What was measured, and what became of it: in force on each partition, only looked at, or a proposal."""

    measured: Calibration
    reach: Reach
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
    reach = await _reach(site)  # asked for first, so that the payouts reach at least as far
    rows = await site.ask_postgres(approved_payouts, agent, since, PAYOUTS_MAX)
    if reach is None or rows is None:
        raise JobFailed(f"the agent's payouts are in Postgres: {site.postgres_problem}")
    if len(rows) < PAYOUTS_MIN:
        upto = f" up to {iso(reach.until)}, which is how far the views are" if reach.behind_s else ""
        raise JobFailed(
            f"agent {agent} has {len(rows)} approved payouts since {since:%Y-%m-%dT%H:%M:%SZ}{upto}, and a profile"
            f" needs {PAYOUTS_MIN}: name an earlier --since, or wait"
        )
    history = [PastPayout(*row) for row in rows]
    measured = calibrated(history, zone=policy.timezone or zone, share_held=share_held)
    plan = of_patch(scope, {PROFILE: written_profile(measured.profile)}, attribution)
    made = await preview(site, plan) if dry_run else await make(site, plan, attribution)
    return Calibrated(measured, reach, policy.anomaly_profile, policy.anomaly, made)


async def _reach(site: Site) -> Reach | None:
    """How far the views are, of the partition where they are furthest behind; None while Postgres is away."""
    reach = Reach(await clock_us(site.client), 0.0)
    for partition in range(site.partitions):
        newest = await newest_entries(site.client, Names(partition), 1)
        upto = await site.ask_postgres(views_upto, partition)
        if upto is None:
            return None
        if newest and (last := id_key(newest[0].id)) > (shown := id_key(upto)):
            behind_s = max(1, last[0] - shown[0]) / 1_000
            reach = Reach(min(reach.until, shown[0] * 1_000), max(reach.behind_s, behind_s))
    return reach

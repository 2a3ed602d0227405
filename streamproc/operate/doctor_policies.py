"""`doctor` on policies: rules that are asked for and cannot find anything, or compare with what is long past."""

from collections.abc import Sequence

from streamproc.domain.calibration import PROFILE_AGE_MAX, is_outdated, profile_wanted
from streamproc.domain.plain import listed
from streamproc.errors import JobFailed, LogUnavailable
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.inspect import partitions_of_log
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.operate.doctor_check import Check
from streamproc.settings import Settings

AGENTS_SHOWN_MAX = 5


async def examine_policies(settings: Settings) -> list[Check]:
    """The agents whose policies ask rule 15 and have no profile, or an outdated one; no line where there are none, or
    while Redis is away, which has a line of its own."""
    if not settings.redis_url:
        return []
    try:
        async with connected(settings.redis_url) as client:
            read = [
                await read_scopes(client, Names(partition))
                for partition in range(await partitions_of_log(client))
            ]
            now_us = await clock_us(client)
    except (LogUnavailable, JobFailed):
        return []
    agents = {
        scope.removeprefix("agent:"): state.effective
        for _, scopes in read
        for scope, state in scopes.items()
        if scope.startswith("agent:")
    }
    wanted = [agent for agent in sorted(agents) if profile_wanted(agent, agents[agent])]
    outdated = [agent for agent in sorted(agents) if is_outdated(agents[agent], now_us)]
    days = PROFILE_AGE_MAX.days
    return [
        *_note("is on and has no profile, so it holds nothing of", wanted, "measure them"),
        *_note(f"the profile's newest payout is older than {days} days", outdated, "measure anew"),
    ]


def _note(problem: str, agents: Sequence[str], todo: str) -> list[Check]:
    """A line that names some of the agents; none where there are none."""
    if not agents:
        return []
    named = listed(agents, AGENTS_SHOWN_MAX)
    return [
        Check("anomaly", "note", f"{problem}: {named}", f"{todo}: streamproc policy calibrate {agents[0]}")
    ]

"""`doctor` on policies: rules that are asked for and cannot find anything."""

from streamproc.domain.calibration import profile_wanted
from streamproc.domain.plain import listed
from streamproc.errors import JobFailed, LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.inspect import partitions_of_log
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.operate.doctor_check import Check
from streamproc.settings import Settings

AGENTS_SHOWN_MAX = 5


async def examine_policies(settings: Settings) -> list[Check]:
    """The agents whose policies ask rule 15 and have no profile; no line where there are none, or while Redis is away,
    which has a line of its own."""
    if not settings.redis_url:
        return []
    try:
        async with connected(settings.redis_url) as client:
            read = [
                await read_scopes(client, Names(partition))
                for partition in range(await partitions_of_log(client))
            ]
    except (LogUnavailable, JobFailed):
        return []
    agents = {
        scope.removeprefix("agent:"): state.effective
        for _, scopes in read
        for scope, state in scopes.items()
        if scope.startswith("agent:")
    }
    wanted = [agent for agent in sorted(agents) if profile_wanted(agent, agents[agent])]
    if not wanted:
        return []
    named = listed(wanted, AGENTS_SHOWN_MAX)
    todo = f"measure them: streamproc policy calibrate {wanted[0]}"
    return [Check("anomaly", "note", f"is on and has no profile, so it holds nothing of: {named}", todo)]

"""`doctor` on the register of legal entities."""

from streamproc.clients.gleif import open_gleif
from streamproc.domain.legal_entities import Question
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.operate.doctor_check import Check
from streamproc.settings import Settings

OF_GLEIF = Question(name="Global Legal Entity Identifier Foundation", lei="506700GE1G29325QX363")
"""Of nobody who is paid."""
_TODO = (
    "see its status page, and STREAMPROC_GLEIF_URL; until it answers, require_entity holds payouts to contacts that"
    " were not looked up in the last day"
)
NAMED_MAX = 5
"""Agents named in a line."""


async def _uncounted(*, within_s: float, beside: int = 0) -> tuple[bool, float]:
    """A turn at once: one question of a person makes no flood, and is asked while Redis is away too."""
    return True, 0.0


async def examine_entities(settings: Settings) -> list[Check]:
    """Whether the register answers; without one, whether a policy requires it."""
    if not settings.gleif_url:
        return await _not_set(settings)
    register = open_gleif(settings.gleif_url, _uncounted)
    try:
        answer = (await register.lookup([OF_GLEIF]))[OF_GLEIF]
    finally:
        await register.aclose()
    if answer.verdict == "unavailable":
        return [Check("legal entities", "bad", answer.problem, _TODO)]
    return [Check("legal entities", "ok", f"{settings.gleif_url} answers")]


async def _not_set(settings: Settings) -> list[Check]:
    """No line where nobody requires it, nor while Redis is away, which has a line of its own."""
    if not settings.redis_url:
        return []
    async with connected(settings.redis_url) as client:
        _, scopes = await read_scopes(client, Names(0))
    requiring = sorted(
        scope.removeprefix("agent:")
        for scope, state in scopes.items()
        if scope.startswith("agent:") and state.effective and state.effective.get("require_entity")
    )
    if not requiring:
        return []
    named = ", ".join(requiring[:NAMED_MAX]) + (", ..." if len(requiring) > NAMED_MAX else "")
    detail = f"STREAMPROC_GLEIF_URL is not set, and require_entity holds every payout of {named}"
    return [Check("legal entities", "bad", detail, "set it, or turn require_entity off")]

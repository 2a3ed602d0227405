"""`doctor` on how people are reached."""

from streamproc.clients.slack import SlackRefused, open_slack
from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from streamproc.operate.doctor_check import ITS_OWN_TROUBLE, Check
from streamproc.operate.people import NO_CHANNEL, SET_A_CHANNEL, untold_holds, untold_text
from streamproc.settings import Settings


async def examine_people(settings: Settings) -> list[Check]:
    """Whether Slack takes our token, whether buttons work, and whether there is a hold that nobody was told of."""
    has_slack = bool(settings.slack_bot_token and settings.slack_channel_id)
    checks = [await _slack(settings)] if has_slack else []
    if has_slack and not settings.slack_signing_secret:
        detail = "STREAMPROC_SLACK_SIGNING_SECRET is not set: messages have no buttons"
        checks.append(
            Check("slack buttons", "note", detail, "set it; holds are decided by command until then")
        )
    if not has_slack and not settings.ntfy_topic:
        checks.append(Check("notifications", "note", NO_CHANNEL, SET_A_CHANNEL))
    return [*checks, *await _untold(settings)]


async def _slack(settings: Settings) -> Check:
    todo = "check STREAMPROC_SLACK_BOT_TOKEN and STREAMPROC_SLACK_BASE_URL"
    async with open_slack(settings.slack_base_url, settings.slack_bot_token.reveal()) as slack:
        try:
            await slack.call("auth.test", {})
        except TryAgain as problem:
            return Check("slack", "bad", str(problem), ITS_OWN_TROUBLE)
        except SlackRefused as problem:
            return Check("slack", "bad", str(problem), todo)
    return Check("slack", "ok", f"{settings.slack_base_url} knows the token")


async def _untold(settings: Settings) -> list[Check]:
    """Holds that nobody was told of; no line while Redis is away, which has a line of its own."""
    if not settings.redis_url:
        return []
    try:
        found = await untold_holds(settings)
    except LogUnavailable:
        return []
    except LogBroken as problem:
        return [Check("untold holds", "bad", str(problem))]
    if text := untold_text(found):
        todo = "`streamproc hold list` shows them; the workers' log says why Slack and ntfy do not take them"
        return [Check("untold holds", "bad", text, todo)]
    return [Check("untold holds", "ok", "somebody was told of every hold")]

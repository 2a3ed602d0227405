"""`doctor` on the log and its archive: whether the log is sound, and whether it is trimmed."""

from contextlib import AsyncExitStack

from redis.asyncio import Redis

import consumers
from streamproc.errors import WHEN_LOST, JobFailed
from streamproc.log.health import ARCHIVE_LATE_S, clock_behind_ms, waiting_ms
from streamproc.log.inspect import newest_dead_letter
from streamproc.log.names import Names
from streamproc.log.restore import read_marks
from streamproc.operate.condition import Condition, conditions, partitions_archived
from streamproc.operate.doctor_check import Check
from streamproc.operate.site import Site, opened
from streamproc.operate.trim import LogBeginning, beginning_of, held_text
from streamproc.settings import Settings

TRIM_LATE_S = 3600.0
"""How much older than the retention time the oldest entry may be, beyond two rounds of the janitor."""


CLOCK_BEHIND_S_MAX = 2.0
"""Beyond this Redis's clock counts as gone back; entries of one moment may be some ms ahead of it."""


async def clock_of_log(client: Redis, partitions: int) -> list[Check]:
    """Whether Redis's clock went back since the log's newest entry; no line if it did not."""
    behind_s = await clock_behind_ms(client, partitions) / 1000
    if behind_s <= CLOCK_BEHIND_S_MAX:
        return []
    detail = (
        f"Redis's clock is {behind_s:,.0f} s behind the log's newest entry: it went back. Until it is there again holds"
        " do not expire, and an agent that took slots of `rate_limit` while it was ahead gets none back, and the last"
        " of them a `window` later"
    )
    todo = (
        "if the clock is wrong, let Redis's host keep time by NTP; if it was wrong before, raise the count of"
        " `rate_limit` of agents that cannot wait"
    )
    return [Check("clock of the log", "bad", detail, todo)]


async def examine_log(settings: Settings) -> list[Check]:
    """The log's lines; none if Redis or Postgres is not configured or away, which other checks report."""
    if not (settings.redis_url and settings.postgres_dsn):
        return []
    archived = await partitions_archived(settings)
    if not archived:
        return []
    async with AsyncExitStack() as stack:
        try:
            site = await stack.enter_async_context(opened(settings))
        except JobFailed:
            return [Check("archive", "bad", "it has a log, this Redis has none: it is lost", WHEN_LOST)]
        found = await conditions(settings, site.client, range(site.partitions))
        waits = await waiting_ms(site.client, {one.partition: one.head.entry for one in found})
        checks = [_condition(one, waits[one.partition]) for one in found]
        checks += [await _beginning(settings, site, one.partition) for one in found if not one.problem]
        return [*checks, *await _marks(site)]


async def dead_letters(client: Redis, partition: int) -> list[Check]:
    """Whether entries wait for a person, and what is wrong with the newest one."""
    names = Names(partition)
    count, newest = await newest_dead_letter(client, names)
    if newest is None:
        return []
    one = f"{newest.group} could not handle an entry"
    what = one if count == 1 else f"{count} entries could not be handled; the newest, by {newest.group}"
    detail = f"{what}: {newest.problem}"
    todo = "mend the cause, then `streamproc dead redrive ID`; `streamproc dead list` shows all"
    return [Check(f"dead letters {partition}", "bad", detail, todo)]


def _condition(one: Condition, waits_ms: int) -> Check:
    name = f"archive {one.partition}"
    if one.problem:
        return Check(name, "bad", one.problem, WHEN_LOST)
    if waits_ms > ARCHIVE_LATE_S * 1000:
        detail = f"an entry after {one.head.entry} waits for {waits_ms // 1000} s to be archived: no approval is sent"
        return Check(name, "bad", detail, "is `streamproc projector` running? its log says what holds it up")
    return Check(name, "ok", f"the log has its last entry, {one.head.entry}")


async def _beginning(settings: Settings, site: Site, partition: int) -> Check:
    name, beginning = f"trimming {partition}", await beginning_of(site, partition, settings.retention_s)
    if beginning is None or not beginning.oldest_ms:
        return Check(name, "ok", "there is nothing to trim")
    held = held_text(beginning.held_by, beginning.held_at)
    detail = f"the oldest entry is {beginning.oldest_ms // 3_600_000} h old, held by {held}"
    late_s = settings.retention_s + 2 * settings.trim_interval_s + TRIM_LATE_S
    if beginning.oldest_ms <= late_s * 1000:
        return Check(name, "ok", detail)
    return Check(name, "bad", f"{detail}: Redis grows", _todo(beginning))


def _todo(beginning: LogBeginning) -> str:
    kind, _, group = beginning.held_by.partition(" ")
    match kind:
        case "archive":
            return "the projector's log says why the archive does not go on"
        case "retention":
            return "is the projector running? its janitor trims; `streamproc log trim` does it now"
        case "pending":
            return f"`streamproc groups` and the workers' log say why {beginning.held_at} is not handled"
    if group in consumers.GROUPS:
        return f"start `streamproc worker --groups {group}`"
    return f"{group} is no group of streamproc: let it read on, or, if nobody needs it, XGROUP DESTROY it"


async def _marks(site: Site) -> list[Check]:
    marks = await read_marks(site.client)
    if marks.recovering:
        return [
            Check("recovery", "bad", "it was begun and has not finished", "run `streamproc recover` again")
        ]
    if marks.unreconciled:
        todo = (
            "run `streamproc recover` where the bank's keys are set, for each account, or with --without-bank"
        )
        problem = "done, and the bank was not asked what happened meanwhile to every account"
        return [Check("recovery", "note", problem, todo)]
    return []

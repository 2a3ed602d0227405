"""`doctor`: checks every dependency and setting once, and says what to do where one is wrong."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import consumers
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.razorpay import CHECK_KEYS
from streamproc.clients.safe_browsing import open_safe_browsing
from streamproc.domain.shown import iso
from streamproc.errors import WHEN_LOST, JobFailed, StreamprocError, TryAgain
from streamproc.ingress.razorpay_webhook import verify
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.failures import LATE_S
from streamproc.log.health import (
    DEFERRED_LATE_S,
    GROUP_LATE_S,
    GroupState,
    deferred,
    full,
    group_states,
    replica_count,
    server_settings,
    without_limit,
)
from streamproc.log.inspect import log_exists, partitions_of_log
from streamproc.operate.bank import opened_bank
from streamproc.operate.breakers import in_several, open_breakers
from streamproc.operate.doctor_check import ITS_OWN_TROUBLE, Check, missing
from streamproc.operate.doctor_entities import examine_entities
from streamproc.operate.doctor_log import clock_of_log, dead_letters, examine_log
from streamproc.operate.doctor_people import examine_people
from streamproc.operate.doctor_policies import examine_policies
from streamproc.operate.doctor_postgres import examine_postgres, postgres_todo
from streamproc.operate.polling import poller_view
from streamproc.operate.readiness import deferred_text
from streamproc.settings import Settings

CHECK_WAIT_S = 15.0
"""Limit for one dependency; each call inside has a shorter limit of its own."""
CLOCK_OFFSET_S_MAX = 2.0
"""Beyond this, times that people compare (hosts' logs, Redis's events) mislead them."""
RECONCILE_LATE_S = 3600.0
"""A comparison of seven days takes minutes; one that is cut off is tried again within the hour."""
HARMLESS_URL = "https://example.com/"
BANK_LOOK_BACK_S = 60


async def examine(settings: Settings) -> list[Check]:
    """All checks. A dependency that is away gives a line, never an exception."""
    parts = [
        _guarded("redis", settings, _redis),
        _guarded("postgres", settings, examine_postgres),
        _guarded("log and archive", settings, examine_log),
        _guarded("bank", settings, _bank),
        _guarded("poller", settings, _poller),
        _guarded("reconciliation", settings, _reconciliation),
        _guarded("breakers", settings, _breakers),
        _guarded("payouts", settings, _deferred),
        _guarded("policies", settings, examine_policies),
        _guarded("safe browsing", settings, _safe_browsing),
        _guarded("legal entities", settings, examine_entities),
        _guarded("notifications", settings, examine_people),
    ]
    found = [check for checks in await asyncio.gather(*parts) for check in checks]
    return [*found, *_webhook_secrets(settings), _execute_after(settings), _approval_token(settings)]


async def _guarded(
    name: str, settings: Settings, examine_one: Callable[[Settings], Awaitable[list[Check]]]
) -> list[Check]:
    try:
        async with asyncio.timeout(CHECK_WAIT_S):
            return await examine_one(settings)
    except OutcomeUnknown as problem:
        return [Check(name, "bad", str(problem), ITS_OWN_TROUBLE)]
    except StreamprocError as problem:
        return _away(name, str(problem), problem)
    except TimeoutError as problem:
        return _away(name, f"no answer within {CHECK_WAIT_S:g} s", problem)


def _away(name: str, detail: str, problem: Exception) -> list[Check]:
    todo = postgres_todo(problem) if name == "postgres" else _TODO.get(name)
    return [Check(name, "bad", detail, todo)] if todo else []


_DEFERRED_TODO = "the other lines, and the workers' log, say what for; they go on when it is there again"
_START = "start `streamproc worker`"
_LATE_TODO = (
    "end a worker that hangs (`streamproc_up` is 0 in /metrics), or start more; the workers' log says what deferred"
    " entries wait for"
)
_TODO = {
    "redis": "start Redis (end it first if it hangs), or correct STREAMPROC_REDIS_URL",
    "bank": "check STREAMPROC_RAZORPAY_KEY_ID, _KEY_SECRET, _ACCOUNT_NUMBER and _BASE_URL",
    "safe browsing": "check STREAMPROC_SAFE_BROWSING_KEY and STREAMPROC_SAFE_BROWSING_URL",
}


# ---- stores -----------------------------------------------------------------------------


async def _redis(settings: Settings) -> list[Check]:
    if not settings.redis_url:
        return missing("redis", "STREAMPROC_REDIS_URL")
    async with connected(settings.redis_url) as client:
        problems = await server_settings(client)
        checks = [Check("redis", "ok", "reachable")]
        todo = (
            "change redis.conf and restart Redis; where CONFIG GET is refused, grant the user `+config|get`"
        )
        checks += [Check("redis settings", "bad", problem, todo) for problem in problems]
        if not problems:
            checks.append(
                Check("redis settings", "ok", "appendonly, appendfsync, eviction and version are right")
            )
        checks += await _memory(client)
        checks.append(_clock(time.time() - await clock_us(client) / 1_000_000))
        checks += await _replicas(client, settings)
        try:
            known = await partitions_of_log(client)
        except JobFailed as problem:
            return [
                *checks,
                Check("log", "bad", str(problem), "start the system once, or run `streamproc recover`"),
            ]
        checks.append(_partitions(known, settings.partitions))
        checks += await clock_of_log(client, known)
        for partition in range(known):
            checks += [*await _groups(client, partition), *await dead_letters(client, partition)]
        return checks


async def _memory(client: Any) -> list[Check]:
    if problem := await full(client):
        todo = (
            "raise it by CONFIG SET, at once, and in redis.conf (under `up`: STREAMPROC_REDIS_MAXMEMORY);"
            " `streamproc log stats` says what is kept"
        )
        return [Check("redis memory", "bad", problem, todo)]
    if not await without_limit(client):
        return [Check("redis memory", "ok", "maxmemory is set")]
    detail = (
        "maxmemory is 0: Redis grows until the machine is full and the kernel kills it, and StreamprocRedisFull"
        " cannot warn of it"
    )
    todo = (
        "set maxmemory in redis.conf (under `up`: STREAMPROC_REDIS_MAXMEMORY), with room on the machine for a rewrite"
        " of the AOF: writes are refused at it"
    )
    return [Check("redis memory", "note", detail, todo)]


async def _replicas(client: Any, settings: Settings) -> list[Check]:
    """`EXECUTE_AFTER=replicated` without a replica holds every approval for ever."""
    if settings.execute_after != "replicated" or await replica_count(client) > 0:
        return []
    detail = "STREAMPROC_EXECUTE_AFTER is replicated and no replica is connected: no approval can be sent"
    return [Check("replicas", "bad", detail, "connect a replica, or set EXECUTE_AFTER=archived")]


def _clock(offset_s: float) -> Check:
    if abs(offset_s) <= CLOCK_OFFSET_S_MAX:
        return Check("clock", "ok", f"{offset_s:+.3f} s from Redis's")
    detail = f"{offset_s:+.3f} s from Redis's, at most {CLOCK_OFFSET_S_MAX:g} s is well"
    return Check("clock", "bad", detail, "let both hosts keep time by NTP")


def _partitions(known: int, configured: int) -> Check:
    if known == configured:
        return Check("partitions", "ok", str(known))
    detail = f"the log was made with {known}, the setting says {configured}"
    return Check("partitions", "bad", detail, f"set STREAMPROC_PARTITIONS={known}")


async def _groups(client: Any, partition: int) -> list[Check]:
    name = f"log {partition}"
    if not await log_exists(client, partition):
        return [Check(name, "bad", "its stream is gone", WHEN_LOST)]
    states = await group_states(client, [partition], consumers.GROUPS)
    missing = [state.group for state in states if state.missing]
    gone = [s.group for s in states if s.gone or (s.missing and s.group not in consumers.FROM_THE_END)]
    if missing and not gone:
        todo = "start `streamproc worker`: it makes them, and they begin at the end of the log"
        return [Check(name, "note", f"not made yet: {', '.join(missing)}", todo)]
    if gone:
        return [Check(name, "bad", f"consumer groups are missing: {', '.join(gone)}", WHEN_LOST)]
    late = [one for one in states if one.group == consumers.EXECUTION and one.oldest_ms > LATE_S * 1000]
    if late:
        minutes = late[0].oldest_ms // 60_000
        detail = f"the bank was not told of a decision for {minutes} min, {late[0].pending} wait"
        todo = "the workers' log says why (bank, token, or archive away); it is tried until it is told"
        return [Check(name, "bad", detail, todo)]
    idle = [state.group for state in states if not state.consumers]
    if waiting := [_waiting(state) for state in states if state.oldest_ms > GROUP_LATE_S * 1000]:
        return [Check(name, "bad", "; ".join(waiting), _START if idle else _LATE_TODO)]
    if idle:
        return [Check(name, "note", f"nobody works for {', '.join(idle)}", _START)]
    return [Check(name, "ok", f"groups {', '.join(state.group for state in states)} are at work")]


def _waiting(state: GroupState) -> str:
    """That a group is late, in the words of `streamproc groups`."""
    return (
        f"an entry waits in {state.group} for {state.oldest_ms // 1000:,} s"
        f" (pending {state.pending:,}, deferred {state.deferred:,})"
    )


# ---- outside ----------------------------------------------------------------------------


async def _bank(settings: Settings) -> list[Check]:
    for variable, value in (
        ("STREAMPROC_RAZORPAY_KEY_ID", settings.razorpay_key_id),
        ("STREAMPROC_RAZORPAY_KEY_SECRET", settings.razorpay_key_secret),
        ("STREAMPROC_RAZORPAY_ACCOUNT_NUMBER", settings.razorpay_account_number),
    ):
        if not value:
            return missing("bank", variable)
    now_s = int(time.time())
    # By itself: whether the keys are right must show while Redis is away too.
    async with opened_bank(msgspec.structs.replace(settings, redis_url="")) as bank:
        try:
            await bank.list_page(
                settings.razorpay_account_number, from_s=now_s - BANK_LOOK_BACK_S, to_s=now_s, skip=0, count=1
            )
        except TryAgain as problem:
            if str(problem).endswith(CHECK_KEYS):
                raise
            return [Check("bank", "bad", str(problem), ITS_OWN_TROUBLE)]
    return [Check("bank", "ok", f"{settings.razorpay_base_url} lists payouts with these keys")]


async def _poller(settings: Settings) -> list[Check]:
    """The poller's state; no line while Redis is away, which has a line of its own."""
    if not settings.redis_url:
        return []
    if not settings.razorpay_account_id:
        detail = (
            "STREAMPROC_RAZORPAY_ACCOUNT_ID is not set: nothing is polled, and missed webhooks stay missed"
        )
        return [Check("poller", "note", detail, "set it, and start `streamproc poller`")]
    view = await poller_view(settings)
    if not view.seen:
        return [Check("poller", "note", view.detail, "start `streamproc poller`")]
    todo = "the poller's log says more; is it running, and does the bank answer?"
    return [Check("poller", "ok" if view.ok else "bad", view.detail, todo)]


async def _reconciliation(settings: Settings) -> list[Check]:
    """What the poller's last comparison of bank, log and budgets found; no line before the first."""
    if not (settings.redis_url and settings.razorpay_account_id):
        return []
    account, partitions = settings.razorpay_account_id, settings.partitions
    last = await PollCursor(settings.redis_url, account=account, partitions=partitions).reconciled()
    if not last.tried_at:
        return []
    begun = iso(last.tried_at * 1_000_000)
    if last.done_at < last.tried_at < time.time() - RECONCILE_LATE_S:
        detail = f"the one that began at {begun} has not finished"
        return [
            Check("reconciliation", "bad", detail, "the poller's log says why; run `streamproc reconcile`")
        ]
    if last.mismatches:
        detail = f"the one of {begun} found {last.mismatches} mismatches between bank, log and budgets"
        return [
            Check("reconciliation", "bad", detail, "`streamproc reconcile` shows them; `explain` each payout")
        ]
    return [Check("reconciliation", "ok", f"the one of {begun} found no mismatch")]


async def _breakers(settings: Settings) -> list[Check]:
    if not settings.redis_url:
        return []
    found = await open_breakers(settings.redis_url)
    checks = []
    if len(found.zones) > 1:
        todo = "set the same STREAMPROC_TIMEZONE for every worker, and restart those that had another"
        checks.append(Check("time zone", "bad", in_several(found.zones), todo))
    if found.detail:
        todo = (
            "the system answers with errors or not at all; work waits and goes on by itself when it is back"
        )
        return [*checks, Check("breakers", "bad", found.detail, todo)]
    if found.reported:
        checks.append(Check("breakers", "ok", f"{found.reported} reported, none open"))
    return checks


async def _deferred(settings: Settings) -> list[Check]:
    """Decisions that wait to be told to the bank; no line while Redis is away, which has a line of its own."""
    if not settings.redis_url:
        return []
    async with connected(settings.redis_url) as client:
        found = await deferred(client, settings.partitions, consumers.EXECUTION)
    if not found.entries:
        return [Check("payouts", "ok", "no decision that the bank is to be told of is deferred")]
    late = found.oldest_ms > DEFERRED_LATE_S * 1000
    return [Check("payouts", "bad" if late else "note", deferred_text(found), _DEFERRED_TODO)]


async def _safe_browsing(settings: Settings) -> list[Check]:
    key = settings.safe_browsing_key.reveal()
    if not key:
        return missing("safe browsing", "STREAMPROC_SAFE_BROWSING_KEY")
    client = open_safe_browsing(settings.safe_browsing_url, key=key)
    try:
        answers = await client.lookup([HARMLESS_URL])
    finally:
        await client.aclose()
    answer = answers[HARMLESS_URL]
    if answer.verdict == "unavailable":
        return [Check("safe browsing", "bad", answer.problem, _TODO["safe browsing"])]
    return [Check("safe browsing", "ok", f"answers: {HARMLESS_URL} is {answer.verdict}")]


# ---- settings ---------------------------------------------------------------------------


def _webhook_secrets(settings: Settings) -> list[Check]:
    """Whether secrets are set, and the bank's own SDK verifies what we verify."""
    import razorpay  # slow to import, and nothing else here needs it

    variable = "STREAMPROC_RAZORPAY_WEBHOOK_SECRETS"
    if not settings.razorpay_webhook_secrets:
        return missing("webhook secrets", variable)
    body = b'{"entity":"event","event":"payout.processed","payload":{"note":"\xe2\x82\xb9"}}'
    for number, secret in enumerate(settings.razorpay_webhook_secrets, 1):
        key = secret.reveal()
        good = hmac.digest(key.encode(), body, "sha256").hex()
        for signature in (good, good[::-1]):
            ours = verify(body, signature, [key.encode()])
            if ours != _sdk_verifies(razorpay, body, signature, key) or ours != (signature == good):
                detail = f"secret {number}: the razorpay SDK and our check do not agree"
                return [Check("webhook secrets", "bad", detail, "report this: no webhook can be trusted")]
    count = len(settings.razorpay_webhook_secrets)
    return [Check("webhook secrets", "ok", f"{count} set; the razorpay SDK verifies as we do")]


def _sdk_verifies(razorpay: Any, body: bytes, signature: str, key: str) -> bool:
    from razorpay.errors import SignatureVerificationError

    try:
        razorpay.Utility().verify_webhook_signature(body.decode(), signature, key)
    except SignatureVerificationError:
        return False
    return True


def _execute_after(settings: Settings) -> Check:
    match settings.execute_after:
        case "archived":
            return Check("execute after", "ok", "archived: money waits until its decision is in Postgres")
        case "replicated":
            detail = "replicated: a decision may be lost with both Redis servers after money moved on it"
        case "synced":
            detail = "synced: a failover of Redis may lose a decision after money moved on it"
    return Check("execute after", "note", detail, "STREAMPROC_EXECUTE_AFTER=archived is the safe choice")


def _approval_token(settings: Settings) -> Check:
    if settings.razorpay_oauth_token:
        return Check("approval token", "ok", "set")
    detail = "STREAMPROC_RAZORPAY_OAUTH_TOKEN is not set: approvals are sent with key and secret"
    return Check(
        "approval token", "note", detail, "the bank documents approvals by API for OAuth tokens only"
    )

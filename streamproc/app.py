"""The composition root: builds each role from its parts, opens, runs, drains and closes it."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import asyncpg

import consumers
from consumers.attempt import Debit
from consumers.channels import Channels
from consumers.enact import Barrier, execution
from consumers.recall import Archived
from consumers.vet import Reputations
from projections.janitor import Janitor, Round
from projections.loop import Duties, run_projector
from projections.notary import CheckpointTerms
from streamproc.api.asgi import create_app
from streamproc.api.audit import audit_operations
from streamproc.api.auth import AccessControl
from streamproc.api.console import console_operations
from streamproc.api.holds import hold_operations
from streamproc.api.listening import serve_until, server_of
from streamproc.api.metrics import metrics_operation
from streamproc.api.operations import Operation
from streamproc.api.payouts import payout_operations
from streamproc.api.policies import freeze_operations, policy_operations
from streamproc.api.webhooks import slack_operation
from streamproc.archive.barrier import ArchiveBarrier, WholeLogBarrier
from streamproc.archive.note import Signer
from streamproc.archive.outside import NotesFile, Outside, notes_path
from streamproc.archive.pool import opened_pool
from streamproc.archive.read import payout_known
from streamproc.archive.signing_key import KEY_FILE, read_or_make, trusted_keys
from streamproc.clients.breaker import Breaker
from streamproc.clients.checkpoint_post import open_checkpoint_post
from streamproc.clients.safe_browsing import open_safe_browsing
from streamproc.domain.payouts import PayoutRecord
from streamproc.drain import requests_s
from streamproc.errors import InputError, LogUnavailable, StreamprocError, TryAgain
from streamproc.gc_tuning import YOUNG_OF_FOLDS_MAX, tune_for_batches
from streamproc.ingress.problems import Asgi
from streamproc.ingress.razorpay_webhook import RazorpayWebhook
from streamproc.ingress.refusals import Refusals
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.digests import Digests
from streamproc.log.group import Consumer
from streamproc.log.inspect import logged_entry
from streamproc.log.names import Names
from streamproc.log.replication import ReplicaBarrier
from streamproc.log.roster import rosters_of
from streamproc.log.slow_lane import AT_ONCE_MAX, Turns
from streamproc.log.stream import LogView, Producer, open_log
from streamproc.log.trim import trim_round
from streamproc.log.work import Group
from streamproc.operate.audit_service import AuditService
from streamproc.operate.bank import bank_unasked, opened_bank
from streamproc.operate.breakers import report_until
from streamproc.operate.condition import partitions_archived
from streamproc.operate.connections import refuse_too_few
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.hold_service import HoldService
from streamproc.operate.measured import instrumented, machine_page, measured
from streamproc.operate.people import notification_over, opened_channels, people_until
from streamproc.operate.policy_service import PolicyService
from streamproc.operate.poller_role import poll_until
from streamproc.operate.readiness import readiness
from streamproc.operate.register import opened_entities
from streamproc.operate.slack_holds import opened_slack_review
from streamproc.ports import bound
from streamproc.settings import PREFIX, Settings
from streamproc.telemetry.metrics import Meters
from streamproc.waiting import set_within

log = logging.getLogger(__name__)

WAIT_TO_OPEN_S = 0.5
"""Between two tries to reach a Redis, or an archive, that is not there yet."""


async def log_opened(settings: Settings, stopping: asyncio.Event) -> bool:
    """Wait for Redis, then make or check the log. False if we are stopped before that.

    If Redis holds no log, the archive says whether there ever was one; while it is away this waits.
    """
    said = ""
    while not stopping.is_set():
        try:
            async with connected(settings.redis_url) as client:
                await open_log(
                    client,
                    partitions=settings.partitions,
                    groups=consumers.GROUPS,
                    from_end=consumers.FROM_THE_END,
                    archived=lambda: partitions_archived(settings),
                )
            return True
        except (LogUnavailable, TryAgain) as problem:
            if said != (said := str(problem)):
                log.warning("waiting to open the log: %s", problem)
            await set_within(stopping, WAIT_TO_OPEN_S)
    return False


# ---- worker -----------------------------------------------------------------------------


async def run_worker(
    settings: Settings, names: Sequence[str], concurrency: int, stopping: asyncio.Event
) -> None:
    """Consume with `concurrency` consumers of each named group on every partition."""
    unknown = sorted(set(names) - set(consumers.GROUPS))
    if unknown:
        raise InputError(f"--groups {','.join(unknown)}: the groups are {', '.join(consumers.GROUPS)}")
    if not await log_opened(settings, stopping):
        return
    async with AsyncExitStack() as stack:
        meters = await stack.enter_async_context(measured(settings, "worker"))
        breakers: dict[str, Breaker] = {}
        _show_breakers(meters, breakers)
        tells = consumers.NOTIFICATION in names
        channels = opened_channels(settings, stack, breakers) if tells else Channels()
        groups = [await _group(name, settings, stack, breakers, channels) for name in names]
        tune_for_batches()
        async with asyncio.TaskGroup() as tasks:
            if tells:
                tasks.create_task(people_until(settings, channels, stopping), name="people")
            zone = settings.timezone if consumers.GOVERNANCE in names else ""
            reporting = report_until(settings.redis_url, _me(), breakers, stopping, zone=zone)
            tasks.create_task(reporting, name="breakers")
            for consumer in _consumers(settings, groups, concurrency):
                tasks.create_task(_consume(consumer, stopping), name=consumer.name)


def _show_breakers(meters: Meters, breakers: Mapping[str, Breaker]) -> None:
    meters.watch_breakers(lambda: {system: breaker.state for system, breaker in breakers.items()})


async def _consume(consumer: Consumer, stopping: asyncio.Event) -> None:
    """Run a consumer; its end ends all others, by the task group's cancellation and by `stopping`, since redis-py's
    wait_for (Python 3.11) swallows a cancellation that comes together with what it waits for."""
    try:
        await consumer.run(stopping)
    finally:
        stopping.set()


def _consumers(settings: Settings, groups: Sequence[Group], concurrency: int) -> list[Consumer]:
    limits = Limits(claim_idle_s=settings.claim_idle_s, retention_s=settings.retention_s)
    me, url = _me(), settings.redis_url
    rosters, turns = rosters_of(url, settings.partitions), Turns(AT_ONCE_MAX)
    return [
        Consumer(
            url, partition, group, name=f"{me}-{n}", limits=limits, roster=rosters[partition], turns=turns
        )
        for partition in range(settings.partitions)
        for group in groups
        for n in range(concurrency)
    ]


def _me() -> str:
    """A name of this process, for people and for Redis."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


async def _group(
    name: str,
    settings: Settings,
    stack: AsyncExitStack,
    breakers: dict[str, Breaker],
    channels: Channels,
) -> Group:
    if name == consumers.GOVERNANCE:
        client = open_safe_browsing(settings.safe_browsing_url, key=settings.safe_browsing_key.reveal())
        stack.push_async_callback(client.aclose)
        breakers["safe browsing"] = client.breaker
        archived = await _archived(settings, stack) if settings.postgres_dsn else None
        return consumers.governance(
            Reputations(client.lookup),
            zone=settings.timezone,
            archived=archived,
            retention_s=settings.retention_s,
            entities=opened_entities(settings, stack, breakers),
        )
    if name == consumers.NOTIFICATION:
        return notification_over(settings.redis_url, channels, Digests(settings.redis_url))
    bank = await stack.enter_async_context(opened_bank(settings))
    breakers["razorpay"] = bank.breaker
    debit = Debit(settings.razorpay_account_number, settings.razorpay_account_id)
    archived = await _archived(settings, stack) if settings.postgres_dsn else None
    barrier = await _barrier(settings, stack)
    return execution(bank, barrier, debit, archived, partial(bank_unasked, settings))


async def _archived(settings: Settings, stack: AsyncExitStack) -> Archived:
    pool = await postgres_pool(settings, stack)

    async def archived(payout: str) -> PayoutRecord | None:
        return await payout_known(pool, payout)

    return archived


async def _barrier(settings: Settings, stack: AsyncExitStack) -> Barrier:
    logged = partial(logged_entry, settings.redis_url)
    if settings.execute_after == "archived":
        return ArchiveBarrier(await postgres_pool(settings, stack), logged)
    weaker = ReplicaBarrier(settings.redis_url) if settings.execute_after == "replicated" else _synced
    if not settings.postgres_dsn:
        return weaker
    return WholeLogBarrier(await postgres_pool(settings, stack), logged, weaker)


async def _synced(partition: int, entry: str, e: bytes) -> None:
    """The barrier of `EXECUTE_AFTER=synced`: nothing to wait for, since commits are synced to the server's disk."""


async def postgres_pool(settings: Settings, stack: AsyncExitStack) -> asyncpg.Pool:
    """A pool for as long as the role runs."""
    return await stack.enter_async_context(opened_pool(settings.postgres_dsn.reveal()))


# ---- serve ------------------------------------------------------------------------------


@asynccontextmanager
async def opened_api(settings: Settings, meters: Meters | None = None) -> AsyncIterator[Asgi]:
    """The HTTP application (webhooks, routes with a token, health, metrics) and the connections that it holds open.

    `meters` count its requests; without them /metrics shows the other processes only.
    """
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(
            Producer(settings.redis_url, partitions=settings.partitions, name="webhook")
        )
        intents = await stack.enter_async_context(
            Producer(settings.redis_url, partitions=settings.partitions, name="gateway")
        )
        pool = await postgres_pool(settings, stack) if settings.postgres_dsn else None
        barred = settings.execute_after == "archived"
        gateway = SiteGateway(settings.redis_url, settings.partitions, pool, log_tells=barred)
        stack.push_async_callback(gateway.aclose)
        refusals = await stack.enter_async_context(Refusals(intents))
        slack = await stack.enter_async_context(opened_slack_review(settings, pool, refusals))
        webhook = RazorpayWebhook(
            producer,
            [secret.reveal() for secret in settings.razorpay_webhook_secrets],
            body_bytes_max=settings.body_limit,
            fallback_account=settings.razorpay_account_id,
        )
        app = create_app(
            webhook,
            body_bytes_max=settings.body_limit,
            ready=readiness(settings, pool),
            operations=[
                *operations_of(
                    intents, gateway, zone=settings.timezone, account=settings.razorpay_account_id
                ),
                *console_operations(),
                slack_operation(slack),
                metrics_operation(machine_page(settings, gateway, pool)),
            ],
            access=AccessControl(gateway, intents.now_us, refusals, per_min=settings.api_rate),
            cors_origins=settings.cors_origins,
        )
        yield instrumented(app, meters)


async def run_serve(settings: Settings, stopping: asyncio.Event) -> None:
    """Run the HTTP side."""
    async with AsyncExitStack() as stack:
        meters = await stack.enter_async_context(measured(settings, "serve"))
        if not await log_opened(settings, stopping):
            return
        sockets = stack.enter_context(bound(settings.host, settings.port, PREFIX))
        app = await stack.enter_async_context(opened_api(settings, meters))
        tune_for_batches()
        server = server_of(app, host=settings.host, port=settings.port, drain_s=requests_s(settings.drain_s))
        await serve_until(stopping, server, sockets)


def operations_of(
    producer: Producer, gateway: SiteGateway, *, zone: str = "Asia/Kolkata", account: str = ""
) -> list[Operation]:
    """All routes that need a token.

    `zone` is for policies that name none; `account` is the one that this installation pays from, if known.
    """
    service = PolicyService(gateway, zone=zone, account=account)
    return [
        *payout_operations(producer, gateway),
        *hold_operations(HoldService(gateway, producer), gateway, producer.now_us),
        *policy_operations(service),
        *freeze_operations(service),
        *audit_operations(AuditService(gateway)),
    ]


# ---- poller, projector ------------------------------------------------------------------


async def run_poller(settings: Settings, stopping: asyncio.Event) -> None:
    """Read the bank's list every POLL_INTERVAL and append what is new."""
    async with measured(settings, "poller") as meters:
        if not await log_opened(settings, stopping):
            return
        breakers: dict[str, Breaker] = {}
        _show_breakers(meters, breakers)
        tune_for_batches()
        await poll_until(settings, _me(), breakers, stopping)


async def run_projection(settings: Settings, stopping: asyncio.Event) -> None:
    """Archive every partition's log, keep the views, sign checkpoints, and trim what the archive has."""
    if not await log_opened(settings, stopping):
        return
    await refuse_too_few(settings)
    tune_for_batches(YOUNG_OF_FOLDS_MAX)
    async with AsyncExitStack() as stack:
        meters = await stack.enter_async_context(measured(settings, "projector"))
        await run_projector(
            settings.postgres_dsn.reveal(),
            settings.partitions,
            lambda partition: LogView(settings.redis_url, partition),
            stopping,
            Duties(
                on_batch=meters.archived,
                terms=_checkpoint_terms(settings, stack),
                janitor=_janitor(settings),
            ),
        )


def _checkpoint_terms(settings: Settings, stack: AsyncExitStack) -> CheckpointTerms | None:
    """How checkpoints are signed. None, with an alarm, if there is no key: money must not wait for that."""
    try:
        signer = _signer(settings)
        trusted = trusted_keys([signer.public], settings.checkpoint_keys)
    except StreamprocError as problem:
        log.error("ALARM, no checkpoints are signed: %s", problem)
        return None
    if not settings.checkpoint_to:
        with suppress(OSError):  # the first write reports the error, and is tried again
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    outside: Outside = NotesFile(notes_path(settings.checkpoint_to, settings.data_dir))
    if "://" in settings.checkpoint_to:
        token = settings.checkpoint_token.reveal()
        outside = post = open_checkpoint_post(settings.checkpoint_to, token=token)
        stack.push_async_callback(post.aclose)
    return CheckpointTerms(
        signer, trusted, outside, settings.checkpoint_entries, settings.checkpoint_interval_s
    )


def _signer(settings: Settings) -> Signer:
    if settings.signing_key:
        return Signer.of_text(settings.signing_key.reveal())
    path = settings.data_dir / KEY_FILE
    signer, made = read_or_make(path)
    if made:
        log.warning(
            "made a key that signs checkpoints: %s; its public key is %s. Keep that elsewhere, and better the key too"
            " (STREAMPROC_SIGNING_KEY): who has key and database can sign another history",
            path,
            signer.public.vkey,
        )
    return signer


def _janitor(settings: Settings) -> Janitor:
    async def trim(partition: int, anchor: str) -> Round:
        async with connected(settings.redis_url) as client:
            done, more = await trim_round(
                client, Names(partition), anchor=anchor, retention_s=settings.retention_s
            )
        return Round(done.removed, more)

    return Janitor(settings.trim_interval_s, trim)

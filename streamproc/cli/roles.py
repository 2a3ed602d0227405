"""Commands that run a part of the system until they are told to stop."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import click

from streamproc.cli import output
from streamproc.cli.context import role_settings
from streamproc.errors import InputError
from streamproc.run_file import discover
from streamproc.settings import Settings, load, require

CONCURRENCY_MAX = 64
"""Most consumers of one group in one process: more than there are cores only wait for each other."""


def run_until_stopped(
    role: Callable[..., Coroutine[Any, Any, None]], settings: Settings, *arguments: object
) -> None:
    """Run a role until SIGTERM, SIGINT or SIGHUP (not with nohup), then let it drain, for STREAMPROC_DRAIN at most."""
    import uvloop

    from streamproc.drain import Drain
    from streamproc.processes import stop_signals

    async def body(drain: Drain) -> None:
        asyncio.get_running_loop().set_exception_handler(_unless_abandoned_lookup)
        async with stop_signals() as stopping:
            await drain.run(role(settings, *arguments, stopping), stopping)

    with Drain(settings.drain_s) as drain:
        uvloop.run(body(drain))


def _unless_abandoned_lookup(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio reports, but for a name that was looked up in vain after nobody waited for it any more.

    uvloop cannot cancel a lookup: when a DNS server hangs, it fails long after its connection was given up, and whoever
    wanted the connection has said so.
    """
    if not isinstance(context.get("exception"), socket.gaierror):
        loop.default_exception_handler(context)


@click.command()
@click.option("--demo", is_flag=True, help="Run the demo scenarios, print each decision, stop.")
@click.pass_context
def up(context: click.Context, demo: bool) -> None:
    """Run the whole system on this machine.

    Starts Valkey and Postgres from wheels, and the bank sandbox, unless STREAMPROC_REDIS_URL, STREAMPROC_POSTGRES_DSN
    and STREAMPROC_RAZORPAY_KEY_ID name others. Migrates the schema, then runs the API, workers, the poller and the
    projector as supervised child processes. Ctrl-C drains them. Data are kept in STREAMPROC_DATA_DIR.

    \b
    Example:
      streamproc up
      streamproc up --demo
    """
    from streamproc.supervisor import up as supervise

    # asyncio's own loop: uvloop cannot start a child as another user, which Postgres under root needs.
    context.exit(asyncio.run(supervise(load(os.environ), demo=demo, env=os.environ)))


@click.command()
def serve() -> None:
    """Run the HTTP server: API, webhooks, health and metrics.

    The webhooks are those of the bank and of Slack. A webhook is answered 2xx once its event is in the log and synced
    to disk.

    \b
    Example:
      STREAMPROC_PORT=8080 streamproc serve
    """
    settings = role_settings("serve")
    from streamproc.app import run_serve

    run_until_stopped(run_serve, settings)


@click.command()
@click.option("--groups", default=None, metavar="A,B", help="Consumer groups to work for; all by default.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, CONCURRENCY_MAX),
    default=1,
    show_default=True,
    help="Consumers of each group on each partition.",
)
def worker(groups: str | None, concurrency: int) -> None:
    """Decide payouts, send commands to the bank, notify people.

    A worker runs the stages of the consumer groups. Start as many workers as you like, on as many machines: they share
    the entries of each group. On SIGTERM a worker finishes its current batch and ends.

    \b
    Example:
      streamproc worker
      streamproc worker --groups governance --concurrency 2
    """
    settings = role_settings("worker")
    import consumers
    from streamproc.app import run_worker

    asked = ",".join(consumers.GROUPS) if groups is None else groups
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if not names:
        raise InputError(f"--groups names no group; the groups are {', '.join(consumers.GROUPS)}")
    run_until_stopped(run_worker, settings, names, concurrency)


@click.command()
def poller() -> None:
    """Poll the bank's list, and append new payouts and changes.

    It reads the list every STREAMPROC_POLL_INTERVAL and finds what no webhook reported. An event that is already known
    changes nothing.

    \b
    Example:
      STREAMPROC_POLL_INTERVAL=30s streamproc poller
    """
    settings = role_settings("poller")
    from streamproc.app import run_poller

    run_until_stopped(run_poller, settings)


@click.command()
def projector() -> None:
    """Archive the log in Postgres, keep the views, sign checkpoints.

    One projector writes each partition; others stand by. Money moves only after it has archived the decision
    (STREAMPROC_EXECUTE_AFTER). STREAMPROC_CHECKPOINT_TO (with STREAMPROC_CHECKPOINT_TOKEN) says where checkpoints go,
    STREAMPROC_SIGNING_KEY which key signs them.

    \b
    Example:
      streamproc projector
    """
    settings = role_settings("projector")
    from streamproc.app import run_projection

    run_until_stopped(run_projection, settings)


@click.command()
def sandbox() -> None:
    """Run the RazorpayX simulator alone.

    Safe Browsing, GLEIF, Slack and ntfy are beside it on the same port. It is configured by SANDBOX_* variables:
    SANDBOX_PORT (else STREAMPROC_SANDBOX_PORT, as under `up`), SANDBOX_WEBHOOK_URL, SANDBOX_DATA_FILE and others.

    \b
    Example:
      SANDBOX_PORT=8090 SANDBOX_WEBHOOK_URL=http://127.0.0.1:8080/webhooks/razorpay streamproc sandbox
    """
    from ops.sandbox.config import SandboxConfig
    from ops.sandbox.server import run

    port = os.environ.get("SANDBOX_PORT") or str(load(os.environ).sandbox_port)
    run(SandboxConfig.from_env({**os.environ, "SANDBOX_PORT": port}))


@click.command()
@output.json_option
def migrate(as_json: bool) -> None:
    """Bring the Postgres schema to the newest revision. Safe to repeat.

    \b
    Example:
      STREAMPROC_POSTGRES_DSN=postgresql://user@host/streamproc streamproc migrate
    """
    settings = discover(load(os.environ))
    require(settings, "migrate")
    from projections.schema import prepare
    from streamproc.archive.migrate import current, is_later, newest

    async def brought() -> tuple[list[str], str]:
        dsn = settings.postgres_dsn.reveal()
        return await prepare(dsn), await current(dsn) or ""

    applied, revision = output.run(brought())
    if as_json:
        output.say_json({"applied": applied, "revision": revision})
        return
    if applied:
        click.echo(f"applied {', '.join(applied)}")
    if is_later(revision):
        click.echo(
            f"the schema is at {revision}, of a later version, and stays so: this one knows {newest()}"
        )
    elif not applied:
        click.echo(f"nothing to do: the schema is at {revision}")

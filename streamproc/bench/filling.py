"""Fill the log with entries as the engine writes them, encoded once and appended as fast as Valkey can."""

import asyncio
import os
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis

import consumers
from streamproc.bench import cost
from streamproc.bench.history import entries
from streamproc.errors import InputError, JobFailed
from streamproc.log.names import Names

TEMPLATES = 1_000
"""Different entries. A long log repeats them, each time under a new id."""
TEMPLATE_PAYOUTS = 400
ENTRY_BYTES_MAX = 1_500
"""Memory of an entry in Valkey and in its file's buffers: 1 kB was measured, the rest is a margin."""
MEMORY_SHARE_MAX = 0.9
ANSWER_MAX_S = 60.0
ENDS_EACH = 2
"""Line ends in the answer to XADD: one after the length, one after the id."""


def check_room(count: int) -> None:
    """Raise InputError if this machine does not have the memory for so many entries."""
    free, needed = cost.free_memory_bytes(), count * ENTRY_BYTES_MAX
    if needed > MEMORY_SHARE_MAX * free:
        raise InputError(
            f"{count:,} entries take up to {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB of memory are free,"
            f" and at most {MEMORY_SHARE_MAX:.0%} of it is used"
        )


async def fill(url: str, client: Redis, names: Names, count: int) -> None:
    """Append `count` entries to the log, and mark them as handled by every group."""
    await client.config_set("appendfsync", "no")
    await _put(url, names.log, count)
    total = int((await client.xinfo_stream(names.log))["length"])
    for group in consumers.GROUPS:
        await client.execute_command("XGROUP", "SETID", names.log, group, "$", "ENTRIESREAD", total)
    # Otherwise the first command that is measured would have to sync gigabytes.
    await asyncio.to_thread(_sync, Path(str((await client.config_get("dir"))["dir"])))
    await client.config_set("appendfsync", "always")


def _sync(directory: Path) -> None:
    for path in directory.rglob("*.aof"):
        with path.open("rb") as file:
            os.fdatasync(file.fileno())


async def _put(url: str, log: str, count: int) -> None:
    commands = [
        hiredis.pack_command(("XADD", log, "*", "e", entry.e, "m", entry.m))  # type: ignore[arg-type]  # it is typed for a tuple of one
        for entry in islice(entries(TEMPLATE_PAYOUTS), TEMPLATES)
    ]
    whole, rest = divmod(count, len(commands))
    block = b"".join(commands)
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        if place.password:
            writer.write(f"AUTH {place.password}\r\n".encode())
            if await reader.readline() != b"+OK\r\n":
                raise JobFailed("Valkey refused its password")
        for _ in range(whole):
            await _send(reader, writer, block, len(commands))
        await _send(reader, writer, b"".join(commands[:rest]), rest)
    finally:
        writer.close()


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, block: bytes, count: int) -> None:
    writer.write(block)
    ends = 0
    async with asyncio.timeout(ANSWER_MAX_S):
        while ends < count * ENDS_EACH:
            answer = await reader.read(1 << 16)
            if not answer or answer.startswith(b"-"):
                raise JobFailed(f"Valkey refused an entry: {answer[:120].decode(errors='replace')!r}")
            # A line end that was cut in two is counted with its second byte.
            ends += answer.count(b"\n")

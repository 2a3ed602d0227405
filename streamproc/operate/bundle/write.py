"""Writes a bundle: chooses entries, waits until a checkpoint covers them, proves them, and packs it all into one .zip.

filter -> lines -> payouts -> their entries, and those that made the policies that decisions name
last checkpoint of each partition >= these?   -> paths to its root -> entries.jsonl
"""

import asyncio
import base64
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import asyncpg
from msgspec import Struct

from streamproc.archive.attest import checkpoint_states, identity
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.evidence import (
    ChainedEntry,
    Places,
    PolicyRef,
    entries,
    entries_for,
    entry_id,
    last_checkpoint,
    policies_named,
    proofs,
    take_in,
)
from streamproc.archive.note import Trusted
from streamproc.archive.read import AuditFilter
from streamproc.archive.store import connection, errors_as_job_failed, snapshot
from streamproc.domain.shown import iso
from streamproc.errors import JobFailed
from streamproc.operate.bundle.verify import FORMAT
from streamproc.operate.export import written_whole
from streamproc.operate.moments import us_of

COVER_POLL_S = 0.5
"""Between two looks for a new checkpoint."""

OnStage = Callable[[str, int, int], None]
"""Is told the stage, how much of it is done, and of how much (0: not known)."""


class Bundled(Struct):
    """What a bundle holds. `not_covered` entries match and were left out; `first_left` is the first of them.

    `unknown` are policy versions that decisions name but no entry was found for: verify.py will miss them.
    """

    file: str
    entries: int
    payouts: int
    policies: int
    signed: dict[int, Checkpoint]
    not_covered: int
    first_left: tuple[int, int, str] | None
    unknown: list[str]


class _Chosen(Struct):
    places: Places
    policies: list[PolicyRef]


async def write_bundle(
    dsn: str,
    wanted: AuditFilter,
    path: Path,
    trusted: Trusted,
    *,
    wait_s: float,
    on_stage: OnStage = lambda stage, done, total: None,
) -> Bundled:
    """Write a bundle of what matches. Waits up to `wait_s` for checkpoints that cover it; the rest is left out."""
    with errors_as_job_failed(f"{path} was not written"), written_whole(path) as file:
        on_stage("choosing", 0, 0)
        async with snapshot(dsn, name="streamproc audit export") as db:
            places = await entries_for(db, wanted)
            policies = await policies_named(db, places)
        if not places:
            raise JobFailed("no line of the audit matches: there is nothing to prove")
        for ref in policies:
            if ref.seq:
                places.setdefault(ref.partition, set()).add(ref.seq)
        await _await_cover(dsn, places, wait_s, on_stage)
        async with snapshot(dsn, name="streamproc audit export") as db:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
                chosen = _Chosen(places, policies)
                return await _Packer(db, bundle, chosen, trusted, on_stage).pack(wanted, path)


async def _await_cover(dsn: str, places: Places, wait_s: float, on_stage: OnStage) -> None:
    """Return when checkpoints cover these entries, or after `wait_s`."""
    deadline = time.monotonic() + wait_s
    async with connection(dsn, name="streamproc audit export") as db:
        while True:
            covered = {one.partition: one.covered for one in await checkpoint_states(db)}
            left = sum(seq > covered.get(partition, 0) for partition, seqs in places.items() for seq in seqs)
            if not left or time.monotonic() >= deadline:
                return
            on_stage(f"waiting for a checkpoint over {left} entries", 0, 0)
            await asyncio.sleep(COVER_POLL_S)


class _Packer:
    """Packs one bundle from one snapshot."""

    def __init__(
        self,
        db: asyncpg.Connection,
        bundle: zipfile.ZipFile,
        chosen: _Chosen,
        trusted: Trusted,
        on_stage: OnStage,
    ) -> None:
        self._db = db
        self._bundle = bundle
        self._chosen = chosen
        self._trusted = trusted
        self._on_stage = on_stage
        self._payouts: set[str] = set()

    async def pack(self, wanted: AuditFilter, path: Path) -> Bundled:
        """Write all files of the bundle."""
        signed, keys, notes = await self._checkpoints()
        if wanted == AuditFilter():
            # Written while we waited for these checkpoints. Without them no partition would be whole.
            new = take_in(self._chosen.places, signed.values())
            self._chosen.policies = sorted({*self._chosen.policies, *await policies_named(self._db, new)})
        left = self._leave_out(signed)
        count = 0
        info = zipfile.ZipInfo("entries.jsonl", time.localtime()[:6])
        info.compress_type = zipfile.ZIP_DEFLATED
        with self._bundle.open(info, "w", force_zip64=True) as file:
            for partition in sorted(signed):
                count += await self._entries(file, signed[partition])
        first = min(left) if left else None
        named = None if first is None else (*first, await entry_id(self._db, *first))
        policies = [ref for ref in self._chosen.policies if ref.seq]
        unknown = [f"{ref.scope} version {ref.version}" for ref in self._chosen.policies if not ref.seq]
        result = Bundled(
            str(path), count, len(self._payouts), len(policies), signed, len(left), named, unknown
        )
        manifest = await self._manifest(wanted, result, policies)
        self._bundle.writestr("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        for partition, note in notes.items():
            self._bundle.writestr(f"checkpoints/{partition}.txt", note)
        self._bundle.writestr("keys.txt", "".join(f"{key}\n" for key in sorted(keys)))
        for name in ("README.md", "verify.py"):
            self._bundle.writestr(name, files("streamproc.operate.bundle").joinpath(name).read_bytes())
        return result

    async def _checkpoints(self) -> tuple[dict[int, Checkpoint], set[str], dict[int, str]]:
        """For each partition with chosen entries: the last checkpoint, its key and its note."""
        signed, keys, notes = dict[int, Checkpoint](), set[str](), dict[int, str]()
        for partition in self._chosen.places:
            found = await last_checkpoint(self._db, partition, self._trusted)
            if found is not None:
                signed[partition], key, notes[partition] = found
                keys.add(key.vkey)
        return signed, keys, notes

    def _leave_out(self, signed: Mapping[int, Checkpoint]) -> list[tuple[int, int]]:
        """Remove entries that no checkpoint covers, and return them."""
        left = []
        for partition, seqs in self._chosen.places.items():
            size = signed[partition].size if partition in signed else 0
            left += [(partition, seq) for seq in seqs if seq > size]
            seqs.difference_update([seq for seq in seqs if seq > size])
        return left

    async def _entries(self, file: IO[bytes], signed: Checkpoint) -> int:
        seqs = self._chosen.places[signed.partition]
        stage = f"proving partition {signed.partition}"
        paths = await proofs(self._db, signed, seqs, lambda done: self._on_stage(stage, done, signed.size))
        count = 0
        async for entry in entries(self._db, signed.partition, seqs):
            line = _entry_json(signed.partition, entry, paths[entry.seq])
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            if entry.payout is not None:
                self._payouts.add(entry.payout)
            count += 1
            self._on_stage(f"writing partition {signed.partition}", count, len(seqs))
        return count

    async def _manifest(
        self, wanted: AuditFilter, result: Bundled, policies: list[PolicyRef]
    ) -> dict[str, Any]:
        first = result.first_left or (0, 0, "")
        return {
            "format": FORMAT,
            "archive": await identity(self._db),
            "made_at": iso(us_of(datetime.now(UTC))),
            "filters": filters_json(wanted),
            "entries": result.entries,
            "payouts": result.payouts,
            "signed": {
                str(partition): {"size": one.size, "entry": one.entry, "at": iso(us_of(one.at))}
                for partition, one in sorted(result.signed.items())
            },
            "policies": [
                {"partition": ref.partition, "scope": ref.scope, "version": ref.version, "seq": ref.seq}
                for ref in policies
            ],
            "not_covered": {
                "count": result.not_covered, "partition": first[0], "seq": first[1], "entry": first[2],
            },
        }  # fmt: skip


def filters_json(wanted: AuditFilter) -> dict[str, str]:
    """The filters as given; empty means everything."""
    found = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    return {
        name: iso(us_of(value)) if isinstance(value, datetime) else str(value)
        for name, value in found.items()
        if value is not None
    }


def _entry_json(partition: int, entry: ChainedEntry, path: list[bytes]) -> dict[str, Any]:
    line: dict[str, Any] = {"partition": partition, "seq": entry.seq, "entry": entry.id}
    line |= _bytes_json("e", entry.e) | _bytes_json("m", entry.m)
    return line | {
        "before": entry.before.hex(),
        "hash": entry.hash.hex(),
        "proof": [step.hex() for step in path],
    }


def _bytes_json(name: str, data: bytes) -> dict[str, str]:
    """Bytes as text, for people; in base64 if they are not text."""
    try:
        return {name: data.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}

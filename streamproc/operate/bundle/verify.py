#!/usr/bin/env python3
"""Check a bundle of `streamproc audit export` against a public key that you got in another way.

    python3 verify.py KEY [BUNDLE]

KEY is the public key as `streamproc audit key` prints it (name+8 hex digits+base64), or a file of keys. BUNDLE is the
.zip or its directory; by default this file's. Nothing in a bundle is trusted, not even the key that lies in it.

It checks of each entry that its bytes give its hash, and that this hash is at its place in the tree whose root the key
signed (RFC 6962, Ed25519 of RFC 8032). Exit code 0: all fits. 1: the first thing that does not, by name. 2: wrong use.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "streamproc-audit-bundle/2"


class Wrong(Exception):
    """A check failed: where, and how."""


P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z


def point_add(one: Point, other: Point) -> Point:
    """The sum of two points of the curve."""
    a, b = (one[1] - one[0]) * (other[1] - other[0]) % P, (one[1] + one[0]) * (other[1] + other[0]) % P
    c, d = 2 * one[3] * other[3] * D % P, 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_times(times: int, point: Point) -> Point:
    """The point multiplied by a number."""
    result: Point = (0, 1, 1, 0)
    while times:
        if times & 1:
            result = point_add(result, point)
        point = point_add(point, point)
        times >>= 1
    return result


def point_read(raw: bytes) -> Point | None:
    """The point that 32 bytes encode; None if they encode none."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_M1 % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def point_bytes(point: Point) -> bytes:
    """The 32 bytes that encode a point."""
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = point_read((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature over the message is valid for the public key."""
    key = point_read(public) if len(public) == 32 else None
    if key is None or BASE is None or len(signature) != 64:
        return False
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % L
    minus_key = (P - key[0], *key[1:3], P - key[3])
    return point_bytes(point_add(point_times(s, BASE), point_times(k, minus_key))) == r


def link_hash(before: bytes, partition: int, seq: int, entry: str, e: bytes, m: bytes) -> bytes:
    """The hash of an entry, chained to that of the entry before it."""
    whole = b"streamproc/archive/v1" + before
    for part in (b"%d" % partition, b"%d" % seq, entry.encode(), e, m):
        whole += len(part).to_bytes(8, "big") + part
    return hashlib.sha256(whole).digest()


def tree_root(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root of a tree of `size` leaves with this leaf at `index`, by its audit path (RFC 6962, 2.1.1)."""
    node, last = hashlib.sha256(b"\x00" + leaf).digest(), size - 1
    if not 0 <= index < size:
        return None
    for step in path:
        if last == 0:
            return None
        if index & 1 or index == last:
            node = hashlib.sha256(b"\x01" + step + node).digest()
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\x01" + node + step).digest()
        index, last = index >> 1, last >> 1
    return node if last == 0 else None


class Key(NamedTuple):
    """A public key, and the first bytes of its hash, by which signatures name it."""

    name: str
    id: bytes
    public: bytes


class Checkpoint(NamedTuple):
    """A signed statement about the first `size` entries of a partition; `entry` and `link` are the last one's."""

    archive: str
    partition: int
    size: int
    root: bytes
    entry: str
    link: bytes
    time: str


def read_key(text: str) -> Key:
    """Read a public key, written as one word."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        raw = b""
    found = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if not name or len(raw) != 33 or raw[:1] != b"\x01" or found.hex() != key_id:
        raise ValueError("this is no public key as `streamproc audit key` prints it")
    return Key(name, found, raw[1:])


_TEXT = re.compile(
    r"streamproc/([0-9a-f-]{36})/([0-9]{1,9})\n([1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n"
    r"entry ([0-9]+-[0-9]+)\nchain ([A-Za-z0-9+/]{43}=)\ntime ([0-9T:.-]+Z)\n"
)


def read_checkpoint(where: str, note: str, keys: list[Key]) -> Checkpoint:
    """The checkpoint in a signed note. Raises Wrong unless one of the keys signed it."""
    body, gap, tail = note.rpartition("\n\n")
    found = _TEXT.fullmatch(body + "\n")
    if not gap or found is None:
        raise Wrong(f"{where}: this is no signed checkpoint")
    signatures = [(name, base64.b64decode(raw)) for name, raw in re.findall(r"(?m)^— (\S+) (\S+)$", tail)]
    mine = [(key, raw[4:]) for name, raw in signatures for key in keys if (name, raw[:4]) == key[:2]]
    if not mine:
        by = ", ".join(f"{name}+{raw[:4].hex()}" for name, raw in signatures) or "nobody"
        raise Wrong(f"{where}: it is signed by {by}, and not by a key that you named")
    if not all(ed25519_verifies(key.public, raw, (body + "\n").encode()) for key, raw in mine):
        raise Wrong(f"{where}: its signature does not fit: checkpoint or signature was changed")
    archive, partition, size, root, entry, link, time = found.groups()
    top, end = base64.b64decode(root), base64.b64decode(link)
    return Checkpoint(archive, int(partition), int(size), top, entry, end, time)


def read_json(text: str | bytes) -> Any:
    """Decoded JSON. Refuses a name that is there twice, which readers would take differently."""

    def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=named)


class Bundle:
    """The files of a bundle, in a .zip or a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        names = self._zip.namelist() if self._zip else []
        if len(set(names)) != len(names):
            raise zipfile.BadZipFile("a file is in it twice")

    def open(self, name: str) -> Any:
        """One of the files."""
        try:
            return self._zip.open(name) if self._zip else (self._path / name).open("rb")
        except (KeyError, OSError):
            raise Wrong(f"{name}: it is not in the bundle") from None

    def text(self, name: str) -> str:
        """The whole text of one of the files."""
        with self.open(name) as file:
            return str(file.read().decode("utf-8"))


class Findings(NamedTuple):
    """What was proven: entries by partition, decisions with entry and partition, policy versions with their scope."""

    entries: dict[int, int]
    payouts: set[str]
    decisions: list[tuple[str, int, dict[str, Any]]]
    policies: set[tuple[int, str, int]]


def check(bundle: Bundle, keys: list[Key]) -> tuple[dict[str, Any], dict[int, Checkpoint], Findings]:
    """The manifest, the checkpoints and the findings. Raises Wrong at the first failed check."""
    manifest = read_json(bundle.text("manifest.json"))
    if manifest.get("format") not in (FORMAT, "streamproc-audit-bundle/1"):  # in which events omit nothing
        raise Wrong(f"manifest.json: its format is {manifest.get('format')!r}, this program knows {FORMAT!r}")
    checkpoints = {}
    for partition in map(int, manifest["signed"]):
        file = f"checkpoints/{partition}.txt"
        found = checkpoints[partition] = read_checkpoint(file, bundle.text(file), keys)
        if (found.archive, found.partition) != (manifest["archive"], partition):
            raise Wrong(f"{file}: it is of another one: archive {found.archive}, partition {found.partition}")
    findings = check_entries(bundle, checkpoints)
    if not findings.entries:
        raise Wrong("entries.jsonl: there are no entries, so nothing is proven")
    if (count := sum(findings.entries.values())) != manifest["entries"]:
        raise Wrong(f"entries.jsonl: {count} entries, and the manifest says {manifest['entries']}")
    check_policies(findings)
    return manifest, checkpoints, findings


def check_entries(bundle: Bundle, checkpoints: dict[int, Checkpoint]) -> Findings:
    """Check every entry against its partition's checkpoint."""
    findings, last = Findings({}, set(), [], set()), (-1, 0)
    for number, line in enumerate(bundle.open("entries.jsonl"), 1):
        where = f"entries.jsonl, line {number}"
        try:
            one = read_json(line)
            place = (one["partition"], one["seq"])
            if [type(number) for number in place] != [int, int]:
                raise ValueError("partition and seq are whole numbers")
            where = f"{where} (partition {place[0]}, seq {place[1]}, entry {one['entry']})"
            if place <= last:
                raise Wrong(f"{where}: entries are not in order, or one is there twice")
            e, m = archived_bytes(one, "e"), archived_bytes(one, "m")
            check_entry(where, one, e, m, checkpoints.get(place[0]))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as problem:
            raise Wrong(f"{where}: it cannot be read: {type(problem).__name__} {problem}") from None
        last = place
        findings.entries[place[0]] = findings.entries.get(place[0], 0) + 1
        collect(findings, one, e)
    return findings


def archived_bytes(one: dict[str, Any], name: str) -> bytes:
    """The bytes of a field: given as text, or in base64 if they are not text."""
    if name in one:
        return str(one[name]).encode("utf-8")
    return base64.b64decode(one[f"{name}_base64"], validate=True)


def check_entry(where: str, one: dict[str, Any], e: bytes, m: bytes, checkpoint: Checkpoint | None) -> None:
    """Check one entry: its bytes, its hash, its place under the signed root."""
    fields = {name if name in one else f"{name}_base64" for name in ("e", "m")}
    if more := set(one) - fields - {"partition", "seq", "entry", "before", "hash", "proof"}:
        raise Wrong(f"{where}: it has {', '.join(sorted(more))}, which nothing proves")
    partition, seq, entry, link = one["partition"], one["seq"], str(one["entry"]), bytes.fromhex(one["hash"])
    if checkpoint is None:
        raise Wrong(f"{where}: there is no checkpoint of its partition")
    if link_hash(bytes.fromhex(one["before"]), partition, seq, entry, e, m) != link:
        raise Wrong(f"{where}: its content does not give its hash: it was changed")
    if "proof" not in one:
        raise Wrong(f"{where}: it has no proof")
    root = tree_root(link, seq - 1, checkpoint.size, [bytes.fromhex(step) for step in one["proof"]])
    if root != checkpoint.root:
        raise Wrong(f"{where}: it is not under the signed root: entry, proof or checkpoint is another one's")
    if seq == checkpoint.size and (entry, link) != (checkpoint.entry, checkpoint.link):
        raise Wrong(f"{where}: the checkpoint names another last entry, {checkpoint.entry}")


def collect(findings: Findings, one: dict[str, Any], e: bytes) -> None:
    """Take in what a proven entry says. Bytes that are not events are proven all the same."""
    try:
        events = [found for found in read_json(e) if isinstance(found, dict)]
    except (ValueError, TypeError, RecursionError):
        return
    for event in events:
        if "at" not in event and "payout" not in event:  # omitted: the same as in the entry's first event
            event = {**{name: events[0].get(name) for name in ("at", "payout")}, **event}
        if event.get("payout"):
            findings.payouts.add(str(event["payout"]))
        if event.get("type") == "payout.decided":
            findings.decisions.append((str(one["entry"]), int(one["partition"]), event))
        elif event.get("type") == "policy.changed":
            scope, version = str(event.get("scope")), int(event.get("version", 0))
            findings.policies.add((int(one["partition"]), scope, version))


def check_policies(findings: Findings) -> None:
    """Check that each policy version that a decision names is proven as well."""
    for entry, partition, event in findings.decisions:
        version = int(event.get("policy_version", 0))
        wanted = (partition, f"agent:{event.get('agent')}", version)
        if version and wanted not in findings.policies:
            where = f"the decision on {event.get('payout')}, partition {partition}, entry {entry}"
            raise Wrong(f"{where}: version {version} of {wanted[1]}, by which it was made, is not in it")


def report(manifest: Any, signed: list[Checkpoint], found: Findings, keys: list[Key]) -> list[str]:
    """What is proven, and what is not. Places are, so as many entries as were signed are all of them."""
    whole = [one for one in signed if found.entries.get(one.partition) == one.size]
    outcomes: dict[str, list[int]] = {}
    for _, _, event in found.decisions:
        outcomes.setdefault(str(event.get("decision")), []).append(int(event.get("amount", 0)))
    chosen = f"; the filter was {json.dumps(only)}" if (only := manifest["filters"]) else ""
    lines = [
        f"PROVEN against {', '.join(f'{key.name}+{key.id.hex()}' for key in keys)}:",
        *map("  archive {0.archive}, partition {0.partition}: {0.size} entries, {0.time}".format, signed),
        f"  {sum(found.entries.values())} entries about {len(found.payouts)} payouts are among them, each at its"
        " place and with the bytes that were archived",
        *map("  partition {0.partition} is whole: none of the {0.size} entries is missing".format, whole),
        f"  {len(found.policies)} policy versions, among them all that the decisions name",
        *(f"  decisions {name}: {len(of)}, {sum(of)} paise" for name, of in sorted(outcomes.items())),
        "NOT PROVEN, and not to be proven by any bundle:",
        f"  that nothing else is missing, as another partition, or newer entries than a checkpoint has{chosen}",
        "  that what the entries say is true: they are what was recorded, at the time of the recorder's clock",
    ]
    if (left := manifest["not_covered"])["count"]:
        lines += [
            f"  {left['count']} newer entries that match were left out, since no checkpoint covered them yet:",
            f"  partition {left['partition']}, seq {left['seq']}, entry {left['entry']} is the first of them",
        ]
    return lines


def decision_lines(findings: Findings) -> list[str]:
    """Each proven decision: entry, payout, decision, reason, paise, agent, policy version, reviewer."""
    names = ("payout", "decision", "reason", "amount", "agent", "policy_version", "by")
    return [
        "\t".join([f"{partition}:{entry}", *(str(event.get(name, "")) for name in names)])
        for entry, partition, event in findings.decisions
    ]


def say(lines: list[str]) -> None:
    """Print what may steer no terminal, since some of it comes from the bundle. Exits if it cannot be written."""
    plain = ["".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line) + "\n" for line in lines]
    try:
        with open(1, "w", encoding="utf-8", closefd=False) as out:
            out.writelines(plain)
    except OSError as problem:
        if not isinstance(problem, BrokenPipeError):  # `| head`: a reader that had enough changes no finding
            sys.exit(f"verify.py: the answer cannot be written: {problem.strerror}")


def main(arguments: list[str] | None = None) -> int:
    """Check a bundle and print the result; the exit code."""
    parser = argparse.ArgumentParser(prog="verify.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("key", help="the public key, or a file that holds it")
    parser.add_argument("bundle", nargs="?", default=str(Path(__file__).parent), help=".zip or its directory")
    parser.add_argument("--decisions", action="store_true", help="also list each proven decision")
    asked = parser.parse_args(arguments)
    try:
        named = asked.key if "+" in asked.key else Path(asked.key).read_text(encoding="utf-8")
        keys = [read_key(word) for word in named.replace(",", " ").split()]
    except (OSError, ValueError) as problem:
        parser.error(f"{asked.key}: {problem}")
    try:
        bundle = Bundle(Path(asked.bundle))
    except (OSError, zipfile.BadZipFile) as problem:
        parser.error(f"{asked.bundle}: {problem}")
    try:
        manifest, checkpoints, findings = check(bundle, keys)
        told = report(manifest, list(checkpoints.values()), findings, keys)
    except Exception as problem:  # noqa: BLE001  # a forged bundle may raise anything
        unread = f"the bundle cannot be read: {type(problem).__name__} {problem}"
        say([f"WRONG: {problem if isinstance(problem, Wrong) else unread}"])
        return 1
    say(told + (decision_lines(findings) if asked.decisions else []))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("verify.py: stopped by the user")

"""`streamproc audit`: verify the archive against its signatures, list the audit, export evidence for others."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.context import archive_settings
from streamproc.cli.progress import ProgressDisplay
from streamproc.cli.wrong_use import NewFile
from streamproc.errors import ConfigError, InputError, JobFailed
from streamproc.run_file import discover
from streamproc.settings import load

if TYPE_CHECKING:
    from streamproc.archive.read import AuditFilter
    from streamproc.operate.audit import Verified
    from streamproc.operate.bundle.write import Bundled


@click.group()
def audit() -> None:
    """The audit trail: verify, list, export."""


# ---- verify -----------------------------------------------------------------------------


@audit.command()
@click.option(
    "--partition",
    type=click.IntRange(0),
    default=None,
    metavar="N",
    help="Only this partition; all by default.",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="A copy of the published checkpoints; the configured file by default.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="VKEY|FILE",
    help="Trust only this public key, none of this machine's; may be given several times.",
)
@output.json_option
def verify(partition: int | None, checkpoints: Path | None, keys: tuple[str, ...], as_json: bool) -> None:
    """Verify the archive against its chain and signed checkpoints.

    Everything is computed from the stored bytes. Reads every row, from Postgres alone, and compares with the
    checkpoints in the database and with those that were published outside. If anything does not fit, the first wrong
    link of each partition is named, with exit code 1. It also says which entries no checkpoint covers yet.

    \b
    Example:
      streamproc audit verify
      streamproc audit verify --checkpoints /mnt/worm/checkpoints.txt --key streamproc+22911eaa+AalA46lX...
    """
    settings = archive_settings()
    dsn = settings.postgres_dsn.reveal()
    from streamproc.operate import audit as job

    trusted = job.trusted_for(settings, keys)
    outside = job.outside_file(settings, checkpoints)
    with ProgressDisplay("audit verify", "rows") as display:

        def hear(done: int, total: int) -> None:
            display.show("verifying", done, total)

        found = output.run(
            job.verify(
                dsn, trusted, outside, partition=partition, is_copy=checkpoints is not None, on_rows=hear
            )
        )
    if as_json:
        output.say_json(_as_json(found))
    else:
        for line in _lines(found):
            click.echo(line)
        for note in found.notes:
            output.note(note)
    if found.broken:
        raise JobFailed("\n".join(_broken(found)))


FAULTS_SHOWN = 20
"""Faults that are told in words: a screen."""


def _broken(found: "Verified") -> Iterator[str]:
    """The first faults. A checkpoint of each minute that an unknown key signed would be a line each."""
    yield from (f"BROKEN: {fault}" for fault in found.broken[:FAULTS_SHOWN])
    if (more := len(found.broken) - FAULTS_SHOWN) > 0:
        yield f"BROKEN: {more} more faults; --json lists all"


def _as_json(found: "Verified") -> dict[str, Any]:
    import msgspec

    parts = [{**msgspec.to_builtins(part), "unsigned": part.rows - part.signed} for part in found.parts]
    return {
        "ok": not found.broken,
        "archive": found.archive,
        "checkpoints_file": found.outside or None,
        "seconds": found.seconds,
        "partitions": parts,
        "faults": [msgspec.to_builtins(fault) for fault in found.broken],
        "notes": found.notes,
    }


def _lines(found: "Verified") -> list[str]:
    lines = [
        f"archive {found.archive}, {found.rows:,} rows in {found.seconds:.1f} s ({found.rows_per_s:,} rows/s)"
    ]
    for part in found.parts:
        good = "good up to there" if part.fault else "good"
        outside = f"; {part.outside} in all in {found.outside}" if found.outside else ""
        lines.append(
            f"partition {part.partition}: {part.rows:,} rows {good}, {part.checkpoints} checkpoints among them{outside}"
        )
        if part.signed_at is not None:
            at = part.signed_at.isoformat(timespec="seconds").replace("+00:00", "Z")
            lines.append(f"  signed up to seq {part.signed:,}, {at}")
        if part.fault is None and part.rows > part.signed:
            lines.append(
                f"  not protected yet: {part.rows - part.signed:,} rows after seq {part.signed:,}, which no checkpoint"
                " covers; the chain holds them together, but whoever can write to the database can write them anew"
            )
    return lines


# ---- list -------------------------------------------------------------------------------

KINDS = ("decision", "review", "command", "confirmation", "settlement", "policy", "alert")
LIST_MAX = 1_000
COVER_MARGIN_S = 10.0
"""Added to the interval of checkpoints, for making one."""

_FILTERS = (
    click.option("--agent", default=None, metavar="ID", help="Only about this agent's payouts and policy."),
    click.option("--payout", default=None, metavar="ID", help="Only about this payout."),
    click.option("--vendor", default=None, metavar="HOST", help="Only about payouts to this vendor."),
    click.option(
        "--reason", default=None, metavar="CODE", help="Only with this reason, such as LIMIT_EXCEEDED."
    ),
    click.option(
        "--decision",
        type=click.Choice(["APPROVED", "REJECTED", "HELD"], case_sensitive=False),
        default=None,
        help="Only decisions of this outcome.",
    ),
    click.option("--kind", type=click.Choice(KINDS), default=None, help="Only lines of this kind."),
    click.option(
        "--since",
        default=None,
        metavar="WHEN",
        help="Only from this time on: ISO 8601, or a time before now such as 24h or 30d.",
    ),
    click.option(
        "--until", default=None, metavar="WHEN", help="Only before this time, given as for --since."
    ),
)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that filter lines; the command gets them as keyword arguments."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _wanted(asked: dict[str, str | None]) -> "AuditFilter":
    from streamproc.archive.read import AuditFilter
    from streamproc.operate.moments import moment

    texts = asked.pop("since"), asked.pop("until")
    since, until = (
        None if text is None else moment(option, text)
        for option, text in zip(("--since", "--until"), texts, strict=True)
    )
    if since is not None and until is not None and since >= until:
        raise InputError(f"--since {texts[0]} is not before --until {texts[1]}: nothing can match")
    if "." in (asked["vendor"] or ""):  # a host, and not a fund account's id
        asked["vendor"] = str(asked["vendor"]).lower()
    return AuditFilter(**asked, since=since, until=until)


@audit.command("list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1, LIST_MAX - 1), default=50, show_default=True, help="How many to show."
)
@click.option("--after", default=None, metavar="ID", help="Continue after the line with this id.")
@output.json_option
def list_(limit: int, after: str | None, as_json: bool, **asked: str | None) -> None:
    """List the audit trail, newest first.

    Its lines say what was decided, reviewed, commanded, confirmed, settled and changed. `explain PAYOUT` shows the
    evidence behind a line.

    \b
    Example:
      streamproc audit list --decision REJECTED --since 24h
      streamproc audit list --vendor vendor.example.com --json
    """
    dsn = archive_settings().postgres_dsn.reveal()
    from streamproc.domain.money import rupees
    from streamproc.operate.audit_list import line_json, list_lines

    page = output.run(list_lines(dsn, _wanted(asked), after=after, limit=limit))
    if as_json:
        output.say_json(
            {"items": [line_json(row) for row in page.items], "next": page.next, "notes": page.notes}
        )
        return
    rows = []
    for row in page.items:
        amount = None if row.amount is None else rupees(row.amount)
        what = " ".join(part for part in (row.decision, row.reason) if part)
        about = (row.agent or "-", row.vendor or "-", amount, row.payout, row.actor)
        rows.append((line_json(row)["at"], row.kind, what, *about))
    columns = ("TIME", "KIND", "WHAT", "AGENT", "VENDOR", "AMOUNT", "PAYOUT", "BY")
    output.say_table(columns, rows, empty="no line matches")
    for note in page.notes:
        output.note(note)
    if page.next:
        output.note(f"there are more: --after {page.next}")


# ---- export -----------------------------------------------------------------------------


@audit.command()
@click.argument("file", type=NewFile())
@_filters
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "parquet", "bundle"]),
    default=None,
    help="By default as FILE's suffix says: .csv, .jsonl, .parquet, .zip (a bundle).",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3_600),
    default=None,
    metavar="SECONDS",
    help="Longest wait for a checkpoint that covers the whole bundle; by default just over a checkpoint interval.",
)
@click.option(
    "--key", "keys", multiple=True, metavar="VKEY|FILE", help="For a bundle: as with `audit verify`."
)
@output.json_option
def export(
    file: Path,
    form: str | None,
    wait_s: float | None,
    keys: tuple[str, ...],
    as_json: bool,
    **asked: str | None,
) -> None:
    """Export the audit to FILE, as a table or a verifiable bundle.

    A table (CSV, JSON lines, Parquet) has the lines that match, amounts in paise. A bundle has every archived entry of
    the payouts that match, with proofs under a signed checkpoint, the policy versions, and a program that checks it
    with nothing but Python. Exit code 1 if not all of it is covered by a checkpoint yet. An existing FILE is never
    overwritten. A killed export may leave a file `.export-…` beside it.

    \b
    Example:
      streamproc audit export october.csv --since 2026-10-01 --until 2026-11-01
      streamproc audit export evidence.zip --payout pout_00000000000001
    """
    settings = archive_settings()
    dsn = settings.postgres_dsn.reveal()
    from streamproc.operate.export import export_lines, format_of

    kind, wanted = format_of(file, form), _wanted(asked)
    with ProgressDisplay("audit export", "lines" if kind != "bundle" else "entries") as display:
        if kind == "bundle":
            from streamproc.operate.audit import trusted_for
            from streamproc.operate.bundle.write import write_bundle

            trusted = trusted_for(settings, keys)
            wait_s = settings.checkpoint_interval_s + COVER_MARGIN_S if wait_s is None else wait_s
            bundled = output.run_or_undo(
                write_bundle(dsn, wanted, file, trusted, wait_s=wait_s, on_stage=display.show)
            )
        else:
            done = output.run_or_undo(
                export_lines(dsn, wanted, file, kind, lambda count: display.show("exporting", count))
            )
    if kind == "bundle":
        _say_bundle(bundled, as_json=as_json)
    elif as_json:
        output.say_json({"file": done.file, "format": done.format, "lines": done.lines, "notes": done.notes})
    else:
        click.echo(f"{file}: {done.lines:,} lines")
        for note in done.notes:
            output.note(note)


def _say_bundle(bundled: "Bundled", *, as_json: bool) -> None:
    """Print what the bundle has. Raises JobFailed if something is missing in it."""
    if as_json:
        counted = ("file", "entries", "payouts", "policies", "not_covered", "unknown")
        sizes = {str(partition): one.size for partition, one in sorted(bundled.signed.items())}
        told = {name: getattr(bundled, name) for name in counted}
        output.say_json({"format": "bundle", **told, "proven_up_to": sizes})
    else:
        signed = ", ".join(f"{partition}:{one.size}" for partition, one in sorted(bundled.signed.items()))
        click.echo(
            f"{bundled.file}: {bundled.entries:,} entries about {bundled.payouts:,} payouts and"
            f" {bundled.policies:,} policy versions, proven up to {signed or 'nothing'}"
        )
    if bundled.first_left is not None:
        partition, seq, entry = bundled.first_left
        raise JobFailed(
            f"{bundled.not_covered} entries that match are NOT in {bundled.file}: no checkpoint covers them yet."
            f" The first is partition {partition}, seq {seq}, entry {entry}."
            " Export again once the projector has made one"
        )
    if bundled.unknown:
        raise JobFailed(
            f"the view `policies` does not have {', '.join(bundled.unknown[:5])}, by which payouts in {bundled.file}"
            " were decided: verify.py will miss them. Are the views behind (`streamproc doctor`)? Then export again"
        )
    if not as_json:
        click.echo(
            "check it with: unpack it, then python3 verify.py KEY, where KEY is what `streamproc audit key` prints"
        )


# ---- keys -------------------------------------------------------------------------------


@audit.command()
@click.option(
    "--new",
    "new",
    type=NewFile(),
    default=None,
    metavar="FILE",
    help="Make a new private key in FILE, for STREAMPROC_SIGNING_KEY_FILE.",
)
@output.json_option
def key(new: Path | None, as_json: bool) -> None:
    """Print the public key that verifies signed checkpoints. Give it to whoever verifies them.

    With --new a private key is made; an existing file is never overwritten. After replacing a key, add the old public
    key to STREAMPROC_CHECKPOINT_KEYS.

    \b
    Example:
      streamproc audit key
      streamproc audit key --new /run/secrets/checkpoint.key
    """
    from streamproc.archive.signing_key import KEY_FILE, make_key
    from streamproc.operate.audit import own_key

    if new is not None:
        public = make_key(new).public
    else:
        settings = discover(load(os.environ))
        found = own_key(settings)
        if found is None:
            raise ConfigError(
                f"there is no key yet: {settings.data_dir / KEY_FILE} is made at the projector's first start;"
                " or make one by --new FILE and set STREAMPROC_SIGNING_KEY_FILE"
            )
        public = found
    if as_json:
        output.say_json({"vkey": public.vkey, "file": str(new) if new else None})
    else:
        click.echo(public.vkey)

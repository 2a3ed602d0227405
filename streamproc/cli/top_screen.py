"""The screen of `streamproc top`: 24 lines of 80 columns, so that nothing is cut off on a small terminal."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streamproc.archive.gauges import BudgetUse, Decided
from streamproc.cli import output
from streamproc.domain.money import rupees
from streamproc.domain.plain import cut, plain
from streamproc.operate.top import WINDOW_S, Frame, Look

OUTCOMES_MAX = 5
"""Lines of outcomes; rare ones share one line."""
BAR_COLUMNS = 12
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
NAME_UNITS = 28
"""Characters (UTF-16 units) shown of an agent's name, which may be anything."""
STYLES = {"APPROVED": "green", "REJECTED": "red", "HELD": "yellow"}


def screen(frame: Frame, every_s: float = 0.0) -> RenderableType:
    """One frame. `every_s`: seconds between frames; 0: this is the only one."""
    parts: list[RenderableType] = [_title(frame, every_s)]
    if frame.problem:
        parts.append(_line(f"{plain(frame.problem)}{'; asked again' if every_s else ''}", "bold red"))
    if frame.look is not None:
        parts += _parts(frame.look)
    return Group(*parts)


def _title(frame: Frame, every_s: float) -> Text:
    at = "" if frame.look is None else f"{frame.look.at:%Y-%m-%d %H:%M:%S} UTC"
    hint = f"   every {every_s:g} s, Ctrl-C ends" if every_s else ""
    return _line(f"streamproc top   {at}{hint}", "bold")


def _parts(look: Look) -> Iterator[RenderableType]:
    yield Text()
    yield _decided_line(look)
    if look.decided:
        yield _outcomes(look.decided)
    yield Text()
    yield _holds(look)
    if look.budgets:
        yield _budgets(look.budgets)
    yield Text()
    yield _groups(look.groups)
    if any(row.get("missing") for row in look.groups):
        yield _line("a group is gone: `streamproc doctor` says what to do", "bold red")
    yield _line(f"archive  {_archive(look)}")
    yield _line(f"log      {_log(look)}")
    breakers = plain(look.breakers)
    yield _line(f"calls    {breakers or 'every breaker is closed'}", "bold red" if breakers else "")


def _decided_line(look: Look) -> Text:
    if look.decided is None or look.per_s is None:
        return _line("decisions  not known")
    count, paise = sum(one.count for one in look.decided), sum(one.paise for one in look.decided)
    text = f"decisions  {look.per_s:,.1f}/s   {count:,} in {WINDOW_S} s, {rupees(paise)}"
    return _line(text, "bold")


def _outcomes(decided: Sequence[Decided]) -> Table:
    table, all_of_them = _table("left", "left", "right", "right", "left"), sum(one.count for one in decided)
    few = len(decided) <= OUTCOMES_MAX
    for one in decided if few else decided[: OUTCOMES_MAX - 1]:
        style = STYLES.get(one.decision, "")
        cells = (
            one.decision,
            plain(one.reason),
            f"{one.count:,}",
            rupees(one.paise),
            _bar(one.count, all_of_them),
        )
        table.add_row(*(Text(cell, style) for cell in cells))
    if not few:
        rest = decided[OUTCOMES_MAX - 1 :]
        count, paise = sum(one.count for one in rest), sum(one.paise for one in rest)
        table.add_row("other", f"{len(rest)} reasons", f"{count:,}", rupees(paise), _bar(count, all_of_them))
    return table


def _holds(look: Look) -> Text:
    if look.holds is None:
        text = "holds      not known"
    elif not look.holds.count:
        text = "holds      none open"
    else:
        age = output.age(int(look.holds.oldest_s * 1000))
        text = f"holds      {look.holds.count:,} open, {rupees(look.holds.paise)}, the oldest {age}"
    line = _line(text, "bold")
    if look.untold:
        line.append(f"; nobody could be told of {look.untold:,}", "bold red")
    return line


def _budgets(budgets: Sequence[BudgetUse]) -> Table:
    table = _table("left", "left", "right", "left", "right")
    for one in budgets:
        share = one.used / one.limit if one.limit else 1.0
        style = "red" if share >= 0.95 else "yellow" if share >= 0.8 else ""
        name = cut(plain(one.scope.removeprefix("agent:")), NAME_UNITS)
        amounts = f"{rupees(one.used)} of {rupees(one.limit)}"
        cells = (name, one.kind, f"{share:.0%}", _bar(one.used, one.limit), amounts)
        table.add_row(*(Text(cell, style) for cell in cells))
    return table


def _groups(rows: Sequence[dict[str, Any]]) -> Table:
    """A line per group, over all partitions: the sum of entries, the oldest of all."""
    table = _table("left", "right", "right", "right", "right", "right")
    table.add_row(
        *(Text(name, "bold") for name in ("group", "lag", "pending", "deferred", "oldest", "workers"))
    )
    by_group: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    for name, its in by_group.items():
        if any(row.get("missing") for row in its):
            table.add_row(name, Text("gone", "bold red"), *("-" for _ in range(4)))
            continue
        lags = [row["lag"] for row in its]
        lag = "?" if None in lags else f"{sum(lags):,}"
        sums = [f"{sum(row[key] for row in its):,}" for key in ("pending", "deferred")]
        oldest = output.age(max(row["oldest_ms"] for row in its))
        table.add_row(name, lag, *sums, str(oldest), f"{max(row['consumers'] for row in its):,}")
    return table


def _archive(look: Look) -> str:
    if look.archive_ms is None or look.views_behind is None:
        return "not known"
    return f"{output.age(look.archive_ms)} behind the log, views {look.views_behind:,} entries behind it"


def _log(look: Look) -> str:
    sizes = look.sizes.partitions.values()
    memory = f"{look.sizes.memory / 1e6:,.0f} MB"
    limit = f" of {look.sizes.memory_max / 1e6:,.0f} MB" if look.sizes.memory_max else ""
    entries, dead = sum(one.entries for one in sizes), sum(one.dead for one in sizes)
    return f"{entries:,} entries, {dead:,} dead letters; Redis uses {memory}{limit}"


def _table(*justify: Any) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for side in justify:
        table.add_column(justify=side, no_wrap=True, overflow="ellipsis")
    return table


def _bar(part: int, whole: int) -> str:
    """A bar of `part` in `whole`, in eighths of a column."""
    eighths = 0 if whole <= 0 else round(BAR_COLUMNS * 8 * min(1.0, part / whole))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")

"""Prints the demo: a line for each check as it comes, and at the end a table on a terminal or a count."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.demo.scenarios import Check


class Report:
    """Prints checks and remembers them by the scenario that they belong to."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._scenarios: dict[str, list[Check]] = {}
        self._current = ""

    def title(self, title: str) -> None:
        """A scenario begins."""
        self._current = title
        self._scenarios.setdefault(title, [])
        self._console.print(Text(f"\n{title}", style="bold"))

    def say(self, text: str) -> None:
        """Print a text as it is."""
        self._console.print(Text(text))

    def add(self, check: Check) -> None:
        """Print a check: one line when it came as stated, both sides when not."""
        self._scenarios.setdefault(self._current, []).append(check)
        self._console.print(_mark(check), Text(check.about), Text(check.payout, style="dim"))
        self._console.print(Text(f"       expected {check.expected}"))
        self._console.print(Text(f"       came     {check.came}"), style="" if check.passed else "red")

    def of(self, title: str) -> list[Check]:
        """The checks of one scenario."""
        return self._scenarios.get(title, [])

    def last_of_each_payout(self) -> list[Check]:
        """For each payout, the last check of what the bank was told."""
        named = [c for checks in self._scenarios.values() for c in checks if "told: " in c.expected]
        return list({check.payout: check for check in named if check.payout}.values())

    def close(self) -> bool:
        """Print the summary; whether every check passed, and there was one."""
        checks = [check for found in self._scenarios.values() for check in found]
        failed = [check for check in checks if not check.passed]
        if self._console.is_terminal:
            self._console.print(self._table())
        ok = bool(checks) and not failed
        words = "all came out as stated" if ok else f"{len(failed)} did not come out as stated"
        self._console.print(
            Text(f"\n{len(checks)} checks: {words}", style="bold green" if ok else "bold red")
        )
        for check in failed:
            self._console.print(Text(f"FAIL   {check.about}: expected {check.expected}; came {check.came}"))
        return ok

    def _table(self) -> Table:
        table = Table("Scenario", "Checks", "Outcome", box=None, header_style="bold")
        for title, checks in self._scenarios.items():
            if checks:
                failed = sum(not check.passed for check in checks)
                outcome = Text(f"{failed} FAIL", style="red") if failed else Text("PASS", style="green")
                table.add_row(Text(title), str(len(checks)), outcome)
        return table


def _mark(check: Check) -> Text:
    return Text("PASS  ", style="green") if check.passed else Text("FAIL  ", style="bold red")

"""What the bank was told: one line per command, with whether it took effect and was answered."""

from collections import deque

from msgspec import Struct

COMMANDS_MAX = 200_000
"""Lines kept in memory; the oldest go first."""


class Command(Struct, kw_only=True):
    """One call of a command. `effect`: it changed something. `answered`: the caller got an answer."""

    at: float
    method: str
    path: str
    command: str
    """`payout.create`, `payout.approve`, ...; empty if there is no such URL."""
    auth: str = "none"
    idempotency_key: str = ""
    payout: str = ""
    remarks: str = ""
    effect: bool = False
    replay: bool = False
    """The idempotency key was seen before with the same body, and the payout made then was returned."""
    status: int = 0
    answered: bool = True
    fault: str = ""
    problem: str = ""


class Journal:
    """The commands, oldest first."""

    def __init__(self) -> None:
        self.commands: deque[Command] = deque(maxlen=COMMANDS_MAX)
        self.noted = 0
        """Lines since the first start, including those no longer in memory."""

    def note(self, command: Command) -> None:
        """Add one line."""
        self.commands.append(command)
        self.noted += 1

    def selected(self, *, payout: str = "", command: str = "", effect: str = "") -> list[Command]:
        """Lines that match every given filter; `effect` is `true`, `false` or empty."""
        return [
            line
            for line in self.commands
            if payout in ("", line.payout)
            and command in ("", line.command)
            and effect in ("", str(line.effect).lower())
        ]

    def last(self, count: int) -> list[Command]:
        """The newest `count` lines, oldest first."""
        return [self.commands[i] for i in range(max(len(self.commands) - count, 0), len(self.commands))]

"""Collects the problems of a written policy, each with its line and field, to report all at once."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from streamproc.errors import InputError

Path: TypeAlias = tuple[str | int, ...]

PROBLEMS_SHOWN_MAX = 50
"""Problems listed in one error; the rest are counted."""


class WrongFields(InputError):
    """The wrong fields: pairs of the path as `path_text` writes it and the problem, without lines."""

    def __init__(self, message: str, errors: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.errors = errors


class Report:
    """The problems of one text. `lines`: the line of each path."""

    def __init__(self, name: str, lines: Mapping[Path, int] | None = None) -> None:
        self.name = name
        self.lines = lines or {}
        self._problems: list[str] = []
        self._errors: list[tuple[str, str]] = []

    def add(self, path: Path, problem: str) -> None:
        """Add a problem at *path*; its line is that of the nearest parent in the text."""
        parents = (path[:n] for n in range(len(path), 0, -1))
        line = next((self.lines[parent] for parent in parents if parent in self.lines), None)
        self.add_line(line, path, problem)

    def add_line(self, line: int | None, path: Path, problem: str) -> None:
        """Add a problem on a line that the caller knows."""
        self._errors.append((path_text(path), problem))
        places = [] if line is None else [f"line {line}"]
        if path:
            places.append(path_text(path))
        self._problems.append(f"{', '.join(places)}: {problem}" if places else problem)

    def refuse_if_any(self) -> None:
        """Raise one WrongFields with all problems so far, if there are any."""
        if not self._problems:
            return
        shown = list(dict.fromkeys(self._problems))
        rest = len(shown) - PROBLEMS_SHOWN_MAX
        lines = shown[:PROBLEMS_SHOWN_MAX] + ([f"and {rest} more"] if rest > 0 else [])
        errors = list(dict.fromkeys(self._errors))[:PROBLEMS_SHOWN_MAX]
        raise WrongFields("\n".join(f"{self.name}: {line}" for line in lines), errors)


def path_text(path: Path) -> str:
    """A path as a person reads it: `policies.bot.allowed_domains[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A wrong value for a message: short, and never a whole document."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if isinstance(value, int | float):
        return str(value) if abs(value) < 10**20 else "a huge number"
    if isinstance(value, str):
        return f"text {value[:60]!r}"
    return (
        "a list"
        if isinstance(value, list)
        else "a mapping"
        if isinstance(value, dict)
        else "another kind of value"
    )


def unknown(name: str, known: Iterable[str]) -> str:
    """The problem text for an unknown name, with the nearest known one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"{name[:60]!r} is not known" + (f"; did you mean {near[0]!r}?" if near else "")

"""On which line of a TOML file each key and each entry of a list is written; Python's parser does not say. Pure."""

import re
import tomllib
from typing import NamedTuple

from streamproc.domain.policy_report import Path

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*)|(?P<newline>\n)|(?P<mark>[\[\]{}=,.])
    |(?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    |(?P<bare>[^\s\[\]{}=,.\#"']+)""",
    re.DOTALL | re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_END = _Token("end", "", 0)


def toml_lines(text: str) -> dict[Path, int]:
    """The line of each path of *text*, which `tomllib` has read without an error: of anything else the answer is
    worth nothing. Of an array of tables only its own lines are told, which no policy file has."""
    lines = _Lines(text)
    lines.read()
    return lines.found


class _Lines:
    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        self._tokens: list[_Token] = []
        self._next = 0
        line = 1
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or ""
            if kind != "blank":
                self._tokens.append(_Token(kind, match[0], line))
            line += match[0].count("\n")

    def read(self) -> None:
        """Find the lines of all statements."""
        table: Path = ()
        while (token := self._peek()).kind != "end":
            if token.kind == "newline":
                self._take()
            elif token.text == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _peek(self) -> _Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else _END

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _header(self) -> Path:
        while self._peek().text == "[":
            self._take()
        table = self._key(())
        while self._peek().text == "]":
            self._take()
        return table

    def _assignment(self, table: Path) -> None:
        path = self._key(table)
        self._take()  # the equals sign
        self._value(path)

    def _key(self, path: Path) -> Path:
        """A key, whose parts have dots between them, below *path*."""
        while True:
            token = self._take()
            part = tomllib.loads(f"key = {token.text}")["key"] if token.kind == "text" else token.text
            path = (*path, part)
            self.found.setdefault(path, token.line)
            if self._peek().text != ".":
                return path
            self._take()

    def _value(self, path: Path) -> None:
        match self._peek().text:
            case "[":
                self._entries(path)
            case "{":
                self._fields(path)
            case _:
                self._take()
                while self._peek().kind not in ("newline", "end") and self._peek().text not in (
                    ",",
                    "]",
                    "}",
                ):
                    self._take()

    def _entries(self, path: Path) -> None:
        self._take()
        number = 0
        while (token := self._peek()).text != "]" and token.kind != "end":
            if token.kind == "newline" or token.text == ",":
                self._take()
                continue
            self.found[*path, number] = token.line
            self._value((*path, number))
            number += 1
        self._take()

    def _fields(self, path: Path) -> None:
        self._take()
        while (token := self._peek()).text != "}" and token.kind != "end":
            if token.kind == "newline" or token.text == ",":
                self._take()
            else:
                self._assignment(path)
        self._take()

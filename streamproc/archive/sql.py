"""Loads SQL by name from the .sql files that lie beside the code that owns the table.

A file is a sequence of blocks, each one statement that can be pasted into psql:

    -- name: spent
    -- What it is for, where that needs saying.
    SELECT ...;
"""

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def statements(package: str, file: str) -> dict[str, str]:
    """The statements of one file of `package`, by name, in the file's order."""
    text = (files(package) / file).read_text(encoding="utf-8")
    _, *blocks = _NAME.split(text)
    names, bodies = blocks[::2], blocks[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/{file} names a statement twice")
    return {name: body.strip().removesuffix(";") for name, body in zip(names, bodies, strict=True)}

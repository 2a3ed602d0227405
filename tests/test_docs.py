"""What the documents, the hints in our own messages and the alerts name is there: commands, settings, files, routes.

`docs/performance-history.md` is left out: it tells of what was once.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ops.sandbox.config import ENV_PREFIX, SandboxConfig
from streamproc.cli import cli
from streamproc.settings import PREFIX, VARIABLES
from tests.test_tidy import ROOT, committed_files, modules

HISTORY = "performance-history.md"
NOT_OURS = {"TEST_OUTAGE_S", "EXPORTER_OTLP_TRACES_ENDPOINT", "COMPLETE"}
"""Of a test, of OpenTelemetry, and of shells."""
ROLES_OF_POSTGRES = {"streamproc_projector", "streamproc_reader"}
NO_ROUTES_OF_THE_TABLE = {"GET /metrics", "POST /webhooks/slack", "POST /mcp"}
# Where a command line begins in a block of code, and where it ends; README calls the program `sp`.
CODE_OF_BLOCK = re.compile(
    r"""(?:\bsp|(?<!alias sp=)\.venv/bin/streamproc|(?<![\w/"])streamproc) +(?=[a-z-])"""
)
CODE_END = re.compile(r" [|&>;] ?|&&|[)`]| - (?=[a-z])|$")
PLACEHOLDER = re.compile(r"^[A-Z]+$|\||…")  # stands for a value: NAME, agent|account, …


def documents() -> list[Path]:
    """All that people read: pages, and the examples of settings."""
    below = [path for home in ("docs", "ops", "streamproc") for path in (ROOT / home).rglob("*.md")]
    pages = sorted([*ROOT.glob("*.md"), *below])
    return [ROOT / ".env.example", *(path for path in pages if path.name not in (HISTORY, "CHANGELOG.md"))]


def inline(text: str) -> list[str]:
    """What stands between backticks, without blocks of code."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def lines_of_code(text: str) -> list[str]:
    """The lines of blocks: those between fences, and those that are indented."""
    fenced = [
        line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    return fenced + re.findall(r"^ {4,}(.+)$", text, re.MULTILINE)


def words(command: str) -> list[str]:
    """The words of a command line, up to a pipe or a comment; what is optional is taken as given."""
    line = re.sub(r"\$\([^)]*\)", "GIVEN", command).replace("[--", "--").replace("]", "")
    line = line[: end.start()] if (end := CODE_END.search(line)) else line
    return [word for word in shlex.split(line, comments=True) if word != "..."]


def wrong_with(given: list[str], *, whole: bool) -> str | None:
    """What of a command line is not of this program; `whole`: it is to be run, so it lacks nothing."""
    command: click.Command = cli
    while isinstance(command, click.Group) and given and not given[0].startswith("-"):
        inner = command.get_command(click.Context(command), given[0])
        if inner is None:
            return f"no command {given[0]!r}"
        command, given = inner, given[1:]
    try:
        values, left_over, _ = command.make_parser(click.Context(command)).parse_args(list(given))
    except click.UsageError as problem:
        return problem.format_message()
    if left_over and not isinstance(command, click.Group):
        return f"too much: {left_over}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None and whole and parameter.required:
            return f"lacks {parameter.opts[0]}"
        choices = parameter.type.choices if isinstance(parameter.type, click.Choice) else ()
        chosen = value.lower() if isinstance(value, str) and not PLACEHOLDER.search(value) else None
        if choices and chosen and chosen not in {choice.lower() for choice in choices}:
            return f"{parameter.opts[0]} cannot be {value}"
    return None


def commands_of(path: Path) -> Iterator[tuple[str, bool]]:
    """The command lines in a document, each with whether it is to be run as it stands."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in lines_of_code(text):
        for found in CODE_OF_BLOCK.finditer(line.partition(" # ")[0]):
            yield line[found.end() :], True
    for code in inline(text):
        name = code.removeprefix("streamproc ")
        if name.partition(" ")[0] in cli.commands and (name != code or " " in name):
            yield name, False


def every_command(group: click.Group) -> Iterator[click.Command]:
    for name in group.list_commands(context := click.Context(group)):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from every_command(command)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_command_line_of_a_document_is_one_of_this_program(path: Path) -> None:
    found = {code: wrong_with(words(code), whole=whole) for code, whole in commands_of(path)}
    assert {code: wrong for code, wrong in found.items() if wrong} == {}


def test_the_command_lines_of_the_documents_are_found() -> None:
    assert len([code for path in documents() for code, _ in commands_of(path)]) > 100


def test_each_command_line_of_a_help_text_is_one_of_this_program() -> None:
    wrong, seen = {}, 0
    for command in every_command(cli):
        for line in lines_of_code((command.help or "").partition("Example:")[2]):
            for found in CODE_OF_BLOCK.finditer(line):
                seen += 1
                if problem := wrong_with(words(line[found.end() :]), whole=True):
                    wrong[line] = problem
    assert (wrong, seen > 50) == ({}, True)


def test_each_command_that_a_message_or_an_alert_names_is_one_of_this_program() -> None:
    named = [*modules(), *(ROOT / "ops").rglob("*.yaml"), *(ROOT / "ops").rglob("*.yml")]
    wrong, seen = {}, 0
    for path in named:
        for code in re.findall(r"`streamproc ([a-z][^`\n]*)`", path.read_text(encoding="utf-8")):
            seen += 1
            if problem := wrong_with(words(re.sub(r"\{[^}]*\}", "GIVEN", code)), whole=False):
                wrong[f"{path.relative_to(ROOT)}: {code}"] = problem
    assert (wrong, seen > 50) == ({}, True)


def test_each_setting_that_a_document_names_is_one() -> None:
    known = {variable.name for variable in VARIABLES} | NOT_OURS
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    wrong = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(rf"{PREFIX}([A-Z][A-Z_]*[A-Z])\b(?!_)", text))
        ends = re.findall(r"`…(_[A-Z_]+)`", text)
        wrong += [(path.name, name) for name in named - known]
        wrong += [(path.name, end) for end in ends if not any(f"_{name}".endswith(end) for name in known)]
    assert wrong == []


def test_the_sandboxs_page_has_each_of_its_settings_and_no_other() -> None:
    page = (ROOT / "ops" / "sandbox" / "README.md").read_text(encoding="utf-8")
    fields = {name.upper() for name in SandboxConfig.__struct_fields__}
    assert set(re.findall(rf"{ENV_PREFIX}([A-Z_]+)", page)) == fields


def test_each_metric_that_a_page_names_is_one_of_docs_telemetry() -> None:
    """Those of docs/telemetry.md are compared with a real page by tests/journeys/test_metrics.py."""
    metric = re.compile(r"\b(streamproc_[a-z_]+?)(?:_bucket|_count|_sum)?(?![a-z_*])")
    known = set(metric.findall((ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")))
    named = {name for path in documents() for name in metric.findall(path.read_text(encoding="utf-8"))}
    assert named - known - ROLES_OF_POSTGRES == set()


def test_each_file_that_a_document_names_is_there() -> None:
    files = [f"/{path.relative_to(ROOT)}" for path in committed_files()]
    wrong = []
    for path in documents():
        for name in inline(path.read_text(encoding="utf-8")):
            is_file = re.fullmatch(r"(?!.*(NAME|TYPE)\b)[\w./-]*\w\.(py|lua|sql|md|yml|yaml|env)", name)
            if is_file and not any(file.endswith(f"/{name}") for file in files):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_each_route_that_a_document_names_is_in_the_route_table() -> None:
    bare = re.compile(r"\{[^}]*\}")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "streamproc" / "api").glob("*.py"))
    table = re.findall(r'method="([A-Z]+)", path="([^"]+)"', source)
    known = {f"{method} {bare.sub('{}', path)}" for method, path in table} | NO_ROUTES_OF_THE_TABLE
    wrong = []
    for path in documents():
        if path.parent.name == "sandbox":
            continue
        for code in inline(path.read_text(encoding="utf-8").replace("{agent,account,team}:{id}", "{scope}")):
            is_route = re.fullmatch(r"(GET|PUT|POST|PATCH|DELETE) /(?!_control/)\S+", code)
            if is_route and bare.sub("{}", code) not in known:
                wrong.append(f"{path.relative_to(ROOT)}: {code}")
    assert wrong == []


def test_each_target_of_make_that_a_document_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in documents()]
    code = [line for text in texts for line in (*inline(text), *lines_of_code(text))]
    assert {name for line in code for name in re.findall(r"^make ([a-z-]+)", line)} - targets == set()


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_each_section_and_each_decision_that_a_document_refers_to_is_there() -> None:
    decisions = {int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("*.md")}
    wrong = []
    for path in documents():
        text = " ".join(path.read_text(encoding="utf-8").split())
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings(path)}
        wrong += [
            (path.name, anchor) for anchor in re.findall(r"\]\(#([^)]+)\)", text) if anchor not in anchors
        ]
        wrong += [(path.name, n) for n in re.findall(r"\bADR (\d+)", text) if int(n) not in decisions]
        for page, title in re.findall(r"`?(?:docs/)?([a-z-]+\.md)`?, \"([^\"]+)\"", text):
            there = [heading.partition(" (")[0] for heading in headings(ROOT / "docs" / page)]
            wrong += [(path.name, title)] if title not in there else []
    assert wrong == []

"""Whatever is typed: exit 0, 1 or 2, and if not 0 some words on stderr. No traceback, and no wait without an end."""

import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import click
import pytest

from streamproc.cli import cli, run
from tests.hostile.mutations import CASES, SEED

WORDS_CHARS_MAX = 40_000
RUN_ON = {"up", "sandbox", "serve", "worker", "poller", "projector", "bench"}
"""These are to run until somebody ends them."""
VALUES = (
    *(
        "",
        "-",
        "--",
        "0",
        "-1",
        "9" * 400,
        "1e9",
        "nan",
        "inf",
        "٣",
        "\udcff\udc80",
        "a" * 10_000,
        "../../x",
        "%s%n",
        "'; --",
    ),
    *(
        "0:1-1",
        "0:",
        "1:99999999999999999999-0",
        "{}",
        "[]",
        "\n",
        "30d",
        "99999d",
        "-5m",
        "2026-01-01",
        "2026-13-45T99:99:99Z",
    ),
    *(
        "0001-01-01",
        "9999-12-31T23:59:59Z",
        "1970-01-01T00:00:00+99:99",
        "pout_1",
        "spi_" + "a" * 26,
        "asha",
        "agent:bot",
    ),
    *(
        "account:",
        "team:x",
        "/dev/null",
        "/",
        "http://[::1",
        "redis://",
        "governance,governance",
        ",",
        "true",
        "payouts",
    ),
)
Command = tuple[tuple[str, ...], click.Command]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """Every command that ends by itself, with the words that name it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not path and name in RUN_ON:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def typed(rng: Random, command: Command) -> list[str]:
    """A command with arguments that were meant for something else."""
    path, what = command
    words = list(path)
    for parameter in what.params:
        if isinstance(parameter, click.Argument):
            words += [rng.choice(VALUES) for _ in range(rng.choice((1, 1, 1, 1, 0, 2)))]
        elif parameter.required or rng.randrange(3) == 0:
            words.append(rng.choice(parameter.opts))
            if not getattr(parameter, "is_flag", False):
                words.append(rng.choice(VALUES))
    if rng.randrange(8) == 0:
        words.insert(rng.randrange(len(words) + 1), rng.choice([*VALUES, "--nope", "-x", "--json", "--help"]))
    return words


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings under which nothing answers."""
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:9")
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", "postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("STREAMPROC_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_whatever_is_typed_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(commands(cli))
    codes: Counter[int] = Counter()
    for number in range(CASES):
        rng = Random(SEED + number)
        words = typed(rng, every[number % len(every)])
        errors = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rng.randbytes(rng.randrange(99)))))
        monkeypatch.setattr(
            sys, "stderr", io.TextIOWrapper(errors, "utf-8", "backslashreplace", write_through=True)
        )
        code = run(words)
        told = errors.getvalue().decode()
        assert code in (0, 1, 2), words
        assert not code or told.strip(), words
        assert "Traceback" not in told, (words, told)
        assert len(told) < WORDS_CHARS_MAX, words
        codes[code] += 1
    assert codes[2] > CASES / 5, codes


@pytest.mark.usefixtures("nowhere")
def test_an_answer_that_is_no_text_is_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = io.TextIOWrapper(io.BytesIO(b"\xd0\xff\n"), "utf-8")
    monkeypatch.setattr(answer, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answer)
    assert run(["dead", "discard", "0:1-1"]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err

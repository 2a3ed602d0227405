"""The command line's contract: what is printed where, exit codes, one line for an error and never a traceback."""

import fcntl
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from streamproc import cli
from streamproc.cli import output, run
from streamproc.cli.wrong_use import Text
from streamproc.errors import ConfigError, InputError, JobFailed, LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.run_file import write_run_file
from streamproc.settings import load

HEAVY = ("redis", "asyncpg", "httpx", "razorpay", "uvicorn", "sqlalchemy", "rich", "mcp", "pydantic")
POLICIES = "policies: {bot: {daily_limit: 1_000}}"


def found(
    group: click.Group = cli.cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from found(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(found())


@pytest.fixture
def system(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The environment of an operator whose log is empty."""
    import asyncio

    async def make() -> None:
        async with connected(redis_url) as client:
            await open_log(client, partitions=1, groups=["governance", "execution", "notification"])

    asyncio.run(make())
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_DATA_DIR", str(tmp_path))
    return redis_url


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_each_command_says_what_it_does_with_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"streamproc {' '.join(path)}" in text.partition("Example:")[2]


def test_help_says_of_every_option_what_it_is():
    options = [
        (" ".join(path), param.opts[0], param.help)
        for path, command in COMMANDS.items()
        for param in command.params
        if isinstance(param, click.Option)
    ]
    assert len(options) > 100
    assert [option for option in options if not option[2]] == []


@pytest.mark.parametrize(
    ("words", "number", "completed"),
    [
        ("streamproc bench fl", 2, ["floor"]),
        ("streamproc dead re", 2, ["redrive"]),
        ("streamproc replay p", 2, ["payouts", "policies"]),
        ("streamproc freeze a", 2, ["agent", "account"]),
    ],
)
def test_a_shell_completes_commands_and_what_they_take(words: str, number: int, completed: list[str]):
    asks = {"_STREAMPROC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [sys.executable, "-m", "streamproc"],
        env={**os.environ, **asks},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [f"plain,{word}" for word in completed]


def test_help_loads_no_heavy_module():
    program = "import sys; from streamproc.cli import run; run(['--help']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("problem", "code"),
    [(ConfigError("a"), 2), (InputError("a"), 2), (JobFailed("a"), 1), (LogUnavailable("a"), 1)],
    ids=lambda value: type(value).__name__,
)
def test_the_kind_of_error_gives_the_exit_code_also_out_of_a_task_group(
    problem: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for raised in (problem, ExceptionGroup("tasks", [ExceptionGroup("inner", [problem])])):

        @click.command("fails")
        def fails(raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setitem(cli.cli.commands, "fails", fails)
        assert run(["fails"]) == code
        assert capsys.readouterr().err == "streamproc: a\n"


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    @click.command("fails")
    def fails() -> None:
        raise ExceptionGroup("tasks", [JobFailed("a"), KeyError("a defect")])

    monkeypatch.setitem(cli.cli.commands, "fails", fails)
    with pytest.raises(ExceptionGroup):
        run(["fails"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["nothing-of-ours"],
        ["policy", "apply", "no-such-file.yaml"],
        ["log", "tail", "-n", "-1"],
        ["hold", "approve", "pout_1", "--by", "asha"],
        ["worker", "--concurrency", "0"],
        ["dead", "show", "not-an-id"],
        ["dead", "show", f"0:{2**64}-0"],
        ["dead", "redrive", f"0:1-{2**64}"],
        ["dead", "discard", "0:١-1", "--yes"],
        ["worker", "--groups", ""],
        ["log", "tail", "--partition", "3"],
        ["audit", "list", "--since", "yesterday"],
        ["audit", "list", "--after", "pout_1"],
        ["audit", "export", "x.txt"],
        ["audit", "export", "x.zip", "--key", "no-such-key"],
        ["audit", "verify", "--checkpoints", "no-such-file"],
        ["audit", "verify", "--key", "streamproc+00000000+AAAA"],
        ["audit", "key"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_2(system: str, wrong: list[str]):
    assert run(wrong) == 2


@pytest.mark.parametrize(
    "writing",
    [
        ["audit", "export", "-", "--format", "jsonl"],
        ["audit", "key", "--new", "-"],
        ["token", "create", "buyer", "--scope", "viewer", "--out", "-"],
    ],
    ids=" ".join,
)
def test_a_minus_is_no_file_to_write_and_nothing_is_written(
    system: str,
    writing: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert run(writing) == 2
    assert "goes to a file, not to stdout" in capsys.readouterr().err
    assert not Path("-").exists()
    assert run(["token", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == []


@pytest.mark.parametrize(
    "blank",
    [
        ["explain", ""],
        ["explain", "  "],
        ["hold", "approve", "", "--by", "asha", "--reason", "x"],
        ["hold", "list", "--after", ""],
        ["freeze", "agent", "", "--by", "asha", "--why", "x"],
        ["policy", "show", ""],
        ["policy", "history", ""],
        ["policy", "confirm", "", "--by", "asha"],
        ["token", "revoke", ""],
        ["dead", "redrive", "", "--by", "asha"],
        ["audit", "list", "--payout", ""],
        ["audit", "list", "--agent", ""],
        ["pay", "--amount", "100", "--to", ""],
    ],
    ids=" ".join,
)
def test_an_id_that_is_blank_is_wrong_use(
    system: str, blank: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A script's unset variable: it was looked for, and there was none, as if it were well-formed."""
    assert run(blank) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "it is blank; see streamproc" in line


@pytest.mark.parametrize(
    "failing",
    [
        ["explain", "pout_nobody"],
        ["hold", "approve", "pout_nobody", "--by", "asha", "--reason", "x"],
        ["policy", "show", "nobody"],
        ["dead", "redrive", "0:1-1"],
        ["dead", "discard", "0:1-1", "--yes"],
    ],
    ids=" ".join,
)
def test_a_job_whose_answer_is_no_exits_1_with_one_line(
    system: str, failing: list[str], capsys: pytest.CaptureFixture[str]
):
    assert run(failing) == 1
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith("streamproc: ")


@pytest.mark.parametrize(
    "asking",
    [
        ["hold", "list"],
        ["groups"],
        ["log", "stats"],
        ["dead", "list"],
        ["policy", "show"],
    ],
    ids=" ".join,
)
def test_json_is_one_document_on_stdout(system: str, asking: list[str], capsys: pytest.CaptureFixture[str]):
    assert run([*asking, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert run(asking) == 0
    assert capsys.readouterr().out.strip()


def test_groups_json_has_the_fields_that_scripts_rely_on(system: str, capsys: pytest.CaptureFixture[str]):
    assert run(["groups", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    groups = ["governance", "execution", "notification"]
    assert [(row["partition"], row["group"]) for row in rows] == [(0, group) for group in groups]
    assert all({"lag", "pending", "oldest_ms", "consumers"} <= row.keys() for row in rows)


def test_a_policy_file_is_applied_once_and_its_fields_are_told(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "policies.yaml"
    file.write_text(POLICIES)
    assert run(["policy", "apply", str(file), "--by", "asha", "--why", "first"]) == 0
    assert capsys.readouterr().out == "agent:bot added, version 1\n  daily_limit: not set -> 1000\n"
    assert run(["policy", "apply", str(file)]) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert run(["policy", "apply", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert run(["policy", "history", "bot", "--json"]) == 0
    [change] = json.loads(capsys.readouterr().out)["changes"]
    assert (change["version"], change["by"], change["why"]) == (1, "asha", "first")


def test_a_limit_whose_window_was_not_counted_before_says_so(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "policies.yaml"
    for text in (POLICIES, "policies: {bot: {daily_limit: 2_000, weekly_limit: 9_000}}"):
        file.write_text(text)
        assert run(["policy", "apply", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "agent:bot changed, version 2",
        "  daily_limit: 1000 -> 2000",
        "  weekly_limit: not set -> 9000 (counts from now on, nothing of what its first window had before)",
    ]


def test_a_limit_is_said_to_begin_counting_only_where_payouts_before_it_are_not_counted(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What is new has paid nothing before, an agent's day is always counted, and a limit that was there has counted."""
    file = tmp_path / "policies.yaml"
    for text in (
        "policies: {bot: {weekly_limit: 9_000}}",
        "policies: {bot: {weekly_limit: 8_000, daily_limit: 700}}\nteams: {red: {daily_limit: 5_000}}",
    ):
        file.write_text(text)
        assert run(["policy", "apply", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "agent:bot added, version 1",
        "  weekly_limit: not set -> 9000",
        "agent:bot changed, version 2",
        "  daily_limit: not set -> 700",
        "  weekly_limit: 9000 -> 8000",
        "team:red added, version 1",
        "  daily_limit: not set -> 5000 (counts from now on, nothing of what its first window had before)",
    ]


def test_a_policy_file_with_a_mistake_exits_2_names_the_line_and_changes_nothing(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "policies.yaml"
    file.write_text("policies:\n  bot:\n    daily_limit: -1\n")
    assert run(["policy", "apply", str(file)]) == 2
    assert "3" in capsys.readouterr().err
    assert run(["policy", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"policies": []}


def test_a_policy_file_without_an_end_is_refused_before_memory_is_full(
    system: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["policy", "apply", "/dev/zero", "--dry-run"]) == 2
    assert "/dev/zero has more than 4194304 bytes" in capsys.readouterr().err


def test_log_tail_prints_one_json_object_a_line(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "policies.yaml"
    for limit in (1_000, 2_000):
        file.write_text(f"policies: {{bot: {{daily_limit: {limit}}}}}")
        assert run(["policy", "apply", str(file)]) == 0
    capsys.readouterr()
    assert run(["log", "tail", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["events"][0]["type"] for line in lines] == ["policy.changed", "policy.changed"]


def test_many_dead_letters_are_redriven_at_once_and_one_that_is_gone_keeps_none_back(
    system: str, capsys: pytest.CaptureFixture[str]
):
    from redis import Redis

    with Redis.from_url(system) as client:
        entries = [client.xadd(Names(0).log, {"e": "[]", "m": "{}"}) for _ in range(2)]
        letter = {"group": "governance", "e": "[]", "m": "{}", "problem": "p"}
        ids = [f"0:{client.xadd(Names(0).dead, {'entry': one, **letter}).decode()}" for one in entries]
        assert run(["dead", "redrive", *ids, "nonsense"]) == 2
        assert client.xlen(Names(0).dead) == 2
        capsys.readouterr()
        assert run(["dead", "redrive", "0:7-7", *ids]) == 1
        assert client.xlen(Names(0).dead) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ids
    assert said.err.splitlines() == ["streamproc: there is no dead letter 0:7-7 (any more)"]


def test_dead_letters_beyond_the_limit_are_counted_beside_the_answer(
    system: str, capsys: pytest.CaptureFixture[str]
):
    from redis import Redis

    with Redis.from_url(system) as client:
        for entry in ("1-1", "2-1", "3-1"):
            client.xadd(Names(0).dead, {"entry": entry, "group": "g", "e": "[]", "m": "{}", "problem": "p"})
    assert run(["dead", "list", "--limit", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert [letter["entry"] for letter in json.loads(said.out)] == ["0:1-1"]
    assert said.err == "note: there are 2 more, newer ones: --limit 1000 shows so many of each partition\n"
    assert run(["dead", "list", "--limit", "3"]) == 0
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "status", "left"),
    [(Terminal(), 1, 1), (Terminal("n\n"), 1, 1), (Terminal("y\n"), 0, 0), (io.StringIO(), 0, 0)],
    ids=["no answer", "no", "yes", "a script, which nobody asks"],
)
def test_a_person_who_does_not_say_yes_discards_nothing(
    system: str, monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO, status: int, left: int
):
    from redis import Redis

    with Redis.from_url(system) as client:
        letter = client.xadd(
            Names(0).dead, {"entry": "1-1", "group": "g", "e": "[]", "m": "{}", "problem": "p"}
        )
        monkeypatch.setattr("sys.stdin", stdin)
        assert run(["dead", "discard", f"0:{letter.decode()}"]) == status
        assert client.xlen(Names(0).dead) == left


def in_a_shell(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A run as an operator starts it, with nothing configured but `env`."""
    command = [sys.executable, "-m", "streamproc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_a_role_without_its_settings_exits_2_and_names_them_in_one_line():
    done = in_a_shell("worker")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "STREAMPROC_REDIS_URL" in line
    assert "STREAMPROC_SAFE_BROWSING_KEY" in line


def test_redis_away_is_one_line_and_exit_1_and_shows_no_password(tmp_path: Path):
    env = {"STREAMPROC_REDIS_URL": "redis://:hunter2@127.0.0.1:1/0", "STREAMPROC_DATA_DIR": str(tmp_path)}
    done = in_a_shell("groups", **env)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "Redis is away" in line
    assert "hunter2" not in done.stderr


def test_a_password_that_redis_refuses_is_called_that(redis_url: str, tmp_path: Path):
    url = redis_url.replace("redis://", "redis://nobody:hunter2@", 1)
    done = in_a_shell("groups", STREAMPROC_REDIS_URL=url, STREAMPROC_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        "streamproc: Redis refuses the user or the password of STREAMPROC_REDIS_URL\n",
    )


def test_a_database_that_redis_does_not_have_is_a_wrong_setting(redis_url: str, tmp_path: Path):
    url = redis_url.rpartition("/")[0] + "/9999"
    done = in_a_shell("groups", STREAMPROC_REDIS_URL=url, STREAMPROC_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "STREAMPROC_REDIS_URL names a database that the server does not have" in line


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["nothing-of-ours"], "streamproc: No such command 'nothing-of-ours'; see streamproc --help"),
        (
            ["pay", "--amount", "x"],
            "streamproc pay: Invalid value for '--amount': 'x' is no whole number of paise from 100 to ",
        ),
        *[
            (
                ["pay", "--amount", wrong],
                f"streamproc pay: Invalid value for '--amount': '{wrong}' is no whole",
            )
            for wrong in ("2500.50", "1_000", " 800", "१०००", "8e5", "-800", "9" * 30)
        ],
        (["hold", "approve"], "streamproc hold approve: Missing argument 'PAYOUT'; see"),
        (["explain", "pout_\udcff"], "streamproc explain: Invalid value for 'PAYOUT': it is not UTF-8 text;"),
        (
            ["freeze", "bot", "--why", "\udcff"],
            "streamproc freeze: Invalid value for '--why': it is not UTF-8",
        ),
        (
            ["pay", "--amount", "0", "--to", "fa_1"],
            "streamproc pay: Invalid value for '--amount': '0' is no whole number of paise from 100 to ",
        ),
        (["pay", "--amount", "100", "--to", "fa_1", "--note", "a"], "streamproc: --note must be NAME=TEXT"),
        (
            ["pay", "--amount", "100", "--to", "fa_1", "--note", "a=\udcff"],
            "streamproc pay: Invalid value for '--n",
        ),
    ],
)
def test_wrong_use_is_said_in_one_line(asked: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert run(asked) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_every_text_that_a_command_takes_must_be_text():
    def params(command: click.Command) -> Iterator[click.Parameter]:
        yield from command.params
        for below in getattr(command, "commands", {}).values():
            yield from params(below)

    found = list(params(cli.cli))
    assert [param.name for param in found if param.type is click.STRING] == []
    assert sum(isinstance(param.type, Text) for param in found) > 50


def test_an_answer_that_cannot_be_written_is_one_line_and_exit_1():
    command = [sys.executable, "-m", "streamproc", "--help"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "streamproc: the answer cannot be written: No space left on device\n",
    )


A_TABLE = (
    "import click; from streamproc import cli; from streamproc.cli import output;"
    "cli.cli.add_command(click.Command('t', callback=lambda: output.say_table('A', [['x']], empty='')));"
    "raise SystemExit(cli.run(['t']))"
)


@pytest.mark.parametrize("asked", [["-m", "streamproc", "--help"], ["-c", A_TABLE]], ids=["help", "table"])
def test_a_reader_that_had_enough_is_no_failure(asked: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, *asked], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_descriptors_were_closed_before_ends_as_ever(closed, tmp_path):
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "streamproc")
    env = {**os.environ, "STREAMPROC_REDIS_URL": "redis://127.0.0.1:9", "STREAMPROC_DATA_DIR": str(tmp_path)}
    assert subprocess.run([*shell, "hold", "nope"], env=env, check=False).returncode == 2
    assert (
        subprocess.run(
            [*shell, "audit", "key", "--new", str(tmp_path / "key")], env=env, check=False
        ).returncode
        == 0
    )
    assert (tmp_path / "key").exists()


def test_a_socket_never_gets_the_number_of_a_descriptor_that_was_closed_before():
    code = (
        "import os, socket; from streamproc.cli.output import reserve_descriptors; reserve_descriptors();"
        " reserve_descriptors(); os._exit(socket.socket().fileno())"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert done.returncode == 3


def test_a_table_for_a_stdout_that_was_closed_before_is_said_to_nobody():
    closed = [*("sh", "-c", 'exec "$0" -c "$1" >&-'), sys.executable, A_TABLE]
    done = subprocess.run(closed, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_terminal_has_no_letter_for_is_escaped():
    program = (
        "from streamproc.cli import output as o; o.escape_unencodable(); o.say_table('A', [['₹8']], empty='')"
    )
    env = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split() == ["A", r"\u20b98"]


def test_a_table_that_goes_into_a_pipe_folds_nothing(capsys: pytest.CaptureFixture[str]):
    ids = ["pout_" + letter * 60 for letter in "abcdef"]
    output.say_table(["ID"] * len(ids), [ids], empty="")
    assert capsys.readouterr().out.splitlines()[1].split() == ids


def test_no_entry_at_all_can_be_asked_for(system: str, capsys: pytest.CaptureFixture[str]):
    assert run(["log", "tail", "-n", "0"]) == 0
    assert capsys.readouterr().out == ""


def test_a_payee_nested_deeper_than_python_goes_is_refused(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, token = tmp_path / "deep.json", tmp_path / "token"
    file.write_text('{"a":' * 12_000)
    token.write_text("spt_x")
    assert run(["pay", "--amount", "800", "--to", str(file), "--token", str(token)]) == 2
    assert "must hold one JSON object" in capsys.readouterr().err


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        yield str(busy.getsockname()[1])


@pytest.mark.parametrize("role", ["serve", "sandbox"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "192.0.2.1", "a..b"])
def test_where_nobody_can_listen_is_one_line_and_exit_2(
    role: str, host: str, taken_port: str, redis_url: str, tmp_path: Path
):
    prefix = {"serve": "STREAMPROC_", "sandbox": "SANDBOX_"}[role]
    told = {
        "STREAMPROC_REDIS_URL": redis_url,
        "STREAMPROC_RAZORPAY_WEBHOOK_SECRETS": "hunter2",
        "STREAMPROC_DATA_DIR": str(tmp_path),
        f"{prefix}HOST": host,
        f"{prefix}PORT": taken_port,
    }
    done = in_a_shell(role, **told)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert host in line
    assert f"{prefix}PORT" in line


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"STREAMPROC_SANDBOX_PORT": "{port}"}, True),
        ({"STREAMPROC_SANDBOX_PORT": "{port}", "SANDBOX_PORT": ""}, True),
        ({"STREAMPROC_SANDBOX_PORT": "1", "SANDBOX_PORT": "{port}"}, True),
        ({"STREAMPROC_SANDBOX_PORT": "none"}, False),
    ],
)
def test_the_sandbox_alone_listens_where_it_does_under_up(
    given: dict[str, str], taken: bool, taken_port: str
) -> None:
    done = in_a_shell("sandbox", **{name: value.format(port=taken_port) for name, value in given.items()})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert (f"SANDBOX_PORT {taken_port}" in line) == taken
    assert "SANDBOX_PORT" in line


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://h", "http://h:x"])
def test_a_url_that_is_none_is_wrong_use(url: str, system: str, tmp_path: Path):
    (tmp_path / "token").write_text("spt_x")
    asked = ["pay", "--amount", "800", "--to", "fa_1", "--token", str(tmp_path / "token"), "--url", url]
    assert run(asked) == 2


def test_an_operator_without_a_running_system_is_told_how_to_reach_one(tmp_path: Path):
    done = in_a_shell("hold", "list", STREAMPROC_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "no `streamproc up` runs" in done.stderr
    assert "STREAMPROC_REDIS_URL" in done.stderr


def test_an_operator_is_told_that_the_system_is_starting(tmp_path: Path):
    """It holds the directory, and says where its stores are when they are ready."""
    with (tmp_path / "up.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["hold", "list"], ["audit", "verify"]):
            done = in_a_shell(*command, STREAMPROC_DATA_DIR=str(tmp_path))
            assert done.returncode == 2
            assert f"a streamproc (pid 4711) on {tmp_path} starts or stops" in done.stderr
            assert "no `streamproc up` runs" not in done.stderr


def test_an_operator_is_told_that_the_system_has_a_store_of_its_own(tmp_path: Path):
    """`up` names in its run file the stores that it started, and no others: it is not about to start then."""
    write_run_file(load({"STREAMPROC_DATA_DIR": str(tmp_path)}), {"STREAMPROC_PORT": "8080"})
    with (tmp_path / "up.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command, variable in ((["hold", "list"], "REDIS_URL"), (["audit", "verify"], "POSTGRES_DSN")):
            done = in_a_shell(*command, STREAMPROC_DATA_DIR=str(tmp_path))
            assert done.returncode == 2
            named = f"the streamproc (pid 4711) on {tmp_path} has its own STREAMPROC_{variable}: set that here too"
            assert named in done.stderr


def test_a_reader_that_had_enough_ends_the_command_quietly(system: str):
    command = [sys.executable, "-m", "streamproc", "log", "tail", "--follow"]
    env = {"STREAMPROC_REDIS_URL": system}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        from redis import Redis

        with Redis.from_url(system) as client:
            process.stdout.close()
            for _ in range(600):  # one line may still fit into the pipe's end; the next one meets nobody
                client.xadd(Names(0).log, {"e": "[]", "m": "{}"})
                try:
                    process.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        assert process.wait(timeout=1) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""

"""Every command asks alike for who does something and why, and refuses alike what the audit could not keep."""

import getpass
import os
import pwd

import pytest

from streamproc.cli import person, run
from streamproc.domain.attribution import NAME_CHARS_MAX, WHY_CHARS_MAX, read_name, read_reason

ASKED = [
    ["freeze", "agent", "bot"],
    ["unfreeze", "team", "ops"],
    ["hold", "approve", "pout_1"],
    ["log", "disown", "0:1-1", "--yes"],
    ["dead", "redrive", "0:1-1"],
    ["dead", "discard", "0:1-1", "--yes"],
    ["policy", "withdraw", "prop_0123456789abcdef"],
    ["policy", "patch", "bot", "-"],
]


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gets past the options would end with 1 here: nobody listens."""
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1")


def why_of(command: list[str]) -> str:
    return "--reason" if command[0] == "hold" else "--why"


@pytest.mark.parametrize("command", ASKED, ids=" ".join)
@pytest.mark.parametrize(
    ("by", "why", "problem"),
    [
        (" ", "a reason", "--by is blank: it must say who does it"),
        ("x" * (NAME_CHARS_MAX + 1), "a reason", "--by has 65 characters, the limit is 64"),
        ("asha", "\n", "is blank: it must say why"),
        ("asha", "x" * (WHY_CHARS_MAX + 1), "has 501 characters, the limit is 500"),
    ],
)
def test_a_name_or_a_reason_that_the_audit_cannot_keep_is_wrong_use(
    command: list[str], by: str, why: str, problem: str, capsys: pytest.CaptureFixture[str]
):
    assert run([*command, "--by", by, why_of(command), why]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert len(error.splitlines()) == 1


def test_what_a_terminal_would_obey_is_not_kept():
    assert read_name(" asha\x1b[2J ", called="--by") == "asha\ufffd[2J"
    assert read_reason("paid\ntwice", called="--why") == "paid twice"


def test_the_shell_is_the_login_of_the_process_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOGNAME", "vikram")
    monkeypatch.setenv("USER", "vikram")
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    assert person.shell() == f"cli:{pwd.getpwuid(os.getuid()).pw_name}@laptop"


def test_the_shell_is_short_and_plain_also_where_the_host_has_any_name_and_the_user_none(
    monkeypatch: pytest.MonkeyPatch,
):
    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("os.getuid", lambda: 4242)
    monkeypatch.setattr("socket.gethostname", lambda: "h\x1b" + "x" * 100)
    assert person.shell() == "cli:uid-4242@h\ufffd" + "x" * (person.HOST_CHARS_MAX - 2)


def test_a_user_without_a_login_name_is_asked_for_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As in a container that runs as a number that no passwd file has."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert run(["dead", "redrive", "0:1-1"]) == 2
    assert "--by NAME" in capsys.readouterr().err

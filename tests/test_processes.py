"""Why a server ended, by its log."""

from pathlib import Path

import pytest

from streamproc import processes


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "it printed nothing"),
        (
            "one\n# Can't recover from AOF write error. Exiting...\n",
            "# Can't recover from AOF write error. Exiting...",
        ),
        (
            'UTC [1] FATAL:  could not create lock file "postmaster.pid": No space left on device\n'
            "UTC [1] LOG:  database system is shut down\n",
            'UTC [1] FATAL:  could not create lock file "postmaster.pid": No space left on device',
        ),
        (
            "UTC [2] PANIC:  could not write to file: No space left on device\n"
            "UTC [3] FATAL:  the database system is starting up\n"
            "UTC [1] LOG:  database system is shut down\n",
            "UTC [2] PANIC:  could not write to file: No space left on device",
        ),
        (
            "UTC [3] FATAL:  the database system is starting up\nUTC [1] LOG:  database system is shut down\n",
            "UTC [1] LOG:  database system is shut down",
        ),
        (
            "UTC [4] FATAL:  terminating connection due to administrator command\n"
            "UTC [1] LOG:  database system is shut down\n",
            "UTC [1] LOG:  database system is shut down",
        ),
    ],
    ids=["nothing", "valkey", "fatal", "panic", "said to a client", "a client's session"],
)
def test_why_a_server_ended_is_the_line_that_says_it_best(tmp_path: Path, said: str, why: str) -> None:
    (tmp_path / "log").write_text(said)
    assert processes.why_it_ended(tmp_path / "log") == why


@pytest.mark.parametrize(
    ("free", "added"), [(0, " (the disk of {} is full)"), (processes.ROOM_BYTES, "")], ids=["full", "room"]
)
def test_why_a_server_ended_names_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, added: str
) -> None:
    """On a full disk Valkey's last line is of the policy by which it ends, and what came first is `Short write`."""
    (tmp_path / "log").write_text("# Can't recover from AOF write error. Exiting...\n")
    monkeypatch.setattr(processes.shutil, "disk_usage", lambda _: type("Disk", (), {"free": free}))
    said = f"# Can't recover from AOF write error. Exiting...{added.format(tmp_path)}"
    assert processes.why_it_ended(tmp_path / "log") == said

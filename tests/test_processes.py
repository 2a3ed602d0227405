"""The sockets on which a server listens, and why one ended."""

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from streamproc import processes
from streamproc.errors import ConfigError
from tests.ports import free_port

V4, V6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A host with two addresses. Binding those of a listed family fails, as if no interface had them."""
    absent: list[int] = []
    bind = processes._bound

    def bound(family: int, address: tuple[Any, ...]) -> socket.socket:
        if family in absent:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return bind(family, address)

    def addresses(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(family, socket.SOCK_STREAM, 6, "", (name, port)) for family, name in (V6, V4)]

    monkeypatch.setattr(processes, "_bound", bound)
    monkeypatch.setattr(processes.socket, "getaddrinfo", addresses)
    return absent


def test_an_address_that_this_machine_does_not_have_is_left_out(two_addresses: list[int]) -> None:
    """`localhost` in a container without IPv6."""
    two_addresses.append(socket.AF_INET6)
    port = free_port()
    with processes.bound("both", port, "STREAMPROC_") as sockets:
        assert [each.getsockname() for each in sockets] == [("127.0.0.1", port)]


def test_a_host_of_which_this_machine_has_no_address_is_refused(two_addresses: list[int]) -> None:
    two_addresses += [socket.AF_INET6, socket.AF_INET]
    with pytest.raises(ConfigError, match=r"of both cannot be listened on.*set STREAMPROC_PORT"):
        processes.bound("both", 1, "STREAMPROC_").__enter__()


def test_a_port_that_is_taken_at_one_of_the_addresses_is_refused(two_addresses: list[int]) -> None:
    two_addresses.append(socket.AF_INET6)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="Address already in use"),
    ):
        processes.bound("both", taken.getsockname()[1], "STREAMPROC_").__enter__()


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

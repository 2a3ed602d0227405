"""The sockets on which a server listens."""

import errno
import socket
from typing import Any

import pytest

from streamproc import ports
from streamproc.errors import ConfigError
from tests.ports import free_port

V4, V6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A host with two addresses. Binding those of a listed family fails, as if no interface had them."""
    absent: list[int] = []
    bind = ports._bound

    def bound(family: int, address: tuple[Any, ...]) -> socket.socket:
        if family in absent:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return bind(family, address)

    def addresses(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(family, socket.SOCK_STREAM, 6, "", (name, port)) for family, name in (V6, V4)]

    monkeypatch.setattr(ports, "_bound", bound)
    monkeypatch.setattr(ports.socket, "getaddrinfo", addresses)
    return absent


def test_an_address_that_this_machine_does_not_have_is_left_out(two_addresses: list[int]) -> None:
    """`localhost` in a container without IPv6."""
    two_addresses.append(socket.AF_INET6)
    port = free_port()
    with ports.bound("both", port, "STREAMPROC_") as sockets:
        assert [each.getsockname() for each in sockets] == [("127.0.0.1", port)]


def test_a_host_of_which_this_machine_has_no_address_is_refused(two_addresses: list[int]) -> None:
    two_addresses += [socket.AF_INET6, socket.AF_INET]
    with pytest.raises(ConfigError, match=r"of both cannot be listened on.*set STREAMPROC_PORT"):
        ports.bound("both", 1, "STREAMPROC_").__enter__()


def test_a_port_that_is_taken_at_one_of_the_addresses_is_refused(two_addresses: list[int]) -> None:
    two_addresses.append(socket.AF_INET6)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="Address already in use"),
    ):
        ports.bound("both", taken.getsockname()[1], "STREAMPROC_").__enter__()

"""How many connections a server has at once, and which of them makes room for a new one.

Each may hold a head and a body that nobody has checked yet. Without a limit, whoever reaches the port could take all
memory and every descriptor with bodies that do not end. Of too many the server does not refuse the new one, which may
be honest: it closes the one that has let it wait the longest.
"""

import resource
from typing import Final, Protocol

from streamproc.ingress.refusals import ThrottledWarning

CONNECTIONS_MAX: Final = 512
"""At once. Four times what is handled at once; with half a body in each they take some 200 MB."""
DESCRIPTORS_SHARE: Final = 2
"""At most one in so many of the process's descriptors is a client's: others are needed for Redis and Postgres."""


class Connection(Protocol):
    """A client's connection."""

    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest, or to read what was answered."""
        ...

    def make_room(self) -> None:
        """Close it now."""
        ...


def connections_max() -> int:
    """The limit in this process: fewer than CONNECTIONS_MAX where it may open few descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, soft // DESCRIPTORS_SHARE)
    )


class ConnectionLimit:
    """The connections of a server, in the order in which it began to wait for them; at most `most`."""

    def __init__(self, most: int, closed: ThrottledWarning) -> None:
        self.most = most
        self._closed = closed
        self._connections: dict[Connection, None] = {}

    def join(self, one: Connection) -> bool:
        """Take a new connection in. False: there is no room, since all others are being answered; it must be closed."""
        if len(self._connections) >= self.most:
            self._closed.count()
            # Rarely more than one is looked at: what is being answered was asked by a client that did its part.
            longest = next((one for one in self._connections if one.waits_for_client()), None)
            if longest is None:
                return False
            del self._connections[longest]
            longest.make_room()
        self._connections[one] = None
        return True

    def answered(self, one: Connection) -> None:
        """It has had its answer, and is waited for anew."""
        if one in self._connections:
            del self._connections[one]
            self._connections[one] = None

    def leave(self, one: Connection) -> None:
        """It is closed."""
        self._connections.pop(one, None)

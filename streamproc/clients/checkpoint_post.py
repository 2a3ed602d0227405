"""Publishes checkpoints to an HTTP endpoint: each note is one POST of text/plain."""

from urllib.parse import urlsplit, urlunsplit

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient, OverHttp
from streamproc.clients.limiter import Limiter
from streamproc.errors import TryAgain

TIMEOUT_S = 10.0
"""For a whole POST. No payout waits for it."""
POSTS_PER_S = 20.0
"""More than all partitions make together; an endpoint that was away gets what it missed at this rate."""
POSTS_BURST = 20


def open_checkpoint_post(url: str, *, token: str = "") -> "CheckpointPost":
    """The endpoint at an http(s) URL. `token` is its bearer token, or empty. Close it with `aclose`."""
    parts = urlsplit(url)
    http = OutboundClient(
        "checkpoints",
        urlunsplit((parts.scheme, parts.netloc, "", "", "")),
        timeout_s=TIMEOUT_S,
        limiter=Limiter(POSTS_PER_S, POSTS_BURST),
        breaker=Breaker(),
    )
    return CheckpointPost(http, parts.path or "/", url, token)


class CheckpointPost(OverHttp):
    """The endpoint. It may get a note twice: after a lost answer the note is sent again."""

    def __init__(self, http: OutboundClient, path: str, url: str, token: str) -> None:
        super().__init__(http)
        self._path = path
        self._headers = {"content-type": "text/plain; charset=utf-8"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self.where = url

    async def put(self, note: str) -> None:
        """Hand a note over. Raises TryAgain for anything but a 2xx."""
        answer = await self._http.call("POST", self._path, headers=self._headers, content=note.encode())
        if answer.status >= 300:
            raise TryAgain(f"{self.where} answered {answer.status}")

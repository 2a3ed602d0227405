"""The page for people at `/console/`: what waits, a payout's story, and an answer to a hold (ADR 36).

Three static files. They ask this API from the reader's browser with the reader's own token, so they can do no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.responses import Response

from streamproc.api.operations import Call, Handler, Operation, Says
from streamproc.domain.console import PATH

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
}
"""The page runs its own script alone, asks its own server alone, and cannot make markup of a text."""
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
}
"""Path under PATH -> file, content type."""
_HERE = Path(__file__).parent


def console_operations() -> list[Operation]:
    """The routes. They need no token: the files hold nothing."""

    async def redirected(_call: Call) -> Response:
        # Relative, since a proxy may serve the API under a path of its own.
        return Response("console/", 308, {"location": "console/"}, media_type="text/plain")

    there = Says(
        "It is there", {"type": "string"}, {"Location": "`console/`"}, ("text/plain; charset=utf-8",)
    )
    return [
        Operation(
            method="GET", path=PATH.rstrip("/"), name="findConsole", summary="Leads to the page for people",
            action=None, handle=redirected, says={308: there},
        ),
        *(_file(path, *found) for path, found in FILES.items()),
    ]  # fmt: skip


def _file(path: str, file: str, media: str) -> Operation:
    content = (_HERE / file).read_bytes()

    async def sent(_call: Call) -> Response:
        return Response(content, headers=HEADERS, media_type=media)

    handle: Handler = sent
    return Operation(
        method="GET", path=f"{PATH}{path}", name=f"showConsole{file.partition('.')[2].capitalize()}",
        summary=f"The page for people: {file}", action=None, handle=handle,
        says={200: Says("The file", {"type": "string"}, media=(media,))},
    )  # fmt: skip

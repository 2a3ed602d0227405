"""The bank's token endpoint: gives an access token for a refresh token, which is valid once and is replaced."""

import hmac
import random
import string
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.sandbox.config import SandboxConfig

CHARACTERS = string.ascii_letters + string.digits
TOKEN_CHARS = 40


class Tokens:
    """The one valid access token, and the one refresh token that gives the next."""

    def __init__(self, config: SandboxConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self.access = config.oauth_token
        self.refresh = config.oauth_refresh_token
        self.given = 0

    def fits(self, token: str) -> bool:
        """Whether this is the valid access token."""
        return hmac.compare_digest(token.encode(), self.access.encode())

    def expire(self) -> None:
        """Make the access token expire."""
        self.access = self._new()

    async def answer(self, request: Request) -> Response:
        """`POST /oauth/token` with grant_type refresh_token."""
        fields = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        wanted = {
            "grant_type": "refresh_token",
            "client_id": self._config.oauth_client_id,
            "client_secret": self._config.oauth_client_secret,
            "refresh_token": self.refresh,
        }
        if any(not hmac.compare_digest(fields.get(n, "").encode(), v.encode()) for n, v in wanted.items()):
            error = {"code": "BAD_REQUEST_ERROR", "description": "The refresh token is invalid"}
            return JSONResponse({"error": error}, 400)
        self.access, self.refresh = self._new(), self._new()
        self.given += 1
        answer = {"token_type": "Bearer", "expires_in": self._config.oauth_expires_s}
        return JSONResponse({**answer, "access_token": self.access, "refresh_token": self.refresh})

    def _new(self) -> str:
        return "".join(self._rng.choices(CHARACTERS, k=TOKEN_CHARS))

"""The bank's OAuth token, kept fresh: renewed before it expires, and once when the bank refuses it.

The bank may give a new refresh token with each access token and void the old one, so the newest pair must survive a
restart and be known to every process. It is kept in a vault that all share, sealed (AES-GCM) with a key derived from
the client's secret, which is not in the vault: the vault alone is of no use to a thief.
"""

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Protocol, TypeGuard
from urllib.parse import urlencode

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta, Struct

from streamproc.clients.http import OutboundClient
from streamproc.clients.json_text import NotJson, decode_json
from streamproc.errors import LogUnavailable, TryAgain

REFRESH_BEFORE_S = 86_400
"""A token is renewed this long before it expires, or in the last tenth of a shorter life."""
REFUSED_AFTER_S = 60.0
"""Wait after the bank refused the refresh token: a person must authorize again, and payouts wait for that."""
LIFE_S = 3600
"""Assumed life of a token if the bank names none. If it is refused earlier, it is renewed then."""
LIFE_S_MAX = 2**40
"""A longer one is taken for none."""
NONCE_BYTES = 12

_Life = Annotated[int, Meta(gt=0, le=LIFE_S_MAX)]
_TOKEN = re.compile("[ -~]+")
"""The characters of RFC 6749, appendix A; with others it could not be sent."""

log = logging.getLogger(__name__)


class Vault(Protocol):
    """Keeps one sealed text for all processes (streamproc/log/vault.py). Raises LogUnavailable."""

    async def load(self) -> bytes | None: ...
    async def save(self, sealed: bytes) -> None: ...
    def lease(self) -> AbstractAsyncContextManager[bool]:
        """Lets one process at a time renew; False: another one has the lease."""
        ...


class TokenPair(Struct, frozen=True):
    """Access and refresh token as the bank gave them. Times are Unix seconds."""

    access: str
    refresh: str
    given_at: int
    expires_at: int

    def is_old(self, now_s: float) -> bool:
        """Whether it is time to renew it."""
        life_s = self.expires_at - self.given_at
        return now_s > self.expires_at - min(REFRESH_BEFORE_S, life_s / 10)


class TokenKeeper:
    """Gives the current access token. `first` is the configured one, or empty."""

    def __init__(
        self,
        http: OutboundClient,
        vault: Vault,
        *,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        first: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http = http
        self._vault = vault
        self._client = {"client_id": client_id, "client_secret": client_secret}
        self._configured = refresh_token
        self._first = first
        self._clock = clock
        self._pair: TokenPair | None = None
        self._unsaved: TokenPair | None = None
        """Given by the bank, and perhaps not in the vault yet: it is saved before anything else."""
        self._has_looked = False
        self._busy = asyncio.Lock()
        self._getting: set[asyncio.Task[str]] = set()
        """Holds tasks, which the loop itself does not."""
        key = HKDF(SHA256(), 32, salt=None, info=b"streamproc oauth token").derive(client_secret.encode())
        self._cipher = AESGCM(key)
        self._bound_to = client_id.encode()

    async def token(self, *, refused: str = "") -> str:
        """The token to send. `refused`: a token that the bank did not take. Raises TryAgain if there can be none."""
        # Whoever waits for it may be cancelled at any moment. A pair that the bank has just given must be kept even so.
        getting = asyncio.create_task(self._get(refused), name="oauth-token")
        self._getting.add(getting)
        getting.add_done_callback(self._getting.discard)
        return await asyncio.shield(getting)

    async def _get(self, refused: str) -> str:
        async with self._busy:
            if self._unsaved is not None or not self._is_good(self._pair, refused):
                try:
                    await self._renew(refused)
                except LogUnavailable as problem:
                    raise TryAgain(f"the bank's token cannot be looked up: {problem}") from problem
        return self._pair.access if self._pair is not None else self._first

    def _is_good(self, pair: TokenPair | None, refused: str) -> bool:
        """Whether to use what we have. If the vault is empty, the configured token is good until it is refused."""
        if pair is None:
            return self._has_looked and bool(self._first) and not refused
        return pair.access != refused and not pair.is_old(self._clock())

    async def _renew(self, refused: str) -> None:
        """Take the pair that another process got, or get a new one."""
        self._pair = self._open(await self._vault.load())
        self._has_looked = True
        if self._unsaved is None and self._is_good(self._pair, refused):
            return
        async with self._vault.lease() as is_ours:
            if not is_ours:
                raise TryAgain("another process is getting a new token from the bank", after_s=1.0)
            self._pair = self._open(await self._vault.load())
            if self._unsaved is not None:
                await self._save_late(self._unsaved)
            if not self._is_good(self._pair, refused):
                self._pair = await self._exchange(self._pair)

    async def _save_late(self, given: TokenPair) -> None:
        """Save a pair that could not be saved when it came, unless another process got a later one meanwhile."""
        if self._pair is None or self._pair.given_at <= given.given_at:
            await self._vault.save(self._seal(given))
            self._pair = given
        self._unsaved = None

    async def _exchange(self, pair: TokenPair | None) -> TokenPair:
        refresh = pair.refresh if pair is not None else self._configured
        form = urlencode({"grant_type": "refresh_token", "refresh_token": refresh, **self._client}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = await self._http.call("POST", "/token", headers=headers, content=form)
        if answer.status >= 400:
            problem = (
                f"the bank refuses the OAuth refresh token with {answer.status}; authorize anew and set"
                " STREAMPROC_RAZORPAY_OAUTH_REFRESH_TOKEN"
            )
            log.error("%s", problem)
            raise TryAgain(problem, after_s=REFUSED_AFTER_S)
        access, given, life_s = _read(answer.body)
        now_s = int(self._clock())
        fresh = TokenPair(access, given or refresh, now_s, now_s + life_s)
        # At once: if this pair is lost, the old refresh token may be void, and a person has to authorize again.
        self._unsaved = fresh
        await self._vault.save(self._seal(fresh))
        self._unsaved = None
        log.info("the bank gave a new OAuth token, valid for %d s", life_s)
        return fresh

    def _seal(self, pair: TokenPair) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, msgspec.json.encode(pair), self._bound_to)

    def _open(self, sealed: bytes | None) -> TokenPair | None:
        """The sealed pair; None if there is none, or if another client's secret sealed it."""
        if not sealed:
            return None
        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound_to)
            return msgspec.json.decode(plain, type=TokenPair)
        except (InvalidTag, ValueError):
            log.warning("the stored OAuth token was sealed with another client secret and is not used")
            return None


def _read(body: bytes) -> tuple[str, str, int]:
    """Access token, refresh token (or empty) and life (s) in the bank's answer. Raises TryAgain if there is no access
    token. Else it is read leniently: a refresh token is spent, so whatever can be understood must be kept."""
    try:
        said = decode_json(body)
    except NotJson:
        said = None
    given = said if isinstance(said, dict) else {}
    access, refresh = given.get("access_token"), given.get("refresh_token")
    if not _is_token(access):
        raise TryAgain("the bank's answer to a refresh token cannot be read")
    try:
        life_s = msgspec.convert(given.get("expires_in"), _Life, strict=False)
    except msgspec.ValidationError:
        life_s = LIFE_S
    return access, refresh if _is_token(refresh) else "", life_s


def _is_token(said: object) -> TypeGuard[str]:
    return isinstance(said, str) and _TOKEN.fullmatch(said) is not None


def vault_name(refresh_token: str) -> str:
    """The vault's name, which depends on the configured refresh token, so that a new one starts afresh."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:16]

"""What is made of the bank's answer to a refresh token: the token is used for its life, and the next one is asked for
in time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest

from streamproc.clients.http import Answer
from streamproc.clients.oauth import LIFE_S, TokenKeeper
from streamproc.errors import LogUnavailable, TryAgain


class Auth:
    """The bank's token endpoint: `answers` in turn, and the refresh tokens that it was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.sent = list(answers), list[str]()

    async def call(self, *_: str, content: bytes, **__: Any) -> Answer:
        self.sent += parse_qs(content.decode())["refresh_token"]
        answer = self.answers.pop(0)
        return Answer(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())


class Shelf:
    """A vault in memory. `is_free`: nobody else is renewing the token; `is_away`: nothing can be saved."""

    def __init__(self, *, is_free: bool = True) -> None:
        self.kept: bytes | None = None
        self.is_free, self.is_away = is_free, False

    async def load(self) -> bytes | None:
        return self.kept

    async def save(self, sealed: bytes) -> None:
        if self.is_away:
            raise LogUnavailable("away")
        self.kept = sealed

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[bool]:
        yield self.is_free


def keeper(auth: Any, vault: Shelf, clock: Callable[[], float] = lambda: 0.0) -> TokenKeeper:
    return TokenKeeper(auth, vault, client_id="c", client_secret="s", refresh_token="configured", clock=clock)


@pytest.mark.parametrize(
    ("says", "life_s"),
    [
        *[({"expires_in": 100}, 100), ({"expires_in": "100"}, 100)],
        *[({}, LIFE_S), ({"expires_in": 0}, LIFE_S), ({"expires_in": None}, LIFE_S)],
        *[({"expires_in": "soon"}, LIFE_S), ({"expires_in": 10**30}, LIFE_S)],
    ],
)
async def test_a_token_is_used_for_nine_tenths_of_its_life(says: dict[str, Any], life_s: int) -> None:
    """A life that the bank does not say is assumed: else every call would ask for a new token."""
    now = [1_000.0]
    auth = Auth({"access_token": "a", **says}, {"access_token": "b", **says})
    tokens = keeper(auth, Shelf(), lambda: now[0])
    assert await tokens.token() == "a"
    now[0] += 0.9 * life_s
    assert await tokens.token() == "a"
    now[0] += 1
    assert await tokens.token() == "b"


async def test_the_next_exchange_sends_the_newest_refresh_token_which_the_bank_need_not_change() -> None:
    auth = Auth(
        {"access_token": "a", "expires_in": 100, "refresh_token": "second"},
        {"access_token": "b", "expires_in": 100},
        {"access_token": "c", "expires_in": 100},
    )
    vault = Shelf()
    tokens = keeper(auth, vault)
    for refused in ("", "a", "b"):
        await tokens.token(refused=refused)
    assert auth.sent == ["configured", "second", "second"]
    assert await keeper(auth, vault).token() == "c"  # a new process asks the bank for nothing


async def test_a_token_that_could_not_be_kept_does_not_replace_a_later_one() -> None:
    auth = Auth({"access_token": "a", "expires_in": 100}, {"access_token": "b", "expires_in": 100})
    vault = Shelf()
    first, second = keeper(auth, vault), keeper(auth, vault, lambda: 10.0)
    vault.is_away = True
    with pytest.raises(TryAgain, match="cannot be looked up"):
        await first.token()
    vault.is_away = False
    assert await second.token() == "b"
    assert await first.token() == "b"
    assert await keeper(auth, vault).token() == "b"


async def test_a_token_that_the_bank_gives_while_its_caller_is_cancelled_is_kept() -> None:
    """The refresh token is spent by then: without the new one a person would have to authorize again."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    class Slow(Auth):
        async def call(self, *given: str, content: bytes, **more: Any) -> Answer:
            answer = await super().call(*given, content=content, **more)
            asked.set()
            await may_answer.wait()
            return answer

    auth = Slow({"access_token": "a", "refresh_token": "second"}, {"access_token": "b"})
    tokens = keeper(auth, Shelf())
    first = asyncio.create_task(tokens.token())
    await asked.wait()
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    may_answer.set()
    assert await tokens.token() == "a"
    assert auth.sent == ["configured"]


async def test_while_another_process_gets_the_token_nobody_else_spends_the_refresh_token() -> None:
    auth = Auth()
    with pytest.raises(TryAgain, match="another process"):
        await keeper(auth, Shelf(is_free=False)).token()
    assert auth.sent == []


@pytest.mark.parametrize("odd", [None, 5, "", "\n", "\ud800"])
async def test_a_refresh_token_that_cannot_be_one_does_not_lose_the_access_token(odd: Any) -> None:
    auth = Auth({"access_token": "a", "refresh_token": odd}, {"access_token": "b"})
    tokens = keeper(auth, Shelf())
    assert [await tokens.token(), await tokens.token(refused="a")] == ["a", "b"]
    assert auth.sent == ["configured", "configured"]


@pytest.mark.parametrize(
    "answer",
    [
        *[{}, {"access_token": ""}, [], {"access_token": 5}],
        *[{"access_token": "a\r\nb"}, {"access_token": "\u00e9"}, {"access_token": "\ud800"}],
        *[b"", b"<html>", b'{"access_token": "\xff"}', b"[" * 100_000],
    ],
)
async def test_an_answer_without_a_token_is_no_token(answer: Any) -> None:
    with pytest.raises(TryAgain, match="cannot be read"):
        await keeper(Auth(answer), Shelf()).token()

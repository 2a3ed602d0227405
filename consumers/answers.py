"""Answers of outside services, each used for as long as it is fresh: from this process's memory, then from Redis, then
from the service itself."""

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from streamproc.domain.budget import US
from streamproc.log.cache import Cache

REMEMBERED_MAX = 10_000
"""Answers of one kind in a process's memory, about 2 MB."""
AHEAD_US_MAX = 60 * US
"""How much later than a batch's begin another one may have asked; a batch takes less."""

_encode = msgspec.json.Encoder().encode


class Timed(Protocol):
    """What an answer must tell: when it was given and until when it may be used (µs); the same, where it may not."""

    @property
    def checked_at(self) -> int: ...

    @property
    def fresh_until(self) -> int: ...


Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A", bound=Timed)


class Answers(Generic[Q, A]):
    """One service's answers. `kind` is the Struct of an answer; `key` gives the text by which Redis knows a
    question."""

    def __init__(self, kind: type[A], key: Callable[[Q], str]) -> None:
        self._key = key
        self._decode = msgspec.json.Decoder(kind).decode
        self._memory: dict[Q, A] = {}

    def known(self, question: Q, now_us: int) -> A | None:
        """The answer from memory only; None: it has to be looked up."""
        remembered = self._memory.get(question)
        return remembered if remembered is not None and _is_fresh(remembered, now_us) else None

    async def of(
        self,
        questions: Iterable[Q],
        cache: Cache,
        now_us: int,
        lookup: Callable[[Sequence[Q]], Awaitable[Mapping[Q, A]]],
    ) -> dict[Q, A]:
        """The answers. `lookup` asks the service what nobody knows, in the order of `questions`; it never raises, since
        a failure is an answer too. What it leaves out has no answer here either."""
        asked = list(dict.fromkeys(questions))
        known = {one: answer for one in asked if (answer := self.known(one, now_us)) is not None}
        wanted = [one for one in asked if one not in known]
        if wanted:
            known |= await self._cached(wanted, cache, now_us)
            wanted = [one for one in wanted if one not in known]
        if wanted:
            answers = await lookup(wanted)
            known |= await self._kept(answers, cache, now_us)
        return known

    async def _cached(self, wanted: Sequence[Q], cache: Cache, now_us: int) -> dict[Q, A]:
        values = await cache.get_many([cache_key(self._key(one)) for one in wanted])
        read = {
            one: self._read(value) for one, value in zip(wanted, values, strict=True) if value is not None
        }
        found = {one: answer for one, answer in read.items() if answer is not None}
        fresh = {one: answer for one, answer in found.items() if _is_fresh(answer, now_us)}
        self._remember(fresh)
        return fresh

    def _read(self, value: bytes) -> A | None:
        """The answer that Redis has; None if it cannot be read, as one of a later version: it is asked for anew."""
        try:
            return self._decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    async def _kept(self, given: Mapping[Q, A], cache: Cache, now_us: int) -> dict[Q, A]:
        answers = {one: _as_of(now_us, answer) for one, answer in given.items()}
        lasting = {one: answer for one, answer in answers.items() if answer.fresh_until > now_us}
        if lasting:
            await cache.put_many(
                {
                    cache_key(self._key(one)): (_encode(answer), (answer.fresh_until - now_us) // US + 1)
                    for one, answer in lasting.items()
                }
            )
            self._remember(lasting)
        return answers

    def _remember(self, fresh: Mapping[Q, A]) -> None:
        if len(self._memory) + len(fresh) > REMEMBERED_MAX:
            self._memory.clear()  # rare; Redis still has them
        self._memory.update(fresh)


def _is_fresh(answer: Timed, now_us: int) -> bool:
    """Whether it may be used. One of much later than now is of a clock that went back, and would last until that has
    come there again."""
    return answer.checked_at - AHEAD_US_MAX <= now_us < answer.fresh_until


def _as_of(now_us: int, answer: A) -> A:
    """The answer by Redis's clock: hosts' clocks differ, but a duration is the same everywhere."""
    fresh_until = now_us + answer.fresh_until - answer.checked_at
    return replace(answer, checked_at=now_us, fresh_until=fresh_until)  # type: ignore[type-var]  # a Struct


def cache_key(text: str) -> str:
    """The full hash of what was asked, so that two questions never share an answer."""
    return sha256(text.encode()).hexdigest()

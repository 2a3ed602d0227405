"""GLEIF's register of legal entities, `GET /lei-records` (JSON:API): is a payout's contact an entity that it has?

Whatever goes wrong, the answer is `unavailable` with a reason, which says nothing against the entity. The register gets
the contact's name, or the LEI that the payout gives, and nothing else of a payout.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import Answer, OutboundClient, OverHttp
from streamproc.clients.json_text import Unusable, read_answer
from streamproc.clients.ration import NoneFree, Ration, Take, Unlimited
from streamproc.domain.events import EntitySeen
from streamproc.domain.legal_entities import Question, Registered, is_lei, judged, searches
from streamproc.errors import TryAgain
from streamproc.host_clock import host_clock_us

TIMEOUT_S = 2.0
"""For one call, once its turn has come."""
WAIT_S = 2.0
"""How long the calls of a batch wait for their turns."""
LOOKUPS_S = WAIT_S + TIMEOUT_S
"""For all questions of a batch together: its payouts wait for them."""
UNREQUIRED_S = 1.0
"""For a question that no policy requires: payouts wait for it too, and gain nothing by it."""
PAUSE_S = 15.0
"""After one that took longer, none is asked for so long: a slow register would cost each batch that time."""
CALLS_PER_S = 0.8
CALLS_BURST = 12
"""With CALLS_PER_S at most 60 calls in any minute, which is what GLEIF allows one user."""
TURNS_KEPT = CALLS_BURST // 2
"""Free turns that are left to questions that a policy requires; else new contacts of other agents would use them up."""
AT_ONCE_MAX = 6
"""Calls in flight."""
FRESH_S = 86_400
"""How long an answer is used: GLEIF publishes its register once a day."""
PAGE_SIZE = 50
"""Entities in one answer, at most. A name that more of them contain is too common to tell who is meant."""
NAME_CHARS_MAX = 500
"""Longest name that the register's format allows."""
BODY_BYTES_MAX = 2 * 1024 * 1024
"""A page is some 400 kB."""
MEDIA_TYPE = "application/vnd.api+json"

NO_TURN = "gleif: no turn for a call came in time; all workers together may make 60 a minute"
NO_STATUS = "NULL"
"""GLEIF's own word for a status that nobody told it."""
_STATUS = re.compile(r"[A-Z_]{1,32}")


def open_gleif(base_url: str, take: Take, *, now_us: Callable[[], int] = host_clock_us) -> "Gleif":
    """A client whose calls have their turns from `take`; `base_url` ends with the version, `…/api/v1`. Close it with
    `aclose`."""
    http = OutboundClient(
        "gleif",
        base_url.rstrip("/"),
        timeout_s=TIMEOUT_S,
        limiter=Unlimited(),
        breaker=Breaker(),
        body_bytes_max=BODY_BYTES_MAX,
    )
    return Gleif(http, take, now_us)


class Gleif(OverHttp):
    """Looks up contacts. Each call of `http` is made in a turn from `take`; `now_us` is the clock for the answers'
    times; `wait_s` limits the wait for turns, and `lookups_s` one `lookup`."""

    def __init__(
        self,
        http: OutboundClient,
        take: Take,
        now_us: Callable[[], int] = host_clock_us,
        *,
        wait_s: float = WAIT_S,
        lookups_s: float = LOOKUPS_S,
    ) -> None:
        super().__init__(http)
        self._ration = Ration(take)
        self._now_us = now_us
        self._wait_s = wait_s
        self._lookups_s = lookups_s
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._paused_until = 0.0
        """By the event loop's clock."""
        self._pledged = 0
        """Turns for second calls of questions that are under way."""

    async def lookup(
        self, required: Sequence[Question], others: Sequence[Question] = ()
    ) -> dict[Question, EntitySeen]:
        """What the register says to each required question, and to those others that it answered at once; an LEI must
        be well-formed. A name that is not found as it is usually registered takes a second call.

        Required ones wait for their turns, unless others did so shortly before (`Ration`). No decision depends on the
        others. They are asked while slots and turns are free, and given up after UNREQUIRED_S; what was not asked, or
        given up, is not in the result. Takes LOOKUPS_S at most, and never raises for the API's failures. `unavailable`
        is never fresh. Times count from before the call.
        """
        late = f"gleif: no answer within {self._lookups_s:g} s, waiting for its turn included"
        now_us, turns_by = self._now_us(), self._ration.patience(self._wait_s)
        found = {question: _unavailable(late, now_us) for question in required}

        async def ask(question: Question) -> None:
            async with self._slots:
                answer = await self._ask(question, turns_by=turns_by)
            found[question] = answer or _unavailable(NO_TURN, now_us)

        async def ask_if_free(question: Question) -> None:
            answer = await self._ask_if_free(question)
            if answer is not None:
                found[question] = answer

        try:
            async with asyncio.timeout(self._lookups_s), asyncio.TaskGroup() as tasks:
                for question in dict.fromkeys(required):
                    tasks.create_task(ask(question))
                for question in dict.fromkeys(others):
                    if question not in found:
                        tasks.create_task(ask_if_free(question))
        except TimeoutError:
            pass  # required ones without an answer are unavailable
        return found

    async def _ask_if_free(self, question: Question) -> EntitySeen | None:
        """The answer to a question that no policy requires; None: nobody was asked, or it took too long."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until or self._slots.locked():
            return None
        try:
            async with asyncio.timeout(UNREQUIRED_S), self._slots:
                answer = await self._ask(question, kept=TURNS_KEPT)
        except TimeoutError:
            self._paused_until = loop.time() + PAUSE_S
            return None
        return answer

    async def _ask(self, question: Question, *, turns_by: float = 0.0, kept: int = 0) -> EntitySeen | None:
        """The answer; None: there was no turn. Turns are waited for until `turns_by`, by the event loop's clock. Where
        none is, the first call is made only if turns are free for all calls that it may take, beyond those that are
        kept."""
        now_us = self._now_us()
        seen = EntitySeen(verdict="not_found")
        calls = _filters(question)
        self._pledged += len(calls) - 1
        beside = 0 if turns_by else kept + self._pledged
        try:
            for params in calls:
                if not self._http.breaker.wait_s:  # else the call is not made, and needs no turn
                    await self._ration.turn(turns_by, beside=beside)
                answer = await self._http.call(
                    "GET", "/lei-records", params=params, headers={"accept": MEDIA_TYPE}
                )
                entities, more = _entities(answer, question)
                seen = judged(question, entities, more=more)
                if seen.verdict != "not_found":
                    break
                beside = 0
        except NoneFree:
            return None
        except (TryAgain, Unusable) as problem:
            return _unavailable(str(problem), now_us)
        finally:
            self._pledged -= len(calls) - 1
        return replace(seen, checked_at=now_us, fresh_until=now_us + FRESH_S * 1_000_000)


def _filters(question: Question) -> list[Mapping[str, str | int]]:
    if question.lei:
        return [{"filter[lei]": question.lei}]
    return [{"filter[entity.legalName]": text, "page[size]": PAGE_SIZE} for text in searches(question.name)]


def _entities(answer: Answer, question: Question) -> tuple[list[Registered], bool]:
    """The entities in an answer, and whether there are more. Raises Unusable if any of it cannot be read, or is about
    an LEI that was not asked for: then nothing of it is trusted."""
    body = read_answer(answer.status, answer.body, "gleif")
    records = _inside(body, "data")
    if not isinstance(records, list) or len(records) > PAGE_SIZE:
        raise Unusable("gleif's answer has no list of entities of the size that was asked for")
    entities = [_entity(record) for record in records]
    if question.lei and [entity.lei for entity in entities] not in ([], [question.lei]):
        raise Unusable("gleif named an entity that was not asked for")
    total = _inside(body, "meta", "pagination", "total")
    if type(total) is not int or total < len(entities):
        raise Unusable("gleif's answer does not say how many entities there are")
    return entities, total > len(entities)


def _entity(record: object) -> Registered:
    names = (
        _inside(record, "attributes", "lei"),
        _inside(record, "attributes", "entity", "legalName", "name"),
    )
    statuses = (
        _inside(record, "attributes", "entity", "status"),
        _inside(record, "attributes", "registration", "status"),
    )
    lei, name = (text if isinstance(text, str) else "" for text in names)
    status, registration = (_status(text) for text in statuses)
    if not is_lei(lei) or not name.strip() or len(name) > NAME_CHARS_MAX:
        raise Unusable("gleif's answer has an entity without a usable LEI or name")
    return Registered(lei, name, status, registration)


def _status(text: object) -> str:
    if text is None:
        return NO_STATUS
    if not isinstance(text, str) or not _STATUS.fullmatch(text):
        raise Unusable("gleif's answer has an entity whose status is no word")
    return text


def _inside(value: object, *names: str) -> object:
    """What is there below these names; None if there is nothing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _unavailable(problem: str, now_us: int) -> EntitySeen:
    return EntitySeen(verdict="unavailable", problem=problem, checked_at=now_us, fresh_until=now_us)

"""What the register of legal entities says of payouts' contacts (rule 14), asked at most once a day for each."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from consumers.answers import Answers
from streamproc.domain.events import EntitySeen
from streamproc.domain.legal_entities import Question, answered_here, question_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.log.cache import Cache

EntityLookup: TypeAlias = Callable[[Sequence[Question]], Awaitable[Mapping[Question, EntitySeen]]]
"""Asks the register, the first questions first. Never raises: it answers `unavailable`."""


class Entities:
    """Answers about contacts. Without a `lookup` no register is set: nothing is asked, and nothing known."""

    def __init__(self, lookup: EntityLookup | None = None) -> None:
        self._answers = Answers(lookup, EntitySeen, _key) if lookup is not None else None

    def question_of(self, record: PayoutRecord) -> Question | None:
        """What must be known of a payout's contact before it is decided; None: nothing."""
        return question_of(record) if self._answers is not None else None

    def known(self, question: Question | None, now_us: int) -> EntitySeen | None:
        """The answer as far as nobody has to be asked; None: it has to be looked up, if there is a question."""
        if question is None or self._answers is None:
            return None
        return answered_here(question) or self._answers.known(question, now_us)

    async def of(
        self, questions: Iterable[Question], cache: Cache, now_us: int
    ) -> Mapping[Question, EntitySeen]:
        """The answers to all questions."""
        found, wanted = dict[Question, EntitySeen](), list[Question]()
        for question in questions:
            known = self.known(question, now_us)
            if known is not None:
                found[question] = known
            else:
                wanted.append(question)
        if wanted and self._answers is not None:
            found |= await self._answers.of(wanted, cache, now_us)
        return found


def _key(question: Question) -> str:
    # No URL has such a beginning, and no name a line end.
    return f"entity\n{question.lei}\n{question.name}"

"""What the register of legal entities says of payouts' contacts (rule 14), asked at most once a day for each."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from consumers.answers import Answers
from streamproc.domain.events import EntitySeen
from streamproc.domain.legal_entities import Question, answered_here, question_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.log.cache import Cache


class EntityLookup(Protocol):
    """Asks the register. Never raises: it answers `unavailable`."""

    async def __call__(
        self, required: Sequence[Question], others: Sequence[Question]
    ) -> Mapping[Question, EntitySeen]:
        """The answers to all that is `required`, which is asked first. The `others` wait for nothing, and may have
        none."""
        ...


class Entities:
    """Answers about contacts. Without a `lookup` no register is set: nothing is asked, and nothing known."""

    def __init__(self, lookup: EntityLookup | None = None) -> None:
        self._lookup = lookup
        self._answers = Answers[Question, EntitySeen](EntitySeen, _key)

    def question_of(self, record: PayoutRecord) -> Question | None:
        """What must be known of a payout's contact before it is decided; None: nothing."""
        return question_of(record) if self._lookup is not None else None

    def known(self, question: Question | None, now_us: int) -> EntitySeen | None:
        """The answer as far as nobody has to be asked; None: it has to be looked up, if there is a question."""
        if question is None:
            return None
        return answered_here(question) or self._answers.known(question, now_us)

    async def of(
        self, required: Sequence[Question], others: Sequence[Question], cache: Cache, now_us: int
    ) -> Mapping[Question, EntitySeen]:
        """The answers to all questions that a policy requires, and to others as far as they are known or at hand."""
        here = {one: answer for one in (*required, *others) if (answer := answered_here(one)) is not None}
        wanted = [one for one in (*required, *others) if one not in here]

        async def ask(questions: Sequence[Question]) -> Mapping[Question, EntitySeen]:
            assert self._lookup is not None  # else there was no question
            first = set(required)
            return await self._lookup(
                [one for one in questions if one in first], [one for one in questions if one not in first]
            )

        return here | await self._answers.of(wanted, cache, now_us, ask)


def _key(question: Question) -> str:
    # No URL has such a beginning, and no name a line end.
    return f"entity\n{question.lei}\n{question.name}"

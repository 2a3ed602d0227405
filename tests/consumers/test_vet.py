"""An answer about a vendor is used for as long as the service allows, by whatever clock Redis has."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from consumers.answers import AHEAD_US_MAX
from consumers.concurrency import together
from consumers.vet import Reputations
from streamproc.domain.budget import US
from streamproc.domain.case import Reputation
from streamproc.errors import LogUnavailable
from streamproc.log.cache import Cache
from streamproc.log.connection import connected
from streamproc.log.names import Names

NOW_US = 1_795_000_000 * US
FRESH_US = 300 * US
URL = "https://vendor.example/"


class Service:
    """Says that every vendor is clean, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, hrefs: Sequence[str]) -> Mapping[str, Reputation]:
        self.asked += 1
        return {href: Reputation("clean", checked_at=0, fresh_until=FRESH_US) for href in hrefs}


@pytest.mark.parametrize("asks", ["the process that asked", "another process"])
@pytest.mark.parametrize(
    ("later_us", "again"),
    [
        (0, False),
        (FRESH_US - 1, False),
        (FRESH_US, True),
        (-AHEAD_US_MAX, False),  # a batch that began earlier
        (-7_200 * US, True),
    ],
)
async def test_an_answer_is_used_while_it_is_fresh_and_not_until_a_clock_that_went_back_is_there_again(
    redis_url: str, asks: str, later_us: int, again: bool
) -> None:
    """A vendor that was listed meanwhile passed as clean for as long as the clock went back."""
    service = Service()
    first = Reputations(service)
    async with connected(redis_url) as client:
        cache = Cache(client, Names(0))
        await first.of([URL], cache, NOW_US)
        reputations = first if "that asked" in asks else Reputations(service)
        await reputations.of([URL], cache, NOW_US + later_us)
        assert service.asked == 1 + again
        assert (reputations.known(URL, NOW_US + later_us)) is not None


async def test_of_two_that_are_asked_together_the_failure_of_one_is_raised_as_itself_and_ends_the_other() -> (
    None
):
    async def never() -> None:
        await asyncio.Event().wait()

    async def fails() -> None:
        raise LogUnavailable("gone")

    for pair in ((never(), fails()), (fails(), never())):
        with pytest.raises(LogUnavailable, match="gone"):
            await together(*pair)
        assert asyncio.all_tasks() == {asyncio.current_task()}

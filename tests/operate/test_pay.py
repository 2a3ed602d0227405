"""`streamproc pay` against what is not our API: one line that says so, with the key to ask again by."""

import pytest

from streamproc.errors import InputError, JobFailed
from streamproc.operate.pay import pay
from tests.clients.loopback import always, loopback

SECRET = "spt_" + "s" * 43
ORDER = {"amount": 100}


@pytest.mark.parametrize(
    ("status", "body"),
    [(202, {"ok": True}), (202, {"payout": 7, "decision": None}), (403, {"errors": ["no"]}), (502, [])],
)
async def test_an_answer_that_no_api_of_ours_gives_is_named(status: int, body: object) -> None:
    async with loopback(always(status, body)) as served:
        with pytest.raises(JobFailed, match=f"HTTP {status}, .*is that streamproc's API"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=True)


async def test_each_wrong_field_of_a_refused_request_is_a_line() -> None:
    problem = {"detail": "1 problem", "errors": [{"field": "amount", "problem": "is too small"}]}
    async with loopback(always(422, problem)) as served:
        with pytest.raises(InputError, match=r"^1 problem\n  amount: is too small$"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=False)

"""Holds over HTTP: pages that stay in order while holds come and go, and an answer that is told what became of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from streamproc.api.shapes import HoldPage
from streamproc.domain.events import AccessRefused, ReviewCounted, ReviewRefused, ReviewSubmitted, TimerFired
from streamproc.domain.holds import Outcome, Position, position_at
from streamproc.domain.shown import iso
from streamproc.operate import holds
from streamproc.operate.gateway import SiteGateway
from tests.api.served import Api, problem, serving
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.words import archive, opened_pool
from tests.words import ACCOUNT, NOW, Forgotten, observed

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 100_000_000, require_approval_above: 500_000}
  rival: {daily_limit: 100_000_000, require_approval_above: 500_000}
  strict: {daily_limit: 100_000_000, require_approval_above: 500_000, dual_approval_above: 500_000}
reviewers: [asha, vikram, meera]
"""


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        async with serving(engine.producer, SiteGateway(redis_url, 1, None)) as http:
            yield Api(http, engine)


async def held(engine: Engine, *payouts: str, agent: str = "bot", start: int = 0) -> None:
    await engine.deliver(
        *(observed(p, 600_000, agent=agent, at=NOW + start + n) for n, p in enumerate(payouts))
    )


async def answer(
    api: Api, token: str, payout: str, action: str = "approve", body: Any = None, key: str = ""
) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} | ({"idempotency-key": key} if key else {})
    sent = {"reason": "seen"} if body is None else body
    return await api.http.post(f"/v1/holds/{payout}/{action}", json=sent, headers=headers)


async def listed(api: Api, token: str, **asked: Any) -> dict[str, Any]:
    answer = await api.http.get("/v1/holds", params=asked, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    msgspec.convert(page, HoldPage)
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [item["payout"] for item in page["items"]]


async def of_type(engine: Engine, kind: type[Any]) -> list[Any]:
    return [event for entry in await engine.entries() for event in entry if type(event) is kind]


async def test_an_approval_is_told_what_became_of_it_and_names_who_the_token_says(api: Api) -> None:
    token = await api.token("asha-laptop", "approver", reviewer="asha")
    await held(api.engine, "pout_1")
    said = await answer(api, token, "pout_1", body={"reason": " invoice 7 checked ", "by": "asha"})
    assert said.status_code == 200
    outcome = msgspec.convert(said.json(), Outcome)
    assert (outcome.decision, outcome.reason, outcome.needed, outcome.by) == (
        "APPROVED",
        "REVIEW_APPROVED",
        0,
        "asha",
    )
    [counted] = await of_type(api.engine, ReviewCounted)
    assert (counted.by, counted.channel, counted.why) == ("asha", "api:asha-laptop", "invoice 7 checked")


async def test_an_approval_needs_no_reason_and_no_body_and_a_rejection_needs_a_reason(api: Api) -> None:
    token = await api.token("asha", "admin")
    await held(api.engine, "pout_1", "pout_2")
    for wrong in (
        {},
        {"reason": ""},
        {"reason": " \t"},
        {"reason": "x" * 501},
        {"reason": 5},
        {"reason": None},
    ):
        refused = await answer(api, token, "pout_1", "reject", wrong)
        assert [error["field"] for error in problem(refused)["errors"]] == ["reason"], wrong
    both = await answer(api, token, "pout_1", "reject", {"raison": "x", "by": 1})
    assert {error["field"] for error in problem(both)["errors"]} == {"reason", "raison", "by"}
    assert await of_type(api.engine, ReviewSubmitted) == []
    path, headers = "/v1/holds/pout_1/approve", {"authorization": f"Bearer {token}"}
    assert (await api.http.post(path, headers=headers)).json()["decision"] == "APPROVED"
    body = b'{"reason": "unknown vendor \\ud800"}'
    sent = await api.http.post(
        "/v1/holds/pout_2/reject", content=body, headers={**headers, "content-type": "application/json"}
    )
    rejected = sent.json()
    assert (rejected["decision"], rejected["reason"]) == ("REJECTED", "REVIEW_REJECTED")


async def test_a_second_answer_is_told_who_was_first_and_when_and_so_is_the_first_one_again(api: Api) -> None:
    asha, vikram = await api.token("asha", "approver"), await api.token("vikram", "approver")
    await held(api.engine, "pout_1")
    await answer(api, asha, "pout_1")
    for token, action in ((vikram, "reject"), (vikram, "approve"), (asha, "approve")):
        said = await answer(api, token, "pout_1", action)
        told = problem(said)
        assert (said.status_code, told["decision"], told["decided_by"]) == (409, "APPROVED", "asha")
        when = iso((await api.engine.record("pout_1")).decided_at)
        assert f"already APPROVED by asha at {when[:19]}" in told["detail"]
        assert told["decided_at"] == when


async def test_of_a_hold_that_ended_by_itself_an_answer_is_not_told_that_whoever_approved_it_first_decided(
    api: Api,
) -> None:
    asha, vikram = await api.token("asha", "approver"), await api.token("vikram", "approver")
    await held(api.engine, "pout_1", agent="strict")
    assert (await answer(api, asha, "pout_1")).json()["needed"] == 1
    await api.engine.append(ACCOUNT, TimerFired(at=2**52, payout="pout_1", timer="hold_expiry"))
    await api.engine.settled()
    told = problem(await answer(api, vikram, "pout_1"))
    assert (told["decision"], told["reason"], told["decided_by"]) == ("REJECTED", "HOLD_EXPIRED", None)


async def test_the_agent_sees_who_answered_and_not_from_where(api: Api) -> None:
    await held(api.engine, "pout_1")
    await answer(api, await api.token("asha-laptop", "approver", reviewer="asha"), "pout_1")
    agent, viewer = await api.token("a", agent="bot"), await api.token("v", "viewer")
    [review] = (await api.get(agent, "pout_1")).json()["reviews"]
    assert (review["by"], review["channel"]) == ("asha", "api")
    for path in ("pout_1", "pout_1/events"):
        assert "asha-laptop" not in (await api.get(agent, path)).text
        assert "api:asha-laptop" in (await api.get(viewer, path)).text


async def test_two_tokens_of_a_person_are_one_reviewer_and_another_person_is_needed(api: Api) -> None:
    laptop = await api.token("laptop", "approver", reviewer="asha")
    phone = await api.token("phone", "admin", reviewer="asha")
    vikram = await api.token("vikram", "approver")
    await held(api.engine, "pout_1", agent="strict")
    first = (await answer(api, laptop, "pout_1")).json()
    assert (first["decision"], first["needed"]) == (None, 1)
    again = await answer(api, phone, "pout_1")
    assert again.status_code == 409
    assert "asha has approved already" in problem(again)["detail"]
    assert (await answer(api, vikram, "pout_1")).json()["decision"] == "APPROVED"


async def test_who_is_no_reviewer_or_says_to_be_another_is_403_and_that_is_in_the_log(api: Api) -> None:
    stranger, asha = await api.token("mallory", "approver"), await api.token("asha", "approver")
    agent = await api.token("robot", "approver", reviewer="bot")
    await held(api.engine, "pout_1")
    assert "not in the list" in problem(await answer(api, stranger, "pout_1"))["detail"]
    other = await answer(api, asha, "pout_1", body={"reason": "x", "by": "vikram"})
    assert (other.status_code, problem(other)["detail"]) == (403, "`by` must be this token's owner, asha")
    assert (await answer(api, agent, "pout_1")).status_code == 403
    assert {event.kind for event in await of_type(api.engine, ReviewRefused)} == {"forbidden"}
    assert (await api.engine.record("pout_1")).state == "held"
    async with asyncio.timeout(DEADLINE_S):
        while {e.subject for e in await of_type(api.engine, AccessRefused)} != {"mallory", "asha", "robot"}:
            await asyncio.sleep(0.01)


async def test_a_payout_that_nobody_knows_is_404_and_nothing_is_written(api: Api) -> None:
    token = await api.token("asha", "approver")
    before = await api.engine.entries()
    for payout in ("pout_nobody", "a%2Fb", "x" * 70):
        assert (await answer(api, token, payout)).status_code == 404
    assert await api.engine.entries() == before


async def test_a_key_makes_an_answer_once_and_another_answer_under_it_is_refused(api: Api) -> None:
    asha, vikram = await api.token("asha", "approver"), await api.token("vikram", "approver")
    await held(api.engine, "pout_1", "pout_2")
    answers = await asyncio.gather(*(answer(api, asha, "pout_1", key="k") for _ in range(4)))
    assert {(said.status_code, said.json()["decision"]) for said in answers} == {(200, "APPROVED")}
    assert len(await of_type(api.engine, ReviewSubmitted)) == 1
    for action, body in (("reject", None), ("approve", {"reason": "another"})):
        said = await answer(api, asha, "pout_1", action, body, key="k")
        assert "used for another answer" in problem(said)["detail"]
    assert (await answer(api, asha, "pout_2", key="k")).status_code == 200
    assert (await answer(api, vikram, "pout_1", key="k")).status_code == 409
    await api.engine.client.xtrim(api.engine.names.log, maxlen=0)
    assert "has left the log" in problem(await answer(api, asha, "pout_1", key="k"))["detail"]


async def test_without_a_worker_an_answer_is_202_and_counts_when_one_comes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "ANSWER_WAIT_S", 0.2)
    token = await api.token("asha", "approver")
    await held(api.engine, "pout_1")
    await api.engine.stop()
    said = await answer(api, token, "pout_1", key="k")
    assert (said.status_code, said.headers["location"]) == (202, "/v1/payouts/pout_1")
    assert "no worker handled it" in said.json()["detail"]
    api.engine.start()
    await api.engine.settled()
    monkeypatch.setattr(holds, "ANSWER_WAIT_S", 10)
    assert (await answer(api, token, "pout_1", key="k")).json()["decision"] == "APPROVED"


async def test_agents_list_their_own_holds_and_cannot_answer_them(api: Api) -> None:
    mine, viewer = await api.token("t"), await api.token("v", "viewer")
    elsewhere = await api.token("e", account="acc_other")
    await held(api.engine, "pout_1", "pout_2")
    await held(api.engine, "pout_3", agent="rival", start=5)
    assert ids(await listed(api, viewer)) == ["pout_1", "pout_2", "pout_3"]
    assert ids(await listed(api, viewer, agent="rival")) == ["pout_3"]
    assert ids(await listed(api, mine)) == ids(await listed(api, mine, agent="bot")) == ["pout_1", "pout_2"]
    assert ids(await listed(api, mine, agent="rival")) == ids(await listed(api, elsewhere)) == []
    for token in (mine, viewer):
        for action in ("approve", "reject"):
            assert (await answer(api, token, "pout_1", action)).status_code == 403
    assert await of_type(api.engine, ReviewSubmitted) == []


@pytest.mark.parametrize("has_archive", [True, False])
async def test_pages_show_each_hold_once_while_holds_come_and_go(
    redis_url: str, postgres: str, has_archive: bool
) -> None:
    async with Engine(redis_url) as engine, opened_pool(postgres) as pool:
        await engine.apply(POLICIES)
        await held(engine, *(f"pout_{n}" for n in range(8)))
        gateway = SiteGateway(redis_url, 1, pool if has_archive else None)
        async with serving(engine.producer, gateway) as http:
            api = Api(http, engine)
            token = await api.token("asha", "approver")
            if has_archive:
                await archive(redis_url, postgres)
            seen: list[str] = []
            page = await listed(api, token, limit=2)
            assert bool(page["notes"]) is not has_archive
            while True:
                seen += ids(page)
                if page["next"] is None:
                    break
                # One of this page ends, by turns the last; one before it comes late, and one behind it comes.
                ended = seen[-1] if len(seen) % 4 else seen[-2]
                assert (await answer(api, token, ended)).status_code == 200
                await held(engine, f"pout_early{len(seen)}", start=-len(seen))
                if len(seen) == 4:
                    await held(engine, "pout_late", start=100)
                if has_archive:
                    await archive(redis_url, postgres)
                page = await listed(api, token, limit=2, after=page["next"])
    assert seen == [f"pout_{n}" for n in range(8)] + ["pout_late"]


async def test_a_cursor_is_one_that_was_given(api: Api) -> None:
    token = await api.token("v", "viewer")
    good = Position(NOW, "pout_1").cursor()
    assert position_at(good) == Position(NOW, "pout_1")
    for wrong in ("x", "pout_1", "====", good + "A", good[:-1], "e" * 200, "e" * 201, "\x00", ""):
        said = await api.http.get(
            "/v1/holds", params={"after": wrong}, headers={"authorization": f"Bearer {token}"}
        )
        assert [error["field"] for error in problem(said)["errors"]] == ["after"], wrong
    for limit in ("0", "501", "x"):
        said = await api.http.get(f"/v1/holds?limit={limit}", headers={"authorization": f"Bearer {token}"})
        assert said.status_code == 422
    assert ids(await listed(api, token, after=good)) == []


async def test_what_cannot_be_decided_now_is_503_and_the_same_key_asks_again(redis_url: str) -> None:
    vendors = Forgotten()
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        url = "https://shop.example.com/"
        await engine.deliver(observed("pout_1", 600_000, agent="bot", url=url, at=NOW))
        async with serving(engine.producer, SiteGateway(redis_url, 1, None)) as http:
            api = Api(http, engine)
            token = await api.token("asha", "approver")
            vendors.verdicts["shop"] = "unavailable"
            for _ in range(2):
                said = await answer(api, token, "pout_1", key="k")
                assert (said.status_code, "retry-after" in said.headers) == (503, True)
                assert "reputation cannot be asked" in problem(said)["detail"]
            del vendors.verdicts["shop"]
            assert (await answer(api, token, "pout_1", key="k")).json()["decision"] == "APPROVED"
            assert (await answer(api, token, "pout_1", key="k")).json()["decision"] == "APPROVED"
        assert len(await of_type(engine, ReviewCounted)) == 1

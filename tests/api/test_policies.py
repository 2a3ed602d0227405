"""Policies, freezes, budgets and the audit over HTTP: who may change what, by whom it is said to be, what is wrong."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from streamproc.api import policy_shapes as shapes
from streamproc.archive.pool import opened_pool
from streamproc.domain.anomaly import written_profile
from streamproc.domain.budget import Limits, windows_of
from streamproc.domain.events import AccessRefused, PolicyChanged, PolicyProposed, ProposalConfirmed
from streamproc.domain.policy import Policy, ScopeLimits
from streamproc.domain.policy_changes import Differ
from streamproc.operate import changes, policies, proposals
from streamproc.operate.change_lease import ChangeLease
from streamproc.operate.gateway import SiteGateway
from tests.api.served import Api, problem, serving
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.words import archive
from tests.profiles import OFFICE
from tests.words import ACCOUNT, NOON_ZONE, observed

POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60}}, timezone: {NOON_ZONE}}}
policies:
  bot: {{daily_limit: 1_000_000, weekly_limit: 2_000_000, require_approval_above: 500_000, team: red}}
  rival: {{daily_limit: 1_000_000}}
teams: {{red: {{monthly_limit: 5_000_000, timezone: {NOON_ZONE}}}}}
accounts: {{{ACCOUNT}: {{daily_limit: 9_000_000, timezone: {NOON_ZONE}}}}}
reviewers: [asha]
"""
TWO_PEOPLE = "changes: {loosening: two_people}"
OWN = {
    "daily_limit": 1_000_000, "weekly_limit": 2_000_000, "require_approval_above": 500_000, "team": "red",
}  # fmt: skip


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        async with serving(engine.producer, SiteGateway(redis_url, 1, None)) as http:
            yield Api(http, engine)


async def ask(
    api: Api, token: str, method: str, path: str, body: Any = None, match: str = "", **query: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} | ({"if-match": match} if match else {})
    sent = {} if body is None else {"json": body}
    return await api.http.request(method, f"/v1/{path}", headers=headers, params=query, **sent)


async def of_type(engine: Engine, kind: type[Any]) -> list[Any]:
    return [event for entry in await engine.entries() for event in entry if type(event) is kind]


def errors(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {one["field"]: one["problem"] for one in problem(answer)["errors"]}


async def test_a_patch_changes_what_it_names_and_null_takes_a_field_away(api: Api) -> None:
    admin = await api.token("laptop", "admin", reviewer="asha")
    shown = await ask(api, admin, "GET", "policies/bot")
    assert (shown.headers["etag"], shown.json()["own"], shown.json()["freeze"]) == ('"1"', OWN, None)
    msgspec.convert(shown.json(), shapes.PolicyShown)
    body = {"daily_limit": 900_000, "weekly_limit": None, "why": "less"}
    said = await ask(api, admin, "PATCH", "policies/bot", body)
    assert (said.status_code, said.headers["etag"]) == (200, '"2"')
    [change] = msgspec.convert(said.json(), shapes.Changes).changes
    assert [(one.field, one.before, one.after) for one in change.fields] == [
        ("daily_limit", 1_000_000, 900_000), ("weekly_limit", 2_000_000, None),
    ]  # fmt: skip
    own = {"daily_limit": 900_000, "require_approval_above": 500_000, "team": "red"}
    assert (await ask(api, admin, "GET", "policies/bot")).json()["own"] == own
    event = (await of_type(api.engine, PolicyChanged))[-1]
    assert (event.by, event.why, event.scope) == ("asha", "less", "agent:bot")
    again = await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 900_000})
    assert (again.json(), again.headers["etag"]) == ({"changed": False, "changes": [], "left": []}, '"2"')


async def test_a_put_replaces_and_gives_a_policy_where_there_was_none(api: Api) -> None:
    admin = await api.token("admin", "admin")
    assert (await ask(api, admin, "PATCH", "policies/new", {"daily_limit": 5})).status_code == 404
    assert (await ask(api, admin, "GET", "policies/new")).status_code == 404
    for name in ("new", "team/new:7", "bot"):
        assert (await ask(api, admin, "PUT", f"policies/{name}", {"daily_limit": 5})).status_code == 200
        assert (await ask(api, admin, "GET", f"policies/{name}")).json()["own"] == {"daily_limit": 5}
    pages, after = [], 0
    while after is not None:
        found = await ask(api, admin, "GET", "policies/bot/history", limit=1, after=after)
        page = msgspec.convert(found.json(), shapes.History)
        pages.append([(one.version, one.by) for one in page.items])
        after = page.next
    assert pages == [[(1, "test")], [(2, "admin")]]
    assert (await ask(api, admin, "GET", "policies/nobody/history")).status_code == 404


async def test_if_match_changes_only_the_version_that_was_seen(api: Api) -> None:
    admin = await api.token("admin", "admin")
    for method, body in (("PATCH", {"daily_limit": 1}), ("PUT", {"daily_limit": 2})):
        stale = await ask(api, admin, method, "policies/rival", body, match='"7"')
        assert problem(stale)["detail"] == "agent:rival is at version 1, not 7"
        assert stale.status_code == 412
    for match in ('"1"', "*"):
        assert (await ask(api, admin, "PUT", "policies/new", {}, match=match)).status_code == 412
    assert (await ask(api, admin, "PATCH", "policies/rival", {}, match="*")).status_code == 200
    first, second = await asyncio.gather(
        *(ask(api, admin, "PATCH", "policies/rival", {"daily_limit": n}, match='"1"') for n in (10, 20))
    )
    assert sorted((first.status_code, second.status_code)) == [200, 412]
    assert set(errors(await ask(api, admin, "PATCH", "policies/rival", {}, match="3"))) == {"If-Match"}


async def test_if_none_match_makes_a_policy_and_never_replaces_one(api: Api) -> None:
    admin = await api.token("admin", "admin")
    headers = {"authorization": f"Bearer {admin}", "if-none-match": "*"}

    async def put(amount: int, **more: str) -> httpx.Response:
        return await api.http.put("/v1/policies/fresh", json={"daily_limit": amount}, headers=headers | more)

    statuses = [answer.status_code for answer in await asyncio.gather(put(10), put(20))]
    assert sorted(statuses) == [200, 412]
    refused = await put(30)
    assert problem(refused)["detail"] == "agent:fresh has a policy already, at version 1"
    assert set(errors(await put(40, **{"if-match": '"1"'}))) == {"If-None-Match"}
    kept = await ask(api, admin, "GET", "policies/fresh")
    assert kept.headers["etag"] == '"1"'
    assert f'"daily_limit":{(10, 20)[statuses.index(200)]}' in kept.text


async def test_where_a_change_was_broken_off_between_partitions_it_says_so(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def differ(*_: Any) -> Any:
        raise Differ("partitions 0 and 1 have other policies for agent:rival")

    admin = await api.token("admin", "admin")
    monkeypatch.setattr(policies, "in_force", differ)
    answer = await ask(api, admin, "GET", "policies/rival")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert problem(answer)["detail"] == "partitions 0 and 1 have other policies for agent:rival"


async def test_where_others_keep_changing_policies_it_says_so_and_not_that_the_log_is_away(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await api.token("admin", "admin")
    with monkeypatch.context() as others:
        others.setattr(changes, "CHANGES_MAX", 0)  # so that each try is one too many
        answer = await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 7})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "others changed policies 0 times meanwhile; run it again" in problem(answer)["detail"]


async def test_every_wrong_field_is_named_and_nothing_is_changed(api: Api) -> None:
    admin = await api.token("admin", "admin")
    wrong = {
        "daily_limit": 1.5, "per_txn_limit": -1, "days": ["mon", "noday"], "allowed_domains": ["a.com", "b/c", "d e"],
        "rate_limit": {"count": 10_001, "windw": 5}, "dayly_limit": 5, "anomaly": 1, "hours": "9-18",
        "anomaly_profile": {"threshold": 5},
    }  # fmt: skip
    for method in ("PUT", "PATCH"):
        found = errors(await ask(api, admin, method, "policies/bot", wrong))
        assert set(found) == {
            "daily_limit", "per_txn_limit", "days[1]", "allowed_domains[1]", "allowed_domains[2]",
            "rate_limit.count", "rate_limit.windw", "dayly_limit", "anomaly", "anomaly_profile",
            "hours",
        }  # fmt: skip
        assert "did you mean 'daily_limit'?" in found["dayly_limit"]
        ordered = errors(
            await ask(api, admin, method, "policies/bot", {"per_txn_limit": 9, "daily_limit": 5})
        )
        assert ordered == {"per_txn_limit": "per_txn_limit 9 is above daily_limit 5"}
        assert set(errors(await ask(api, admin, method, "policies/bot", {"team": "blue"}))) == {"team"}
        assert set(errors(await ask(api, admin, method, "policies/bot", {"why": 5}))) == {"why"}
    odd = b'{"\\ud800": 1, "team": "\\ud800"}'
    headers = {"authorization": f"Bearer {admin}", "content-type": "application/json"}
    refused = await api.http.put("/v1/policies/bot", content=odd, headers=headers)
    assert refused.status_code == 422
    assert set(errors(await ask(api, admin, "PUT", "policies/unknown", {}))) == {"agent"}
    assert len(await of_type(api.engine, PolicyChanged)) == 6  # those of the file


async def test_a_put_keeps_the_profile_that_was_measured_and_null_takes_it_away(api: Api) -> None:
    admin, profile = await api.token("admin", "admin"), written_profile(OFFICE)
    said = (await ask(api, admin, "PATCH", "policies/bot", {"anomaly": True})).json()
    assert said["left"] == [
        "agent bot: anomaly is on, but holds nothing before its payouts are measured:"
        " streamproc policy calibrate bot"
    ]
    said = (await ask(api, admin, "PATCH", "policies/bot", {"anomaly_profile": profile})).json()
    assert (said["changed"], said["left"]) == (True, [])

    async def own() -> Any:
        return (await ask(api, admin, "GET", "policies/bot")).json()["own"]

    await ask(api, admin, "PUT", "policies/bot", {"daily_limit": 5})
    assert await own() == {"daily_limit": 5, "anomaly_profile": profile}
    await ask(api, admin, "PATCH", "policies/bot", {"anomaly_profile": {"threshold": 900}})
    assert (await own())["anomaly_profile"] == profile | {"threshold": 900}
    await ask(api, admin, "PUT", "policies/bot", {"anomaly_profile": None})
    assert await own() == {}


async def test_an_agent_sees_its_own_policy_and_budget_and_no_others(api: Api) -> None:
    mine = await api.token("mine", agent="bot")
    for path in ("policies/bot", "policies/bot/history", "agents/bot/budget"):
        assert (await ask(api, mine, "GET", path)).status_code == 200
        assert (await ask(api, mine, "GET", path.replace("bot", "rival"))).status_code == 404
        assert (await ask(api, mine, "GET", path.replace("bot", "nobody"))).status_code == 404
    assert (await ask(api, mine, "GET", "agents/bot/budget", account="acc_other")).status_code == 404


async def test_the_history_of_every_scope_is_shown_to_who_may_see_all(api: Api) -> None:
    viewer, admin = await api.token("viewer", "viewer"), await api.token("admin", "admin")
    await ask(api, admin, "PUT", "policies/reviewers", {"daily_limit": 5})
    for scope in (f"account:{ACCOUNT}", "team:red", "defaults"):
        found = await ask(api, viewer, "GET", f"policies/{scope}/history")
        assert [one.scope for one in msgspec.convert(found.json(), shapes.History).items] == [scope]
    missing = await ask(api, viewer, "GET", "policies/team:blue/history")
    assert (missing.status_code, problem(missing)["detail"]) == (404, "there is no policy of team:blue")

    async def shown(token: str, name: str) -> list[str]:
        found = await ask(api, token, "GET", f"policies/{name}/history")
        return [one["scope"] for one in found.json().get("items", [])]

    assert await shown(viewer, "reviewers") == ["reviewers", "agent:reviewers"]
    of_that_name = await api.token("of-that-name", agent="reviewers")
    assert await shown(of_that_name, "reviewers") == ["agent:reviewers"]
    assert await shown(of_that_name, "defaults") == []


# ---- the second person ----


async def test_what_loosens_waits_until_another_tokens_owner_confirms_it(api: Api) -> None:
    await api.engine.apply(TWO_PEOPLE)
    asha = await api.token("asha-laptop", "admin", reviewer="asha")
    phone = await api.token("asha-phone", "admin", reviewer="asha")
    ravi = await api.token("ravi", "admin")
    said = await ask(api, asha, "PATCH", "policies/bot", {"daily_limit": 2_000_000, "why": "season"})
    assert (said.status_code, said.headers["location"]) == (202, "/v1/policies/proposals")
    proposal = msgspec.convert(said.json(), shapes.Waits).proposal
    assert [(one.field, one.before, one.after) for one in proposal.loosens] == [
        ("daily_limit", 1_000_000, 2_000_000)
    ]
    path = f"policies/proposals/{proposal.id}"
    assert (await ask(api, ravi, "GET", "policies/bot")).json()["own"] == OWN
    for same in (asha, phone):
        refused = await ask(api, same, "POST", f"{path}/confirm")
        assert "somebody else must confirm it" in problem(refused)["detail"]
        assert refused.status_code == 403
    answers = await asyncio.gather(
        *(ask(api, ravi, "POST", f"{path}/confirm") for _ in range(3)),
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["changed"] for answer in answers) == [False, False, True]
    [event] = [one for one in await of_type(api.engine, PolicyChanged) if one.proposal]
    assert (event.by, event.confirmed_by, event.why) == ("asha", "ravi", "season")
    assert (event.channel, event.confirmed_channel) == ("api:asha-laptop", "api:ravi")
    assert (proposal.by, proposal.channel) == ("asha", "api:asha-laptop")
    assert (await ask(api, ravi, "GET", "policies/bot")).json()["own"] == {**OWN, "daily_limit": 2_000_000}
    late = await ask(api, await api.token("meera", "admin"), "POST", f"{path}/confirm")
    assert (late.status_code, "confirmed by ravi" in problem(late)["detail"]) == (409, True)
    assert len(await of_type(api.engine, ProposalConfirmed)) == 1

    async def refused_twice() -> None:
        while len(await of_type(api.engine, AccessRefused)) < 2:
            await asyncio.sleep(0.01)

    async with asyncio.timeout(DEADLINE_S):
        await refused_twice()


async def test_every_change_says_by_which_token_it_came_but_not_to_the_agent(api: Api) -> None:
    admin = await api.token("asha-laptop", "admin", reviewer="asha")
    agent, viewer = await api.token("a", agent="bot"), await api.token("v", "viewer")
    assert (await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 10})).status_code == 200
    assert (await ask(api, admin, "PUT", "freezes/agent:bot", {"why": "it loops"})).status_code == 200
    assert (await ask(api, admin, "DELETE", "freezes/agent:bot", why="mended")).status_code == 200
    mine = [one for one in await of_type(api.engine, PolicyChanged) if one.by == "asha"]
    assert [one.channel for one in mine] == ["api:asha-laptop"] * 3
    for token, channel in ((viewer, "api:asha-laptop"), (agent, "api")):
        shown = await ask(api, token, "GET", "policies/bot/history")
        told = msgspec.convert(shown.json(), shapes.History).items
        assert [(one.by, one.channel) for one in told if one.by == "asha"] == [("asha", channel)] * 3
        assert ("asha-laptop" in shown.text) == (token == viewer)


async def test_the_agent_sees_who_confirmed_a_change_and_not_from_where(api: Api) -> None:
    await api.engine.apply(TWO_PEOPLE)
    asha = await api.token("asha-laptop", "admin", reviewer="asha")
    ravi = await api.token("ravi-phone", "admin", reviewer="ravi")
    said = await ask(api, asha, "PATCH", "policies/bot", {"daily_limit": 2_000_000})
    path = f"policies/proposals/{said.json()['proposal']['id']}"
    assert (await ask(api, ravi, "POST", f"{path}/confirm")).status_code == 200
    shown = await ask(api, await api.token("a", agent="bot"), "GET", "policies/bot/history")
    last = shown.json()["items"][-1]
    assert (last["by"], last["channel"], last["confirmed_by"], last["confirmed_channel"]) == (
        "asha", "api", "ravi", "api",
    )  # fmt: skip
    assert "laptop" not in shown.text
    assert "phone" not in shown.text


async def test_many_who_confirm_at_once_are_one_confirmation(api: Api) -> None:
    await api.engine.apply(TWO_PEOPLE)
    asha = await api.token("asha", "admin")
    others = [await api.token(f"admin-{n}", "admin") for n in range(8)]
    said = await ask(api, asha, "PUT", "policies/rival", {})
    path = f"policies/proposals/{said.json()['proposal']['id']}"
    answers = await asyncio.gather(*(ask(api, token, "POST", f"{path}/confirm") for token in others))
    [won] = await of_type(api.engine, ProposalConfirmed)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    for answer in answers:
        if answer.status_code == 409:
            assert f"confirmed by {won.by}" in problem(answer)["detail"]
    assert len([one for one in await of_type(api.engine, PolicyChanged) if one.proposal]) == 1


async def test_what_tightens_is_in_force_at_once_and_a_proposal_can_be_withdrawn_once(api: Api) -> None:
    await api.engine.apply(TWO_PEOPLE)
    admin = await api.token("admin", "admin")
    assert (await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 10})).status_code == 200
    said = await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 20})
    path = f"policies/proposals/{said.json()['proposal']['id']}"
    ended = (await ask(api, admin, "DELETE", path, why="no need")).json()
    assert (ended["withdrawn_by"], ended["withdrawn_channel"]) == ("admin", "api:admin")
    assert (await ask(api, admin, "DELETE", path)).status_code == 409
    found = msgspec.convert((await ask(api, admin, "GET", "policies/proposals")).json(), shapes.Proposals)
    assert [one.state for one in found.items] == ["withdrawn"]
    assert (await ask(api, admin, "POST", f"{path}/confirm")).status_code == 409
    stale = await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 30}, match='"1"')
    assert stale.status_code == 412
    assert len(await of_type(api.engine, PolicyProposed)) == 1


async def test_proposals_are_listed_by_pages_the_newest_first(api: Api) -> None:
    await api.engine.apply(TWO_PEOPLE)
    admin = await api.token("admin", "admin")
    made = []
    for paise in (1_000_001, 1_000_002, 1_000_003):
        said = await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": paise})
        made.append(said.json()["proposal"]["id"])
    found = await ask(api, admin, "GET", "policies/proposals", limit=2)
    first = msgspec.convert(found.json(), shapes.Proposals)
    assert [one.id for one in first.items] == [made[2], made[1]]
    rest = await ask(api, admin, "GET", "policies/proposals", limit=2, after=first.next)
    assert ([one["id"] for one in rest.json()["items"]], rest.json()["next"]) == ([made[0]], None)
    gone = await ask(api, admin, "GET", "policies/proposals", after=f"prop_{'0' * 16}")
    assert (gone.status_code, problem(gone)["errors"][0]["field"]) == (422, "after")


async def test_where_too_many_wait_already_it_is_409(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "PROPOSALS_MAX", 1)
    await api.engine.apply(TWO_PEOPLE)
    admin = await api.token("admin", "admin")
    await ask(api, admin, "PUT", "freezes/team:red", {"why": "audit"})
    assert (await ask(api, admin, "DELETE", "freezes/team:red", why="done")).status_code == 202
    for refused in (
        await ask(api, admin, "DELETE", "freezes/team:red", why="done"),
        await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 2_000_000}),
    ):
        assert problem(refused)["detail"] == "1 proposals wait, the limit is 1: confirm or withdraw some"
        assert refused.status_code == 409


# ---- freezes ----


async def test_a_freeze_over_http_binds_and_names_who_and_why(api: Api) -> None:
    admin = await api.token("admin", "admin", reviewer="asha")
    said = await ask(api, admin, "PUT", "freezes/agent:bot", {"why": "it loops"})
    assert msgspec.convert(said.json(), shapes.Frozen).changed
    found = (await ask(api, admin, "GET", "freezes")).json()
    assert found == {"items": [{"scope": "agent:bot", "by": "asha", "why": "it loops"}]}
    await api.engine.deliver(observed("pout_1", 1_000))
    assert (await api.engine.record("pout_1")).reasons == ["FROZEN"]
    assert (await ask(api, admin, "GET", "policies/bot")).json()["freeze"]["why"] == "it loops"
    assert set(errors(await ask(api, admin, "PUT", "freezes/agent:bot", {"why": " "}))) == {"why"}
    assert set(errors(await ask(api, admin, "DELETE", "freezes/agent:bot"))) == {"why"}
    assert (await ask(api, admin, "PUT", "freezes/vendor:x", {"why": "x"})).status_code == 404
    lifted = await ask(api, admin, "DELETE", "freezes/agent:bot", why="fixed")
    assert (lifted.json()["frozen"], lifted.json()["changed"]) == (False, True)
    await api.engine.apply(TWO_PEOPLE)
    await ask(api, admin, "PUT", "freezes/team:red", {"why": "audit"})
    assert (await ask(api, admin, "DELETE", "freezes/team:red", why="done")).status_code == 202
    assert len((await ask(api, admin, "GET", "freezes")).json()["items"]) == 1


# ---- budgets ----


async def test_a_budget_is_what_was_reserved_and_committed_and_not_what_was_released(api: Api) -> None:
    mine, viewer = await api.token("mine", agent="bot"), await api.token("viewer", "viewer")
    empty = (await ask(api, mine, "GET", "agents/bot/budget")).json()
    assert list(empty) == ["agent", "windows"]
    assert list(empty["windows"][0]) == ["scope", "window", "limit", "reserved", "committed", "remaining"]
    assert [(w["scope"], w["limit"], w["reserved"], w["remaining"]) for w in empty["windows"]] == [
        ("agent:bot", 1_000_000, 0, 1_000_000), ("agent:bot", 2_000_000, 0, 2_000_000),
        ("team:red", 5_000_000, 0, 5_000_000), (f"account:{ACCOUNT}", 9_000_000, 0, 9_000_000),
    ]  # fmt: skip
    at = api.engine.producer.now_us()
    paid, waits, failed = (observed(f"pout_{n}", 100_000 * (n + 1), at=at) for n in range(3))
    await api.engine.deliver(paid, waits, failed)
    await api.engine.deliver(observed("pout_0", 100_000, status="processed", at=at))
    await api.engine.deliver(observed("pout_2", 300_000, status="failed", at=at))
    expected = {
        (w.scope, w.window): (200_000, 100_000)
        for w in windows_of(
            Limits(
                Policy(**OWN),  # type: ignore[arg-type]
                account=ScopeLimits(daily_limit=9_000_000), team=ScopeLimits(monthly_limit=5_000_000),
            ),
            agent="bot", account=ACCOUNT, vendor="", received_at=at, zone=NOON_ZONE,
        )
    }  # fmt: skip
    for token, query in ((mine, {}), (viewer, {"account": ACCOUNT})):
        found = (await ask(api, token, "GET", "agents/bot/budget", **query)).json()["windows"]
        assert {(w["scope"], w["window"]): (w["reserved"], w["committed"]) for w in found} == expected
        assert all(w["remaining"] == w["limit"] - 300_000 for w in found)
    admin = await api.token("admin", "admin")
    await ask(api, admin, "PATCH", "policies/bot", {"daily_limit": 50_000, "weekly_limit": None})
    [day, *_] = (await ask(api, mine, "GET", "agents/bot/budget")).json()["windows"]
    assert (day["limit"], day["remaining"]) == (50_000, 0)
    assert (await ask(api, viewer, "GET", "agents/nobody/budget")).status_code == 404


async def test_a_budget_is_of_an_account_that_is_known_here(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        gateway = SiteGateway(redis_url, 1, None)
        async with serving(engine.producer, gateway, account="acc_ours") as http:
            api = Api(http, engine)
            viewer, admin = await api.token("viewer", "viewer"), await api.token("admin", "admin")
            other = await api.token("other", agent="bot", account="acc_of_token")
            await ask(api, admin, "PUT", "freezes/account:acc_frozen", {"why": "stop"})
            for known in ("acc_ours", ACCOUNT, "acc_frozen", "acc_of_token"):
                found = await ask(api, viewer, "GET", "agents/bot/budget", account=known)
                assert found.status_code == 200, known
            assert (await ask(api, other, "GET", "agents/bot/budget")).status_code == 200
            wrong = await ask(api, viewer, "GET", "agents/bot/budget", account="acc_X")
            assert errors(wrong) == {
                "account": "acc_X is not known here: this installation pays from acc_ours, and no policy, freeze or"
                " token names it"
            }


# ---- the audit ----


async def test_pages_of_the_audit_stay_in_order_while_it_grows(redis_url: str, postgres: str) -> None:
    async with Engine(redis_url) as engine, opened_pool(postgres) as pool:
        await engine.apply(POLICIES)
        async with serving(engine.producer, SiteGateway(redis_url, 1, pool)) as http:
            api = Api(http, engine)
            viewer = await api.token("viewer", "viewer")
            at = engine.producer.now_us()
            await engine.deliver(*(observed(f"pout_{n}", 1_000, at=at + n) for n in range(5)))
            await archive(redis_url, postgres)
            first = (await ask(api, viewer, "GET", "audit", limit=3, kind="decision")).json()
            msgspec.convert(first, shapes.AuditPage)
            await engine.deliver(*(observed(f"more_{n}", 1_000, at=at + 10 + n) for n in range(3)))
            await archive(redis_url, postgres)
            rest = (await ask(api, viewer, "GET", "audit", kind="decision", after=first["next"])).json()
            seen = [line["payout"] for page in (first, rest) for line in page["items"]]
            assert sorted(seen) == [f"pout_{n}" for n in range(5)]
            assert rest["next"] is None
            only = (await ask(api, viewer, "GET", "audit", payout="pout_1", decision="APPROVED")).json()
            assert [line["payout"] for line in only["items"]] == ["pout_1"]
            none = await ask(api, viewer, "GET", "audit", since="2999-01-01T00:00:00Z", agent="bot")
            assert none.json() == {"items": [], "next": None, "notes": []}
            wrong = (
                {"since": "yesterday"},
                {"after": "0:1-1:0"},
                {"decision": "MAYBE"},
                {"limit": 0},
                {"kind": "foo"},
            )
            for query in wrong:
                assert set(errors(await ask(api, viewer, "GET", "audit", **query))) == set(query)


async def test_a_query_that_is_no_text_is_refused(api: Api) -> None:
    viewer = await api.token("viewer", "viewer")
    given = {"authorization": f"Bearer {viewer}"}
    answer = await api.http.get("/v1/audit?agent=%ff", headers=given)
    assert (answer.status_code, errors(answer)) == (422, {"query": "must be UTF-8"})


async def test_without_postgres_the_audit_is_503(api: Api) -> None:
    answer = await ask(api, await api.token("viewer", "viewer"), "GET", "audit")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


async def test_a_lifting_that_a_freeze_went_before_is_refused_and_not_called_a_matter_of_asking_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that asks again after a 503 would lift a freeze of which nobody told its person."""
    admin = await api.token("asha", "admin")
    await ask(api, admin, "PUT", "freezes/agent:bot", {"why": "it loops"})
    whole: Any = ChangeLease.take

    async def takes(one: ChangeLease, **named: Any) -> bool:
        monkeypatch.setattr(ChangeLease, "take", whole)
        await ask(api, admin, "PUT", "freezes/agent:bot", {"why": "it still loops"})
        return bool(await whole(one, **named))

    monkeypatch.setattr(ChangeLease, "take", takes)
    answer = await ask(api, admin, "DELETE", "freezes/agent:bot", why="fixed")
    assert (answer.status_code, "retry-after" in answer.headers) == (409, False)
    assert "agent:bot was frozen anew meanwhile, by asha" in problem(answer)["detail"]

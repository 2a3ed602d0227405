import asyncio
import hmac
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from streamproc.api import health
from streamproc.api.asgi import SECURITY_HEADERS, create_app
from streamproc.api.health import Check
from streamproc.ingress.razorpay_webhook import RazorpayWebhook
from streamproc.log.stream import Append, Appended
from tests.api.declared import held_against_its_document
from tests.deadline import DEADLINE_S

SECRET = "whsec"
UPLOAD_BYTES_MAX = 2_000


class Door:
    def __init__(self) -> None:
        self.appends: list[Append] = []
        self.is_broken = False

    def now_us(self) -> int:
        return 1_760_000_000_000_000

    async def append(self, what: Append, /) -> Appended:
        if self.is_broken:
            raise RuntimeError("a defect that mentions SECRET-PASSWORD")
        self.appends.append(what)
        return Appended(f"{len(self.appends)}-0", True)


class Service:
    """The application behind a real server."""

    def __init__(self) -> None:
        self.door = Door()
        self.checks = [Check("redis", True, "9.1"), Check("postgres", True)]
        self.url = ""

    async def ready(self) -> list[Check]:
        return self.checks


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    webhook = RazorpayWebhook(
        service.door, [SECRET], body_bytes_max=UPLOAD_BYTES_MAX, fallback_account="acc_1"
    )
    app = create_app(webhook, body_bytes_max=UPLOAD_BYTES_MAX, ready=lambda: service.ready())
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, http="httptools", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())  # not `serve`: the signals belong to pytest
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
    service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield service
    server.should_exit = True
    await asyncio.wait_for(running, DEADLINE_S)


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=20, trust_env=False) as client:
        await held_against_its_document(client)
        yield client


def delivery() -> dict[str, object]:
    payout = {"id": "pout_1", "amount": 250_000, "currency": "INR", "status": "pending", "notes": []}
    return {"event": "payout.pending", "account_id": "acc_1", "payload": {"payout": {"entity": payout}}}


def signed(body: bytes) -> dict[str, str]:
    return {"x-razorpay-signature": hmac.digest(SECRET.encode(), body, "sha256").hex()}


def is_problem(response: httpx.Response, status: int) -> bool:
    return (
        response.status_code == status == response.json()["status"]
        and response.headers["content-type"] == "application/problem+json"
    )


async def test_a_signed_webhook_is_appended(service: Service, http: httpx.AsyncClient) -> None:
    body = json.dumps(delivery()).encode()
    response = await http.post("/webhooks/razorpay", content=body, headers=signed(body))
    assert (response.status_code, response.json()) == (200, {"status": "accepted", "entry": "1-0"})
    assert len(service.door.appends) == 1


async def test_an_unsigned_one_is_not(service: Service, http: httpx.AsyncClient) -> None:
    assert is_problem(await http.post("/webhooks/razorpay", json=delivery()), 401)
    assert service.door.appends == []


async def test_a_webhook_by_get_is_405(http: httpx.AsyncClient) -> None:
    response = await http.get("/webhooks/razorpay")
    assert is_problem(response, 405)
    assert response.headers["allow"] == "POST"


async def test_a_body_over_the_limit_is_413_announced_or_not(http: httpx.AsyncClient) -> None:
    body = b"x" * (UPLOAD_BYTES_MAX + 1)

    async def unannounced() -> AsyncIterator[bytes]:
        yield body

    assert is_problem(await http.post("/webhooks/razorpay", content=body), 413)
    assert is_problem(await http.post("/webhooks/razorpay", content=unannounced()), 413)


async def test_healthz_is_alive_whatever_the_dependencies_say(
    service: Service, http: httpx.AsyncClient
) -> None:
    service.checks = [Check("redis", False, "connection refused")]
    response = await http.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_readyz_names_each_dependency(http: httpx.AsyncClient) -> None:
    response = await http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": [
            {"name": "redis", "ok": True, "detail": "9.1", "required": True},
            {"name": "postgres", "ok": True, "detail": "", "required": True},
        ],
    }


async def test_one_failing_dependency_makes_it_503(service: Service, http: httpx.AsyncClient) -> None:
    service.checks.append(Check("bank", False, "breaker open for 12 s"))
    response = await http.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "not ready")


async def test_a_dependency_that_this_role_can_do_without_is_named_and_does_not_make_it_503(
    service: Service, http: httpx.AsyncClient
) -> None:
    service.checks.append(Check("postgres", False, "away", required=False))
    response = await http.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    assert not response.json()["checks"][-1]["ok"]


async def test_however_many_ask_at_once_the_dependencies_are_asked_once_at_a_time(
    service: Service, http: httpx.AsyncClient
) -> None:
    under_way, most = 0, 0

    async def ready() -> list[Check]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        return service.checks

    service.ready = ready  # type: ignore[method-assign]
    answers = await asyncio.gather(*(http.get("/readyz") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == 1


async def test_a_check_that_hangs_makes_it_503(
    service: Service, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> list[Check]:
        await asyncio.get_running_loop().create_future()
        return []

    monkeypatch.setattr(health, "READY_S_MAX", 0.05)
    service.ready = hang  # type: ignore[method-assign]
    assert (await http.get("/readyz")).status_code == 503


@pytest.mark.parametrize("path", ["/", "/nothing", "/webhooks", "/webhooks/razorpay/", "/healthz/", "/docs"])
async def test_an_unknown_path_is_a_problem_and_never_a_redirect(http: httpx.AsyncClient, path: str) -> None:
    assert is_problem(await http.get(path), 404)


async def test_a_wrong_method_on_health_is_a_problem_that_names_the_right_one(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/healthz")
    assert is_problem(response, 405)
    assert "GET" in response.headers["allow"]


async def test_a_defect_is_500_and_its_message_stays_inside(
    service: Service, http: httpx.AsyncClient
) -> None:
    service.door.is_broken = True
    body = json.dumps(delivery()).encode()
    response = await http.post("/webhooks/razorpay", content=body, headers=signed(body))
    assert is_problem(response, 500)
    assert "SECRET-PASSWORD" not in response.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/nothing", "/webhooks/razorpay"])
async def test_every_answer_carries_the_security_headers(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    for name, value in SECURITY_HEADERS:
        assert response.headers.get_list(name.decode()) == [value.decode()]

"""Whatever is sent to the running system: no 500, nothing answered 2xx is lost, and a good payout is decided after it.

One system for the whole file; what is sent is real samples with some places changed (mutations.py), signed as the bank
and Slack sign, so that it comes past the signature.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from streamproc.domain.button import button_value
from streamproc.domain.events import PayoutRequested
from streamproc.operate import tokens
from streamproc.operate.site import Site
from tests import slack
from tests.databases import clean
from tests.deadline import DEADLINE_S
from tests.hostile.mutations import CASES, DEEP, HUGE, LONG, MANY, SEED, damaged, mutated
from tests.hostile.served import about, assert_nothing_is_lost, assert_refused_well, named
from tests.journeys.system import ACCOUNT, System, signed
from tests.journeys.test_slack import SIGNING_SECRET, slack_system
from tests.words import attributed

SAMPLES = [
    path.read_bytes() for path in sorted((Path(__file__).parents[1] / "journeys" / "samples").glob("*.json"))
]
PENDING = (Path(__file__).parents[1] / "journeys" / "samples" / "pending.json").read_bytes()
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 100_000_000, require_approval_above: 1_000_000}
reviewers: {asha: {slack: U0ASHA}}
"""
ORDER = {
    "amount": 250_000, "currency": "INR", "mode": "IMPS", "purpose": "payout", "narration": "inv 7",
    "notes": {"k": "v"},
    "vendor_url": "https://vendor.example.com/",
    "fund_account": {
        "account_type": "bank_account",
        "bank_account": {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"},
        "contact": {"name": "Some Body", "type": "vendor", "email": "some.body@example.com"},
    },
}  # fmt: skip
LIMITS = {
    "daily_limit": 900, "allowed_domains": ["a.com", "*.b.org"], "blocked_domains": ["=evil.com"],
    "hours": "09:00-18:00",
    "rate_limit": {"count": 5, "window": "60s"}, "days": ["mon"], "timezone": "Asia/Kolkata", "currencies": ["INR"],
    "hold_ttl": "24h", "frozen": False, "why": "because",
}  # fmt: skip

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    valkey: str, postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    async with clean(valkey, postgres_server) as dsn:
        logs = tmp_path_factory.mktemp("logs")
        async with slack_system(valkey, dsn, logs=logs, api_rate="0", razorpay_calls_per_s="1000") as running:
            await running.apply(POLICIES)
            yield running


async def secret_of(system: System, name: str, scope: str) -> str:
    site = Site(system.redis_url, system.redis, 1)
    of = {"agent": "bot", "account": ACCOUNT} if scope == "agent" else {"agent": "", "account": ""}
    spec = tokens.TokenSpec(name=name, scope=scope, expires_s=600, **of)  # type: ignore[arg-type]
    made = await tokens.create(site, spec, attributed("test"))
    return made.secret


async def assert_a_good_payout_is_decided(system: System, rng: Random) -> None:
    payout = named(rng)
    answer = await system.post(about(PENDING, payout, notes={"agent_id": "bot"}))
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    async with asyncio.timeout(DEADLINE_S):
        while not any(type(event).__name__ == "PayoutDecided" for event in await system.story(payout)):
            await asyncio.sleep(0.05)


# ---- the bank's webhook ----


def note(text: str) -> bytes:
    """A pending payout with this text as its notes."""
    return about(PENDING, "pout_00000000000001", notes="HERE").replace(
        b'"HERE"', text.encode("utf-8", "surrogatepass")
    )


def amount(text: str) -> bytes:
    """A pending payout with this text as its amount."""
    return about(PENDING, "pout_00000000000002", amount="HERE").replace(b'"HERE"', text.encode())


NAMED: Mapping[str, tuple[bytes, int]] = {
    "a note of 1 MB": (note(json.dumps({"agent_id": LONG})), 413),
    "100,000 keys of notes": (note(json.dumps({f"k{n}": n for n in range(MANY)})), 413),
    "10,000 keys of notes": (note(json.dumps({f"k{n}": n for n in range(10_000)})), 200),
    "a note of 200,000 characters": (note(json.dumps({"agent_id": LONG[:200_000]})), 200),
    "lists 10,000 deep": (note("[" * DEEP + "]" * DEEP), 400),
    "objects 10,000 deep": (note('{"a":' * DEEP + "1" + "}" * DEEP), 400),
    "10,000 open brackets": (b"[" * DEEP, 400),
    "an amount of 10^400": (amount(HUGE), 200),
    "an amount of 5,000 digits": (amount("9" * 5_000), 400),
    "an amount of 2^63": (amount(str(2**63)), 200),
    "an amount of 1e400": (amount("1e400"), 200),
    "an amount of 125000.0": (amount("125000.0"), 200),
    "NaN": (amount("NaN"), 400),
    "Infinity": (amount("Infinity"), 400),
    "-Infinity": (note('{"a":-Infinity}'), 400),
    "a lone surrogate": (note('{"agent_id":"\\ud800"}'), 200),
    "a lone surrogate as a name": (note('{"\\udfff":1}'), 200),
    "a surrogate in raw bytes": (note('{"a":"\ud800"}'), 400),
    "the amount twice": (amount('100,"amount":99999999'), 200),
    "NUL in a note": (note('{"agent_id":"b\\u0000ot"}'), 200),
    "NUL in raw bytes": (note('{"agent_id":"b\x00ot"}'), 400),
    "invalid UTF-8": (amount("1").replace(b'"INR"', b'"\xff\xfe"'), 400),
    "a byte order mark": (b"\xef\xbb\xbf" + PENDING, 400),
    "UTF-16": (PENDING.decode().encode("utf-16"), 400),
    "two texts": (PENDING + PENDING, 400),
    "nothing": (b"", 400),
}


@pytest.mark.parametrize("case", NAMED)
async def test_a_named_body_is_refused_or_recorded(system: System, case: str) -> None:
    body, status = NAMED[case]
    answer = await system.post(body)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["entry"] in {entry.id for entry in await system.entries()}
    else:
        assert_refused_well(answer, case)
        assert ("bytes" in answer.json()["detail"]) == (status == 413)


async def test_a_changed_webhook_is_recorded_or_refused_and_the_next_payout_is_decided(
    system: System,
) -> None:
    rng = Random(SEED)
    said: Counter[int] = Counter()
    entries: dict[str, object] = {}
    for number in range(CASES):
        body = mutated(rng, about(rng.choice(SAMPLES), named(rng)), 2)
        answer = await system.post(body, event_id=f"Hostile{number}" if number % 2 else "")
        said[answer.status_code] += 1
        if answer.status_code == 200:
            entries[answer.json()["entry"]] = body[:300]
        else:
            assert_refused_well(answer, body[:300])
    assert said[200] > CASES / 5
    assert said[400] > CASES / 5
    await assert_a_good_payout_is_decided(system, rng)
    await assert_nothing_is_lost(system, entries)


async def test_raw_bytes_under_a_good_signature_are_400(system: System) -> None:
    rng = Random(SEED)
    for _ in range(CASES):
        body = rng.randbytes(rng.randrange(300)) if rng.randrange(2) else damaged(rng, damaged(rng, PENDING))
        answer = await system.post(body)
        if answer.status_code != 200:
            assert_refused_well(answer, body[:300])


SIGNATURES = (
    *(
        b"",
        b"0" * 64,
        b"f" * 63,
        b"f" * 65,
        b"\xff" * 64,
        b"%s",
        b"sha256=" + b"0" * 64,
        b"a" * 60_000,
        b"0" * 63 + b"g",
    ),
    *("٠".encode() * 64, b" ", b"\t", b"null", b"0" * 64 + b",", b"=" * 64),
)
EVENT_IDS = (
    *(
        b"",
        b"x" * 64,
        b"x" * 65,
        b"x" * 60_000,
        b"\xff\xfe",
        b"a b",
        b"a:b",
        b"*",
        b"{p0}",
        "é".encode(),
        b"%00",
        b"../x",
    ),
    *(b"\t", b"'", b'"', b"0", b"-", b"__", b"wh:x"),
)


async def raw(system: System, request: bytes) -> bytes:
    """The first line that comes back to these bytes; empty where the connection is closed without one."""
    reader, writer = await asyncio.open_connection(system.api.base_url.host, system.api.base_url.port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            writer.write(request)
            return (await reader.read(65_536)).partition(b"\r\n")[0]
    finally:
        writer.close()


def posted(body: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    """A request as bytes, with headers that a client would not send."""
    lines = [
        b"POST /webhooks/razorpay HTTP/1.1",
        b"host: x",
        b"connection: close",
        b"content-length: %d" % len(body),
    ]
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in headers), b"", body])


async def test_a_signature_header_that_is_none_is_401_and_nothing_is_recorded(system: System) -> None:
    body = about(PENDING, "pout_00000000000003")
    entries = len(await system.entries())
    for value in SIGNATURES:
        line = await raw(system, posted(body, (b"x-razorpay-signature", value)))
        assert line.split()[1] in (b"401", b"400", b"431"), (value[:80], line)
    twice = [(b"x-razorpay-signature", signed(body).encode())] * 2
    assert b" 401 " in await raw(system, posted(body, *twice))
    assert len(await system.entries()) == entries


async def test_an_event_id_of_any_kind_does_not_lose_a_signed_webhook(system: System) -> None:
    rng = Random(SEED + 1)
    entries = len(await system.entries())
    for value in EVENT_IDS:
        body = about(PENDING, named(rng), notes={"agent_id": "bot"})
        sent = (b"x-razorpay-signature", signed(body).encode()), (b"x-razorpay-event-id", value)
        line = await raw(system, posted(body, *sent))
        assert line.split()[1] == b"200", (value[:80], line)
    await system.settled()
    taken = [event for event in await system.events() if type(event).__name__ == "PayoutObserved"]
    assert len(await system.entries()) >= entries + len(EVENT_IDS)
    assert all(len(event.delivery) <= 64 for event in taken)


# ---- Slack ----


async def test_a_changed_click_of_slack_decides_nothing_and_is_told(system: System) -> None:
    rng = Random(SEED)
    value = button_value("pout_00000000000009", SIGNING_SECRET)
    payloads = [
        slack.block_actions("U0ASHA", "hold.approve", value),
        slack.block_actions("U0ASHA", "hold.reject", value),
        slack.view_submission("U0ASHA", value, "not ours"),
    ]
    said: Counter[int] = Counter()
    for _ in range(CASES):
        text = mutated(rng, json.dumps(rng.choice(payloads)), 3)
        body = slack.form(text.decode("utf-8", "replace"))
        if rng.randrange(4) == 0:
            body = damaged(rng, body)
        answer = await system.api.post(
            "/webhooks/slack", content=body, headers=slack.headers(body, time.time(), SIGNING_SECRET)
        )
        said[answer.status_code] += 1
        if answer.status_code not in (200, 502):  # 502: Slack does not know the trigger
            assert_refused_well(answer, text[:300])
    assert {400, 404} <= said.keys()
    assert not [event for event in await system.events() if type(event).__name__ == "ReviewSubmitted"]
    await assert_a_good_payout_is_decided(system, rng)


# ---- intents and policies over HTTP ----


async def test_a_changed_intent_is_taken_or_refused_by_field(system: System) -> None:
    rng = Random(SEED)
    secret = await secret_of(system, "hostile-agent", "agent")
    said: Counter[int] = Counter()
    taken: set[str] = set()
    for number in range(CASES):
        body = mutated(rng, json.dumps(ORDER), 2)
        headers = {
            "authorization": f"Bearer {secret}",
            "idempotency-key": f"h{number}",
            "content-type": "application/json",
        }
        answer = await system.api.post("/v1/payouts", content=body, headers=headers)
        said[answer.status_code] += 1
        if answer.status_code == 202:
            taken.add(answer.json()["payout"])
        else:
            assert_refused_well(answer, body[:300])
            assert b"000011112222" not in answer.content
    assert {202, 400, 422} <= said.keys(), said
    await assert_a_good_payout_is_decided(system, rng)
    await assert_nothing_is_lost(system, {})
    assert taken == {event.payout for event in await system.events() if isinstance(event, PayoutRequested)}


async def test_a_changed_policy_is_in_force_whole_or_refused_by_field(system: System) -> None:
    rng = Random(SEED)
    secret = await secret_of(system, "hostile-admin", "admin")
    said: Counter[int] = Counter()
    for number in range(CASES):
        body = mutated(rng, json.dumps(LIMITS), 2)
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        method = rng.choice(["PUT", "PATCH"])
        answer = await system.api.request(
            method, f"/v1/policies/h{number % 4}", content=body, headers=headers
        )
        said[answer.status_code] += 1
        if answer.status_code != 200:
            assert_refused_well(answer, body[:300])
    assert {200, 400, 422} <= said.keys(), said
    await assert_a_good_payout_is_decided(system, rng)

import asyncio
import hmac
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from razorpay.errors import SignatureVerificationError
from razorpay.utility import Utility

from streamproc.domain.events import BankEventIgnored, PayoutMalformed, PayoutObserved
from streamproc.errors import ConfigError
from streamproc.ingress import razorpay_webhook
from streamproc.ingress.razorpay_webhook import RazorpayWebhook, verify
from streamproc.log.stream import Append, Appended
from tests.deadline import DEADLINE_S
from tests.ingress.recorder import Recorder

SECRET, OLD_SECRET = "new-secret", "old-secret"
BODY_BYTES_MAX = 4_096


def entity(**changes: object) -> dict[str, object]:
    plain = {
        "id": "pout_Lq3vD0pZ8m2XkA",
        "amount": 250_000,
        "currency": "INR",
        "status": "pending",
        "notes": [],
    }
    return plain | changes


def body_of(event: str = "payout.pending", **changes: object) -> bytes:
    payload = {"payout": {"entity": entity(**changes)}}
    return json.dumps({"event": event, "account_id": "acc_1", "payload": payload}).encode()


def signed(body: bytes, secret: str = SECRET) -> str:
    return hmac.digest(secret.encode(), body, "sha256").hex()


def headers_of(body: bytes, **changes: str | None) -> list[tuple[bytes, bytes]]:
    """The bank's headers for a body; a header set to None is left out."""
    plain: dict[str, str | None] = {
        "content-length": str(len(body)),
        "content-type": "application/json",
        "x-razorpay-signature": signed(body),
        "x-razorpay-event-id": "Rp71ZiqdEWusLa",
    }
    plain |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [(name.encode(), value.encode("latin-1")) for name, value in plain.items() if value is not None]


class Response:
    def __init__(self, messages: list[Any]) -> None:
        self.status: int = messages[0]["status"]
        self.headers: dict[bytes, bytes] = dict(messages[0]["headers"])
        self.raw: bytes = messages[1]["body"]
        self.body: dict[str, object] = json.loads(self.raw)


def webhook(door: Any) -> RazorpayWebhook:
    return RazorpayWebhook(
        door, [SECRET, OLD_SECRET], body_bytes_max=BODY_BYTES_MAX, fallback_account="acc_fallback"
    )


async def exchange(
    door: Any,
    headers: list[tuple[bytes, bytes]],
    chunks: list[bytes | None],
    method: str = "POST",
    *,
    app: RazorpayWebhook | None = None,
) -> list[Any]:
    """What the application sends. A chunk None is the sender's disappearance; after the last comes silence."""
    app = app or webhook(door)
    left = list(chunks)
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.get_running_loop().create_future()
        chunk = left.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or chunk == b"..."}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "headers": headers}, receive, send)
    return sent


async def post(door: Any, body: bytes, **headers: str | None) -> Response:
    return Response(await exchange(door, headers_of(body, **headers), [body]))


def is_problem(response: Response, status: int) -> bool:
    return (
        response.status == status == response.body["status"]
        and response.headers[b"content-type"] == b"application/problem+json"
        and {"type", "title", "detail"} <= set(response.body)
    )


async def test_a_signed_payout_is_appended_and_then_accepted() -> None:
    door = Recorder()
    response = await post(door, body_of())
    assert (response.status, response.body) == (200, {"status": "accepted", "entry": "1-0"})
    (event,) = door.events
    assert isinstance(event, PayoutObserved)
    assert (event.delivery, event.account, event.at) == ("Rp71ZiqdEWusLa", "acc_1", door.now_us())


async def test_the_answer_waits_for_the_log() -> None:
    synced = asyncio.Event()
    asked = asyncio.Event()

    class Slow(Recorder):
        async def append(self, what: Append, /) -> Appended:
            asked.set()
            await synced.wait()
            return await super().append(what)

    answer = asyncio.create_task(post(Slow(), body_of()))
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    assert not answer.done()
    synced.set()
    assert (await asyncio.wait_for(answer, DEADLINE_S)).status == 200


async def test_the_same_delivery_again_is_a_duplicate_at_the_same_entry() -> None:
    door = Recorder()
    answers = [(await post(door, body_of())).body for _ in range(3)]
    assert answers == [{"status": "accepted", "entry": "1-0"}] + [{"status": "duplicate", "entry": "1-0"}] * 2
    assert len(door.events) == 1


async def test_the_same_payout_under_another_event_id_is_a_duplicate() -> None:
    door = Recorder()
    await post(door, body_of())
    response = await post(door, body_of(), x_razorpay_event_id="another")
    assert response.body["status"] == "duplicate"


async def test_another_event_is_ignored_but_recorded() -> None:
    door = Recorder()
    response = await post(door, body_of("order.paid"))
    assert (response.status, response.body["status"]) == (200, "ignored")
    assert isinstance(door.events[0], BankEventIgnored)


async def test_a_malformed_payout_is_accepted_and_recorded_so_that_nothing_is_lost() -> None:
    door = Recorder()
    response = await post(door, body_of(amount="x"))
    assert (response.status, response.body["status"]) == (200, "accepted")
    assert isinstance(door.events[0], PayoutMalformed)


async def test_the_old_secret_is_still_good_while_it_is_configured() -> None:
    response = await post(Recorder(), body_of(), x_razorpay_signature=signed(body_of(), OLD_SECRET))
    assert response.status == 200


@pytest.mark.parametrize(
    "signature",
    [
        None, "", "0" * 64, signed(body_of()).upper(), signed(body_of())[:-1], signed(body_of()) + "0",
        " " + signed(body_of()), signed(body_of(), "other"), signed(body_of(), ""), "é" * 64, signed(b"another body"),
        "sha256=" + signed(body_of()),
    ],
)  # fmt: skip
async def test_a_bad_or_missing_signature_is_401_and_changes_nothing(signature: str | None) -> None:
    door = Recorder()
    assert is_problem(await post(door, body_of(), x_razorpay_signature=signature), 401)
    assert door.appends == []


async def test_two_signatures_are_none() -> None:
    body = body_of()
    twice = [*headers_of(body), (b"x-razorpay-signature", signed(body).encode())]
    assert Response(await exchange(Recorder(), twice, [body])).status == 401


async def test_the_signature_is_checked_before_the_body_is_looked_at() -> None:
    assert (await post(Recorder(), b"not json", x_razorpay_signature="0" * 64)).status == 401


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"event":"payout.pending"}', b"\xff"])
async def test_a_signed_body_that_is_no_payload_is_400_and_changes_nothing(body: bytes) -> None:
    door = Recorder()
    assert is_problem(await post(door, body), 400)
    assert door.appends == []


async def test_while_the_log_is_away_the_bank_is_asked_to_come_back_and_learns_nothing_else() -> None:
    door = Recorder()
    door.is_away = True
    response = await post(door, body_of())
    assert is_problem(response, 503)
    assert int(response.headers[b"retry-after"]) > 0
    assert b"SECRET" not in response.raw
    door.is_away = False
    assert (await post(door, body_of())).body["status"] == "accepted"


async def test_while_the_log_is_away_few_lines_are_logged_however_many_webhooks_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Recorder()
    door.is_away, app = True, webhook(door)
    for _ in range(5):
        assert is_problem(Response(await exchange(door, headers_of(body_of()), [body_of()], app=app)), 503)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "webhooks answered 503, since the log is away"
    ]


async def test_a_log_that_does_not_answer_is_503_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Recorder):
        async def append(self, what: Append, /) -> Appended:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    monkeypatch.setattr(razorpay_webhook, "APPEND_S_MAX", 0.05)
    assert is_problem(await post(Silent(), body_of()), 503)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post"])
async def test_only_post_delivers(method: str) -> None:
    response = Response(await exchange(Recorder(), headers_of(body_of()), [body_of()], method))
    assert is_problem(response, 405)
    assert response.headers[b"allow"] == b"POST"


async def test_a_body_announced_as_too_large_is_refused_before_it_is_read() -> None:
    headers = headers_of(b"", content_length=str(BODY_BYTES_MAX + 1))
    assert is_problem(Response(await exchange(Recorder(), headers, [])), 413)


async def test_a_body_that_grows_too_large_is_refused_before_its_end() -> None:
    headers = headers_of(b"", content_length=None)
    chunks: list[bytes | None] = [b"x" * BODY_BYTES_MAX, b"x", b"never asked for"]
    assert is_problem(Response(await exchange(Recorder(), headers, chunks)), 413)


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = body_of().ljust(BODY_BYTES_MAX)
    assert (await post(Recorder(), body)).status == 200


async def test_a_body_in_pieces_is_the_same_body() -> None:
    body = body_of()
    response = Response(await exchange(Recorder(), headers_of(body), [body[:10], b"", body[10:]]))
    assert response.status == 200


async def test_a_body_that_does_not_arrive_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(razorpay_webhook, "BODY_READ_S_MAX", 0.05)
    assert is_problem(Response(await exchange(Recorder(), headers_of(b"x" * 9), [b"..."])), 408)


async def test_a_sender_who_disappears_gets_no_answer_and_changes_nothing() -> None:
    door = Recorder()
    assert await exchange(door, headers_of(body_of()), [body_of()[:9], None]) == []
    assert door.appends == []


@pytest.mark.parametrize("event_id", [None, "", "x" * 65, "a b", "a:b", "é", "../x"])
async def test_a_weird_event_id_counts_as_absent(event_id: str | None) -> None:
    door = Recorder()
    await post(door, body_of(), x_razorpay_event_id=event_id)
    assert door.appends[0].keys == ("st:pout_Lq3vD0pZ8m2XkA:pending",)


async def test_an_event_id_of_64_characters_is_kept() -> None:
    door = Recorder()
    await post(door, body_of(), x_razorpay_event_id="x" * 64)
    assert door.appends[0].keys[0].startswith("wh:" + "x" * 64 + ":")


@pytest.mark.parametrize("secrets", [[], [""]])
def test_without_a_secret_there_is_no_webhook(secrets: list[str]) -> None:
    with pytest.raises(ConfigError, match="RAZORPAY_WEBHOOK_SECRETS"):
        RazorpayWebhook(Recorder(), secrets, body_bytes_max=1, fallback_account="a")


async def test_what_is_signed_and_no_payload_is_logged_by_its_size(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody but the bank can send it, so either the bank has changed something or a secret is known to others."""
    assert is_problem(await post(Recorder(), b'{"event":7,"note":"x"}'), 400)
    assert caplog.messages == [
        "webhook refused: its signature is valid, but its body of 22 bytes is not a payload"
    ]


async def test_who_signs_wrongly_is_counted_and_a_log_that_is_away_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await post(Recorder(), body_of(), x_razorpay_signature="0" * 64)
    assert caplog.messages == ["webhooks refused, signature missing or wrong: 1"]
    caplog.clear()
    door = Recorder()
    door.is_away = True
    await post(door, body_of())
    [line] = caplog.messages
    assert line.startswith("webhooks answered 503, since the log is away: 1, the last: connection refused")


async def test_no_log_line_shows_a_body_or_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    door = Recorder()
    await post(door, body_of(narration="PRIVATE"))
    await post(door, body_of(narration="PRIVATE"), x_razorpay_signature="0" * 64)
    await post(door, b'{"event":7,"note":"PRIVATE"}')
    for word in ("PRIVATE", SECRET, OLD_SECRET, signed(body_of())):
        assert word not in caplog.text


# ---- signatures -------------------------------------------------------------------------


def sdk_accepts(body: str, signature: str, secret: str) -> bool:
    """The bank's own SDK. It takes text only, and says no by raising."""
    try:
        return bool(Utility().verify_webhook_signature(body, signature, secret))
    except SignatureVerificationError:
        return False


texts = st.text(st.characters(codec="utf-8"))


@given(texts, texts.filter(bool), st.booleans())
def test_verify_agrees_with_the_banks_sdk(body: str, secret: str, tamper: bool) -> None:
    signature = hmac.digest(secret.encode(), body.encode(), "sha256").hex()
    sent = body + "x" if tamper else body
    expected = sdk_accepts(sent, signature, secret)
    assert verify(sent.encode(), signature, [secret.encode()]) is expected is not tamper


@given(texts, st.text("0123456789abcdefABCDEF", min_size=60, max_size=66), texts.filter(bool))
def test_verify_and_the_banks_sdk_refuse_the_same_hex(body: str, signature: str, secret: str) -> None:
    assert verify(body.encode(), signature, [secret.encode()]) is sdk_accepts(body, signature, secret)


@given(
    st.binary(),
    st.none() | st.text(st.characters(exclude_categories=())) | st.binary(),
    st.lists(st.binary()),
)
def test_no_guessed_signature_verifies_or_raises(body: bytes, signature: Any, secrets: list[bytes]) -> None:
    assert verify(body, signature, secrets) is False


def test_an_empty_secret_never_verifies() -> None:
    assert verify(b"{}", signed(b"{}", ""), [b""]) is False


@pytest.mark.parametrize("position", [0, 1, 2])
def test_any_of_the_secrets_verifies(position: int) -> None:
    secrets = [b"a", b"b", b"c"]
    assert verify(b"{}", hmac.digest(secrets[position], b"{}", "sha256").hex(), secrets)


# ---- whatever comes ---------------------------------------------------------------------

DOCUMENTED = {200, 400, 401, 413}


@given(
    st.binary(max_size=300) | st.builds(lambda extra: body_of(narration=extra), texts),
    st.sampled_from(["genuine", "absent", "wrong", "odd"]),
    st.binary(max_size=80),
    st.none() | st.binary(max_size=80),
    st.none() | st.binary(max_size=30),
)
async def test_every_request_gets_a_documented_answer(
    body: bytes, signing: str, odd: bytes, event_id: bytes | None, length: bytes | None
) -> None:
    signature = {"genuine": signed(body).encode(), "wrong": b"0" * 64, "odd": odd, "absent": None}[signing]
    offered = [
        (b"x-razorpay-signature", signature),
        (b"x-razorpay-event-id", event_id),
        (b"content-length", length),
    ]
    headers = [(name, value) for name, value in offered if value is not None]
    door = Recorder()
    response = Response(await exchange(door, headers, [body]))
    assert response.status in DOCUMENTED
    assert bool(door.appends) is (response.status == 200)
    if response.status in {200, 400}:
        assert signing == "genuine"

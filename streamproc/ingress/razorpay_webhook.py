"""The bank's webhook: raw body in, signature checked, appended, answered. A raw ASGI application.

Nothing is parsed before the signature is verified, and 2xx is said only after the log has the event and
synced it. The bank waits 5 s and tries again for a day after anything but 2xx, so a 503 loses nothing.

    200 accepted | duplicate | ignored      400 no payload     401 signature    405 not POST
    408 body too slow                       413 body too large                  503 the log is away
"""

import hmac
import logging
import re
from collections.abc import Iterable, Sequence

import msgspec

from streamproc.errors import ConfigError, InputError, LogUnavailable, kind_of
from streamproc.ingress.body import BODY_READ_S_MAX, header, posted_body
from streamproc.ingress.deadline import Deadlines
from streamproc.ingress.problems import Receive, Scope, Send, send_body, send_problem
from streamproc.ingress.refusals import ThrottledWarning
from streamproc.ingress.translate import Translation, translate
from streamproc.log.stream import Appended, Producer

APPEND_S_MAX = 4.0
"""Below the bank's 5 s, so that it hears 503 and not silence."""
RETRY_AFTER_S = 5
"""What a 503 asks for; the bank has a schedule of its own."""

_EVENT_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_SIGNATURE = re.compile(rb"[0-9a-f]{64}")
_JSON = b"application/json"
log = logging.getLogger(__name__)


def verify(body: bytes, signature: str | bytes | None, secrets: Iterable[bytes]) -> bool:
    """Whether `signature` is the HMAC-SHA256 of the raw body, in lower-case hex, under any of the secrets.

    Every secret is tried, in constant time, so the answer's time does not say which one it was. An empty
    secret never verifies: everybody knows it.
    """
    if isinstance(signature, str):
        signature = signature.encode("utf-8", "replace")
    if signature is None or not _SIGNATURE.fullmatch(signature):
        return False
    genuine = False
    for secret in secrets:
        expected = hmac.digest(secret, body, "sha256").hex().encode("ascii")
        genuine |= hmac.compare_digest(expected, signature) and bool(secret)
    return genuine


class RazorpayWebhook:
    """The ASGI application. `secrets` are all that may sign now (rotation: the old one stays a while).

    Raises ConfigError if none of them could verify a webhook.
    """

    def __init__(
        self, producer: Producer, secrets: Sequence[str], *, body_bytes_max: int, fallback_account: str
    ) -> None:
        self._secrets = tuple(secret.encode() for secret in secrets if secret)
        if not self._secrets:
            raise ConfigError("STREAMPROC_RAZORPAY_WEBHOOK_SECRETS is empty: no webhook could be verified")
        self._producer = producer
        self._body_bytes_max = body_bytes_max
        self._fallback_account = fallback_account
        self._body_in_time, self._append_in_time = Deadlines(BODY_READ_S_MAX), Deadlines(APPEND_S_MAX)
        self._strangers = ThrottledWarning(log, "webhooks refused, signature missing or wrong")
        self._unwritten = ThrottledWarning(log, "webhooks answered 503, since the log is away")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; returns without an answer when the sender has gone."""
        body = await posted_body(
            scope,
            receive,
            send,
            other_method="webhooks are delivered by POST",
            within=self._body_in_time,
            bytes_max=self._body_bytes_max,
        )
        if body is not None:
            await self._answer(scope, body, send)

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        if not verify(body, header(scope, b"x-razorpay-signature"), self._secrets):
            self._strangers.count()
            await send_problem(send, 401, "x-razorpay-signature is missing or is not this body's")
            return
        try:
            translated = self._translate(scope, body)
            with self._append_in_time.within():
                appended = await self._producer.append(translated.append)
        except InputError as problem:
            log.warning(
                "webhook refused: its signature is valid, but its body of %d bytes is not a payload",
                len(body),
            )
            await send_problem(send, 400, str(problem))
        except (LogUnavailable, TimeoutError) as problem:
            self._unwritten.count(str(problem) or kind_of(problem))
            retry = (b"retry-after", str(RETRY_AFTER_S).encode("ascii"))
            await send_problem(send, 503, "the log cannot be written now; deliver again", [retry])
        else:
            await send_body(send, 200, _accepted(translated, appended), _JSON)

    def _translate(self, scope: Scope, body: bytes) -> Translation:
        event_id = header(scope, b"x-razorpay-event-id") or b""
        return translate(
            body,
            delivery=event_id.decode("ascii") if _EVENT_ID.fullmatch(event_id) else "",
            fallback_account=self._fallback_account,
            now_us=self._producer.now_us(),
        )


def _accepted(translated: Translation, appended: Appended) -> bytes:
    status = "duplicate" if not appended.new else "ignored" if translated.ignored else "accepted"
    return msgspec.json.encode({"status": status, "entry": appended.entry})

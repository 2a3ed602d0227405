"""Slack's webhook: a click on a hold's message becomes `review.submitted`, or is refused and audited. Raw ASGI.

Nothing is parsed before the signature is verified. A click is only a claim by an account in Slack: whether it counts is
decided by the review stage, which is not waited for, since Slack shows an error after 3 s. What is not 200 shows as an
error to whoever clicked; a new click is a new request, so nothing is lost by saying so.

    200 taken | nothing for us | response_action: errors (the reason)
    400 no payload   401 signature, or its time   403 not a button of ours   404 unknown payout   405 not POST
    408 body too slow   409 the same request again   413 body too large   429 again an answer that cannot count
    502 Slack did not open the modal   503 the log is away, or Slack is not configured
"""

import asyncio
import hmac
import logging
import re
from typing import Final, Literal, Protocol, assert_never

import msgspec
from msgspec import Struct

from streamproc.clients.slack import Slack, SlackRefused
from streamproc.clients.slack_modal import REASON, reject_modal
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.button import payout_of
from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.plain import clean
from streamproc.domain.reviewers import SLACK
from streamproc.errors import InputError, JobFailed, LogBroken, LogUnavailable, TryAgain
from streamproc.ingress.body import header, posted_body
from streamproc.ingress.deadline import Deadlines
from streamproc.ingress.problems import Receive, Scope, Send, send_body, send_problem
from streamproc.ingress.refusals import Refusals, ThrottledWarning
from streamproc.ingress.slack_payload import (
    ApproveClick,
    Interaction,
    NotForUs,
    RejectClick,
    Rejection,
    read_payload,
)
from streamproc.log.stream import Append, Producer

PATH = "/webhooks/slack"
CHANNEL: Final = "slack"
AGE_S_MAX = 300
"""How far the signed time may be from Redis's clock, either way: Slack's advice."""
REMEMBERED_S = 900
"""How long a request is known again: longer than its signed time can be valid, which is 5 min either way."""
BODY_READ_S_MAX = 1.0
"""Limit for reading the body. With ANSWER_S_MAX it is below the 3 s after which Slack shows an error."""
ANSWER_S_MAX = 1.9
"""Limit from the whole body to the answer: asking Redis, and appending to the log or opening the modal."""
MODAL_S_MAX = 1.4
"""Limit within that for Slack to open the modal."""
AT_ONCE_MAX = 64
"""Genuine requests handled at once; more are refused. People click, so that many would be a fault at Slack's side."""
IN_VAIN_S = 10
"""An answer that cannot count is recorded, with its refusal, once in this time for each account and payout."""

_TIMESTAMP = re.compile(rb"[0-9]{1,12}")
_JSON = b"application/json"
_TEXT = b"text/plain"
_NOT_ASKED = "clicked Reject; no reason was asked for, since the answer could not count then"
log = logging.getLogger(__name__)


class Hold(Struct, frozen=True):
    """What is known of the payout that an answer is about. `problem`: why the answer would not count now, or empty."""

    account: str
    amount: int
    problem: str


class Holds(Protocol):
    """What this webhook asks of the system."""

    async def first_time(self, key: str, remembered_s: int) -> bool:
        """Whether the key is new; all processes know it from now on. Raises LogUnavailable."""
        ...

    async def find(self, answer: ReviewSubmitted) -> Hold | None:
        """The payout that the answer is about; None if it is not known here. Raises LogUnavailable and TryAgain."""
        ...


class RefusedRequest(Exception):
    """The answer is a problem, which is audited; `detail` repeats nothing that was sent."""

    def __init__(self, status: int, detail: str, *, payout: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.payout = status, detail, payout


class NotNow(Exception):
    """A dependency is away; the person has to click again."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def signature(secret: str, timestamp: bytes, body: bytes) -> bytes:
    """`v0=` and the HMAC-SHA256 over version, time and raw body, in lower-case hex."""
    signed = b"v0:" + timestamp + b":" + body
    return b"v0=" + hmac.digest(secret.encode(), signed, "sha256").hex().encode("ascii")


class NotConfigured:
    """Answers if Slack's signing secret is not set, since then nothing can be verified."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503 to every request."""
        detail = "clicks in Slack are not taken here: STREAMPROC_SLACK_SIGNING_SECRET is not set"
        await send_problem(send, 503, detail)


class SlackReview:
    """The ASGI application. `secret` is Slack's signing secret."""

    def __init__(
        self,
        producer: Producer,
        holds: Holds,
        modals: Slack,
        refusals: Refusals,
        *,
        secret: str,
        body_bytes_max: int,
    ) -> None:
        self._producer = producer
        self._holds = holds
        self._modals = modals
        self._refusals = refusals
        self._secret = secret
        self._body_bytes_max = body_bytes_max
        self._body_in_time = Deadlines(BODY_READ_S_MAX)
        self._in_hand = 0
        self._strangers = ThrottledWarning(log, f"requests to {PATH} that Slack did not sign, refused")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; returns without an answer when the sender has gone."""
        body = await posted_body(
            scope,
            receive,
            send,
            other_method="Slack delivers by POST",
            within=self._body_in_time,
            bytes_max=self._body_bytes_max,
            too_large=lambda detail: self._audit("", RefusedRequest(413, detail)),
        )
        if body is not None:
            await self._answer(scope, body, send)

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        interaction: Interaction | None = None
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                claim = self._verified(scope, body)
                interaction = read_payload(body)
                answer = await self._in_turn(interaction, claim)
        except InputError as problem:
            refused = RefusedRequest(400, f"signed, but it cannot be read: {problem}")
        except RefusedRequest as problem:
            refused = problem
        except NotNow as problem:
            log.warning("a click in Slack was not taken: %s", problem.detail)
            await send_problem(send, problem.status, problem.detail)
            return
        except (LogUnavailable, LogBroken, TryAgain, JobFailed, TimeoutError) as problem:
            why = str(problem) or f"no answer within {ANSWER_S_MAX:g} s"
            log.warning("a click in Slack was not taken, the log or the archive is away: %s", why)
            await send_problem(send, 503, "this cannot be recorded now; click again")
            return
        else:
            await send_body(send, 200, answer, _JSON if answer else _TEXT)
            return
        self._audit(SLACK + interaction.user if interaction is not None else "", refused)
        await send_problem(send, refused.status, refused.detail)

    def _audit(self, subject: str, refused: RefusedRequest) -> None:
        if subject:
            log.warning("a request to %s was refused: %s", PATH, refused.detail)
        else:
            self._strangers.count()
        self._refusals.note(
            channel=CHANNEL,
            subject=subject,
            what=f"POST {PATH}",
            problem=refused.detail,
            payout=refused.payout,
        )

    def _verified(self, scope: Scope, body: bytes) -> str:
        """The key by which this request is known again. Raises RefusedRequest unless Slack signed it, and lately."""
        signed = header(scope, b"x-slack-signature") or b""
        timestamp = header(scope, b"x-slack-request-timestamp") or b""
        expected = signature(self._secret, timestamp, body)
        if not hmac.compare_digest(expected, signed) or not _TIMESTAMP.fullmatch(timestamp):
            raise RefusedRequest(401, "x-slack-signature is missing or is not this request's")
        away_s = abs(self._producer.now_us() // 1_000_000 - int(timestamp))
        if away_s > AGE_S_MAX:
            raise RefusedRequest(401, f"x-slack-request-timestamp is more than {AGE_S_MAX} s from now")
        return f"slack:{expected[3:].decode('ascii')}"

    # ---- what was clicked ---------------------------------------------------------------

    async def _in_turn(self, interaction: Interaction, claim: str) -> bytes:
        if self._in_hand >= AT_ONCE_MAX:
            raise NotNow(503, f"{self._in_hand} requests are in hand, the limit is {AT_ONCE_MAX}")
        self._in_hand += 1
        try:
            if not await self._holds.first_time(claim, REMEMBERED_S):
                raise RefusedRequest(409, "the same request came before")
            return await self._act(interaction, claim)
        finally:
            self._in_hand -= 1

    async def _act(self, interaction: Interaction, claim: str) -> bytes:
        """Do what the request asks; the body of the answer."""
        match interaction:
            case NotForUs():
                log.info("a request from Slack has nothing for us: %s", interaction.what)
            case ApproveClick():
                answer = self._submission(interaction, "approve", "approved by the button in Slack")
                await self._append(answer, await self._hold(answer), claim)
            case RejectClick():
                await self._ask_why(interaction, claim)
            case Rejection():
                return await self._reject(interaction, claim)
            case _:
                assert_never(interaction)
        return b""

    def _submission(
        self,
        interaction: ApproveClick | RejectClick | Rejection,
        action: Literal["approve", "reject"],
        why: str,
    ) -> ReviewSubmitted:
        payout = payout_of(interaction.value, self._secret)
        if payout is None:
            named = interaction.value.rpartition(".")[2]
            raise RefusedRequest(403, "this is not a button of ours: its payout was changed", payout=named)
        return ReviewSubmitted(
            at=self._producer.now_us(),
            payout=payout,
            by=SLACK + interaction.user,
            action=action,
            why=why,
            channel=CHANNEL,
        )

    async def _hold(self, answer: ReviewSubmitted) -> Hold:
        hold = await self._holds.find(answer)
        if hold is None:
            raise RefusedRequest(404, "the payout of this button is not known here", payout=answer.payout)
        return hold

    async def _append(self, answer: ReviewSubmitted, hold: Hold, claim: str) -> None:
        if hold.problem:
            in_vain = f"in-vain:{answer.by}:{answer.payout}"
            if not await self._holds.first_time(in_vain, IN_VAIN_S):
                detail = f"an answer that cannot count came again within {IN_VAIN_S} s"
                raise RefusedRequest(429, detail, payout=answer.payout)
        appended = await self._producer.append(Append(hold.account, (claim,), (answer,)))
        if not appended.new:
            raise RefusedRequest(409, "the same request came before", payout=answer.payout)

    async def _ask_why(self, interaction: RejectClick, claim: str) -> None:
        """Open the modal. Whoever may not answer gets none: the review stage refuses them, and they are told
        privately."""
        answer = self._submission(interaction, "reject", _NOT_ASKED)
        hold = await self._hold(answer)
        if hold.problem:
            await self._append(answer, hold, claim)
            return
        try:
            await self._modals.open_view(
                interaction.trigger, reject_modal(interaction.value, answer.payout, hold.amount)
            )
        except (SlackRefused, TryAgain) as problem:
            raise NotNow(
                502, f"Slack did not open the form for the reason, click again: {problem}"
            ) from problem

    async def _reject(self, interaction: Rejection, claim: str) -> bytes:
        why = clean(interaction.reason.strip(), len(interaction.reason))
        answer = self._submission(interaction, "reject", why)
        if not why or len(why) > WHY_CHARS_MAX:
            limit = f"a reason has 1 to {WHY_CHARS_MAX} characters, not {len(why)}"
            return msgspec.json.encode({"response_action": "errors", "errors": {REASON: limit}})
        await self._append(answer, await self._hold(answer), claim)
        return b""

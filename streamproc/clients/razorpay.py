"""RazorpayX: look at payouts, and tell the bank what was decided about them.

Source: RazorpayX API docs (read 2026-11). Approving by API is for technology partners with an OAuth token of
scope `rx_partner_read_write`; key and secret are not documented as enough for it.
"""

import base64
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Struct

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import Answer, OutboundClient, OutcomeUnknown, OverHttp
from streamproc.clients.json_text import NotJson, decode_json
from streamproc.clients.limiter import Limiter, RateLimiter
from streamproc.clients.oauth import TokenKeeper
from streamproc.clients.razorpay_entities import MalformedPayout, id_or_empty, read_payout
from streamproc.domain.events import BankCommand, BankPayout
from streamproc.domain.plain import clean
from streamproc.errors import TryAgain, Unprocessable

TIMEOUT_S = 10.0
"""For a call, from its turn on. The bank's own webhooks give us 5 s; its API is slower under load."""
WAIT_S_MAX = 8.0
"""Longest wait for a turn in the pace that all processes share. It is apart from TIMEOUT_S, since waiting is not the
bank's failure. Both together are the time of execution's pass (18 s)."""
CALLS_PER_S = 8.0
"""The bank advises 5 to 10 a second and publishes no limit."""
CALLS_BURST = 8
PAGE_COUNT_MAX = 100
"""The bank refuses more with 400."""
REMARKS_CHARS_MAX = 255
"""Not documented; the usual length of a text column."""
PROBLEM_CHARS_MAX = 200
FOUND_MAX = 100
"""Payouts under one reference that are looked at: more than one means that somebody reuses it."""
IN_FLIGHT = 409
"""Not documented; the usual status while a call with the same key is under way, whose outcome is not known."""
CHECK_KEYS = "check STREAMPROC_RAZORPAY_KEY_ID and STREAMPROC_RAZORPAY_KEY_SECRET"
"""Ends the text of every TryAgain that means that the bank refuses our keys."""
_RENEW = "renew STREAMPROC_RAZORPAY_OAUTH_TOKEN; it must be allowed to approve payouts"
KEYS_REFUSED_AFTER_S = 60.0
"""Wait after a 401 or 403: the keys are wrong or not yet valid. A person must act; the payout must not be lost."""
_KEYS_REFUSED = frozenset({401, 403})
_NO_REASON = frozenset({"", "null", "NA"})
_SAY_NOTHING = frozenset({408, 425})
_NO_ENVELOPE = ("the error body is not JSON", "the error body has no `error`")


class CommandAnswer(Struct, frozen=True, kw_only=True):
    """The bank's answer to a command. `refused`: it was a 4xx, so look at the payout's state at the bank."""

    http_status: int
    outcome: Literal["done", "refused"]
    payout: BankPayout | None = None
    """The payout after the command; None if refused, or if the answer could not be read."""
    code: str = ""
    """The error's `reason` (`payout_approval_not_allowed`), or its `code` if it gives no reason."""
    problem: str = ""


class Found(Struct, frozen=True):
    """Payouts under one reference. `at_s`: as of a Page."""

    payouts: list[BankPayout]
    at_s: int | None = None


class Page(Struct, frozen=True, kw_only=True):
    """One page of the list. `raw_count` is how many items the bank sent: the next page skips that many.

    `at_s`: when the bank made it, by its own clock (Unix s); None if it did not say.
    """

    items: list[BankPayout | MalformedPayout]
    raw_count: int
    at_s: int | None = None


def open_razorpay(
    base_url: str,
    *,
    key_id: str,
    key_secret: str,
    oauth_token: str = "",
    limiter: RateLimiter | None = None,
    tokens: TokenKeeper | None = None,
) -> "Razorpay":
    """A client with the bank's limits. `base_url` may end with `/v1` or not. Close it with `aclose`.

    `limiter` limits the calls of all processes together; without it this client alone keeps CALLS_PER_S.
    """
    http = OutboundClient(
        "razorpay",
        without_version(base_url),
        timeout_s=TIMEOUT_S,
        limiter=limiter or Limiter(CALLS_PER_S, CALLS_BURST),
        breaker=Breaker(),
        wait_s_max=WAIT_S_MAX,
    )
    return Razorpay(http, key_id=key_id, key_secret=key_secret, oauth_token=oauth_token, tokens=tokens)


class Razorpay(OverHttp):
    """The bank. Every call raises TryAgain if nothing was done, and OutcomeUnknown (a TryAgain) if that is not known: a
    5xx, or a lost answer. Approve, reject and cancel are safe to repeat: the bank refuses the second."""

    def __init__(
        self,
        http: OutboundClient,
        *,
        key_id: str,
        key_secret: str,
        oauth_token: str = "",
        tokens: TokenKeeper | None = None,
    ) -> None:
        """`tokens` keeps the OAuth token fresh; without it `oauth_token` is used until it expires."""
        super().__init__(http)
        self._tokens = tokens
        pair = f"{key_id}:{key_secret}".encode()
        self._by_key = {"authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
        self._by_token = _bearer(oauth_token) if oauth_token else self._by_key

    async def fetch(self, payout_id: str) -> BankPayout:
        """The payout as it is now.

        Raises Unprocessable if the bank does not know it or shows it malformed; TryAgain also for refused keys (401,
        403) and for an answer that is not in the bank's form, which is that of a proxy.
        """
        answer = await self._http.call("GET", _path(payout_id), headers=self._by_key)
        entity = _read_answer(f"payout {payout_id}", answer.status, answer.body)
        payout = read_payout(entity)
        if isinstance(payout, MalformedPayout):
            raise Unprocessable(f"payout {payout_id}: {payout.problem}")
        if payout.id != payout_id:
            raise Unprocessable(f"payout {payout_id}: the bank answered with payout {payout.id}")
        return payout

    async def list_page(
        self, account_number: str, *, from_s: int, to_s: int, skip: int, count: int = PAGE_COUNT_MAX
    ) -> Page:
        """One page of the payouts created in [from_s, to_s] (Unix seconds), in the bank's own order.

        An item that cannot be read is a MalformedPayout in its place. Raises as `fetch` does.
        """
        query: dict[str, str | int] = {"account_number": account_number, "from": from_s, "to": to_s}
        query |= {"count": count, "skip": skip}
        answer = await self._http.call("GET", "/v1/payouts", params=query, headers=self._by_key)
        items = _items(answer.status, answer.body)
        return Page(items=[read_payout(item) for item in items], raw_count=len(items), at_s=answer.at_s)

    async def create(self, order: bytes, key: str) -> CommandAnswer:
        """Create a payout. `order` is the whole body, `key` the idempotency key: for seven days the bank makes one
        payout for the same key and bytes. Refused keys (401, 403) raise TryAgain: nothing was done."""
        headers = {**self._by_key, "content-type": "application/json", "x-payout-idempotency": key}
        answer = await self._http.call("POST", "/v1/payouts", headers=headers, content=order)
        if answer.status in _KEYS_REFUSED:
            raise _caller_refused("create", answer.status, _read_error(answer.body)[1])
        if answer.status == IN_FLIGHT:
            raise OutcomeUnknown(f"create: {answer.status}, {_read_error(answer.body)[1]}")
        if 400 <= answer.status < 500:
            code, problem = _refusal("create", answer)
            return CommandAnswer(http_status=answer.status, outcome="refused", code=code, problem=problem)
        payout, problem = _read_done("", answer.body)
        return CommandAnswer(http_status=answer.status, outcome="done", payout=payout, problem=problem)

    async def find(self, account_number: str, reference: str) -> Found:
        """The payouts under a reference. Raises as `fetch` does; Unprocessable if one of them cannot be read."""
        query: dict[str, str | int] = {"account_number": account_number, "reference_id": reference}
        answer = await self._http.call(
            "GET", "/v1/payouts", params=query | {"count": FOUND_MAX}, headers=self._by_key
        )
        found: list[BankPayout] = []
        for item in _items(answer.status, answer.body):
            payout = read_payout(item)
            if isinstance(payout, MalformedPayout):
                raise Unprocessable(f"payouts under {reference}: {payout.problem}")
            if payout.reference_id == reference:  # even if the bank ignores the filter
                found.append(payout)
        return Found(found, answer.at_s)

    async def approve(self, payout_id: str, remarks: str) -> CommandAnswer:
        """Approve a `pending` payout, with the OAuth token; TryAgain if the bank refuses that (401). Without one with
        key and secret, which by the bank's docs is not enough: expect a refusal (401), and then a person has to approve
        it in the bank's dashboard."""
        return await self._by_partner(payout_id, "approve", _remarks(remarks))

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        """Reject a `pending` payout, with the OAuth token if there is one (the docs show both ways). Urgent: somebody
        may approve it at the bank meanwhile."""
        return await self._by_partner(payout_id, "reject", _remarks(remarks), urgent=True)

    async def cancel(self, payout_id: str) -> CommandAnswer:
        """Cancel a `queued` payout; the bank refuses it in any other state. Urgent: it races the payment.

        POST, not PATCH as one page of the docs says, and without a body: none is documented. Refused keys (401) raise
        TryAgain.
        """
        answer = await self._command(payout_id, "cancel", self._by_key, None, urgent=True)
        if answer.http_status == 401:
            raise _caller_refused(f"cancel {payout_id}", 401, answer.problem)
        return answer

    async def _by_partner(
        self, payout_id: str, command: BankCommand, body: bytes, *, urgent: bool = False
    ) -> CommandAnswer:
        """Send a command with the OAuth token; if the bank refuses the token, once more with a new one."""
        if self._tokens is None:
            answer = await self._command(payout_id, command, self._by_token, body, urgent)
            if self._by_token is self._by_key:
                return answer
        else:
            token = await self._tokens.token()
            answer = await self._command(payout_id, command, _bearer(token), body, urgent)
            if answer.http_status == 401:
                token = await self._tokens.token(refused=token)
                answer = await self._command(payout_id, command, _bearer(token), body, urgent)
        if answer.http_status == 401:
            raise _caller_refused(f"{command} {payout_id}", 401, answer.problem, "OAuth token", _RENEW)
        return answer

    async def _command(
        self,
        payout_id: str,
        command: BankCommand,
        auth: Mapping[str, str],
        body: bytes | None,
        urgent: bool = False,
    ) -> CommandAnswer:
        headers = {**auth, "content-type": "application/json"}
        path = f"{_path(payout_id)}/{command}"
        answer = await self._http.call("POST", path, headers=headers, content=body, urgent=urgent)
        if 400 <= answer.status < 500:
            code, problem = _refusal(f"{command} {payout_id}", answer)
            return CommandAnswer(http_status=answer.status, outcome="refused", code=code, problem=problem)
        payout, problem = _read_done(payout_id, answer.body)
        return CommandAnswer(http_status=answer.status, outcome="done", payout=payout, problem=problem)


def _caller_refused(
    what: str, status: int, problem: str, credential: str = "keys", todo: str = CHECK_KEYS
) -> TryAgain:
    """That the bank refuses who asks. It says nothing about the payout, and nothing was done."""
    return TryAgain(
        f"{what}: the bank refuses our {credential} with {status}, {problem}; {todo}",
        after_s=KEYS_REFUSED_AFTER_S,
    )


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": "Bearer " + token}


def _path(payout_id: str) -> str:
    if not id_or_empty(payout_id):
        raise Unprocessable(
            f"payout id {clean(payout_id, 40)!r} is not 1 to 64 letters, digits or underscores"
        )
    return f"/v1/payouts/{payout_id}"


def _remarks(text: str) -> bytes:
    """The body with remarks, which are mandatory. Their alphabet is not documented, so they become printable ASCII."""
    plain = clean(text, REMARKS_CHARS_MAX).replace("₹", "Rs ").encode("ascii", "replace").decode("ascii")
    return msgspec.json.encode({"remarks": plain.strip()[:REMARKS_CHARS_MAX] or "decided by streamproc"})


def _read_answer(what: str, status: int, body: bytes) -> object:
    if status in _KEYS_REFUSED:
        raise _caller_refused(what, status, _read_error(body)[1])
    if status >= 400:
        code, problem = _read_error(body)
        if problem in _NO_ENVELOPE or status in _SAY_NOTHING:
            raise TryAgain(f"{what}: {status} in a form that is not the bank's, {problem}")
        raise Unprocessable(f"{what}: {status} {code}, {problem}")
    try:
        return decode_json(body)
    except NotJson as error:
        raise TryAgain(f"{what}: the bank's answer cannot be read, {error}") from error


def _items(status: int, body: bytes) -> list[object]:
    collection = _read_answer("list of payouts", status, body)
    items = collection.get("items") if isinstance(collection, dict) else None
    if not isinstance(items, list):
        raise TryAgain("list of payouts: the bank's answer has no list of items")
    return items


def _read_done(payout_id: str, body: bytes) -> tuple[BankPayout | None, str]:
    try:
        payout = read_payout(decode_json(body))
    except NotJson as error:
        return None, f"the bank's answer cannot be read, {error}"
    if isinstance(payout, MalformedPayout):
        return None, payout.problem
    if payout_id and payout.id != payout_id:
        return None, f"the bank answered with payout {payout.id}"
    return payout, ""


def _refusal(what: str, answer: Answer) -> tuple[str, str]:
    """Code and description of the bank's own refusal. Raises OutcomeUnknown if it may not be one: 408 and 425 do not
    say what was done, and an error without the bank's envelope is that of a proxy. A 401 is about our token, whoever
    says it."""
    code, problem = _read_error(answer.body)
    from_between = problem in _NO_ENVELOPE and answer.status != 401
    if answer.status in _SAY_NOTHING or from_between:
        raise OutcomeUnknown(f"{what}: {answer.status} in a form that is not the bank's, {problem}")
    return code, problem


def _read_error(body: bytes) -> tuple[str, str]:
    """Code and description from an error body, which may be the bank's envelope, other JSON, HTML or empty."""
    try:
        answer = decode_json(body)
    except NotJson:
        return "", _NO_ENVELOPE[0]
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return "", _NO_ENVELOPE[1]
    named = [value for value in (error.get("reason"), error.get("code")) if isinstance(value, str)]
    code = next((value for value in named if value not in _NO_REASON), "")
    description = error.get("description")
    problem = description if isinstance(description, str) and description else "no description"
    return clean(code, PROBLEM_CHARS_MAX), clean(problem, PROBLEM_CHARS_MAX)


def without_version(base_url: str) -> str:
    """The bank's URL, whether or not it was written with the version, which our paths have."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1")))

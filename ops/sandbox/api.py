"""The bank's API under `/v1`: authentication, faults, routes, and a journal line for each command."""

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ops.sandbox import queries
from ops.sandbox.entities import Json
from ops.sandbox.faults import ApiFault
from ops.sandbox.idempotency import HEADER
from ops.sandbox.journal import Command
from ops.sandbox.orders import parse_order
from ops.sandbox.refusals import (
    Refused,
    bad_token,
    not_authenticated,
    throttled,
    trouble,
    url_not_found,
)
from ops.sandbox.world import World

NO_ANSWER_MAX_S = 120.0
"""How long an unanswered call is kept open if the client does not hang up before."""
APPROVAL_SCOPE = "rx_partner_read_write"
BODY_MAX_BYTES = 1_000_000

Auth: TypeAlias = Literal["basic", "bearer", "none"]


@dataclass
class Call:
    """One API call on its way to a handler; the handler notes in `line` what it did."""

    world: World
    auth: Auth
    body_bytes: bytes
    query: Mapping[str, str]
    line: Command
    id: str = ""
    now: float = 0.0
    body: Json = field(default_factory=dict)


Handler: TypeAlias = Callable[[Call], Json]


# ---- handlers of commands -------------------------------------------------------------------


def create_payout(call: Call) -> Json:
    """`POST /payouts`, composite or not, under its idempotency key."""
    world, key = call.world, call.line.idempotency_key
    known = world.keys.payout_for(key, call.body_bytes, call.now)
    if known is not None:
        call.line.payout, call.line.replay = known, True
        return _payout_shown(call, known)
    order = parse_order(
        call.body, world.config.account_number, lambda body: world.directory.composite(body, int(call.now))
    )
    payout = world.bank.create(order, call.now)
    world.keys.remember(key, call.body_bytes, payout.id, call.now)
    call.line.payout, call.line.effect = payout.id, True
    shown = _payout_shown(call, payout.id)
    if "fund_account" in call.body:
        account = world.directory.fund_account(payout.fund_account_id)
        contact = world.directory.contact(account.contact_id)
        shown["fund_account"] = {**account.shown(), "contact": contact.shown()}
    return shown


def approve_payout(call: Call) -> Json:
    """`POST /payouts/:id/approve`: only with a partner's token."""
    if call.auth != "bearer":
        raise bad_token("The OAuth token used in the request was invalid or has expired")
    payout = call.world.bank.approve(call.id, by="oauth", remarks=_remarks(call), now=call.now)
    call.line.effect = True
    return _payout_shown(call, payout.id)


def reject_payout(call: Call) -> Json:
    """`POST /payouts/:id/reject`: key or token, the documentation shows both."""
    payout = call.world.bank.reject(call.id, by=call.auth, remarks=_remarks(call), now=call.now)
    call.line.effect = True
    return _payout_shown(call, payout.id)


def cancel_payout(call: Call) -> Json:
    """`POST /payouts/:id/cancel`."""
    payout = call.world.bank.cancel(call.id, call.now)
    call.line.effect = True
    return _payout_shown(call, payout.id)


def _remarks(call: Call) -> str:
    remarks = call.body.get("remarks")
    if not isinstance(remarks, str) or not remarks.strip():
        raise Refused("The remarks field is required.", field="remarks")
    call.line.remarks = remarks
    return remarks


def _payout_shown(call: Call, payout_id: str) -> Json:
    bank = call.world.bank
    return bank.payout(payout_id).shown(bank.merchant_id)


def add_contact(call: Call) -> Json:
    """`POST /contacts`."""
    call.line.effect = True
    return call.world.directory.add_contact(call.body, int(call.now)).shown()


def change_contact(call: Call) -> Json:
    """`PATCH /contacts/:id`."""
    call.line.effect = True
    return call.world.directory.change_contact(call.id, call.body).shown()


def add_fund_account(call: Call) -> Json:
    """`POST /fund_accounts`."""
    call.line.effect = True
    return call.world.directory.add_fund_account(call.body, int(call.now)).shown()


def change_fund_account(call: Call) -> Json:
    """`PATCH /fund_accounts/:id`."""
    call.line.effect = True
    return call.world.directory.change_fund_account(call.id, call.body).shown()


def _read(query: Callable[[World, Mapping[str, str]], Json]) -> Handler:
    return lambda call: query(call.world, call.query)


ROUTES: Final[tuple[tuple[str, re.Pattern[str], str, Handler], ...]] = tuple(
    (method, re.compile(path.replace(":id", r"(?P<id>[A-Za-z0-9_]+)")), command, handler)
    for method, path, command, handler in (
        ("POST", "/v1/payouts", "payout.create", create_payout),
        ("GET", "/v1/payouts", "", _read(queries.payouts)),
        ("GET", "/v1/payouts/:id", "", lambda call: _payout_shown(call, call.id)),
        ("POST", "/v1/payouts/:id/approve", "payout.approve", approve_payout),
        ("POST", "/v1/payouts/:id/reject", "payout.reject", reject_payout),
        ("POST", "/v1/payouts/:id/cancel", "payout.cancel", cancel_payout),
        ("POST", "/v1/contacts", "contact.create", add_contact),
        ("GET", "/v1/contacts", "", _read(queries.contacts)),
        ("GET", "/v1/contacts/:id", "", lambda call: call.world.directory.contact(call.id).shown()),
        ("PATCH", "/v1/contacts/:id", "contact.change", change_contact),
        ("POST", "/v1/fund_accounts", "fund_account.create", add_fund_account),
        ("GET", "/v1/fund_accounts", "", _read(queries.fund_accounts)),
        ("GET", "/v1/fund_accounts/:id", "", lambda call: call.world.directory.fund_account(call.id).shown()),
        ("PATCH", "/v1/fund_accounts/:id", "fund_account.change", change_fund_account),
        ("GET", "/v1/banking_balances", "", _read(queries.balances)),
        ("GET", "/v1/transactions", "", _read(queries.transactions)),
        ("GET", "/v1/transactions/:id", "", lambda call: queries.transaction(call.world, call.id)),
    )
)


# ---- one call, from bytes to bytes ----------------------------------------------------------


async def answer(request: Request) -> Response:
    """Everything under `/v1`: fault, authentication, route, handler, journal."""
    world: World = request.app.state.world
    method, path = request.method, request.url.path
    line = Command(at=world.clock.now(), method=method, path=path, command="")
    line.idempotency_key = request.headers.get(HEADER, "")
    body = await request.body()
    fault = world.faults.for_call(method, path)
    if fault is not None:
        line.fault = fault.kind
        await asyncio.sleep(fault.ms / 1000)
    response = _fault_response(fault) or _handled(world, request, body, line)
    line.status = response.status_code
    if fault is not None and fault.kind == "timeout":
        line.answered, response = False, NoAnswer()
    if method != "GET":
        world.journal.note(line)
        world.settle()
    return response


def _fault_response(fault: ApiFault | None) -> Response | None:
    """The answer that a fault gives instead of handling the call; None: handle it."""
    kind = fault.kind if fault is not None else ""
    if fault is not None and kind == "429":
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return JSONResponse(throttled().envelope(), 429, headers=headers)
    if kind == "500":
        return JSONResponse(trouble().envelope(), 500)
    if kind == "502":
        return HTMLResponse("<html><head><title>502 Bad Gateway</title></head><body></body></html>", 502)
    return None


def _handled(world: World, request: Request, body: bytes, line: Command) -> Response:
    try:
        line.auth = _authenticated(world, request.headers.get("Authorization", ""))
        command, handler, payout_id = _route(request.method, request.url.path)
        line.command = command
        if command.startswith("payout.") and payout_id:
            line.payout = payout_id
        call = Call(world, line.auth, body, request.query_params, line, id=payout_id, now=line.at)
        call.body = _json(body) if request.method in ("POST", "PATCH") else {}
        return JSONResponse(handler(call))
    except Refused as refusal:
        line.problem = str(refusal)
        return JSONResponse(refusal.envelope(), refusal.status)


def _route(method: str, path: str) -> tuple[str, Handler, str]:
    for wanted, pattern, command, handler in ROUTES:
        found = pattern.fullmatch(path)
        if found and wanted == method:
            return command, handler, found.groupdict().get("id", "")
    raise url_not_found()


def _authenticated(world: World, header: str) -> Auth:
    scheme, _, credentials = header.partition(" ")
    if scheme == "Bearer":
        if not world.tokens.fits(credentials):
            raise bad_token("The OAuth token used in the request was invalid or has expired")
        if world.oauth_scope != APPROVAL_SCOPE:
            raise bad_token("The OAuth token used does not have sufficient permissions for this request")
        return "bearer"
    if scheme != "Basic":  # the bank too is case-sensitive here
        raise not_authenticated()
    try:
        given = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as problem:
        raise not_authenticated() from problem
    if not _same(given, f"{world.config.key_id}:{world.config.key_secret}"):
        raise not_authenticated()
    return "basic"


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _json(body: bytes) -> Json:
    if len(body) > BODY_MAX_BYTES:
        raise Refused(f"The request body is above {BODY_MAX_BYTES} bytes")
    if not body:
        return {}
    try:
        value = json.loads(body)
    except ValueError as problem:
        raise Refused("The request body is not valid JSON") from problem
    if not isinstance(value, dict):
        raise Refused("The request body must be a JSON object")
    return value


class NoAnswer(Response):
    """Keeps the connection open and says nothing, until the client hangs up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the hang-up, NO_ANSWER_MAX_S at most."""
        try:
            async with asyncio.timeout(NO_ANSWER_MAX_S):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            await super().__call__(scope, receive, send)

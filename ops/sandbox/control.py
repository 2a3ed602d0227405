"""`/_control/*`: act as the outsider, the bank's staff, or bad luck. No authentication: bind to loopback.

Bodies are strict: an unknown field is 400, so that a misspelt one is not ignored.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import fields
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ops.sandbox.bank import Behaviour
from ops.sandbox.config import SandboxConfig
from ops.sandbox.entities import BankEvent, Json
from ops.sandbox.faults import FaultPlan
from ops.sandbox.messaging import MessagingKnobs
from ops.sandbox.outsider import OutsiderPayout, make_payouts
from ops.sandbox.refusals import Refused
from ops.sandbox.registry import RegistryKnobs
from ops.sandbox.reputation import ReputationKnobs
from ops.sandbox.slack_people import SlackClick, SlackSubmit
from ops.sandbox.world import World

T = TypeVar("T")


class Advance(Struct, kw_only=True, forbid_unknown_fields=True):
    """Move a payout by hand; moving it to its present state sends `payout.updated`."""

    to: str
    reason: str | None = None
    utr: str | None = None


class BalanceChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """`add` paise (below 0: withdraw), or `set` the balance."""

    add: int | None = None
    set: int | None = None


BehaviourChange = msgspec.defstruct(
    "BehaviourChange",
    [
        *((one.name, one.type | None, None) for one in fields(Behaviour)),
        ("oauth_scope", str | None, None),
        ("expire_token", bool | None, None),
    ],
    kw_only=True,
    forbid_unknown_fields=True,
)
"""Fields of `Behaviour`, and of the OAuth token; what is not given stays."""


class SubscriptionChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """Where webhooks go from now on, and the times of retries; existing events keep their secret."""

    url: str | None = None
    secret: str | None = None
    events: list[str] | None = None
    enabled: bool | None = None
    retry_base_s: float | None = None
    give_up_s: float | None = None


class RawEvent(Struct, kw_only=True, forbid_unknown_fields=True):
    """Any event, signed and sent as the bank would: `payload` is {entity name: its body}."""

    event: str
    entity: str
    body: Json


class ClockChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """Let seconds pass at once."""

    advance_s: float


class LoopbackOnly:
    """Lets only callers on this machine through, unless the configuration says otherwise."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to other machines; pass everything else on."""
        config: SandboxConfig = scope["app"].state.world.config
        caller = scope.get("client") or ("", 0)
        if config.control_from == "anywhere" or _is_loopback(caller[0]):
            await self._inner(scope, receive, send)
        else:
            refusal = JSONResponse({"error": {"description": "the controls are for this machine"}}, 403)
            await refusal(scope, receive, send)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def set_faults(world: World, body: FaultPlan) -> Json:
    """`POST /_control/faults`."""
    world.faults.apply(body)
    return {"api": world.faults.api, "webhooks": world.faults.webhooks}


async def change_balance(world: World, body: BalanceChange) -> Json:
    """`POST /_control/balance`."""
    change = body.add or 0
    if body.set is not None:
        change = body.set - world.bank.ledger.balance
    world.bank.add_funds(change, world.clock.now())
    return {"balance": world.bank.ledger.balance}


async def change_behaviour(world: World, body: Struct) -> Json:
    """`POST /_control/bank`."""
    given = {name: value for name, value in msgspec.to_builtins(body).items() if value is not None}
    scope, expire = given.pop("oauth_scope", world.oauth_scope), given.pop("expire_token", False)
    merged = {**msgspec.to_builtins(world.behaviour), **given}
    world.behaviour = world.bank.behaviour = msgspec.convert(merged, Behaviour)
    world.oauth_scope = scope
    if expire:
        world.tokens.expire()
    return {**msgspec.to_builtins(world.behaviour), "oauth_scope": world.oauth_scope}


async def change_subscription(world: World, body: SubscriptionChange) -> Json:
    """`POST /_control/webhook`."""
    courier, subscription = world.courier, world.courier.subscription
    subscription.url = subscription.url if body.url is None else body.url
    if body.secret is not None:
        courier.rotate(body.secret)
    subscription.events = subscription.events if body.events is None else body.events
    subscription.enabled = subscription.enabled if body.enabled is None else body.enabled
    courier.retry_base_s = body.retry_base_s or courier.retry_base_s
    courier.give_up_s = body.give_up_s or courier.give_up_s
    return {"url": subscription.url, "events": subscription.events, "enabled": subscription.enabled}


async def send_event(world: World, body: RawEvent) -> Json:
    """`POST /_control/events`: for downtimes, transactions, and events that nobody knows yet."""
    event = BankEvent(name=body.event, entity=body.entity, body=body.body, at=int(world.clock.now()))
    return {"delivery": world.courier.take(event).id}


async def advance_clock(world: World, body: ClockChange) -> Json:
    """`POST /_control/clock`: what becomes due is done before the answer; deliveries are under way."""
    if body.advance_s < 0:
        raise Refused("time does not go back", field="advance_s")
    world.clock.advance(body.advance_s)
    world.tick()
    return {"now": world.clock.now()}


async def set_safebrowsing(world: World, body: ReputationKnobs) -> Json:
    """`POST /_control/safebrowsing`."""
    world.reputation.apply(body)
    return {"threats": world.reputation.threats, "down": world.reputation.availability}


async def set_registry(world: World, body: RegistryKnobs) -> Json:
    """`POST /_control/gleif`."""
    world.registry.apply(body)
    return {"records": len(world.registry.records), "down": world.registry.availability}


async def set_messaging(world: World, body: MessagingKnobs) -> Json:
    """`POST /_control/messaging`."""
    world.messages.apply(body)
    return {"slack": world.messages.slack_availability, "ntfy": world.messages.ntfy_availability}


async def click(world: World, body: SlackClick) -> Json:
    """`POST /_control/slack/click`."""
    return await world.people.click(body, world.messages.sent.copy(), world.clock.now())


async def submit(world: World, body: SlackSubmit) -> Json:
    """`POST /_control/slack/submit`."""
    return await world.people.submit(body, world.clock.now())


async def advance_payout(request: Request) -> Response:
    """`POST /_control/payouts/{id}/advance`."""
    payout_id = request.path_params["id"]

    async def move(world: World, body: Advance) -> Json:
        payout = world.bank.move(payout_id, body.to, world.clock.now(), reason=body.reason, utr=body.utr)
        return payout.shown(world.bank.merchant_id)

    return await _changed(request, Advance, move)


async def resend(request: Request) -> Response:
    """`POST /_control/deliveries/{id}/resend`: the same bytes and id once more."""
    world: World = request.app.state.world
    delivery = world.courier.send_again(request.path_params["id"])
    return JSONResponse({"found": delivery is not None}, 404 if delivery is None else 200)


async def reset(request: Request) -> Response:
    """`POST /_control/reset`: as after a first start; the webhook's URL and secret are the configured ones."""
    await request.app.state.world.reset()
    return JSONResponse({"reset": True})


async def show(request: Request) -> Response:
    """`GET /_control/{what}`: the record, the deliveries, messages, calls of neighbours, faults, payouts."""
    world: World = request.app.state.world
    what, query = request.path_params["what"], request.query_params
    if what == "record":
        filters = {name: query.get(name, "") for name in ("payout", "command", "effect")}
        return _listed(world.journal.selected(**filters))
    if what == "deliveries":
        chosen = (
            ("about", query.get("payout")),
            ("event", query.get("event")),
            ("state", query.get("state")),
        )
        return _listed(
            each
            for each in world.courier.deliveries.values()
            if all(getattr(each, name) == value for name, value in chosen if value)
        )
    if what == "messages":
        return _listed(each for each in world.messages.sent if query.get("to") in (None, each["to"]))
    if what == "faults":
        return _answer({"api": world.faults.api, "webhooks": world.faults.webhooks})
    lists: dict[str, Any] = {
        "safebrowsing": world.reputation.calls,
        "gleif": world.registry.calls,
        "payouts": world.bank.payouts.values(),
    }
    return _listed(lists[what]) if what in lists else JSONResponse({"error": f"no list {what}"}, 404)


def _listed(rows: Any) -> Response:
    items = list(rows)
    return _answer({"count": len(items), "items": items})


def _answer(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _changed(request: Request, kind: type[T], act: Callable[[World, T], Awaitable[Json]]) -> Response:
    """Decode the body strictly, act, and let the world settle; a refusal changes nothing."""
    world: World = request.app.state.world
    try:
        body = msgspec.json.decode(await request.body() or b"{}", type=kind)
        answer = await act(world, body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as problem:
        return JSONResponse({"error": {"description": str(problem)}}, 400)
    except Refused as refusal:
        return JSONResponse(refusal.envelope(), refusal.status)
    world.settle()
    return _answer(answer)


def _post(path: str, kind: type[T], act: Callable[[World, T], Awaitable[Json]]) -> Route:
    async def endpoint(request: Request) -> Response:
        return await _changed(request, kind, act)

    return Route(path, endpoint, methods=["POST"])


ROUTES = [
    _post("/payouts", OutsiderPayout, make_payouts),
    Route("/payouts/{id}/advance", advance_payout, methods=["POST"]),
    _post("/faults", FaultPlan, set_faults),
    _post("/balance", BalanceChange, change_balance),
    _post("/bank", BehaviourChange, change_behaviour),
    _post("/webhook", SubscriptionChange, change_subscription),
    _post("/events", RawEvent, send_event),
    _post("/clock", ClockChange, advance_clock),
    _post("/safebrowsing", ReputationKnobs, set_safebrowsing),
    _post("/gleif", RegistryKnobs, set_registry),
    _post("/messaging", MessagingKnobs, set_messaging),
    _post("/slack/click", SlackClick, click),
    _post("/slack/submit", SlackSubmit, submit),
    Route("/deliveries/{id}/resend", resend, methods=["POST"]),
    Route("/reset", reset, methods=["POST"]),
    Route("/{what}", show, methods=["GET"]),
]

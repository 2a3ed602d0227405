"""A tool's call: checks its arguments against the table, sends them to the API, and puts the answer into words.

request_payout waits until the payout is decided, but at most as long as asked, and not when we are stopping. Whatever
ends the wait, the payout has been accepted, and the answer says its state.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from streamproc.api.route_names import template_of
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.own_api import CALL_S_MAX, CONNECTIONS_MAX, ApiAnswer, OwnApi
from streamproc.domain.console import link_to
from streamproc.domain.plain import cut, plain
from streamproc.errors import InputError, TryAgain
from streamproc.mcp import words
from streamproc.mcp.tools import KEY, WAIT, WAIT_S, WAIT_S_MAX, Tool
from streamproc.waiting import set_within

CALLS_MAX: Final = CONNECTIONS_MAX
"""Calls at once of all callers together, so that none waits for a connection to the API."""
CALLS_OF_ONE_MAX: Final = 16
"""Calls at once with one token: an agent needs a few, and one that loops leaves room for the others."""
CALL_LONGEST_S: Final = CALL_S_MAX + WAIT_S_MAX
"""Longest time of a call: the request and the wait for a decision."""
LOOK_AFTER_S: Final = 0.1
LOOK_AFTER_S_MAX: Final = 2.0
"""Longest pause between two looks at an undecided payout; it doubles up to this. That makes some 18 looks in 30 s, and
a token has 600 requests a minute."""
NAMES_MAX: Final = 15
"""Most unknown arguments that are named."""
NAME_CHARS_MAX: Final = 80
WHY_UNITS_MAX: Final = 200
"""Characters of a complaint about an answer of the wrong form, since it may quote the answer."""


class ToolAnswer(Struct, frozen=True):
    """A tool's answer: in words, and unless it is a refusal also in the form of its schema."""

    text: str = ""
    shown: dict[str, Any] | None = None
    status: int = 0
    """The API's status if it refused; 401 is about the token."""


class Caller(Struct, frozen=True):
    """Who asks: the token to send on, and the caller's trace context (a traceparent, or empty)."""

    token: str
    traceparent: str = ""


class Calls:
    """Calls one API for the tools. `stopping` ends waits, not requests."""

    def __init__(self, api: OwnApi, *, public_url: str, stopping: asyncio.Event) -> None:
        self._api = api
        self._public_url = public_url
        self._stopping = stopping
        self._in_hand: Counter[str] = Counter()  # by token

    async def call(self, tool: Tool, given: Mapping[str, Any], caller: Caller) -> ToolAnswer:
        """One call. Never raises for a caller's mistake or a refusal of the API: these are answers."""
        if full := self._full(caller.token):
            return ToolAnswer(f"{full}; nothing was asked for. Ask again later.")
        present = {name: value for name, value in given.items() if value is not None}
        if wrong := _wrong(tool, present):
            return ToolAnswer(words.of_wrong_arguments(wrong))
        self._in_hand[caller.token] += 1
        try:
            return await self._answered(tool, present, caller)
        except InputError as problem:
            return ToolAnswer(f"{problem}; nothing was asked for")
        except OutcomeUnknown as problem:
            return ToolAnswer(words.of_lost(str(problem), asks=tool.asks))
        except TryAgain as problem:
            return ToolAnswer(f"{problem}; nothing was asked for. Ask again later.")
        finally:
            self._in_hand[caller.token] -= 1
            self._in_hand += Counter()  # forgets tokens without calls

    def _full(self, token: str) -> str:
        """Why no more calls are taken; empty if they are."""
        if self._in_hand[token] >= CALLS_OF_ONE_MAX:
            return f"{CALLS_OF_ONE_MAX} calls with this token are in hand, which is the limit"
        if self._in_hand.total() >= CALLS_MAX:
            return f"{CALLS_MAX} calls are in hand, which is the limit"
        return ""

    async def _answered(self, tool: Tool, given: Mapping[str, Any], caller: Caller) -> ToolAnswer:
        answer = await self._send(tool, given, caller)
        if answer.status >= 300:
            text = words.of_problem(answer.status, answer.body, asks=tool.asks, after_s=answer.after_s)
            return ToolAnswer(text, status=answer.status)
        _hold_against(tool, answer)
        if "message" not in tool.answer["properties"]:
            return ToolAnswer(shown=answer.body)
        shown = answer.body
        if tool.asks:
            shown = await self._decided(shown, given.get(WAIT, WAIT_S), caller, tool)
            shown = {**shown, KEY: given[KEY]}
        link = link_to(self._public_url, shown["payout"]) or None
        message = words.of_payout(shown, link)
        shown = {**shown, "message": message, "link": link}
        return ToolAnswer(message, shown)

    async def _send(self, tool: Tool, given: Mapping[str, Any], caller: Caller) -> ApiAnswer:
        path, params, headers = template_of(tool.operation.path), {}, _headers(caller)
        for name, one in tool.reads.items():
            if one.where == "path":
                path = path.replace(f"{{{name}}}", quote(str(given[name]), safe=""))
            elif one.where == "header":
                headers[one.name] = str(given[name])
            elif name in given:
                params[one.name] = given[name]
            elif one.schema().get("default") is not None:
                params[one.name] = one.schema()["default"]  # pages are shorter here than over HTTP
        body = None
        if tool.body is not None:
            # Always with the currency: for one key the body must be the same, whether the model names it or not.
            body = {"currency": "INR", **{k: v for k, v in given.items() if k in tool.body["properties"]}}
        return await self._api.call(
            tool.operation.method, path, token=caller.token, params=params, headers=headers, body=body
        )

    async def _decided(
        self, shown: dict[str, Any], wait_s: float, caller: Caller, tool: Tool
    ) -> dict[str, Any]:
        """The payout once it is decided, or as it was last seen."""
        path, pause_s = f"/v1/payouts/{quote(shown['payout'], safe='')}", LOOK_AFTER_S
        try:
            async with asyncio.timeout(wait_s):
                while shown["decision"] is None and not await set_within(self._stopping, pause_s):
                    pause_s = min(2 * pause_s, LOOK_AFTER_S_MAX)
                    shown = await self._seen(path, caller, tool) or shown
        except TimeoutError:
            pass
        return shown

    async def _seen(self, path: str, caller: Caller, tool: Tool) -> dict[str, Any] | None:
        try:
            answer = await self._api.call("GET", path, token=caller.token, headers=_headers(caller))
            if answer.status == 200:
                _hold_against(tool, answer)
        except TryAgain:
            return None  # the payout is accepted all the same, and the next look may succeed
        return answer.body if answer.status == 200 else None


def _headers(caller: Caller) -> dict[str, str]:
    return {"traceparent": caller.traceparent} if caller.traceparent else {}


def _hold_against(tool: Tool, answer: ApiAnswer) -> None:
    """Raise OutcomeUnknown if an answer does not match the tool's schema."""
    try:
        msgspec.convert(answer.body, tool.shape)
    except msgspec.ValidationError as problem:
        why = cut(plain(str(problem)), WHY_UNITS_MAX)
        raise OutcomeUnknown(
            f"HTTP {answer.status}, and not what this version knows ({why}): is that streamproc's API?"
        ) from problem


def _wrong(tool: Tool, given: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the arguments, by name. The body's fields are checked by the API itself."""
    fields = tool.body["properties"] if tool.body is not None else {}
    known = {*tool.reads, *fields, *((WAIT,) if tool.asks else ())}
    wrong = {
        plain(name[:NAME_CHARS_MAX]): f"is no argument of {tool.name}"
        for name in sorted(given.keys() - known)[:NAMES_MAX]
    }
    for name, one in tool.reads.items():
        if name not in given:
            if one.required or one.where == "path":
                wrong[name] = f"is missing; it must be {one.means}"
            continue
        try:
            value = given[name]
            fits = isinstance(value, _type_of(one.schema())) and not isinstance(value, bool)
            one.read(str(value) if fits else "")  # none may be empty, so the error says what it must be
        except ValueError as problem:
            wrong[name] = str(problem)
    wait_s = given.get(WAIT, WAIT_S)
    if tool.asks and (type(wait_s) is not int or not 0 <= wait_s <= WAIT_S_MAX):
        wrong[WAIT] = f"must be a whole number of seconds from 0 to {WAIT_S_MAX}"
    return wrong


def _type_of(schema: Mapping[str, Any]) -> type:
    return int if schema["type"] == "integer" else str

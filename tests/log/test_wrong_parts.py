"""What `take_up`, `admit` and `grant` refuse of a call that nobody of us makes, in which words; nothing is half done.

`tests/hostile` has all other scripts, and wrong parts by chance.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.domain.budget import Ask, RateAsk, Window
from streamproc.errors import LogBroken
from streamproc.log import claims, grants, scripts
from streamproc.log.grants import Grant
from streamproc.log.names import Names
from streamproc.log.script import Script
from tests.hostile.test_lua import everything
from tests.log.test_grant import offer, pending

NAMES = Names(0)
DAY = (Window("agent:a", "d1", 500, 4_000_000_000),)
ASK = Ask("p1", 100, 1_790_000_000_000_000, RateAsk("a", 2, 60_000_000, False), DAY)
NO_NUMBER = ("nan", "1e99", "1.5", "x", "", "-2", -2, 1.5, True, [])
"""None of these is a count, an index, an amount or a time; with the first two, a limit would limit nothing."""
OF_TERMS = {"rate": 0, "count": 1, "window": 2, "hold": 3, "windows": 4, "budget": 6, "limit": 7, "end": 8}
"""Where what an agent's terms count by stands in them; the windows' JSON, at 5, is no number."""
NOT_WHOLE = "is not a whole number of"
pack = msgspec.msgpack.encode
Wrong = tuple[str, list[Any], str]
"""What is wrong, the arguments, and what the server must say of it."""


class _HeldBack(Exception):
    pass


async def held_back(
    monkeypatch: pytest.MonkeyPatch, calling: Awaitable[object]
) -> tuple[Callable[[list[Any]], Awaitable[Any]], list[str], list[Any]]:
    """A call of a script as the product makes it, which is not sent: how to send it with other arguments, its keys and
    its arguments."""
    real, held = Script.__call__, list[Any]()

    async def hold(*call: Any) -> Any:
        held.extend(call)
        raise _HeldBack

    with monkeypatch.context() as patched:
        patched.setattr(Script, "__call__", hold)
        with pytest.raises(_HeldBack):
            await calling
    script, client, keys, args = held
    return lambda changed: real(script, client, keys, changed), list(keys), list(args)


async def not_refused(
    client: Redis, send: Callable[[list[Any]], Awaitable[Any]], table: Iterable[Wrong]
) -> list[str]:
    """Calls that are not refused in those words, or that have changed something."""
    found, before = list[str](), await everything(client)
    for what, args, words in table:
        try:
            said = f"it was answered with {await send(args)}"
        except (ResponseError, LogBroken) as problem:
            said = str(problem)
        if words not in said:
            found.append(f"{what}: {said}")
        if await everything(client) != before:
            found.append(f"{what}: something has changed")
            break
    return found


def changed(parts: Sequence[Any], at: int, part: Any) -> list[Any]:
    """A copy with another part at that place."""
    return [*parts[:at], part, *parts[at + 1 :]]


def numbers(names: dict[str, int], parts: Sequence[Any]) -> Iterable[tuple[str, list[Any]]]:
    """These parts with each of the numbers replaced by what is none: what is wrong, and the parts."""
    for name, at in names.items():
        for value in NO_NUMBER:
            yield f"{name} {value!r}", changed(parts, at, value)


async def test_take_up_refuses_a_wrong_call_before_it_takes_up_the_first(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await pending(client)
    send, keys, _ = await held_back(monkeypatch, claims.take_up(client, NAMES, "g", "c", [entry], most=9))
    table: list[Wrong] = [
        (f"most {most!r}", ["g", "c", most, entry], f"{most} {NOT_WHOLE} 0 to 2147483648")
        for most in ("nan", "1e99", "1.5", "x", "-1", "turns")
    ]
    table += [
        (f"entry {wrong!r}", ["g", "c", "9", entry, wrong], "it has no such entry")
        for wrong in ("", "x", "1", "1-", "-1", "1-1-1", "-", "+", "1-1 ")
    ]
    table += [("no limit", ["g", "c"], NOT_WHOLE), ("another group", ["h", "c", "9", entry], "NOGROUP")]
    assert await not_refused(client, send, table) == []
    for key in keys[1:]:
        await client.set(key, "a text")
        assert await not_refused(client, send, [(key, ["g", "c", "9", entry], "WRONGTYPE")]) == []
        await client.delete(key)


async def test_admit_refuses_a_wrong_call_before_it_takes_anything(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count or a limit that is none limited nothing, and a time that is none closed an agent's window for good."""
    send, _, args = await held_back(monkeypatch, scripts.admit(client, NAMES, [ASK], keep_budgets_s=60))
    terms, rows = msgspec.msgpack.decode(args[1])
    table = [(what, [60, pack((one, rows))], NOT_WHOLE) for what, one in numbers(OF_TERMS, terms)]
    of_rows = {"payout": 0, "amount": 2, "received": 3, "terms": 4}
    table += [(what, [60, pack((terms, one))], NOT_WHOLE) for what, one in numbers(of_rows, rows)]
    table += [(f"keep {keep}", [keep, args[1]], NOT_WHOLE) for keep in ("nan", "1e99", "x", "-1")]
    for at, value, said in [
        (0, 99, f"99 {NOT_WHOLE} 0 to 5"),
        (3, 2, f"2 {NOT_WHOLE} 0 to 1"),
        (4, 2, f"2 {NOT_WHOLE} -1 to 1"),
        (5, None, "it has terms without windows"),
        (6, 0, f"0 {NOT_WHOLE} 1 to 5"),
    ]:
        table.append((f"terms {at} {value}", [60, pack((changed(terms, at, value), rows))], said))
    for at, value, said in [
        (0, 2, f"2 {NOT_WHOLE} 3 to 5"),
        (1, 7, "it has a payout without an id"),
        (4, 2, f"2 {NOT_WHOLE} 1 to 1"),
    ]:
        table.append((f"row {at} {value}", [60, pack((terms, changed(rows, at, value)))], said))
    for cut in range(1, 5):
        whole = pack((terms, [*rows, *rows[:cut]]))
        table.append((f"{cut} of 5", [60, whole], "it has a part of a payout"))
    for request in ([terms], [terms, rows, rows], 7):
        table.append((f"request {request}", [60, pack(request)], "it has no payouts"))
    assert await not_refused(client, send, table) == []


async def test_grant_refuses_a_wrong_call_before_it_acknowledges_anything(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = (NAMES.paid_for("acc", "fa_1"), "a.example", 5, True)
    one = Grant(await pending(client), offer(ASK), [note], None)
    calling = grants.grant(client, NAMES, "g", [one], rev=b"0", keep_budgets_s=60)
    send, keys, args = await held_back(monkeypatch, calling)
    request = msgspec.msgpack.decode(args[5], type=list[msgspec.Raw])
    payouts, terms, templates, rows, notes, decided_at, pairs, timers = 0, *range(3, 10)

    def args_with(at: int, part: Any) -> list[Any]:
        return [*args[:5], pack(changed(request, at, part))]

    table: list[Wrong] = []
    for at, names in {
        terms: OF_TERMS | {"texts": 9},
        rows: {"template": 0, "amount": 3, "received": 4, "terms": 6},
        notes: {"noted_of": 0, "hash": 1, "when": 3, "first": 4},
    }.items():
        parts = msgspec.msgpack.decode(request[at])
        table += [(what, args_with(at, part), NOT_WHOLE) for what, part in numbers(names, parts)]
    for name, at in {"payouts": payouts, "decided at": decided_at}.items():
        table += [(f"{name} {value!r}", args_with(at, value), NOT_WHOLE) for value in NO_NUMBER]
    lists = (terms, templates, rows, notes, pairs, timers)
    table += [(f"part {at}", args_with(at, 7), "a part of it is no list") for at in lists]
    for at, part, said in [
        (notes, [1], "it has a part of a note"),
        (pairs, [1], "it has a part of a pair"),
        (timers, [9, 1], "it has a part of a timer"),
        (timers, [5, 1, 1, 7], "it has a timer without its event"),
        (timers, [5, 2, 1, "[]"], f"2 {NOT_WHOLE} 1 to 1"),
        (timers, [5, 1, "nan", "[]"], f"nan {NOT_WHOLE}"),
        (timers, [4, 1, 1, "[]"], f"4 {NOT_WHOLE} 5 to {len(keys)}"),
        (payouts, 0, f"0 {NOT_WHOLE} 1 to {len(keys) - 4}"),
        (rows, 2 * msgspec.msgpack.decode(request[rows]), "it has a part of a payout"),
    ]:
        table.append((f"part {at} {part}", args_with(at, part), said))
    for wrong in (request[:9], [*request, 1], 7):
        table.append(("another request", [*args[:5], pack(wrong)], "it has no payouts"))
    assert await not_refused(client, send, table) == []

"""JSON from outside, decoded without trusting it.

msgspec is fast and strict; what it refuses although it is JSON (a lone surrogate in a note, a float beyond
range) is decoded once more by the standard library. Integers stay integers: orjson would make floats of long ones.
"""

import json

import msgspec

NESTING_MAX = 32
"""Levels of objects and lists. A payout event has 6; Python's own limit depends on who calls."""


class NotJson(ValueError):
    """The bytes are not JSON, nest too deeply, or hold a number that is too long; the message says which."""


def decode_json(body: bytes) -> object:
    """The decoded value: str, int, float, bool, None, list or dict. Raises NotJson."""
    try:
        value: object = msgspec.json.decode(body)
    except RecursionError as error:
        raise NotJson(f"it nests deeper than {NESTING_MAX} levels") from error
    except (msgspec.DecodeError, ValueError):
        value = _decode_leniently(body)
    # Deep nesting needs as many opening brackets, so only the rare body that has them is walked.
    if body.count(b"{") + body.count(b"[") > NESTING_MAX and _nests_deeper(value, NESTING_MAX):
        raise NotJson(f"it nests deeper than {NESTING_MAX} levels")
    return value


class Unusable(Exception):
    """A service answered, but its answer says nothing about what it was asked."""


def read_answer(status: int, body: bytes, whose: str) -> object:
    """The JSON of a service's answer; `whose` names the service. Raises Unusable for an error and for no JSON."""
    if status >= 300:
        raise Unusable(f"{whose} answered {status}")
    try:
        return decode_json(body)
    except NotJson as error:
        raise Unusable(f"{whose}'s answer cannot be read, {error}") from error


def names_are_unique(body: bytes) -> bool:
    """Whether no object in a JSON text has a field twice: some readers would take the first value, some the last."""
    unique = True

    def look(pairs: list[tuple[str, object]]) -> None:
        nonlocal unique
        unique = unique and len({name for name, _ in pairs}) == len(pairs)

    json.loads(body, object_pairs_hook=look)
    return unique


def _decode_leniently(body: bytes) -> object:
    try:
        value: object = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (NotJson, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise NotJson("it is not JSON") from error
    except ValueError as error:  # Python makes no integer of more than 4,300 digits
        raise NotJson("it holds a number with too many digits") from error
    return value


def _refuse_constant(name: str) -> float:
    raise NotJson(f"{name} is not JSON")


def _nests_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects nest more than `levels` deep. Without recursion."""
    level = [value]
    for _ in range(levels):
        inside: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inside.extend(item.values())
            elif isinstance(item, list):
                inside.extend(item)
        level = inside
    return any(isinstance(item, dict | list) for item in level)

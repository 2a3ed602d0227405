"""Hostile JSON: a real text with a few places of it replaced by what nobody expects there. Seeded.

A text is kept as a tree of `Leaf`, lists, and lists of pairs, so that what Python's own values cannot say can be
written: a name that stands twice, NaN, a number of four hundred digits, a lone surrogate.
"""

import json
import os
from collections.abc import Callable
from random import Random
from typing import TypeAlias


class Leaf(str):
    """JSON text, or what claims to be that, written as it is."""

    __slots__ = ()


class Pairs(list[tuple[str, "Tree"]]):
    """An object; a name may stand in it twice."""

    __slots__ = ()


Tree: TypeAlias = "Leaf | Pairs | list[Tree]"

SEED = int(os.environ.get("HOSTILE_SEED", "20261126"))
CASES = int(os.environ.get("HOSTILE_CASES", "60"))
"""Of each kind; a longer campaign sets both."""
LONG = "x" * 1_000_000
"""A note of one megabyte."""
MANY = 100_000
"""Keys of notes."""
DEEP = 10_000
"""Levels of lists."""
HUGE = "1" + "0" * 400
JSON: tuple[str, ...] = (
    *("null", "true", "false", "0", "-0", "-1", "1", "99", "1.0", "1e2", "1E400", "-1e-400", "100.5", "100"),
    *("9007199254740993", "9223372036854775808", "18446744073709551616", HUGE, "-" + HUGE),
    *(
        '""',
        '" "',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\uffff"',
        '"\\u202egpj"',
        '"NaN"',
        '"100"',
        '"12.50"',
    ),
    *(
        '"' + "9" * 400 + '"',
        '"a\\"b"',
        '"%00"',
        '"../../etc/passwd"',
        '"\'; DROP TABLE events; --"',
        '"<script>"',
    ),
    *(
        '"{{7*7}}"',
        '"${x}"',
        '"%d %s"',
        '"é"',
        '"\U0001f4b8"',
        '"ＩＮＲ"',
        '"٣٤"',
        '"İNR"',
        '"' + "x" * 300 + '"',
    ),
    *(
        '"' + "é" * 2_000 + '"',
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        '{"":""}',
        '{"id":"x"}',
        "[null]",
        "[1,2,3]",
        "[[[[[[]]]]]]",
    ),
)
NOT_JSON: tuple[str, ...] = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "9" * 5_000,
        "0x10",
        "1_000",
        "01",
        "+1",
        ".5",
        "1.",
        "--1",
        "'1'",
        "undefined",
    ),
    *(
        '"\n"',
        '"\x00"',
        '"\\x41"',
        '"unterminated',
        "",
        " ",
        ",",
        "}",
        "]",
        "[" * DEEP + "]" * DEEP,
        "[" * DEEP,
    ),
    *("[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40),
)
"""Or deeper than is read, or a number longer than Python reads."""
NAMES = (
    *(
        "",
        "\x00",
        "id",
        "ID",
        "amount",
        "notes",
        "agent_id",
        "vendor_url",
        "entity",
        "event",
        "account_id",
        "__proto__",
    ),
    *("__class__", "constructor", "type", "v", "at", "\ud800", "é", "a" * 300, "$ref", "payload", "status"),
)
URLS = (
    *(
        "http://",
        "https://evil.com:99999/",
        "https://[::1]/",
        "https://[::ffff:1.2.3.4]/",
        "http://1.2.3.4.5/",
        "http://0x7f.1/",
    ),
    *(
        "https://a@b@evil.com/",
        "https://evil.com%00.good.com/",
        "https://good.com\\@evil.com/",
        "https://evil.com..",
        "//x",
    ),
    *(
        "javascript:alert(1)",
        "https://аррӏе.com/",
        "https://xn--/",
        "https://xn--a/",
        "https://" + "a" * 10_000 + ".com/",
    ),
    *(
        "https://evil.com/" + "%" * 500,
        "https://\u202eevil.com/",
        "https://ß.de/",
        "https://\u0660.com/",
        "https://e\u0301.com",
    ),
)


def tree_of(text: str | bytes) -> Tree:
    """A JSON text as a tree."""
    return _tree(json.loads(text, object_pairs_hook=Pairs))


def _tree(value: object) -> Tree:
    if isinstance(value, Pairs):
        return Pairs((name, _tree(inner)) for name, inner in value)
    if isinstance(value, list):
        return [_tree(inner) for inner in value]
    return Leaf(json.dumps(value))


def text_of(tree: Tree) -> str:
    """The text, which is JSON only if its leaves are."""
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{_name(name)}:{text_of(inner)}" for name, inner in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(text_of, tree)) + "]"
    return str(tree)


def _name(name: str) -> str:
    return name if isinstance(name, Leaf) else json.dumps(name)


def mutated(rng: Random, text: str | bytes, changes_max: int = 3) -> bytes:
    """The text with up to so many changes, as bytes; now and then also these are damaged."""
    tree = tree_of(text)
    for _ in range(rng.randint(1, changes_max)):
        tree = _changed(rng, tree)
    body = text_of(tree).encode("utf-8", "surrogatepass")
    return damaged(rng, body) if rng.randrange(8) == 0 else body


def damaged(rng: Random, body: bytes) -> bytes:
    """Bytes cut off, turned over, put in, or doubled."""
    at = rng.randrange(len(body) + 1)
    match rng.randrange(5):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
        case 2:
            return (
                body[:at]
                + rng.choice([b"\x00", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\u12"])
                + body[at:]
            )
        case 3:
            return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b" \n", b"\x00"]) + body
        case _:
            return body + body


def _changed(rng: Random, tree: Tree) -> Tree:
    """One change somewhere in it."""
    if isinstance(tree, Pairs) and tree and rng.randrange(6):
        place = rng.randrange(len(tree))
        name, inner = tree[place]
        new = Pairs(tree)
        if isinstance(inner, list) and inner and rng.randrange(4):
            new[place] = (name, _changed(rng, inner))
            return new
        return _CHANGES[rng.randrange(len(_CHANGES))](rng, new, place)
    if isinstance(tree, list) and not isinstance(tree, Pairs) and tree and rng.randrange(3):
        place = rng.randrange(len(tree))
        return [*tree[:place], _changed(rng, tree[place]), *tree[place + 1 :]]
    return _value(rng)


def _replace(rng: Random, pairs: Pairs, place: int) -> Pairs:
    pairs[place] = (pairs[place][0], _value(rng))
    return pairs


def _remove(_rng: Random, pairs: Pairs, place: int) -> Pairs:
    del pairs[place]
    return pairs


def _double(rng: Random, pairs: Pairs, place: int) -> Pairs:
    pairs.insert(rng.randrange(len(pairs) + 1), (pairs[place][0], _value(rng)))
    return pairs


def _add(rng: Random, pairs: Pairs, place: int) -> Pairs:
    pairs.insert(place, (rng.choice(NAMES), _value(rng)))
    return pairs


def _rename(rng: Random, pairs: Pairs, place: int) -> Pairs:
    pairs[place] = (rng.choice(NAMES), pairs[place][1])
    return pairs


def _wrap(rng: Random, pairs: Pairs, place: int) -> Pairs:
    name, inner = pairs[place]
    pairs[place] = (name, [inner] if rng.randrange(2) else Pairs([(name, inner)]))
    return pairs


def _as_text(_rng: Random, pairs: Pairs, place: int) -> Pairs:
    name, inner = pairs[place]
    pairs[place] = (name, Leaf(json.dumps(text_of(inner))))
    return pairs


_CHANGES: tuple[Callable[[Random, Pairs, int], Pairs], ...] = (
    *(_replace, _replace, _replace, _remove, _double, _add, _rename, _wrap, _as_text),
)


def _value(rng: Random) -> Tree:
    kind = rng.randrange(10)
    if kind == 0:
        return Leaf(json.dumps(rng.choice(URLS)))
    if kind == 1:
        return Leaf(
            json.dumps(
                "".join(
                    chr(rng.choice((rng.randrange(128), rng.randrange(0x3000))))
                    for _ in range(rng.randrange(80))
                )
            )
        )
    if kind == 2:
        return Leaf(str(rng.choice((-1, 1)) * 2 ** rng.randrange(1_400) + rng.randrange(-2, 3)))
    return Leaf(rng.choice(JSON if rng.randrange(8) else NOT_JSON))

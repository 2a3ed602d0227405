"""Texts that people and programs write: whatever stands in them, they are taken as they look, or refused in words."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from urllib.parse import urlencode

import pytest

from streamproc.domain.domains import DomainSet, VendorUrl, parse_rule, parse_vendor_url
from streamproc.domain.policy import plan_changes
from streamproc.domain.policy_file import parse_policy_file
from streamproc.domain.wire import decode_events, encode_events
from streamproc.errors import InputError
from streamproc.ingress.slack_payload import read_payload
from streamproc.ingress.translate import translate
from tests.hostile.mutations import CASES, SEED, URLS, damaged, mutated
from tests.slack import block_actions, view_submission

MANY = 10 * CASES
REFUSAL_CHARS_MAX = 40_000
"""Fifty problems of a policy file; of anything else it is far less."""
ROOT = Path(__file__).parents[2]
SAMPLES = [path.read_bytes() for path in sorted((ROOT / "tests" / "journeys" / "samples").glob("*.json"))]
POLICY = {
    "policies": {
        "bot": {
            "daily_limit": 100, "allowed_domains": ["a.com", "*.b.org"], "blocked_domains": ["=evil.com"],
            "rate_limit": {"count": 5, "window": "60s"}, "hours": "09:00-18:00", "days": ["mon"],
            "timezone": "Asia/Kolkata", "currencies": ["INR"], "hold_ttl": "24h", "frozen": False, "team": "t",
        },
        "b2": {"per_txn_limit": 1, "require_approval_above": 2},
    },
    "accounts": {"acc_1": {"daily_limit": 1, "fee_fund_accounts": ["fa_1"]}},
    "teams": {"t": {"monthly_limit": 9}},
    "defaults": {"on_rate_limit": "hold"},
    "reviewers": {"asha": {"slack": "U1A"}, "vikram": {}},
    "agents": {"bot": {"fund_accounts": ["fa_1"], "owners": ["asha"], "public_keys": []}},
    "changes": {"loosening": "two_people"},
}  # fmt: skip
YAML = (ROOT / "ops" / "demo" / "policies.yaml").read_text(encoding="utf-8")
TOML = """
[policies.bot]
daily_limit = 5
allowed_domains = ["a.com"]
hours = "09:00-18:00"
[policies.bot.rate_limit]
count = 4
window = "60s"
[reviewers.asha]
slack = "U1"
"""
YAML_BITS = (
    *(
        "*x",
        "&x",
        "!!int ",
        "!!python/object:os.system ",
        "---\n",
        "...\n",
        "? ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ": ",
    ),
    *(
        "|",
        "> ",
        "%YAML 9.9\n",
        "<<: *x",
        "1e400",
        ".nan",
        "-.INF",
        "0x1F",
        "0o17",
        "1:30",
        "2026-01-01",
        "no",
        "~",
    ),
    *(
        "2026-01-01T00:00:00Z",
        "!!binary aGk=",
        "!!set {a}",
        "\t",
        "\x00",
        "\ud800",
        "\u2028",
        "'",
        '"',
        "#",
        "@",
        "`",
    ),
    *("9" * 100, "1" + "_0" * 50, "\ufeff", "é", "daily_limit:"),
)
TOML_BITS = (
    *(
        "inf",
        "-nan",
        "1979-05-27T07:32:00Z",
        "1979-05-27",
        "07:32:00",
        "0xff",
        "1_000",
        "[[policies]]",
        "[policies.bot]",
    ),
    *(
        "a.b.c=1",
        "'''",
        '"""',
        "{a={b=1}}",
        "\x00",
        "\\u0000",
        "\\ud800",
        "1e400",
        "9" * 5_000,
        "true",
        "=",
        "\n",
    ),
)
URL_LETTERS = (
    "\u3002\uff0e\uff61.:/@\\%[]?#*=-_ \t\n\r\x00\u200d\u200c\u00ad\u0301\u2100\u2025ßſK\u1e9e\ufb01\U0001d552０１"
    "xn-%\ud800\u0660"
)


def written_over(rng: Random, text: str, bits: tuple[str, ...]) -> str:
    """A text with some bits put in, cut out, or a line of it doubled."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:at] + rng.choice(bits) + text[at:]
            case 1:
                text = text[:at] + rng.choice(bits) + text[at + rng.randrange(12) :]
            case 2:
                text = text[:at] + text[at + rng.randrange(30) :]
            case _:
                lines = text.split("\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                text = "\n".join(lines)
    return text


def some_url(rng: Random) -> str:
    """A URL that its writer hopes is read in another way than by a browser."""
    url = rng.choice(
        [*URLS, "https://user:pw@evil.com:8443/pay?x=1#y", "https://[2001:db8::1%25eth0]:443/", "evil.com"]
    )
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(url) + 1)
        if rng.randrange(2):
            url = url[:at] + rng.choice(URL_LETTERS) * rng.choice((1, 1, 1, 2, 64)) + url[at:]
        else:
            url = url[:at] + url[at + rng.randrange(5) :]
    return url


def a_policy_file(rng: Random) -> str:
    match rng.randrange(4):
        case 0:
            text, name = mutated(rng, json.dumps(POLICY), 2).decode("utf-8", "surrogateescape"), "p.yaml"
        case 1:
            text, name = written_over(rng, YAML, YAML_BITS), "p.yaml"
        case 2:
            text, name = written_over(rng, TOML, TOML_BITS), "p.toml"
        case _:
            text, name = written_over(rng, json.dumps(POLICY, indent=1), YAML_BITS), "p.json"
    changes = plan_changes({}, parse_policy_file(text, name=name), prune=False, at=1, by="asha", why="")
    assert decode_events(encode_events(changes)) == changes
    return "taken"


def a_vendor_url(rng: Random) -> str:
    url = parse_vendor_url(some_url(rng))
    if not isinstance(url, VendorUrl):
        raise InputError(url.problem)
    assert url.host.isascii()
    assert url.host == url.host.lower()
    assert not url.host.endswith(".")
    assert parse_vendor_url(url.href) == url
    if not set("*=") & set(url.host):  # which no name has, and a rule reads otherwise
        for text in (url.host, f"={url.host}"):
            assert DomainSet([parse_rule(text)]).match(url.host) == text
    return "taken"


def a_domain_rule(rng: Random) -> str:
    text = some_url(rng).rpartition("//")[2].split("/")[0]
    try:
        rule = parse_rule(rng.choice(["", "=", "*.", "*"]) + text)
    except ValueError as problem:
        raise InputError(str(problem)) from problem
    assert rule.covers in ("everything", "subdomains") or DomainSet([rule]).match(rule.host)
    assert not rule.host or parse_rule(rule.host).host == rule.host
    return "taken"


def a_click(rng: Random) -> str:
    payloads = (
        block_actions("U0ASHA", "hold.approve", "x.pout_1"),
        block_actions("U0ASHA", "hold.reject", "x.pout_1"),
        view_submission("U0ASHA", "x.pout_1", "not ours"),
    )
    text = mutated(rng, json.dumps(rng.choice(payloads)), 2)
    body = urlencode({"payload": text}).encode()
    read_payload(damaged(rng, body) if rng.randrange(4) == 0 else body)
    return "taken"


def a_webhook(rng: Random) -> str:
    body = mutated(rng, rng.choice(SAMPLES), 3)
    append = translate(body, delivery="", fallback_account="acc_1", now_us=1).append
    e = encode_events(append.events)
    assert decode_events(e) == list(append.events)
    assert len(e) < 65_536, "what one sighting may be in the log"
    assert append.keys
    return "taken"


@pytest.mark.parametrize("kind", [a_policy_file, a_vendor_url, a_domain_rule, a_click, a_webhook])
def test_a_hostile_text_is_taken_as_it_looks_or_refused_in_words(kind: Callable[[Random], str]) -> None:
    became: Counter[str] = Counter()
    for seed in range(SEED, SEED + MANY):
        try:
            became[kind(Random(seed))] += 1
        except InputError as refused:
            became["refused"] += 1
            told = str(refused)
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {problem!r}") from problem
        else:
            told = "taken"
        assert 0 < len(told) < REFUSAL_CHARS_MAX, seed
    assert min(became["taken"], became["refused"]) > MANY / 50, became


BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (BOMB, "p.yaml", "aliases"),
        ("policies: {bot: " + "{a: " * 9 + "1" + "}" * 10, "p.yaml", "nested deeper"),
        ("a = " + "[" * 5_000, "p.toml", "nested"),
        ("\n" + "a." * 500_000 + "a = 1", "p.toml", "line 2: nested too deeply"),
        ('["a" . ' + "'b'. " * 200_000 + "c]", "p.toml", "line 1: nested too deeply"),
        ("x = {" + "a." * 500_000 + "a = 1}", "p.toml", "nested too deeply"),
        ("policies: {bot: {daily_limit: .nan}}", "p.yaml", "not text '.nan'"),
        ("policies: {bot: {daily_limit: -.Inf}}", "p.yaml", "not text '-.Inf'"),
        ("policies: {bot: {daily_limit: 1e400}}", "p.yaml", "a huge number"),
        ("policies: {bot: {daily_limit: " + "9" * 400 + "}}", "p.yaml", "amounts are integer paise"),
        ("policies: {bot: {daily_limit: 2026-01-01}}", "p.yaml", "not text '2026-01-01'"),
        ("policies: {bot: {daily_limit: !!int '5'}}", "p.yaml", "tags"),
        ("policies: {bot: {daily_limit: 5, daily_limit: 6}}", "p.yaml", "written twice"),
        ("[policies.bot]\ndaily_limit = 1979-05-27", "p.toml", "amounts are integer paise"),
        ("[policies.bot]\ndaily_limit = nan", "p.toml", "amounts are integer paise"),
        ("[policies.bot]\ndaily_limit = 1\ndaily_limit = 2", "p.toml", "not TOML"),
        ("[policies.bot]\ndaily_limit = " + "9" * 5_000, "p.toml", "not TOML"),
        ("policies: {bot: {daily_limit: 5}}\x00", "p.yaml", "not YAML"),
        ('{"policies": {"\\ud800": {}}}', "p.json", "not YAML"),
    ],
)
def test_a_named_policy_file_is_refused_with_its_reason(text: str, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=r".") as refused:
        parse_policy_file(text, name=name)
    assert reason in str(refused.value)

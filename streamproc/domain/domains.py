"""Which host a vendor URL means, and whether a list of domain rules names it.

Attackers and people write one host in many ways. Everything is parsed as browsers do (WHATWG URL, UTS #46,
by ada) so that case, port, trailing dots, userinfo, backslashes, full-width letters and ideographic dots
never change an answer. Rules go through the same parser, so both sides of a comparison are canonical.
Browsers accept hosts that DNS cannot hold (`a..b`, labels over 63); those are problems here.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import ada_url
from msgspec import Struct

VENDOR_URL_CHARS_MAX = 2_048
"""Longest vendor URL, in characters. Safe Browsing and browsers' address bars stop near here."""
HOST_CHARS_MAX = 253
"""Longest host name, in characters (RFC 1035: 255 bytes on the wire)."""
LABEL_CHARS_MAX = 63
"""Longest label of a host name, in characters (RFC 1035)."""
RULE_CHARS_MAX = 1_024
"""Longest domain rule as written: room for a host of 253 written with escapes or wide characters."""
URLS_CACHED_MAX = 4_096
"""Parsed URLs kept in memory: agents pay the same vendors again. At most some 20 MB."""
SETS_CACHED_MAX = 1_024
"""Compiled domain lists kept in memory: agents share the lists of the defaults."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")
"""The three characters that UTS #46 reads as a dot."""
_NOT_IN_A_RULE = (
    ("://", "a rule is a host, without a scheme"),
    ("/", "a rule is a host, without a path"),
    ("\\", "a rule is a host, without a path"),
    ("?", "a rule is a host, without a query"),
    ("#", "a rule is a host, without a fragment"),
    ("@", "a rule is a host, without user names"),
    ("%", "a rule is a host, without percent escapes"),
)
_WRITTEN_TOGETHER = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
"""Scripts that one honest label may mix (UTS #39, "highly restrictive")."""
_IN_ANY_SCRIPT = frozenset({"MODIFIER", "CARON", "VEDIC", "VERTICAL", "MASU", "COMBINING"})
"""How names begin of letters and marks that Unicode counts to no script ("Common"), so that they mix with none."""
_SCRIPT_OF = {
    "IDEOGRAPHIC": "CJK",
    "HENTAIGANA": "HIRAGANA",
    "EXTENDED": "ARABIC",
    "COMBINING CYRILLIC": "CYRILLIC",
    "COMBINING GLAGOLITIC": "GLAGOLITIC",
}
"""The others whose names do not begin with their script: \u3005 is written among Chinese characters, and the digits of
Persian and Urdu (U+06F0 to U+06F9) among Arabic letters."""
_LIKE_ASCII = frozenset(
    "\u30fc\u4e00\u3127\u1173\u02c9\u02cd\u30ce\u4e3f\u3033\u4e36\u4e28\u1175\u3007\u30fb\u02c8\u02cc\u02d0\u02d1"
)
"""Letters that look like a hyphen, a slash, an l, an o, a dot or other signs of a URL. An apostrophe (U+02BC, the okina
U+02BB) is none: no host without it looks the same, since hosts have no `'`."""
_IN_NAMES = frozenset("\u0375\u05f3\u05f4\u06fd\u06fe\u0f0b\u30fb")
"""Signs that are no letters, marks or digits, and that registries take all the same, in names of their script
(IDNA2008): of Greek, Hebrew, Sindhi and Tibetan, and the middle dot of Japanese."""
_SKIN_TONES = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
"""Beside pictures of people, which some registries take."""
_LIKE_LETTERS = re.compile(
    "[\u212e\u2336-\u237a\u23fd\u244a\u31d3\u31d4\u166d"  # an e, the signs of APL, an l, a backslash, strokes, an X
    "\u2500-\u25ff\u2758-\u275a\u2795\u2796\u2800-\u28ff"  # lines, circles, bars, + and -; Braille: dots, or nothing
    "\U0001d114\U0001d200-\U0001d245\U0001f700-\U0001f77f]"  # notes of music and alchemy's signs, drawn as letters
)
"""Of the pictures that browsers take (Unicode's "other symbols"), those that are read as letters or a URL's signs."""


class VendorUrl(Struct, frozen=True):
    """A well-formed http(s) URL, canonical."""

    href: str
    """Without userinfo and fragment; the host as below."""
    host: str
    """ASCII, lower case, no trailing dot. IPv6 stands in brackets."""
    is_ip: bool
    """An IP literal, however it was spelled (octal, hex, one integer, IPv6)."""
    is_localhost: bool
    """`localhost` or a name under it."""
    mixes_scripts: bool = False
    """One label mixes scripts that are not written together, or has signs that no registry takes: a look-alike."""


class UrlProblem(Struct, frozen=True):
    """Why a text is not a vendor URL, in one line that does not repeat the text."""

    problem: str


def parse_vendor_url(text: str) -> VendorUrl | UrlProblem:
    """What a browser would open for *text*, or why that is no http(s) URL. Never raises.

    As in WHATWG, blanks around the URL and tabs and line ends inside it are dropped; other control
    characters are refused, since tools disagree about them. A host without a scheme is a problem.
    """
    if len(text) > VENDOR_URL_CHARS_MAX:
        return UrlProblem(f"the URL has {len(text)} characters, the limit is {VENDOR_URL_CHARS_MAX}")
    return _parse(text)


def without_login(text: str) -> str:
    """A URL without who logs in. In what is no URL nobody can say where that ends: all before the last `@` goes."""
    if "@" not in text:
        return text
    parsed = parse_vendor_url(text)
    if type(parsed) is VendorUrl:
        return parsed.href
    scheme, slashes, _ = text.partition("://")
    kept = f"{scheme}://" if slashes and scheme.isalpha() else ""
    return f"{kept}***@{text.rpartition('@')[2]}"


def with_host(text: str) -> str:
    """A vendor URL for people: where it does not plainly begin with the host that a browser would open, that host
    stands before it. Look-alikes of one script, and a host before an `@`, would be taken for the vendor otherwise."""
    vendor = vendor_of(text)
    if vendor is None or re.match(rf"https?://{re.escape(vendor.host)}([/?#:]|$)(?!.*@)", text):
        return text
    return f"{vendor.host}, written {text}"


@lru_cache(maxsize=URLS_CACHED_MAX)
def vendor_of(text: str) -> VendorUrl | None:
    """The parsed vendor URL; None if there is none or it is invalid."""
    url = parse_vendor_url(text) if text else None
    # Not isinstance, which asks a Struct's metaclass: 0.3 µs. Called five times a payout, hence the cache.
    return url if type(url) is VendorUrl else None


@lru_cache(maxsize=URLS_CACHED_MAX)
def vendor_name(url: str, fund_account: str) -> str:
    """Who is paid, for budgets and views: the URL's host, or the fund account where there is no usable URL."""
    parsed = parse_vendor_url(url) if url else None
    return parsed.host if type(parsed) is VendorUrl else fund_account


@lru_cache(maxsize=URLS_CACHED_MAX)
def _parse(text: str) -> VendorUrl | UrlProblem:
    if not text.strip():
        return UrlProblem("the URL is empty")
    if _CONTROL.search(text):
        return UrlProblem("the URL has control characters")
    try:
        url = ada_url.URL(text)
    except ValueError:  # also what lone surrogates raise
        return UrlProblem("the URL cannot be parsed; it must be like https://vendor.example/path")
    if url.protocol not in ("http:", "https:"):
        return UrlProblem("the URL's scheme must be http or https")
    return _canonical(url)


def _canonical(url: ada_url.URL) -> VendorUrl | UrlProblem:
    try:
        host, is_ip = _canonical_host(url.hostname)
    except ValueError as problem:
        return UrlProblem(str(problem))
    if not is_ip and any(_is_no_punycode(label) for label in host.split(".")):
        return UrlProblem("a label of the host begins with xn-- and is no Punycode")
    url.username = url.password = url.hash = ""
    url.hostname = host
    return VendorUrl(
        href=url.href,
        host=host,
        is_ip=is_ip,
        is_localhost=host == "localhost" or host.endswith(".localhost"),
        mixes_scripts=not is_ip and any(_mixes_scripts(label) for label in host.split(".")),
    )


def _canonical_host(host: str) -> tuple[str, bool]:
    """*host* as ada gave it, without trailing dots, and whether it is an IP. ValueError if DNS cannot hold it."""
    bare = host.rstrip(".")
    if not bare:
        raise ValueError("the host is empty")
    try:
        # Parsed again, because `127.0.0.1..` is a name with its dots and an address without them.
        parsed = ada_url.URL(f"http://{bare}/")
    except ValueError:
        raise ValueError("the host cannot be parsed") from None
    if parsed.host_type != ada_url.HostType.DEFAULT:
        return parsed.hostname, True
    if len(bare) > HOST_CHARS_MAX:
        raise ValueError(f"the host has {len(bare)} characters, the limit is {HOST_CHARS_MAX}")
    for label in bare.split("."):
        if not label:
            raise ValueError("the host has an empty label")
        if len(label) > LABEL_CHARS_MAX:
            raise ValueError(
                f"a label of the host has {len(label)} characters, the limit is {LABEL_CHARS_MAX}"
            )
    return bare, False


def _is_no_punycode(label: str) -> bool:
    """`xn--` before what no browser can read: ada takes it where all of the host is ASCII, and WHATWG does not."""
    return label.startswith("xn--") and ada_url.idna_to_unicode(label) == label


def _mixes_scripts(label: str) -> bool:
    if not label.startswith("xn--"):
        return False
    shown = set(ada_url.idna_to_unicode(label).replace("l\u00b7l", "ll"))  # as Catalan is written
    if any(_is_in_no_name(sign) for sign in shown):
        return True
    # Of other than letters too: a digit of Devanagari is an o to whoever reads Latin, and so is its vowel sign a speck.
    written = {sign: _script_of(sign) for sign in shown if _has_script(sign)}
    others = {sign for sign, script in written.items() if script not in ("LATIN", "COMBINING")}
    if others and others < written.keys() and others <= _LIKE_ASCII:
        return True  # beside nothing but Latin letters `pay\u30fcpal` is there to be read as `pay-pal`
    scripts = set(written.values()) - _IN_ANY_SCRIPT
    return len(scripts) > 1 and not any(scripts <= together for together in _WRITTEN_TOGETHER)


def _is_in_no_name(sign: str) -> bool:
    """Whether it is a sign that no registry takes (IDNA2008), and no picture: `bank.com\u2215pay.evil.xyz` is a host
    below evil.xyz, and an infinity sign in a name is there to be read as two o's. Browsers open both."""
    kind = unicodedata.category(sign)
    if sign.isascii() or sign in _IN_NAMES or sign in _SKIN_TONES or kind[0] not in "PS":
        return False
    return kind != "So" or _LIKE_LETTERS.match(sign) is not None


def _has_script(sign: str) -> bool:
    """Whether it is a letter, a mark or a number, or what may be one: browsers know later versions of Unicode than
    Python does. ASCII's digits are written among the letters of every script."""
    kind = unicodedata.category(sign)
    return (kind[0] in "LMN" or kind == "Cn" or sign in _IN_NAMES) and not (sign.isascii() and sign.isdigit())


def _script_of(sign: str) -> str:
    """As its name begins: Python does not know scripts, and letters, marks and digits are named by them. Of those that
    it does not know, the ones beyond U+20000 are Chinese: Unicode keeps two planes for them."""
    words = re.split("[ -]", unicodedata.name(sign, "CJK" if sign >= "\U00020000" else "UNKNOWN"))
    begins, both = words[0], " ".join(words[:2])
    return _SCRIPT_OF.get(both) or _SCRIPT_OF.get(begins, begins)


RULES_KNOWN_MAX = 20_000
"""Rules that are kept read, some 300 bytes each: a change of a policy reads its whole lists several times over."""


class DomainRule(Struct, frozen=True):
    """One entry of `allowed_domains` or `blocked_domains`."""

    text: str
    """As it was written."""
    covers: Literal["everything", "host", "tree", "subdomains"]
    host: str
    """Canonical; empty where the rule covers everything."""


@lru_cache(maxsize=RULES_KNOWN_MAX)
def parse_rule(text: str) -> DomainRule:
    """Read a domain rule; ValueError says why *text* cannot be one.

    `evil.com` is that host and its subdomains, `=evil.com` only the host, `*.evil.com` only subdomains,
    `*.xyz` a whole suffix, `*` everything. An IP address has no subdomains: it covers itself.
    """
    written = text.translate(_DOTS)
    if written == "*":
        return DomainRule(text, "everything", "")
    _refuse_what_is_no_host(written)
    if written.startswith("="):
        host, is_ip = _rule_host(written[1:])
        return DomainRule(text, "host", host)
    if written.startswith("*."):
        host, is_ip = _rule_host(written[2:])
        if is_ip:
            raise ValueError(f"{text}: an IP address has no subdomains")
        return DomainRule(text, "subdomains", host)
    host, is_ip = _rule_host(written)
    return DomainRule(text, "host" if is_ip else "tree", host)


def _refuse_what_is_no_host(written: str) -> None:
    if not written:
        raise ValueError("a rule cannot be empty; * means everything")
    if len(written) > RULE_CHARS_MAX:
        raise ValueError(f"a rule has {len(written)} characters, the limit is {RULE_CHARS_MAX}")
    if any(letter.isspace() for letter in written) or _CONTROL.search(written):
        raise ValueError(f"{written!r}: a rule has no spaces or control characters")
    for mark, reason in _NOT_IN_A_RULE:
        if mark in written:
            raise ValueError(f"{written}: {reason}")


def _rule_host(written: str) -> tuple[str, bool]:
    if not written:
        raise ValueError("the rule names no host")
    bare = written if written.startswith("[") or written.count(":") < 2 else f"[{written}]"
    if ":" in bare and not bare.endswith("]"):
        raise ValueError(f"{written}: a rule is a host, without a port")
    try:
        host, is_ip = _canonical_host(ada_url.URL(f"http://{bare}/").hostname)
    except ValueError as problem:
        raise ValueError(f"{written!r} is not a host: {problem}") from None
    # Asked of the canonical host, because full-width stars and equals signs become plain ones on the way.
    if "*" in host:
        raise ValueError(f"{written}: a star stands only alone or as *. before a host")
    if "=" in host:
        raise ValueError(f"{written}: an equals sign stands only once, before a host")
    return host, is_ip


class DomainSet:
    """A list of rules, compiled: a lookup costs one dict access per label, however long the list."""

    __slots__ = ("_everything", "_hosts", "_parents", "rules")

    def __init__(self, rules: Iterable[DomainRule]) -> None:
        self.rules = tuple(rules)
        self._hosts: dict[str, int] = {}
        self._parents: dict[str, int] = {}
        self._everything: int | None = None
        for index, rule in enumerate(self.rules):
            if rule.covers == "everything":
                self._everything = index if self._everything is None else self._everything
            if rule.covers in ("host", "tree"):
                self._hosts.setdefault(rule.host, index)
            if rule.covers in ("tree", "subdomains"):
                self._parents.setdefault(rule.host, index)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def match(self, host: str) -> str | None:
        """The text of the first listed rule that covers *host* (canonical), or None."""
        found = self._first(host)
        if self._everything is not None and (found is None or self._everything < found):
            found = self._everything
        return None if found is None else self.rules[found].text

    def match_named(self, host: str) -> str | None:
        """As `match`, but `*` does not count: IP literals and localhost must be listed themselves."""
        found = self._first(host)
        return None if found is None else self.rules[found].text

    def _first(self, host: str) -> int | None:
        found = self._hosts.get(host)
        dot = host.find(".")
        while dot >= 0:
            index = self._parents.get(host[dot + 1 :])
            if index is not None and (found is None or index < found):
                found = index
            dot = host.find(".", dot + 1)
        return found


@lru_cache(maxsize=SETS_CACHED_MAX)
def compile_domains(texts: tuple[str, ...]) -> DomainSet:
    """The set of the rules *texts*; ValueError at the first that is no rule."""
    return DomainSet(parse_rule(text) for text in texts)

"""No spelling of a host slips past a domain rule, and what is no host or no rule is refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain.domains import (
    VENDOR_URL_CHARS_MAX,
    DomainRule,
    DomainSet,
    UrlProblem,
    VendorUrl,
    compile_domains,
    parse_rule,
    parse_vendor_url,
    with_host,
)

LABELS = st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z])?", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


def host_of(text: str) -> str:
    url = parse_vendor_url(text)
    assert isinstance(url, VendorUrl), url
    return url.host


def problem_of(text: str) -> str:
    url = parse_vendor_url(text)
    assert isinstance(url, UrlProblem), url
    return url.problem


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.com",
        "HTTPS://EVIL.COM:8443/pay?x=1#y",
        "https://evil.com./",
        "https://evil.com../",
        "https://good.com@evil.com/",
        "https://good.com:pw@evil.com\\@good.com/",
        "https:\\\\evil.com\\path",
        "https://ｅｖｉｌ.com",
        "https://evil。com",
        "https://evil．com｡",
        "https://%65vil.com",
        "  https://evil.com \n",
        "ht\ttps://ev\nil.com/",
        "https:evil.com",
    ],
)
def test_every_spelling_of_a_host_is_that_host(text: str) -> None:
    assert host_of(text) == "evil.com"


@pytest.mark.parametrize(
    "host", ["xn--a", "a.XN--A.com", "xn--", "xn--evil-.com", "xn--zzzz99999999.example"]
)
def test_a_label_that_only_looks_like_punycode_is_no_host(host: str) -> None:
    assert problem_of(f"https://{host}/") == "a label of the host begins with xn-- and is no Punycode"


@pytest.mark.parametrize("host", ["xn--bcher-kva.de", "xn--fuball-cta.de", "xn--ls8h.la", "xn--fiqs8s"])
def test_a_host_may_be_written_in_punycode(host: str) -> None:
    assert host_of(f"https://{host}/") == host


@given(
    host=HOSTS,
    user=st.sampled_from(["", "u@", "u:p@", "good.com@", "%40@"]),
    port=st.sampled_from(["", ":80", ":8443"]),
    dots=st.sampled_from(["", ".", "..", "。"]),
    slash=st.sampled_from(["/", "\\"]),
    wide=st.booleans(),
    upper=st.booleans(),
)
def test_spelling_never_changes_which_rules_match(
    host: str, user: str, port: str, dots: str, slash: str, wide: bool, upper: bool
) -> None:
    written = host.upper() if upper else host
    if wide:
        written = "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else "。" for c in written)
    assert host_of(f"https:{slash}{slash}{user}{written}{dots}{port}{slash}a") == host
    assert parse_rule(written).host == host


@pytest.mark.parametrize(
    "spelling",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.0.0.1..",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "2130706433",
        "127.1",
        "１２７.0.0.1",
    ],
)
def test_every_spelling_of_an_address_is_an_ip(spelling: str) -> None:
    url = parse_vendor_url(f"http://u@{spelling}:81/")
    assert isinstance(url, VendorUrl)
    assert (url.host, url.is_ip, url.is_localhost) == ("127.0.0.1", True, False)


def test_an_ipv6_address_is_an_ip_in_its_shortest_form() -> None:
    url = parse_vendor_url("http://[0:0:0:0:0:0:0:1]/")
    assert isinstance(url, VendorUrl)
    assert (url.host, url.is_ip) == ("[::1]", True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "ｌocalhost"])
def test_localhost_and_names_under_it_are_localhost(host: str) -> None:
    url = parse_vendor_url(f"http://{host}/")
    assert isinstance(url, VendorUrl)
    assert url.is_localhost


def test_a_host_that_only_ends_in_the_letters_of_localhost_is_not() -> None:
    url = parse_vendor_url("http://notlocalhost/")
    assert isinstance(url, VendorUrl)
    assert not url.is_localhost


def test_the_canonical_url_has_no_userinfo_no_fragment_and_no_trailing_dot() -> None:
    url = parse_vendor_url("HTTPS://u:p@Evil.com.:8443/A?b#c")
    assert isinstance(url, VendorUrl)
    assert url.href == "https://evil.com:8443/A?b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \t", "empty"),
        ("evil.com", "like https://"),
        ("//evil.com", "like https://"),
        ("evil.com:80/x", "http or https"),
        ("ftp://evil.com", "http or https"),
        ("javascript:alert(1)", "http or https"),
        ("http://", "like https://"),
        ("http://./", "host is empty"),
        ("http://a..b/", "empty label"),
        ("http://.a.b/", "empty label"),
        ("http://evil.com\x00.good.com/", "control"),
        ("\x01http://evil.com/", "control"),
        ("http://evil.com/\x7f", "control"),
        ("http://1.2.3.4.5/", "like https://"),
        ("http://\ud800.com/", "like https://"),
    ],
)
def test_what_is_no_vendor_url_is_a_problem_that_says_why(text: str, reason: str) -> None:
    assert reason in problem_of(text)


def test_a_label_of_63_passes_and_of_64_is_a_problem_that_names_the_limit() -> None:
    assert host_of(f"http://{'a' * 63}.com/") == "a" * 63 + ".com"
    assert "the limit is 63" in problem_of(f"http://{'a' * 64}.com/")


def test_a_host_of_253_passes_and_of_254_is_a_problem_that_names_the_limit() -> None:
    longest = ".".join(["a" * 49] * 5) + ".abc"
    assert len(longest) == 253
    assert host_of(f"http://{longest}/") == longest
    assert "the limit is 253" in problem_of(f"http://{longest}d/")


def test_a_url_of_the_longest_length_passes_and_one_more_is_a_problem() -> None:
    longest = "http://a.b/".ljust(VENDOR_URL_CHARS_MAX, "x")
    assert host_of(longest) == "a.b"
    assert "the limit is 2048" in problem_of(longest + "x")


@pytest.mark.parametrize(
    ("text", "mixes"),
    [
        ("аpple.com", True),
        ("αpple.com", True),
        ("бα.com", True),
        ("ひ한.jp", True),
        ("हिन्दीa.in", True),
        ("аpple\u02bcs.com", True),
        ("g\u0966\u0966gle.com", True),
        ("g\u0ae6ogle.com", True),
        ("pay\u06f0pal.com", True),
        ("goo\u0941gle.com", True),
        ("goog\u0483le.com", True),
        ("яндекс\u0967.com", True),
        ("भारत\u0e50.in", True),
        ("pay\u1c8apal.com", True),
        ("pay\U000105c0pal.com", True),
        ("col\u00b7om.com", True),
        ("pay\u0f0bpal.com", True),
        ("apple.com", False),
        ("яндекс.com", False),
        ("bücher.de", False),
        ("佐々木.jp", False),
        ("々木a.jp", False),
        ("〆切.jp", False),
        ("ラーメン.jp", False),
        ("らーめんlovers.jp", False),
        ("東京ひらカタtokyo.jp", False),
        ("한국bank.kr", False),
        ("韓國한국.kr", False),
        ("ㄅ中taipei.tw", False),
        ("第一bank.cn", False),
        ("हिन्दी.in", False),
        ("गूगल१२.in", False),
        ("गूगल12.in", False),
        ("१२३.in", False),
        ("ไทย๑.th", False),
        ("فارسی۱.ir", False),
        ("a\u0331b\u0307.com", False),
        ("х\u0483.com", False),
        ("col\u00b7lecci\u00f3.cat", False),
        ("ドラ・えもん.jp", False),
        ("中\U00031350国.cn", False),
        ("צה״ל.il", False),
        ("བོད་ཡིག.cn", False),
        ("👩🏽pay.ws", False),
        ("i❤.ws", False),
        ("o\u02bcreilly.com", False),
        ("hawai\u02bbi.com", False),
        ("м\u02bcята.ua", False),
    ],
)
def test_a_look_alike_label_mixes_scripts_and_an_honest_one_does_not(text: str, mixes: bool) -> None:
    url = parse_vendor_url(f"https://{text}/")
    assert isinstance(url, VendorUrl)
    assert url.mixes_scripts is mixes


@pytest.mark.parametrize(
    "sign", "\u30fc\u30fb一\u3127\u3161ノ丿\u3033丶丨\u3163\u3007\u02c9\u02cd\u02c8\u02cc\u02d0\u02d1"
)
def test_a_letter_that_looks_like_a_sign_of_a_url_is_suspicious_beside_latin_letters_alone(sign: str) -> None:
    url = parse_vendor_url(f"https://pay{sign}pal.com/")
    assert isinstance(url, VendorUrl)
    assert url.mixes_scripts


@pytest.mark.parametrize("sign", "℮∞⍺⍳⍴∨∪×∣‖⊤⏽○𝈏🜀⠀➖⹀⫽⁁⑊᠃꓾꘎𝈺〔’")
def test_a_sign_that_no_registry_takes_is_suspicious_unless_it_is_a_picture(sign: str) -> None:
    url = parse_vendor_url(f"https://pay{sign}pal.com/")
    assert isinstance(url, VendorUrl)
    assert url.mixes_scripts


@pytest.mark.parametrize("label", ["com{}pay", "пример{}вход", "com{}pa\u0304y"])
@pytest.mark.parametrize("sign", "⁄∕⧸⟋╱\u1735㇓⧵∖⧹⟍╲㇔꞉∶˸⁚⦂։᛬‐‒–—―−⁃˗─━᠆֊‧⋅•∙♯⋕٪⁒꞊᐀゠")
def test_a_sign_that_looks_like_one_of_url_syntax_is_suspicious_in_every_label(label: str, sign: str) -> None:
    url = parse_vendor_url(f"https://bank.{label.format(sign)}.evil.xyz/")
    assert isinstance(url, VendorUrl)
    assert url.mixes_scripts


@given(st.text(max_size=80) | st.text(max_size=40).map(lambda text: f"http://{text}"))
def test_any_text_is_a_canonical_url_or_a_problem(text: str) -> None:
    url = parse_vendor_url(text)
    if isinstance(url, VendorUrl):
        assert url.host.isascii()
        assert url.host == url.host.lower()
        assert not url.host.endswith(".")
        again = parse_vendor_url(url.href)
        assert again == url


@pytest.mark.parametrize(
    ("rule", "covered", "not_covered"),
    [
        ("evil.com", ["evil.com", "a.evil.com", "b.a.evil.com"], ["notevil.com", "com", "evil.com.au"]),
        ("=evil.com", ["evil.com"], ["a.evil.com", "notevil.com"]),
        ("*.evil.com", ["a.evil.com", "b.a.evil.com"], ["evil.com", "notevil.com"]),
        ("*.xyz", ["a.xyz", "b.a.xyz"], ["xyz", "a.xyzz", "axyz"]),
        ("*", ["a", "evil.com", "127.0.0.1"], []),
        ("BÜCHER.de.", ["xn--bcher-kva.de", "a.xn--bcher-kva.de"], ["bcher.de"]),
        ("2130706433", ["127.0.0.1"], ["a.127.0.0.1", "127.0.0.2"]),
        ("::1", ["[::1]"], ["[::2]"]),
        ("localhost", ["localhost", "a.localhost"], ["notlocalhost"]),
    ],
)
def test_a_rule_covers_these_hosts_and_not_those(
    rule: str, covered: list[str], not_covered: list[str]
) -> None:
    one = DomainSet([parse_rule(rule)])
    for host, expected in [(h, True) for h in covered] + [(h, False) for h in not_covered]:
        assert matches(parse_rule(rule), host) is expected, host
        assert one.match(host) == (rule if expected else None), host


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("https://evil.com", "without a scheme"),
        ("evil.com/pay", "without a path"),
        ("evil.com\\pay", "without a path"),
        ("evil.com:443", "without a port"),
        ("[::1]:443", "without a port"),
        ("u@evil.com", "without user names"),
        ("evil.com?x", "without a query"),
        ("evil.com#x", "without a fragment"),
        ("%65vil.com", "without percent"),
        ("a.*.com", "a star stands only"),
        ("*evil.com", "a star stands only"),
        ("＊.xyz", "a star stands only"),
        ("=*.xyz", "a star stands only"),
        ("**", "a star stands only"),
        ("evil .com", "no spaces"),
        ("evil\x00.com", "control characters"),
        ("=", "names no host"),
        ("*.", "names no host"),
        ("==evil.com", "equals sign"),
        (".evil.com", "empty label"),
        ("evil..com", "empty label"),
        ("*.127.0.0.1", "no subdomains"),
        ("1.2.3.4.5", "not a host"),
        ("a" * 64 + ".com", "the limit is 63"),
    ],
)
def test_what_cannot_be_a_rule_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        parse_rule(text)


def matches(rule: DomainRule, host: str) -> bool:
    """What a rule means, without the index that DomainSet keeps: whether it covers a canonical host."""
    if rule.covers == "everything":
        return True
    if rule.covers in ("host", "tree") and host == rule.host:
        return True
    return rule.covers in ("tree", "subdomains") and host.endswith("." + rule.host)


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_a_value_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert rule.text == text
    assert rule.covers in ("everything", "subdomains") or matches(rule, rule.host)


@given(
    rules=st.lists(st.tuples(st.sampled_from(["", "=", "*."]), HOSTS).map("".join) | st.just("*")), host=HOSTS
)
def test_a_compiled_list_answers_as_asking_its_rules_one_by_one(rules: list[str], host: str) -> None:
    one_by_one = next((rule for rule in rules if matches(parse_rule(rule), host)), None)
    assert compile_domains(tuple(rules)).match(host) == one_by_one


def test_the_first_listed_rule_is_the_one_that_is_named() -> None:
    assert compile_domains(("*.com", "a.evil.com", "*")).match("a.evil.com") == "*.com"
    assert compile_domains(("*", "a.evil.com")).match("a.evil.com") == "*"


def test_everything_does_not_list_an_address_by_name() -> None:
    assert compile_domains(("*",)).match_named("127.0.0.1") is None
    assert compile_domains(("*", "127.0.0.1")).match_named("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example.com",
        "http://a.example.com/x?y#z",
        "https://a.example.com:8443/",
        "javascript:1",
        "",
    ],
)
def test_a_url_that_begins_with_its_host_is_shown_as_it_is_and_so_is_what_is_none(url: str) -> None:
    assert with_host(url) == url


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://\u0430\u0440\u0440\u04cf\u0435.com/pay", "xn--80ak6aa92e.com"),
        ("https://bank.com@evil.com/", "evil.com"),
        ("https://bank.com:443@evil.com/", "evil.com"),
        ("https://evil.com\\@bank.com/", "evil.com"),
        ("https:evil.com", "evil.com"),
        ("https://ⓔⓥⓘⓛ.com/", "evil.com"),
    ],
)
def test_before_a_url_that_may_be_misread_stands_the_host_that_a_browser_opens(url: str, host: str) -> None:
    assert with_host(url) == f"{host}, written {url}"

"""A problem in a TOML policy file is told with its line, as in YAML, however the file is written."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain.policy_file import parse_policy_file
from streamproc.domain.policy_report import Path
from streamproc.domain.toml_lines import toml_lines
from streamproc.errors import InputError

FILE = '''\
# limits of [all] agents, "today"
defaults.timezone = "Asia/Kolkata"

[policies."bot.1"]   # a comment = not a key
daily_limit = 5_000
blocked_domains = [
    "ok.example",    # fine
    "=a]b.example", 'c,d.example',

    "e.example"]
rate_limit = {count = 3, window = "1m"}
team = """
two
lines"""
[policies.other]
hours = '09:00-18:00'
'''


def test_each_key_and_each_entry_of_a_list_has_its_line() -> None:
    bot = ("policies", "bot.1")
    lines = toml_lines(FILE)
    assert {path: lines[path] for path in paths(tomllib.loads(FILE))} == {
        ("defaults",): 2,
        ("defaults", "timezone"): 2,
        ("policies",): 4,
        bot: 4,
        (*bot, "daily_limit"): 5,
        (*bot, "blocked_domains"): 6,
        (*bot, "blocked_domains", 0): 7,
        (*bot, "blocked_domains", 1): 8,
        (*bot, "blocked_domains", 2): 8,
        (*bot, "blocked_domains", 3): 10,
        (*bot, "rate_limit"): 11,
        (*bot, "rate_limit", "count"): 11,
        (*bot, "rate_limit", "window"): 11,
        (*bot, "team"): 12,
        ("policies", "other"): 15,
        ("policies", "other", "hours"): 16,
    }


def test_a_rule_that_cannot_be_one_is_refused_with_its_line() -> None:
    with pytest.raises(InputError) as refused:
        parse_policy_file(
            '[policies.bot]\r\nblocked_domains = [\r\n "ok.example",\r\n "a b",\r\n]', name="p.toml"
        )
    assert str(refused.value).startswith("p.toml: line 4, policies.bot.blocked_domains[1]: 'a b'")


def test_limits_that_contradict_each_other_are_refused_with_the_line_of_the_smaller() -> None:
    with pytest.raises(
        InputError, match=r"line 2, policies\.bot\.daily_limit: daily_limit 9 is above weekly_limit 5"
    ):
        parse_policy_file("[policies.bot]\ndaily_limit = 9\nweekly_limit = 5", name="p.toml")


def paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """The paths of all that was read."""
    for name, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*above, name)
        if isinstance(below, dict | list):
            yield from paths(below, (*above, name))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=32), max_size=8)
SCALARS = st.one_of(
    TEXTS.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    st.integers(-9, 99).map(str),
    st.sampled_from(["1.5", "true", "1979-05-27 07:32:00Z", "'a#b'", '"""x\n"y" """', "'''[\n]'''"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ", # of [it\n".join(items) + "\n]"),
        st.lists(inner, max_size=3).map(
            lambda items: "{" + ", ".join(f'"k {n}".b = {item}' for n, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=4))
def test_whatever_the_parser_reads_has_a_line_within_the_file(values: list[str]) -> None:
    text = "\n".join(f"[t{n}]\n  a.b = {value}  # [c]\n" for n, value in enumerate(values))
    lines = toml_lines(text)
    assert set(paths(tomllib.loads(text))) == lines.keys()
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    assert all(lines[f"t{n}",] == text[: text.index(f"[t{n}]")].count("\n") + 1 for n in range(len(values)))

"""What commands that call our own API start from."""

import re
from pathlib import Path

import pytest

from streamproc.cli.caller import api_url, token_of
from streamproc.errors import InputError
from streamproc.settings import load

TOKEN = "spt_" + 43 * "a"


def test_a_token_where_its_file_should_be_named_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="--token names a file that holds the token") as refused:
        token_of(load({}), Path(TOKEN))
    assert TOKEN not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--token .*/none cannot be read: No such file"):
        token_of(load({}), tmp_path / "none")


@pytest.mark.parametrize("text", ["spt_\u2026", "spt_a\nspt_b"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    (tmp_path / "two.token").write_text(text)
    with pytest.raises(InputError, match=r"the token in .*/two\.token must be one line of ASCII") as refused:
        token_of(load({}), tmp_path / "two.token")
    assert "spt_" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8080"), ("::1", "http://[::1]:8080")]
)
def test_the_api_is_where_serve_listens_an_ipv6_host_in_brackets(host: str, url: str) -> None:
    assert api_url(load({"STREAMPROC_HOST": host})) == url


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("ftp://pay.example.com", "--url must be an http:// or https:// URL"),
        ("pay.example.com:8080", "--url must be an http:// or https:// URL"),
        ("https://pay.example.com/?key=1", "--url must be an http:// or https:// URL without query"),
        ("https://asha:hunter2@pay.example.com", "--url must not carry a user name or password"),
    ],
)
def test_another_api_is_named_by_a_plain_url_and_a_password_in_it_is_not_repeated(given: str, problem: str):
    with pytest.raises(InputError, match=re.escape(problem)) as refused:
        api_url(load({}), given)
    assert "hunter2" not in str(refused.value)
    assert api_url(load({}), "https://pay.example.com/") == "https://pay.example.com"

"""`streamproc pay` against what is not our API: one line that says so, with the key to ask again by."""

import re
from collections.abc import Coroutine
from pathlib import Path

import click
import pytest
from msgspec.json import encode

from streamproc.cli import output
from streamproc.cli import run as cli
from streamproc.errors import InputError, JobFailed
from streamproc.operate.pay import pay
from tests.clients.loopback import Asked, always, loopback, response

SECRET = "spt_" + "s" * 43
ORDER = {"amount": 100}
NOT_KNOWN = "; whether it was taken is not known: ask again with --key k-1$"


@pytest.mark.parametrize(
    ("status", "body"),
    [(202, {"ok": True}), (202, {"payout": 7, "decision": None}), (403, {"errors": ["no"]}), (502, [])],
)
async def test_an_answer_that_no_api_of_ours_gives_is_named(status: int, body: object) -> None:
    async with loopback(always(status, body)) as served:
        with pytest.raises(JobFailed, match=f"HTTP {status}, .*is that streamproc's API.*{NOT_KNOWN}"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=True)


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_of_the_api_itself_does_not_tell_whether_it_was_taken(status: int) -> None:
    async with loopback(always(status, {"detail": "failed"})) as served:
        with pytest.raises(JobFailed, match=f"HTTP {status}: failed{NOT_KNOWN}"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=False)


async def test_a_refusal_needs_no_key() -> None:
    async with loopback(always(403, {"detail": "not yours"})) as served:
        with pytest.raises(JobFailed, match=r"^HTTP 403: not yours$"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=False)


@pytest.mark.parametrize("then", [None, response(500, b'{"detail": "failed"}'), response(502, b"<html>")])
async def test_what_was_taken_is_said_so_where_its_decision_cannot_be_seen(then: bytes | None) -> None:
    """Who is not told pays again, under another key."""
    taken = response(202, encode({"payout": "spi_1", "decision": None, "reason": "", "reasons": []}))

    async def answers(asked: Asked) -> bytes | None:
        return taken if asked.method == "POST" else then

    async with loopback(answers) as served:
        with pytest.raises(JobFailed, match=r"^spi_1 is taken, but what came of it .* --key k-1 asks again$"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=True)


def test_ctrl_c_tells_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(work: Coroutine[object, object, object]) -> None:
        work.close()
        raise click.Abort

    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setattr(output, "run", interrupted)
    order = ["pay", "--amount", "100", "--to", "fa_00000000000001", "--url", "http://127.0.0.1:1"]
    assert cli([*order, "--token", str(tmp_path / "token")]) == 1
    assert re.search(r"is not known: ask again with --key [0-9a-f]{32}\n", capsys.readouterr().err)


async def test_each_wrong_field_of_a_refused_request_is_a_line() -> None:
    problem = {"detail": "1 problem", "errors": [{"field": "amount", "problem": "is too small"}]}
    async with loopback(always(422, problem)) as served:
        with pytest.raises(InputError, match=r"^1 problem\n  amount: is too small$"):
            await pay(served.url, SECRET, ORDER, key="k-1", wait=False)

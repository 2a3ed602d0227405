"""`up` waits until a role answers 200; of one that never does it tells what its last answer says is wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from streamproc import probe
from streamproc.api.health import Check
from streamproc.errors import JobFailed
from streamproc.probe import answering
from tests.ports import free_port

NOT_READY = msgspec.json.encode(
    {
        "status": "not ready",
        "checks": [
            Check("redis", False, "9 bytes are used and maxmemory is 8: writes are refused"),
            Check("poller", False, "nobody polls", required=False),
            Check("postgres", True, "answers"),
        ],
    }
)


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[int]:
    """A server that gives these answers in turn, then the last one again and again; its port."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def answer(status: str, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over when it has looked once."""

    async def time_is_over(_seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(probe.asyncio, "sleep", time_is_over)


async def test_it_waits_through_other_answers_for_a_200() -> None:
    async with serving(answer("503 Service Unavailable", NOT_READY), b"", answer("200 OK")) as port:
        await answering("the API", "0.0.0.0", port, "/readyz")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            answer("503 Service Unavailable", NOT_READY),
            "gives 503: redis: 9 bytes are used and maxmemory is 8: writes are refused",
        ),
        (answer("503 Service Unavailable", b"<html>"), "gives 503"),
        (answer("503 Service Unavailable", b'{"more":' + b"[" * 10_000), "gives 503"),
        (answer("404 Not Found", b'{"checks": [{"name": "redis"}]}'), "gives 404"),
        (answer("503 Service Unavailable", b"x" * (2 * probe.ANSWER_BYTES_MAX)), "gives 503"),
        (b"", "gives no status line"),
    ],
    ids=["its checks", "no JSON", "nested", "other JSON", "large", "nothing"],
)
async def test_a_role_that_is_never_ready_is_told_with_its_reason(
    one_look: None, given: bytes, said: str
) -> None:
    async with serving(given) as port:
        with pytest.raises(JobFailed) as caught:
            await answering("the API", "127.0.0.1", port, "/readyz")
    assert str(caught.value) == f"the API was not ready after 60 s: GET /readyz {said}"


async def test_a_port_that_nobody_listens_on_is_told(one_look: None) -> None:
    with pytest.raises(JobFailed, match="gives ConnectionRefusedError"):
        await answering("the API", "127.0.0.1", free_port(), "/readyz")

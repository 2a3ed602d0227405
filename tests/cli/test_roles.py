"""What a role's event loop says by itself."""

import asyncio
import gc
import signal
import socket
from collections.abc import Iterator

import pytest

from streamproc.cli.roles import run_until_stopped
from streamproc.settings import Settings, load


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A role ignores signals once it has ended, as its process is about to: here they are put back."""
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in stopping]
    yield load({})
    for number, handler in zip(stopping, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        pytest.param(socket.gaierror(-3, "Temporary failure in name resolution"), [], id="a lookup given up"),
        pytest.param(RuntimeError("a bug"), ["a bug"], id="anything else"),
    ],
)
def test_of_failures_that_nobody_waits_for_only_abandoned_lookups_are_silent(
    problem: Exception, said: list[str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def role(_settings: Settings, _stopping: asyncio.Event) -> None:
        asyncio.get_running_loop().create_future().set_exception(problem)
        gc.collect()

    run_until_stopped(role, settings)

    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == said

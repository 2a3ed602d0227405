"""One sandbox and one customer's endpoint per test file; each test begins with both as new."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.bank import Inbox, Sandbox, receiving_webhooks, running_sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _sandbox_of_file() -> AsyncIterator[Sandbox]:
    async with running_sandbox(workflow="off", processing_s=0.01, webhook_timeout_s=2.0) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(loop_scope="module")
async def bank(_sandbox_of_file: Sandbox) -> Sandbox:
    """A sandbox after a reset, with the approval workflow off."""
    await _sandbox_of_file.control("reset")
    return _sandbox_of_file


@pytest_asyncio.fixture(loop_scope="module")
async def inbox(bank: Sandbox) -> AsyncIterator[Inbox]:
    """Where the sandbox's webhooks go; retries come after 10 ms."""
    async with receiving_webhooks() as endpoint:
        await bank.webhook(url=endpoint.url, retry_base_s=0.01)
        yield endpoint
        await bank.webhook(url="")

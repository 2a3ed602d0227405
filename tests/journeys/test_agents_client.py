"""The client of docs/agents.md, as it stands there, against the running system."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from streamproc.domain.intent_rules import Wanted, read_request
from streamproc.domain.states import TERMINAL_STATES
from tests.journeys.system import running_system
from tests.journeys.test_gateway import PAYEE, token

DOCS = Path(__file__).parents[2] / "docs" / "agents.md"
POLICIES = """
policies:
  bot: {daily_limit: 1_000_000, require_approval_above: 500_000}
"""


def client() -> dict[str, Any]:
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names


def order(amount: int) -> dict[str, Any]:
    return {"amount": amount, "mode": "IMPS", "purpose": "vendor bill", "fund_account": PAYEE}


def test_the_request_that_is_shown_is_one():
    [body] = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert isinstance(read_request(json.loads(body)), Wanted)


def test_the_client_ends_at_each_state_in_which_a_payout_ends():
    assert client()["OVER"] == TERMINAL_STATES | {"rejected"}


async def test_the_client_of_the_docs_pays_once_and_learns_how_it_ended(
    redis_url: str, postgres: str
) -> None:
    names = client()
    async with running_system(redis_url, postgres) as system:
        await system.apply(POLICIES)
        secret, api = await token(system, "bot"), str(system.api.base_url).rstrip("/")

        async def pay(key: str, amount: int, give_up_s: float = 60) -> dict[str, Any]:
            return await asyncio.to_thread(names["pay"], api, secret, key, order(amount), give_up_s)

        first, again = await pay("invoice-1", 250_000), await pay("invoice-1", 250_000)
        assert (first["state"], first["payout"]) == ("processed", again["payout"])
        held = await pay("invoice-2", 600_000, give_up_s=0)
        assert held["state"] in ("received", "held")
        over = await pay("invoice-3", 1_000_000)
        assert (over["state"], over["reason"]) == ("rejected", "LIMIT_EXCEEDED")
        assert over["findings"][-1]["evidence"]["limit"] == 1_000_000
        for key, amount, status in (("invoice-1", 300_000, 409), ("invoice-4", 1, 422)):
            with pytest.raises(names["Refused"]) as refused:
                await pay(key, amount)
            assert (refused.value.args[0], refused.value.args[1]["status"]) == (status, status)
        assert (await pay("invoice-4", 1_000))["state"] == "processed", "a mistake leaves the key free"
        made = [one for one in await system.bank.show("payouts") if one["reference_id"] == first["payout"]]
        assert len(made) == 1

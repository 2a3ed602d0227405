"""What `/openapi.json` says is what the running system does: for whatever is sent, no 500 and nothing undocumented."""

import asyncio
from collections import Counter
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from streamproc.operate import tokens
from streamproc.operate.site import Site
from tests.journeys.system import ACCOUNT, System, running_system
from tests.words import attributed

EXAMPLES = 8
"""For each operation, and each of the two ways to make requests."""
CALL_MAX_S = 30.0
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  careful: {daily_limit: 100_000_000, require_approval_above: 500_000}
reviewers: [approver]
"""
PROMISES = (
    *("status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
"""Not that what the schema allows is taken: it says less than the rules (ADR 20)."""
MAY_BE_503 = {"isReady", "deliverClick"}
"""Readiness, and a system without Slack. All others have what they need here."""


async def secrets_of(system: System) -> dict[str, str]:
    site = Site(system.redis_url, system.redis, 1)
    found = {}
    for scope in ("agent", "approver", "admin"):
        of = {"agent": "careful", "account": ACCOUNT} if scope == "agent" else {"agent": "", "account": ""}
        spec = tokens.TokenSpec(name=scope, scope=scope, expires_s=600, **of)  # type: ignore[arg-type]
        made = await tokens.create(site, spec, attributed("test"))
        found[scope] = made.secret
    return {"nobody": "", **found}


async def held(system: System) -> list[str]:
    payouts = [(await system.bank.pay(800_000, notes={"agent_id": "careful"}))["id"] for _ in range(6)]
    for payout in payouts:
        await system.reaches(payout, "held")
    return payouts


def ask_everything(url: str, secrets: dict[str, str], payouts: list[str]) -> Counter[tuple[str, int]]:
    """Ask each operation with what it documents, and with what it does not; how often it said what."""
    import schemathesis  # seconds of CPU, which only the process that runs this test has to spend
    from schemathesis import Case, GenerationMode
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    checks = [CHECKS.get_one(name) for name in PROMISES]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schema.validate()
    schema.config.base_url = url
    schema.config.generation.with_security_parameters = False  # the tokens are ours
    said: Counter[tuple[str, int]] = Counter()

    def ask(case: Case, secret: str, payout: str | None) -> None:
        if payout is not None and "payout" in (case.path_parameters or {}):
            case.path_parameters["payout"] = payout
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        response = case.call(headers=headers, timeout=CALL_MAX_S)
        name = case.operation.definition.raw["operationId"]
        assert response.status_code < 500 or name in MAY_BE_503, (case.as_curl_command(), response.text)
        assert response.status_code != 500
        case.validate_response(response, checks=checks, headers=headers)
        said[name, response.status_code] += 1

    for number, found in enumerate(schema.get_all_operations()):
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            limited = settings(
                max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            arguments: dict[str, Any] = {
                "case": operation.as_strategy(mode),
                "secret": st.sampled_from([secrets["approver"], *secrets.values()]),
                "payout": st.sampled_from([None, *payouts]),
            }
            # What reads nothing cannot be asked wrongly.
            with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
                seed(number)(limited(given(**arguments)(ask)))()
    return said


@pytest.mark.timeout(300)  # some 40 s of CPU in three processes
async def test_no_request_is_answered_by_500_or_by_what_the_document_does_not_say(
    redis_url: str, postgres: str
) -> None:
    async with running_system(redis_url, postgres, api_rate="0") as system:
        await system.apply(POLICIES)
        secrets, payouts = await secrets_of(system), await held(system)
        said = await asyncio.to_thread(ask_everything, str(system.api.base_url), secrets, payouts)
    # It did reach what is behind the checks of form, and not only these.
    for name in ("showPayout", "listPayoutEvents", "listHolds", "approveHold", "rejectHold"):
        assert said[name, 200] or said[name, 409], (name, dict(said))
    for name in ("requestPayout", "listHolds", "rejectHold"):
        assert said[name, 422], (name, dict(said))
    assert sum(count for (_, status), count in said.items() if status == 401)

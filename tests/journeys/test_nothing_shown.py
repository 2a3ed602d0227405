"""No secret, and no whole bank account number, in what the running system says: logs, answers, messages, commands."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.bank import free_port, until
from tests.journeys.system import SECRET, System, running_system

ACCOUNT_NUMBER = "50100234567891"
IN_TEXT = "60200345678902"
"""In an agent's own words, its URL and notes: who may read the payout sees them as they were written."""
BOT_TOKEN, SIGNING_SECRET, NTFY_TOKEN = "xoxb-17-never-shown", "signing-never-shown", "tk_never_shown"
BROWSING_KEY = "browsing-key-never-shown"
POLICIES = """
defaults: {blocked_domains: [evil.example.net]}
policies:
  careful: {daily_limit: 100_000_000, require_approval_above: 500_000}
  bot: {daily_limit: 100_000_000}
reviewers: {asha: {slack: U0ASHA}}
"""


def payee(number: object = ACCOUNT_NUMBER) -> dict[str, Any]:
    return {
        "account_type": "bank_account",
        "bank_account": {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": number},
        "contact": {"name": "Some Body", "type": "vendor"},
    }


def order(amount: int, vendor: str = f"https://vendor.example.com/to/{IN_TEXT}", **more: Any) -> Any:
    notes = {"why": f"to account {IN_TEXT} as agreed"}
    asked = {"amount": amount, "mode": "IMPS", "purpose": "vendor bill", "vendor_url": vendor, "notes": notes}
    return {**asked, "fund_account": payee(), **more}


class UntrustedText:
    """Everything that anybody was told, by where it was said."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.texts: list[tuple[str, str]] = []

    async def http(self, method: str, path: str, token: str = "", **more: Any) -> httpx.Response:
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        answer = await self._system.api.request(method, path, headers=headers, **more)
        if answer.status_code >= 400 or method == "GET":
            self.texts.append((f"{method} {path}: {answer.status_code}", f"{answer.text}{answer.headers}"))
        return answer

    async def command(self, *arguments: str) -> str:
        _, out, err = await self._system.cli(*arguments)
        self.texts.append((" ".join(arguments), out + err))
        return out

    async def messages(self) -> None:
        for to in ("slack", "ntfy"):
            sent = await self._system.bank.messages(to)
            assert sent, f"nothing was sent to {to}"
            self.texts += [(to, json.dumps(message)) for message in sent]

    def processes(self) -> None:
        for name, role in self._system.roles.items():
            self.texts.append((f"arguments of {name}", Path(f"/proc/{role.pid}/cmdline").read_text()))

    def logs(self, where: Path) -> None:
        self.texts += [(file.name, file.read_text()) for file in sorted(where.iterdir())]

    def showing(self, hidden: str) -> Iterator[str]:
        """Where it was said."""
        return (where for where, text in self.texts if hidden in text)


async def token(system: System, *arguments: str) -> str:
    code, out, err = await system.cli("token", "create", *arguments)
    assert code == 0, err
    return out.strip()


async def test_nothing_that_is_said_shows_a_secret_or_a_whole_account_number(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    port = free_port()
    people = {
        "slack_bot_token": BOT_TOKEN,
        "slack_signing_secret": SIGNING_SECRET,
        "slack_channel_id": "C0HOLDS",
        "slack_base_url": f"http://127.0.0.1:{port}/slack/api",
        "ntfy_url": f"http://127.0.0.1:{port}/ntfy",
        "ntfy_topic": "holds",
        "ntfy_token": NTFY_TOKEN,
        "safe_browsing_key": BROWSING_KEY,
    }
    sandbox = {"port": port, "slack_token": BOT_TOKEN, "slack_signing_secret": SIGNING_SECRET}
    async with running_system(redis_url, postgres, sandbox=sandbox, logs=logs, anew=True, **people) as system:
        said = UntrustedText(system)
        await system.apply(POLICIES)
        careful, bot, asha, gone = await asyncio.gather(
            token(system, "careful", "--scope", "agent", "--agent", "careful"),
            token(system, "bot", "--scope", "agent", "--agent", "bot"),
            token(system, "asha", "--scope", "approver"),
            token(system, "gone", "--scope", "viewer"),
        )
        await said.command("token", "revoke", "gone")

        async def asked(secret: str, key: str, body: Any, expected: int = 202) -> dict[str, Any]:
            answer = await said.http(
                "POST", "/v1/payouts", secret, json=body, headers={"idempotency-key": key}
            )
            assert answer.status_code == expected, answer.text
            found: dict[str, Any] = answer.json()
            return found

        # Held, told in Slack, approved over HTTP; and one that is blocked, told by ntfy.
        held = (await asked(careful, "k1", order(800_000)))["payout"]
        await system.reaches(held, "held")
        await until(lambda: system.bank.messages("slack"), what="Slack was told of the hold")
        await said.http("POST", f"/v1/holds/{held}/approve", careful)
        await said.http("POST", f"/v1/holds/{held}/approve", gone)
        approved = await said.http("POST", f"/v1/holds/{held}/approve", asha, json={"reason": "seen"})
        assert approved.status_code == 200
        await said.http("POST", f"/v1/holds/{held}/approve", asha)
        await system.reaches(held, "processed")
        blocked = await asked(bot, "k2", order(100_000, "https://evil.example.net/pay"))
        await system.reaches(blocked["payout"], "rejected")
        await until(lambda: system.bank.messages("ntfy"), what="ntfy was told of the block")

        # What is wrong, in every place where a secret or a number could be repeated.
        await asked(bot, "k3", order(100_000, fund_account=payee(int(ACCOUNT_NUMBER))), 422)
        await asked(bot, "k4", order(100_000, fund_account=payee(f"{ACCOUNT_NUMBER}!")), 422)
        await asked(bot, "k2", order(100_001, "https://evil.example.net/pay"), 409)
        await said.http("GET", f"/v1/payouts/{held}", careful + "x")
        await said.http("POST", "/webhooks/razorpay", content=SECRET.encode())
        await said.http("POST", "/webhooks/slack", content=f"payload={SIGNING_SECRET}".encode())
        # The bank and Slack away: their clients say why.
        await system.bank.faults(api=[{"kind": "500", "path": "/v1/payouts", "method": "POST", "count": 1}])
        await system.bank.control("messaging", slack_error="invalid_auth")
        late = (await asked(careful, "k5", order(900_000)))["payout"]
        paid = (await asked(bot, "k6", order(120_000)))["payout"]
        await system.reaches(late, "held")
        await system.reaches(paid, "processed")

        async def told_by_ntfy() -> bool:
            return any(late in json.dumps(message) for message in await system.bank.messages("ntfy"))

        await until(told_by_ntfy, what="ntfy stands in for Slack")

        await system.settled()
        commands = ("doctor", "hold list", "token list", f"explain {held}", "audit list")
        await asyncio.gather(*(said.command(*command.split()) for command in commands))
        for path in (f"/v1/payouts/{held}", "/v1/holds", "/v1/audit", "/v1/agents/careful/budget", "/readyz"):
            await said.http("GET", path, asha)
        await said.messages()
        said.processes()
        secrets = {
            "agents' tokens": [careful, bot, asha, gone],
            "the bank's": [SECRET, system.bank.config.key_secret, system.bank.config.oauth_token],
            "people's": [BOT_TOKEN, SIGNING_SECRET, NTFY_TOKEN],
            "others": [BROWSING_KEY, str(urlsplit(postgres).password)],
            "the account number": [ACCOUNT_NUMBER],
        }
    said.logs(logs)
    assert any("refused" in text for where, text in said.texts if where == "serve.log"), "logs are looked at"
    shown = {
        what: sorted(where) for what, values in secrets.items() for value in values
        if value and (where := set(said.showing(value)))
    }  # fmt: skip
    assert shown == {}
    in_text = {where for where in said.showing(IN_TEXT) if not where.endswith(": 200")}
    assert in_text <= {"hold list", f"explain {held}"}

"""The page for people in a real browser, beside the whole system: how a hold is read and answered on it."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from streamproc.domain.console import link_to
from tests.bank import until
from tests.journeys.system import System, running_system
from tests.journeys.test_gateway import PAYEE
from tests.ports import free_port

DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The name of an element's id in answers of WebDriver (W3C)."""
START_MAX_S, CALL_MAX_S = 60.0, 30.0
POLICIES = """
policies:
  bot: {daily_limit: 10_000_000, require_approval_above: 500_000}
reviewers: [asha, ravi]
"""
HOSTILE = "https://vendor.example.com/<img src=x onerror=alert(1)>"
LOOK_ALIKE, ITS_HOST = "https://vendor.example.com@\u0430\u0440\u0440\u04cf\u0435.com/", "xn--80ak6aa92e.com"


class Browser:
    """Chromium, by WebDriver."""

    def __init__(self, http: httpx.AsyncClient, session: str) -> None:
        self._http, self._session = http, session

    async def call(self, method: str, path: str, **body: Any) -> Any:
        answer = await self._http.request(
            method, f"/session/{self._session}{path}", json=body if method == "POST" else None
        )
        assert answer.is_success, answer.text
        return answer.json()["value"]

    async def run(self, script: str, *arguments: str) -> Any:
        return await self.call("POST", "/execute/sync", script=script, args=arguments)

    async def text(self, css: str) -> str:
        """What a reader sees of an element; empty where there is none."""
        script = "const at = document.querySelector(arguments[0]); return at?.checkVisibility() ? at.innerText : ''"
        return str(await self.run(script, css))

    async def sees(self, css: str, *words: str) -> str:
        async def there() -> str | None:
            text = await self.text(css)
            return text if all(word in text for word in words) else None

        return await until(there, what=f"{css} shows {words}") or ""

    async def _at(self, css: str) -> str:
        async def found() -> str | None:
            answers = await self.call("POST", "/elements", using="css selector", value=css)
            return answers[0][ELEMENT] if answers else None

        return await until(found, what=f"{css} is there") or ""

    async def type(self, css: str, text: str) -> None:
        await self.call("POST", f"/element/{await self._at(css)}/value", text=text)

    async def click(self, css: str) -> None:
        await self.call("POST", f"/element/{await self._at(css)}/click")


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    port = free_port()
    assert DRIVER
    # Chromium writes to the home directory, which need not exist, and binds a socket, whose path must be short.
    with tempfile.TemporaryDirectory(prefix="chromium-", dir="/tmp", ignore_cleanup_errors=True) as profile:
        driver = await asyncio.create_subprocess_exec(
            *(DRIVER, f"--port={port}"),
            env={**os.environ, "HOME": profile, "TMPDIR": profile},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        chrome = {
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-sync", "--disable-background-networking", "--disable-component-update",
                f"--user-data-dir={profile}",
            ]
        }  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=CALL_MAX_S, trust_env=False) as http:

                async def answers() -> bool:
                    try:
                        return bool((await http.get("/status")).json()["value"]["ready"])
                    except httpx.TransportError:
                        return False

                await until(answers, what="chromedriver answers", deadline_s=START_MAX_S)
                wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome}}}
                made = await http.post("/session", json=wanted, timeout=START_MAX_S)
                assert made.is_success, made.text
                browser = Browser(http, made.json()["value"]["sessionId"])
                try:
                    yield browser
                finally:
                    await browser.call("DELETE", "")
        finally:
            driver.kill()
            await driver.wait()


async def token(system: System, name: str, *options: str) -> str:
    code, out, err = await system.cli("token", "create", name, *options)
    assert code == 0, err
    return out.strip()


@pytest.mark.skipif(DRIVER is None, reason="chromedriver is not there")
async def test_a_person_signs_in_follows_the_link_reads_why_and_approves_once(
    redis_url: str, postgres: str
) -> None:
    async with running_system(redis_url, postgres) as system, browsing() as browser:
        await system.apply(POLICIES)
        asha = await token(system, "asha-laptop", "--scope", "approver", "--reviewer", "asha")
        other = await token(system, "phone", "--scope", "approver", "--reviewer", "ravi")
        agent = await token(system, "bot", "--scope", "agent", "--agent", "bot")
        held = [
            (
                await system.api.post(
                    "/v1/payouts",
                    json={
                        "amount": amount, "mode": "IMPS", "purpose": "vendor bill", "vendor_url": url,
                        "fund_account": PAYEE,
                    },
                    headers={"authorization": f"Bearer {agent}", "idempotency-key": f"inv-{amount}"},
                )
            ).json()["payout"]
            for amount, url in ((1_234_567, HOSTILE), (600_000, LOOK_ALIKE))
        ]  # fmt: skip
        for payout in held:
            await system.reaches(payout, "held", "rejected")
        base = str(system.api.base_url).rstrip("/")

        await browser.call("POST", "/url", url=link_to(base, held[0]))
        await browser.type("#token", f"{asha}x")
        await browser.click("#sign-in button")
        await browser.sees("#problem", "unknown, expired or revoked")
        await browser.type("#token", asha)
        await browser.click("#sign-in button")
        await browser.sees(
            "#payout", "₹12,345.67: HELD", "APPROVAL_REQUIRED", "bot (verified)", HOSTILE, "payout.requested"
        )
        await browser.run("window.sent = 0; addEventListener('submit', () => { window.sent += 1; }, true)")
        await browser.type("#reason", "looks wrong\ue007")  # Enter: it says neither Approve nor Reject
        assert await browser.run("return window.sent") == 0
        await browser.type("#reason", "\ue009a\ue000invoice seen")
        await browser.click("button.approve")
        await browser.sees("#payout .outcome", "Decided: APPROVED")
        await browser.sees("#payout", "asha approves: invoice seen")
        record = await system.reaches(held[0], "processed")
        assert [(one.by, one.why) for one in record.reviews] == [("asha", "invoice seen")]

        await browser.click("h1 a")
        await browser.sees("#holds tbody", "₹6,000.00", "APPROVAL_REQUIRED", ITS_HOST, LOOK_ALIKE)
        assert "₹12,345.67" not in await browser.text("#holds")
        await browser.click("#holds tbody a")
        await browser.sees("#payout", "₹6,000.00: HELD", ITS_HOST, LOOK_ALIKE)
        answer = await system.api.post(
            f"/v1/holds/{held[1]}/reject",
            json={"reason": "not ours"},
            headers={"authorization": f"Bearer {other}"},
        )
        assert answer.json()["decision"] == "REJECTED"
        await browser.type("#reason", "seen too")
        await browser.click("button.approve")
        await browser.sees("#problem", "ravi")
        await browser.sees("#payout", "REJECTED", "ravi rejects: not ours")
        await browser.click("#sign-out")
        assert await browser.text("#payout") == await browser.text("#holds") == ""

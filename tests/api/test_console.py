"""The page for people: what is served, and what it may do. tests/journeys/test_console.py uses it in a real browser."""

import re

from streamproc.api import console
from streamproc.domain.console import PATH, link_to
from tests.api.served import Api, api

__all__ = ["api"]


def test_the_link_in_messages_leads_to_the_page_and_tells_no_proxy_of_the_payout() -> None:
    assert link_to("https://pay.example.com", "spi_1") == "https://pay.example.com/console/#spi_1"
    assert link_to("https://pay.example.com", "a/b?") == "https://pay.example.com/console/#a%2Fb%3F"
    assert link_to("", "spi_1") == link_to("https://pay.example.com", "") == ""


async def test_the_files_are_served_to_anybody_and_may_ask_this_server_alone(api: Api) -> None:
    for path, (_, media) in console.FILES.items():
        answer = await api.http.get(f"{PATH}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, media)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
        )
        assert "unsafe" not in policy
        assert (answer.headers["x-frame-options"], answer.headers["cache-control"]) == ("DENY", "no-store")
    moved = await api.http.get("/console")
    assert (moved.status_code, moved.headers["location"]) == (308, "console/")


def test_nothing_on_the_page_turns_a_text_into_markup_or_code() -> None:
    page = (console._HERE / "index.html").read_text()
    script = (console._HERE / "app.js").read_text()
    assert re.findall(r"<script(?! type=\"module\" src=\"app.js\"></script>)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for wrong in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert wrong not in script

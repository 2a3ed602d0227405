"""Which messages to people overtake those that wait for their turn: alerts, digests, and answers to one person."""

import pytest

from streamproc.clients.ntfy import Push, open_ntfy
from streamproc.clients.slack import open_slack
from streamproc.clients.slack_room import SlackRoom
from tests.clients.loopback import always, loopback
from tests.clients.test_slack_room import CHANNEL, OK, SAID, SECRET


class Turns:
    """Turns that come at once, and how urgent each was."""

    def __init__(self) -> None:
        self.queued = 0
        self.taken: list[bool] = []

    def wait_s(self, *, urgent: bool = False) -> float:
        return 0.0

    async def take(self, *, urgent: bool = False) -> None:
        self.taken.append(urgent)


@pytest.mark.parametrize("what", SAID)
async def test_in_slack_an_alert_and_a_private_answer_overtake_what_is_about_holds(what: str) -> None:
    turns = Turns()
    async with loopback(always(200, OK)) as server, open_slack(server.url + "/api", "xoxb-token") as slack:
        slack._http._limiter = turns
        await SAID[what](SlackRoom(slack, CHANNEL, SECRET))
    assert turns.taken == [what in ("tell", "answer")]


@pytest.mark.parametrize("overtakes", [True, False])
async def test_in_ntfy_a_message_overtakes_if_it_says_so(overtakes: bool) -> None:
    turns = Turns()
    async with loopback(always(200, {"id": "one"})) as server:
        ntfy = open_ntfy(server.url, topic="payouts")
        ntfy._http._limiter = turns
        await ntfy.publish(Push("Alert", "money moved", overtakes=overtakes))
        await ntfy.aclose()
    assert turns.taken == [overtakes]

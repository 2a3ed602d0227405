"""One Slack channel: messages about holds with buttons, their outcomes, alerts, and answers that one person sees."""

import re
from collections.abc import Mapping
from typing import Any

from streamproc.clients.slack import Slack, SlackRefused
from streamproc.clients.slack_blocks import escaped, hold_message, notice_message, outcome_message
from streamproc.domain.button import button_value
from streamproc.domain.notice import HoldNotice, HoldOutcome, Notice
from streamproc.domain.plain import plain
from streamproc.errors import TryAgain

REFUSED_AFTER_S = 5.0
"""Wait after a refusal: the cause is a setting (token, scope, channel), so it is tried again until it is corrected."""
PRIVATE_CHARS_MAX = 1_000
_TS = re.compile(r"[0-9]{1,16}\.[0-9]{1,16}")
_CHANNEL = re.compile(r"[A-Z0-9]{1,32}")
_GONE = frozenset({"message_not_found", "channel_not_found", "cant_update_message", "edit_window_closed"})
"""Errors that say that a message can never be changed again."""
_UPDATED = frozenset({"text", "blocks", "parse", "link_names"})
"""Arguments of chat.postMessage that chat.update takes too."""


class SlackRoom:
    """The channel. `secret` signs buttons; without it there are none. Posting is not idempotent: after a lost answer
    a message is shown twice, with the same buttons."""

    def __init__(self, slack: Slack, channel: str, secret: str) -> None:
        self._slack = slack
        self._channel = channel
        self._secret = secret

    async def ask(self, notice: HoldNotice, *, heading: str, thread: str = "") -> str:
        """Ask for a decision; the message's `channel:ts`. `thread`: the `channel:ts` of a message to answer, too;
        one without a `ts` cannot be answered.

        Raises TryAgain, also if Slack refuses.
        """
        body = dict(self._question(notice, heading))
        if ts := thread.partition(":")[2]:
            body |= {"thread_ts": ts, "reply_broadcast": True}
        return await self._post(body)

    async def tell(self, notice: Notice) -> str:
        """Post an alert or a digest, before holds that wait for their turn; the message's `channel:ts`. Raises
        TryAgain."""
        return await self._post(notice_message(notice), urgent=True)

    async def progress(self, ref: str, notice: HoldNotice, *, heading: str) -> None:
        """Update a message, still with buttons. Raises TryAgain."""
        await self._update(ref, self._question(notice, heading))

    async def close(self, ref: str, notice: HoldNotice, outcome: HoldOutcome) -> None:
        """Show the outcome instead of buttons. A message that is gone needs nothing. Raises TryAgain."""
        await self._update(ref, outcome_message(notice, outcome))

    async def answer(self, user: str, text: str) -> str:
        """Tell one person in the channel something that others do not see; its `channel:ts`. Raises TryAgain."""
        body = {
            "channel": self._channel,
            "user": user,
            "text": escaped(plain(text), PRIVATE_CHARS_MAX),
            "mrkdwn": False,
            "parse": "none",
            "link_names": False,
        }
        said = await self._call("chat.postEphemeral", body, urgent=True)
        return _ref(self._channel, said.get("message_ts"))

    def _question(self, notice: HoldNotice, heading: str) -> Mapping[str, Any]:
        value = button_value(notice.payout, self._secret) if self._secret else ""
        return hold_message(notice, value=value, heading=heading)

    async def _post(self, body: Mapping[str, Any], *, urgent: bool = False) -> str:
        said = await self._call("chat.postMessage", {"channel": self._channel, **body}, urgent=urgent)
        channel = said.get("channel")
        known = channel if isinstance(channel, str) and _CHANNEL.fullmatch(channel) else self._channel
        return _ref(known, said.get("ts"))

    async def _update(self, ref: str, body: Mapping[str, Any]) -> None:
        channel, _, ts = ref.partition(":")
        if not ts:
            return  # it was posted, but the answer did not give its `ts`
        try:
            shown = {name: value for name, value in body.items() if name in _UPDATED}
            await self._slack.call("chat.update", {"channel": channel, "ts": ts, **shown})
        except SlackRefused as problem:
            if problem.error not in _GONE:
                raise TryAgain(str(problem), after_s=REFUSED_AFTER_S) from problem

    async def _call(self, method: str, body: Mapping[str, Any], *, urgent: bool = False) -> dict[str, object]:
        try:
            return await self._slack.call(method, body, urgent=urgent)
        except SlackRefused as problem:
            raise TryAgain(str(problem), after_s=REFUSED_AFTER_S) from problem


def _ref(channel: str, ts: object) -> str:
    return f"{channel}:{ts}" if isinstance(ts, str) and _TS.fullmatch(ts) else f"{channel}:"

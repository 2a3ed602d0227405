"""Channels to people that keep what they are given, and refuse it when told to: without clients and servers."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from consumers.channels import Channels
from streamproc.clients.ntfy import Push
from streamproc.domain.events import Event
from streamproc.domain.notice import HoldNotice, HoldOutcome, Notice
from streamproc.domain.notified import Channel, NoticeKind
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import PolicyBook, scopes_after
from streamproc.domain.record import HoldMessage as Told
from streamproc.errors import TryAgain
from streamproc.log.work import BatchContext
from tests.words import ACCOUNT, NOW, policies

POLICIES = """
policies: {bot: {require_approval_above: 100000, dual_approval_above: 500000}}
reviewers: {asha: {slack: U0ASHA}, vikram: {}}
"""
SHOWN_IN = "1790000000000-7"


class Listener:
    """What came, in order, as (what, everything else by name); `problem` is raised instead, where it is set."""

    def __init__(self, problem: TryAgain | None = None) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.problem = problem

    def hear(self, what: str, **said: Any) -> str:
        if self.problem is not None:
            raise self.problem
        self.heard.append((what, said))
        return f"ref-{len(self.heard)}"

    @property
    def what(self) -> list[str]:
        return [what for what, _ in self.heard]


class Room(Listener):
    """A Slack channel."""

    async def ask(self, notice: HoldNotice, *, heading: str, thread: str = "") -> str:
        return self.hear("ask", notice=notice, heading=heading, thread=thread)

    async def tell(self, notice: Notice) -> str:
        return self.hear("tell", notice=notice)

    async def progress(self, ref: str, notice: HoldNotice, *, heading: str) -> None:
        self.hear("progress", ref=ref, notice=notice, heading=heading)

    async def close(self, ref: str, notice: HoldNotice, outcome: HoldOutcome) -> None:
        self.hear("close", ref=ref, notice=notice, outcome=outcome)

    async def answer(self, user: str, text: str) -> str:
        return self.hear("answer", user=user, text=text)


class Topic(Listener):
    """An ntfy topic."""

    async def publish(self, push: Push) -> str:
        return self.hear("publish", push=push)

    @property
    def pushes(self) -> list[Push]:
        return [said["push"] for _, said in self.heard]


class People:
    """Both channels, each unless it is not configured."""

    def __init__(self, *, slack: bool = True, ntfy: bool = True) -> None:
        self.room, self.topic = Room(), Topic()
        self.channels = Channels(
            slack=self.room if slack else None,
            ntfy=self.topic if ntfy else None,
            public_url="https://pay.example",
        )

    def are_away(self, slack_s: float = 5.0, ntfy_s: float = 7.0) -> None:
        """No channel takes anything, and each says how long to wait."""
        self.room.problem = TryAgain("slack is away", after_s=slack_s)
        self.topic.problem = TryAgain("ntfy is away", after_s=ntfy_s)

    @property
    def heard(self) -> list[str]:
        return self.room.what + self.topic.what


def told(kind: NoticeKind, channel: Channel = "slack", ref: str = "C1:1.0", **more: Any) -> Told:
    """A message about the hold that was sent."""
    return Told(**{"at": NOW, "kind": kind, "channel": channel, "ref": ref, **more})


def held(*notices: Told, **more: Any) -> PayoutRecord:
    """A held payout of which people were told by `notices`."""
    record = PayoutRecord(
        payout="pout_1", account=ACCOUNT, received_at=NOW, amount=200_000, currency="INR", agent="bot",
        identity="claimed", vendor_url="https://vendor.example/7", state="held", decision="HELD",
        decided_at=NOW, reason="APPROVAL_REQUIRED", reasons=["APPROVAL_REQUIRED"],
        hold_expires_at=NOW + 3_600_000_000, notices=list(notices),
    )  # fmt: skip
    return replace(record, **more)


def rejected(*notices: Told, **more: Any) -> PayoutRecord:
    """One whose hold is over."""
    return held(*notices, **{"state": "rejected", "decision": "REJECTED", "reason": "HOLD_EXPIRED", **more})


def ctx(entries: dict[str, Sequence[Event]] | None = None, *, now_us: int = NOW) -> BatchContext:
    """A batch at `now_us` with our policies, where the log has `entries`, and nobody may look for another one."""
    book, known = PolicyBook(scopes_after({}, *policies(POLICIES))), entries or {SHOWN_IN: []}

    async def book_now() -> PolicyBook:
        return book

    async def entry(name: str) -> list[Event]:
        return list(known[name])

    return BatchContext(now_us, 3, book, None, None, book_now, entry)  # type: ignore[arg-type]

"""One payout is one connected trace, as a receiver of OTLP gets it: through every role, retries, claims and holds."""

import json
from collections import Counter
from pathlib import Path

import pytest

from streamproc.domain.traces import trace_id
from tests.bank import until
from tests.journeys.system import System, running_system
from tests.journeys.test_gateway import PAYEE, POLICIES, token
from tests.journeys.test_people import slack
from tests.journeys.test_slack import POLICIES as ASKING
from tests.journeys.test_slack import click, slack_system
from tests.telemetry.receiver import Receiver, Span, receiving_traces

CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
ASKED_ABOUT = "https://paper.example.com/"
"""A vendor whom nobody knows yet: what has to ask outside goes through all stages, the rest is one step."""
HANDLED = {"screening", "velocity", "reputation", "budget", "approval"}


def environment(receiver: Receiver, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **QUICK, **more}


async def whole(system: System, receiver: Receiver, payout: str) -> dict[str, Span]:
    """The payout's trace when all is done and every role has ended: what they had to tell, they told."""
    await system.settled()
    entries = await entries_about(system, payout)
    ended = await system.stop()
    assert not any(ended.values()), ended
    trace = receiver.trace(trace_id(payout))
    assert viewed(trace) >= entries
    return trace


async def entries_about(system: System, payout: str) -> set[str]:
    return {entry.id for entry in await system.entries() if payout.encode() in entry.e}


def viewed(trace: dict[str, Span]) -> set[object]:
    return {span.about["messaging.message.id"] for span in trace.values() if span.name == "view"}


async def so_far(system: System, receiver: Receiver, payout: str, step: str) -> dict[str, Span]:
    """The payout's trace once `step` and all its entries are told in it, and every span that something hangs below."""

    async def told() -> dict[str, Span] | None:
        trace = receiver.trace(trace_id(payout))
        is_there = any(span.name == step for span in trace.values())
        is_whole = viewed(trace) >= await entries_about(system, payout) and not orphans_of(trace)
        return trace if is_there and is_whole else None

    trace = await until(told, what=f"{step} of {payout} is told")
    assert trace is not None
    return trace


def orphans_of(trace: dict[str, Span]) -> list[Span]:
    return [span for span in trace.values() if span.parent and span.parent not in trace]


def assert_is_one_tree(trace: dict[str, Span]) -> None:
    roots = [span for span in trace.values() if not span.parent]
    assert [span.name for span in roots] == ["payout"]
    assert orphans_of(trace) == []
    for span in trace.values():
        seen = set()
        while span.parent:
            assert span.id not in seen
            seen.add(span.id)
            span = trace[span.parent]
    assert all(span.begun <= span.ended for span in trace.values())


def below(trace: dict[str, Span], span: Span) -> list[Span]:
    return [one for one in trace.values() if one.parent == span.id]


async def ask(system: System, secret: str, key: str, amount: int, url: str | None = None) -> str:
    order = {"amount": amount, "mode": "IMPS", "purpose": "vendor bill", "fund_account": PAYEE}
    if url is not None:
        order["vendor_url"] = url
    headers = {
        "authorization": f"Bearer {secret}",
        "idempotency-key": key,
        "traceparent": f"00-{CALLER[0]}-{CALLER[1]}-01",
    }
    answer = await system.api.post("/v1/payouts", json=order, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["payout"])


async def test_an_intent_is_one_tree_from_its_request_over_a_retry_to_the_view(
    redis_url: str, postgres: str
) -> None:
    async with (
        receiving_traces() as receiver,
        running_system(redis_url, postgres, otel=environment(receiver)) as system,
    ):
        await system.apply(POLICIES)
        secret = await token(system, "bot")
        await system.bank.faults(api=[{"kind": "500", "path": "/v1/payouts", "method": "POST", "count": 1}])
        payout = await ask(system, secret, "inv-1", 250_000)
        await system.reaches(payout, "processed")
        trace = await whole(system, receiver, payout)

        assert_is_one_tree(trace)
        names = Counter(span.name for span in trace.values())
        assert "fast_path" in names  # nothing stood against it: all stages are one step
        assert {"enact", "barrier", "razorpay POST", "archive", "view"} <= set(names)
        assert {span.role for span in trace.values()} == {"worker", "projector"}

        attempts = [s for s in trace.values() if s.about.get("messaging.consumer.group.name") == "execution"]
        failed, done = sorted(attempts, key=lambda span: span.begun)
        assert (failed.failed, done.failed) == (True, False)
        assert failed.parent == done.parent
        assert done.about["streamproc.taken_up"] is True
        assert any(span.failed and span.name == "razorpay POST" for span in below(trace, failed))
        decided = trace[done.parent]
        assert decided.about["streamproc.decision"] == "APPROVED"
        assert decided.about["messaging.consumer.group.name"] == "governance"

        # The request is in its caller's trace; what it appended is linked to it.
        [request] = [s for s in receiver.spans if s.trace == CALLER[0] and s.name == "POST /v1/payouts"]
        assert request.parent == CALLER[1]
        assert (CALLER[0], request.id) in trace[decided.parent].links

        _, out, _ = await system.cli("explain", payout, "--json")
        assert json.loads(out)["trace_id"] == trace_id(payout)
        everything = b"".join(receiver.bodies)
        for hidden in (
            PAYEE["bank_account"]["account_number"],  # type: ignore[index]
            system.bank.config.account_number,
            system.bank.config.key_secret,
            secret,
        ):
            assert str(hidden).encode() not in everything


async def test_a_hold_is_told_when_it_has_ended_and_a_claim_by_another_worker_stays_in_the_tree(
    redis_url: str, postgres: str
) -> None:
    async with (
        receiving_traces() as receiver,
        running_system(redis_url, postgres, workers=2, claim_idle="4s", otel=environment(receiver)) as system,
    ):
        await system.apply(POLICIES)
        secret = await token(system, "careful")
        payout = await ask(system, secret, "inv-2", 800_000, ASKED_ABOUT)
        await system.reaches(payout, "held")
        waiting = await so_far(system, receiver, payout, "approval")
        assert "hold" not in {span.name for span in waiting.values()}
        # The bank takes the call and does not answer: whoever made it dies with the entry in its hands.
        await system.bank.faults(
            api=[{"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 1}]
        )
        await system.review(payout, by="asha")

        async def made() -> bool:
            return any(shown["reference_id"] == payout for shown in await system.bank.show("payouts"))

        await until(made, what="the bank has made it")
        # What was committed is told before the kill, of every group; what is not told yet dies with its process.
        await system.settled(but="execution")
        await so_far(system, receiver, payout, "hold")

        await system.kill(await system.holder("execution"))
        await system.reaches(payout, "processed")
        trace = await whole(system, receiver, payout)

        assert_is_one_tree(trace)
        assert {span.name for span in trace.values()} >= HANDLED
        [hold] = [span for span in trace.values() if span.name == "hold"]
        assert hold.about["streamproc.decision"] == "APPROVED"
        assert hold.about["streamproc.held_for"] == "APPROVAL_REQUIRED"
        [review] = [trace[span] for _, span in hold.links]
        assert hold.begun < review.begun
        handled = [s for s in trace.values() if s.about.get("messaging.consumer.group.name") == "execution"]
        [claimed] = [span for span in handled if span.about["streamproc.taken_up"]]
        assert claimed.parent == review.id


def lines_about(logs: Path, payout: str) -> list[dict[str, str]]:
    """What the roles' logs say of the payout's decisions: JSON, since their stderr is no terminal."""
    lines = [line for file in sorted(logs.glob("*.log")) for line in file.read_text().splitlines()]
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return [one for one in said if one["logger"] == "streamproc.decisions" and one["payout"] == payout]


async def test_a_hold_approved_in_slack_is_one_tree_and_its_id_is_in_lines_explain_and_the_audit(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with (
        receiving_traces() as receiver,
        slack_system(redis_url, postgres, otel=environment(receiver), logs=tmp_path) as system,
    ):
        await system.apply(ASKING)
        paid = await system.bank.pay(200_000, notes={"agent_id": "bot", "vendor_url": ASKED_ABOUT})
        payout = paid["id"]
        [message] = await slack(system, 1, "chat.postMessage")
        assert (await click(system, "U0ASHA", message["ts"], "approve"))["status"] == 200
        await system.reaches(payout, "processed")
        await slack(system, 1, "chat.update")
        _, told, _ = await system.cli("explain", payout, "--json")
        await system.settled()
        _, audited, _ = await system.cli("audit", "list", "--payout", payout, "--json")
        await system.cli("audit", "export", str(tmp_path / "all.jsonl"))
        trace = await whole(system, receiver, payout)

        assert_is_one_tree(trace)
        names = Counter(span.name for span in trace.values())
        expected = {
            "append",
            "process",
            "hold",
            "review",
            "enact",
            "barrier",
            "settle",
            "notify",
            "archive",
            "view",
        }
        assert {name.partition(" sp:")[0] for name in names} >= HANDLED | expected
        assert (names["razorpay POST"], names["slack POST"]) == (1, 2)
        handled = {span.about.get("messaging.consumer.group.name") for span in trace.values()}
        assert handled >= {"governance", "execution", "notification"}
        # What was clicked is in the tree by its append, and whoever asked for it is linked there.
        [hold] = [span for span in trace.values() if span.name == "hold"]
        [review] = [trace[span] for _, span in hold.links]
        assert hold.about["streamproc.decision"] == "APPROVED"
        clicked = trace[review.parent]
        asked = {(s.trace, s.id) for s in receiver.spans if s.name == "POST /webhooks/slack"}
        assert set(clicked.links) <= asked
        assert clicked.links

        same = trace_id(payout)
        assert json.loads(told)["trace_id"] == same
        decided = lines_about(tmp_path, payout)
        assert [(one["decision"], one["trace_id"]) for one in decided] == [("HELD", same), ("APPROVED", same)]
        rows = json.loads(audited)["items"]
        assert {row["kind"] for row in rows} >= {
            "decision",
            "review",
            "command",
            "confirmation",
            "settlement",
        }
        assert {row["trace_id"] for row in rows} == {same}
        written = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
        assert {row["trace_id"] for row in written if row["payout"] == payout} == {same}


async def test_what_was_rejected_is_kept_where_nothing_is_sampled_and_what_was_paid_is_not(
    redis_url: str, postgres: str
) -> None:
    async with receiving_traces() as receiver:
        rare = environment(receiver, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
        async with running_system(redis_url, postgres, otel=rare) as system:
            await system.apply("policies: {bot: {daily_limit: 10_000_000, per_txn_limit: 500_000}}")
            paid = await system.bank.pay(250_000, notes={"agent_id": "bot"})
            refused = await system.bank.pay(500_001, notes={"agent_id": "bot"})
            await system.reaches(paid["id"], "processed")
            await system.bank.reaches(refused["id"], "rejected")
            await system.settled()
            about = [entry for entry in await system.entries() if refused["id"].encode() in entry.e]
        # All roles have ended, so what they had to tell they told.
        trace = receiver.trace(trace_id(refused["id"]))
        assert_is_one_tree(trace)
        assert "fast_path" in {span.name for span in trace.values()}
        viewed = {span.about["messaging.message.id"] for span in trace.values() if span.name == "view"}
        assert viewed == {entry.id for entry in about[1:]}  # the first was shown before anybody knew
        assert receiver.trace(trace_id(paid["id"])) == {}


@pytest.mark.parametrize(
    ("exporters", "wanted"),
    [("otlp", True), ("console, OTLP", True), ("", True), ("none", False), ("zipkin", False)],
)
def test_traces_are_sent_where_otlp_is_one_of_the_exporters_and_by_default(
    exporters: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamproc.telemetry.spans import is_wanted

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporters)
    assert is_wanted() is wanted


@pytest.mark.parametrize("setting", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_SAMPLER": "always_off"}])
def test_nobody_traces_where_it_is_switched_off(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamproc.telemetry.spans import is_wanted

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert is_wanted()
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert not is_wanted()

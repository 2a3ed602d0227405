"""What if: nothing changes under the policies of then, and what changes under others is counted and named."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from projections.schema import prepare
from streamproc.archive import load
from streamproc.archive.disowned import digest_of
from streamproc.archive.store import connection, open_head
from streamproc.cli import run as cli
from streamproc.domain import events as e
from streamproc.domain.entry_ids import id_key
from streamproc.domain.whatif import retrial
from streamproc.domain.wire import decode_events, encode_events
from streamproc.log.stream import Entry
from tests.seeded import PAYOUTS, TEST_MAX_S, SeededHistory

pytestmark = pytest.mark.timeout(TEST_MAX_S)

EVER = "2000-01-01"


@pytest.fixture
def archive(seeded_archive: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", seeded_archive)
    return seeded_archive


async def whatif(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:  # type: ignore[type-arg]
    code = await asyncio.to_thread(cli, ["policy", "whatif", *arguments, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_the_seeded_history_has_everything_in_it(seeded: SeededHistory) -> None:
    found: Counter[str] = Counter()
    received = set()
    for entry in seeded.entries[: seeded.archived]:
        for event in decode_events(entry.e):
            found[type(event).__name__] += 1
            if isinstance(event, e.PayoutDecided):
                found[f"{event.decision} {event.reason}"] += 1
            elif isinstance(event, e.PayoutSettled):
                found[event.settlement] += 1
            elif isinstance(event, e.PayoutObserved):
                received.add(event.at // 86_400_000_000)
    assert found["PayoutDecided"] >= PAYOUTS * 0.95
    assert len(received) >= 20
    rules = (
        *(
            "REJECTED FROZEN",
            "REJECTED NO_POLICY",
            "REJECTED CURRENCY_NOT_ALLOWED",
            "HELD IDENTITY_UNVERIFIED",
        ),
        *("REJECTED TXN_LIMIT_EXCEEDED", "REJECTED VENDOR_URL_INVALID", "REJECTED VENDOR_URL_REQUIRED"),
        *(
            "REJECTED DOMAIN_BLOCKED",
            "HELD VENDOR_URL_SUSPICIOUS",
            "HELD OUTSIDE_HOURS",
            "REJECTED RATE_LIMITED",
            "HELD BENEFICIARY_NEW",
            "HELD BENEFICIARY_CHANGED",
        ),
        *("HELD RATE_LIMITED", "HELD ANOMALY_DETECTED", "REJECTED RISK_HIGH", "HELD REPUTATION_UNAVAILABLE"),
        *("REJECTED REPUTATION_UNAVAILABLE", "REJECTED LIMIT_EXCEEDED", "HELD APPROVAL_REQUIRED"),
        *(
            "APPROVED POLICY_OK",
            "APPROVED REVIEW_APPROVED",
            "REJECTED REVIEW_REJECTED",
            "REJECTED HOLD_EXPIRED",
        ),
    )
    events = (
        "PolicyChanged",
        "BeneficiaryNoted",
        "PayoutStopped",
        "ReviewRefused",
        "GovernanceBypassed",
        "committed",
        "released",
    )
    assert [what for what in (*rules, *events) if not found[what]] == []


async def test_under_the_policies_that_were_in_force_nothing_changes(
    archive: str, seeded: SeededHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = await whatif(capsys, "--in-force", "--since", EVER)
    assert code == 0, err
    assert found["judged"]["payouts"] >= PAYOUTS * 0.95
    events = [event for entry in seeded.entries[: seeded.archived] for event in decode_events(entry.e)]
    decided = {event.payout for event in events if isinstance(event, e.PayoutDecided)}
    bypassed = {event.payout for event in events if isinstance(event, e.GovernanceBypassed)}
    assert found["judged"]["payouts"] == len(decided)
    assert {left["why"]: left["payouts"] for left in found["not_judged"]} == {
        retrial.MOVED: len(bypassed - decided)
    }
    assert found["changed"] == {"payouts": 0, "amount": 0}
    assert (found["moves"], found["payouts"], found["assumptions"]) == ([], [], [])
    assert found["counters_differing"] == 0
    off_diagonal = [
        cell["payouts"]
        for matrix in (found["rules"], found["outcomes"])
        for old, row in matrix.items()
        for new, cell in row.items()
        if old != new
    ]
    assert off_diagonal == [0] * 12


async def test_from_the_middle_of_the_history_nothing_changes_either(
    archive: str, seeded: SeededHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    middle_ms = int(seeded.entries[seeded.archived // 2].id.partition("-")[0])
    since = datetime.fromtimestamp(middle_ms / 1000, UTC).isoformat()
    code, found, err = await whatif(capsys, "--in-force", "--since", since)
    assert code == 0, err
    assert PAYOUTS / 4 < found["judged"]["payouts"] < PAYOUTS * 3 / 4
    assert (found["changed"]["payouts"], found["counters_differing"]) == (0, 0)


async def test_a_decision_that_somebody_rewrote_in_the_archive_is_found_by_judging_again(
    archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    db = await asyncpg.connect(archive)
    try:
        await db.execute("SET session_replication_role = replica")  # a superuser who gets past the trigger
        row = await db.fetchrow(
            "SELECT seq, payout, e FROM events WHERE position('\"RATE_LIMITED\"'::bytea IN e) > 0"
            " AND position('\"REJECTED\"'::bytea IN e) > 0 ORDER BY seq LIMIT 1"
        )
        rewritten = row["e"].replace(b'"decision":"REJECTED"', b'"decision":"APPROVED"')
        assert rewritten != row["e"]
        await db.execute("UPDATE events SET e = $2 WHERE seq = $1", row["seq"], rewritten)
    finally:
        await db.close()
    code, found, err = await whatif(capsys, "--in-force", "--since", EVER)
    assert code == 1
    assert "1 payouts come out otherwise" in err
    assert [(p["payout"], p["old"]["decision"], p["new"]["decision"]) for p in found["payouts"]] == [
        (row["payout"], "APPROVED", "REJECTED")
    ]


async def test_an_event_that_nobody_knows_here_ends_it_by_name(
    archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though it is not one that a retrial would have looked at: what it does to budgets is not known."""
    db = await asyncpg.connect(archive)
    try:
        await db.execute("SET session_replication_role = replica")
        await db.execute(
            """UPDATE events SET e = '[{"type":"budget.adjusted","v":1,"at":1}]' WHERE seq = 9000"""
        )
    finally:
        await db.close()
    code, _, err = await whatif(capsys, "--in-force", "--since", EVER)
    assert code == 1
    assert "(seq 9000): event type 'budget.adjusted' is not known here" in err
    await disowned(archive, 9000)
    # What the row was is another thing in each history, and what it was of some payouts goes with it.
    _, found, err = await whatif(capsys, "--in-force", "--since", EVER)
    assert "is not known here" not in err
    assert found["judged"]["payouts"] >= PAYOUTS * 0.95


async def disowned(dsn: str, seq: int) -> None:
    """A person states of an archived entry that no version of ours wrote it."""
    async with connection(dsn, name="test") as db:
        head = await open_head(db, 0)
        row = await db.fetchrow("SELECT entry_id, e, m FROM events WHERE seq = $1", seq)
        digest = digest_of(row["e"], row["m"])
        said = e.EntryDisowned(at=1, entry=row["entry_id"], digest=digest, by="asha", why="a test")
        ms, n = id_key(head.entry)
        await load.archive(db, 0, head, [Entry(f"{ms}-{n + 1}", encode_events([said]), b"{}")])


async def test_nothing_judged_is_no_proof(archive: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = await whatif(capsys, "--in-force", "--since", "2099-01-01")
    assert (code, "nothing was judged" in err) == (1, True)


async def test_of_the_future_nothing_is_asked(
    archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = tmp_path / "next.yaml"
    candidate.write_text("policies: {plain: {daily_limit: 300000}}")
    code, _, err = await whatif(capsys, str(candidate), "--since", "2099-01-01")
    assert (code, "--since 2099-01-01 is in the future" in err) == (2, True)


async def test_a_candidate_is_answered_with_matrix_moves_payouts_and_assumptions(
    archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = tmp_path / "next.yaml"
    candidate.write_text("policies: {plain: {daily_limit: 300000, require_approval_above: 9999}}")
    code, found, _ = await whatif(capsys, str(candidate), "--since", EVER)
    assert code == 0
    others = [payout for payout in found["payouts"] if payout["agent"] != "plain"]
    # They share the account's limit with `plain`: what it does not spend any more is theirs, and nothing else changes.
    assert others
    for payout in others:
        assert "LIMIT_EXCEEDED" in (payout["old"]["reason"], payout["new"]["reason"])
    assert len(found["payouts"]) == found["changed"]["payouts"] > 100
    for name in ("rules", "outcomes"):
        cells = [cell for row in found[name].values() for cell in row.values()]
        assert sum(cell["payouts"] for cell in cells) == found["judged"]["payouts"]
        assert sum(cell["amount"] for cell in cells) == found["judged"]["amount"]
    assert found["rules"]["APPROVED"]["HELD"]["payouts"] > 0
    assert (
        found["rules"]["REJECTED"]["APPROVED"]["payouts"] + found["rules"]["REJECTED"]["HELD"]["payouts"] > 0
    )
    assert sum(move["payouts"] for move in found["moves"]) == len(
        [payout for payout in found["payouts"] if payout["old"] != payout["new"]]
    )
    assert any(one["what"].startswith("held here only") for one in found["assumptions"])
    code = await asyncio.to_thread(cli, ["policy", "whatif", str(candidate), "--since", EVER])
    said = capsys.readouterr()
    assert code == 0
    assert "WHAT THE RULES SAY" in said.out
    assert "was APPROVED" in said.out
    assert "assumed: held here only" in said.out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name a policy FILE, or --in-force"),
        (["--in-force", "--since", "999999d"], "--since '999999d' is before the year 1"),
        (["--in-force", "--since", "yesterday"], "--since 'yesterday' is no time"),
        (["missing.yaml"], "does not exist"),
    ],
)
async def test_wrong_use_is_one_clear_line(
    archive: str, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    code, _, err = await whatif(capsys, *arguments)
    assert code == 2
    assert problem in err


async def test_an_archive_that_is_not_there_or_empty_is_said(
    postgres: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", postgres)
    code, _, err = await whatif(capsys, "--in-force")
    assert code == 1
    assert "Postgres" in err
    await prepare(postgres)
    code, _, err = await whatif(capsys, "--in-force")
    assert (code, err) == (1, "streamproc: the archive is empty: there is nothing to judge again\n")

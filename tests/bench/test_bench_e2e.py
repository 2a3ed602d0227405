"""`streamproc bench e2e`: from the append until Postgres shows it, checked, and who used the machine."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamproc.bench import job, whole_path
from streamproc.bench.driver import Paced
from streamproc.bench.driving import driven
from streamproc.bench.report_path import whole_document, whole_headline, whole_table
from streamproc.bench.site import Site, site
from streamproc.bench.webhooks import SIGNED_WITH, Webhooks, body, request
from streamproc.bench.whole_path import Measured, Run
from streamproc.cli import run
from streamproc.cli.bench import bench
from streamproc.errors import JobFailed
from streamproc.ingress.razorpay_webhook import verify
from streamproc.ingress.translate import translate


@pytest.mark.embedded
def test_the_whole_path_is_measured_and_nothing_of_ours_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", "postgresql://nobody@127.0.0.1:1/none")
    verified: list[tuple[str, ...]] = []
    command = Site.command

    async def heard(at: Site, *arguments: str) -> str:
        verified.append(arguments)
        return await command(at, *arguments)

    monkeypatch.setattr(Site, "command", heard)
    said = CliRunner().invoke(bench, ["e2e", "--payouts", "1000", "--rounds", "1", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {"machine", "versions", "runs", "limit"} <= set(found)
    assert verified == [("audit", "verify")]
    assert 0 < found["payouts_per_s"] <= found["decided_per_s"]
    assert set(found["cpu_us"]) == {"producer", "worker", "projector", "valkey", "postgres"}
    assert all(us > 0 for us in found["cpu_us"].values())
    # An entry of some 600 bytes and one with its decision; in all of Redis the record beside them.
    assert 600 < found["log_bytes"] < found["redis_bytes"]
    assert found["worker_peak_mb"] > 10
    assert sum(found["outcomes"].values()) == 1000


@pytest.mark.embedded
def test_payouts_come_over_http_to_the_real_serve_and_its_cpu_is_its_own() -> None:
    said = CliRunner().invoke(bench, ["e2e", "--payouts", "1000", "--rounds", "1", "--serve", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["serve"] is True
    assert list(found["cpu_us"])[:3] == ["producer", "serve", "worker"]
    assert found["cpu_us"]["serve"] > 0
    assert sum(found["outcomes"].values()) == 1000
    assert "taken over HTTP" in whole_headline(found)[0]


def test_a_webhook_of_the_bench_is_the_event_that_the_bench_would_append() -> None:
    for number in (0, 7, 11, 49):
        event = job.observed(number, 1_764_000_000_000_000, job.PAYEES)
        delivery = translate(body(event), delivery=event.delivery, fallback_account="", now_us=event.at)
        assert delivery.append.events == (event,)
        head, _, sent = request(event, 8080).partition(b"\r\n\r\n")
        signature = head.partition(b"x-razorpay-signature: ")[2].partition(b"\r\n")[0]
        assert verify(sent, signature, [SIGNED_WITH.encode()])


async def test_a_webhook_that_is_refused_ends_the_drive_with_the_answer() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server, Webhooks(server.sockets[0].getsockname()[1]) as webhooks:
        with pytest.raises(JobFailed, match="a webhook was answered 401; it must be 200"):
            await webhooks.deliver(b"POST / HTTP/1.1\r\n\r\n")


async def test_a_webhook_is_delivered_again_where_the_server_closed_the_connection() -> None:
    asked = 0

    async def close_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(close_first, "127.0.0.1", 0)
    async with server, Webhooks(server.sockets[0].getsockname()[1]) as webhooks:
        await webhooks.deliver(b"POST / HTTP/1.1\r\n\r\n")
    assert asked == 2


@pytest.mark.embedded
async def test_a_worker_that_ends_early_fails_the_bench_with_its_last_words(tmp_path: Path) -> None:
    async with site(tmp_path) as at, at.role("worker", "--groups", "nonsense") as role:

        async def never() -> bool:
            return False

        with pytest.raises(JobFailed, match=r"worker 1 ended early; its last line: .*--groups nonsense"):
            await at.until(never, [role])


async def test_a_driver_that_fails_is_told_by_its_words() -> None:
    with pytest.raises(JobFailed, match="Redis is away"):
        await driven(Paced, "pace", "redis://127.0.0.1:1/0", 10, 1, 1, within_s=60)


def one(
    rate: float,
    *,
    worker: float = 100.0,
    valkey: float = 150.0,
    busiest: float = 0.0,
    machine: float = 2.0,
) -> Run:
    cpu = {"worker": worker, "valkey": valkey}
    return Run(
        1,
        1000 / rate,
        rate,
        rate * 1.1,
        cpu,
        1.0,
        80.0,
        70.0,
        1500,
        2500,
        4000,
        {},
        busiest or worker,
        machine,
    )


@pytest.mark.parametrize(
    ("workers", "busiest", "worker", "valkey", "machine", "limit"),
    [
        (1, 100.0, 100.0, 95.0, 1.95, "all cores"),
        (1, 95.0, 95.0, 10.0, 1.1, "the core of worker"),
        (2, 60.0, 95.0, 10.0, 1.1, "waiting"),
        (2, 91.0, 95.0, 10.0, 1.1, "the core of worker"),
        (1, 20.0, 20.0, 20.0, 1.9, "all cores, of which other programs took 1.5"),
        (1, 20.0, 20.0, 20.0, 0.5, "waiting: for the disk, or for each other"),
    ],
)
def test_what_is_used_up_is_the_limit(
    workers: int,
    busiest: float,
    worker: float,
    valkey: float,
    machine: float,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whole_path.cost, "machine", lambda: {"cores": 2, "cpu": "one"})
    ran = one(10_000, worker=worker, valkey=valkey, busiest=busiest, machine=machine)
    found = whole_document(Measured(1000, workers, 2, False, {}, {}, [ran]))
    assert found["limit"].startswith(limit)


def test_the_figure_is_the_median_of_the_rounds() -> None:
    found = whole_document(Measured(1000, 1, 2, False, {}, {}, [one(4_000), one(1_000), one(3_000)]))
    assert (found["payouts_per_s"], found["payouts_per_s_min"], found["payouts_per_s_max"]) == (
        3000,
        1000,
        4000,
    )
    assert found["busy"] == {"worker": 0.3, "valkey": 0.45}
    columns, rows = whole_table(found)
    assert [row[0] for row in rows] == ["worker", "valkey", "all"]
    assert len(columns) == len(rows[0])
    assert whole_headline(found)[0].startswith("3,000 payouts/s (1,000 to 4,000)")


@pytest.mark.parametrize("wrong", [["--payouts", "999"], ["--workers", "0"], ["--rounds", "0"]])
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert run(["bench", "e2e", *wrong]) == 2

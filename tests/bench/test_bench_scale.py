"""`streamproc bench scale`: one thing is varied at a time, values take turns, and the log is as long as was said."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamproc.bench import cost, filling, scale
from streamproc.bench.report_scale import scale_document, scale_headline, scale_table
from streamproc.bench.scale import Measured, Run, accounts, plain
from streamproc.bench.site import site
from streamproc.cli import run
from streamproc.cli.bench import bench
from streamproc.domain.wire import decode_events
from streamproc.errors import InputError
from streamproc.log.names import Names, partition_of


@pytest.mark.embedded
def test_only_what_is_named_is_measured_and_its_values_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    arguments = [
        "scale",
        "--partitions",
        "1",
        "--partitions",
        "3",
        "--payouts",
        "1000",
        "--rounds",
        "1",
        "--json",
    ]
    said = CliRunner().invoke(bench, arguments)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {"machine", "versions", "runs", "base"} <= set(found)
    assert [(one["axis"], one["value"]) for one in found["runs"]] == [("partitions", 1), ("partitions", 3)]
    assert list(found["axes"]) == ["partitions"]
    first, second = found["axes"]["partitions"]
    assert (first["cost_ratio"], first["speed_ratio"]) == (1.0, 1.0)
    assert second["cost_ratio"] > 0
    assert min(second["cpu_us"].values()) > 0
    assert set(second["cores"]) == {"producer", "worker 1", "valkey"}
    assert second["limit"]


@pytest.mark.embedded
async def test_a_filled_log_has_so_many_real_entries_and_no_group_has_work(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        before = await at.client.xlen(Names(0).log)
        await filling.fill(at.url, at.client, Names(0), 2_345)
        assert await at.client.xlen(Names(0).log) == before + 2_345
        groups = await at.client.xinfo_groups(Names(0).log)
        assert {(group["lag"], group["pending"]) for group in groups} == {(0, 0)}
        assert (await at.client.config_get("appendfsync")) == {"appendfsync": "always"}
        rows = await at.client.execute_command("XREVRANGE", Names(0).log, "+", "-", "COUNT", 2_345)
        assert all(decode_events(fields[1]) for _, fields in rows)


def test_a_log_that_does_not_fit_into_memory_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filling.cost, "free_memory_bytes", lambda: 2_000_000_000)
    assert run(["bench", "scale", "--entries", "10000", "--entries", "10000000"]) == 2
    assert "10,010,000 entries take up to 15.0 GB; 2.0 GB of memory are free" in capsys.readouterr().err


def test_an_agent_that_would_be_rate_limited_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 rounds of 4000 payouts .* 1 agents may have 10000"):
        scale.check({"agents": (1, 100)}, 4_000, 3)


def test_payouts_are_of_so_many_agents_and_none_has_anything_against_it() -> None:
    events = list(islice(plain(3), 500))
    assert {event.facts.notes["agent_id"] for event in events} == {scale.agent(n) for n in range(3)}
    assert len({event.payout for event in events}) == 500
    assert all("blocked" not in event.facts.notes["vendor_url"] for event in events)


def test_there_is_an_account_of_each_partition() -> None:
    assert [partition_of(account, 16) for account in accounts(16)] == list(range(16))


def turns(value: int, costs: Sequence[float]) -> list[Run]:
    return [
        Run("entries", value, n, 1.0, 1e6 / us, {"worker": us / 2, "valkey": us / 2}, {"worker 1": 0.5}, 1.0)
        for n, us in enumerate(costs, 1)
    ]


def test_a_value_is_beside_the_first_of_its_axis_in_the_same_round() -> None:
    # In the second round something else ran on the machine: both are dear, the ratio is not.
    runs = [*turns(10, [100, 400, 100]), *turns(1000, [110, 440, 100])]
    found = scale_document(Measured(1000, 3, {"python": "3"}, runs))
    first, second = found["axes"]["entries"]
    assert (first["value"], first["cost_ratio"]) == (10, 1.0)
    assert (second["cost_ratio"], second["cost_ratio_min"], second["cost_ratio_max"]) == (1.1, 1.0, 1.1)
    columns, rows = scale_table(found)
    assert [row[0] for row in rows] == ["entries 10", "entries 1,000"]
    assert len(columns) == len(rows[0])
    assert "3 rounds in turns of 1,000 payouts" in scale_headline(found)[0]


def test_workers_are_beside_each_other_by_how_busy_they_were_and_the_busiest_is_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "machine", lambda: {"cores": 2, "cpu": "one"})

    def turn(number: int, first: float, second: float) -> Run:
        cores = {"producer": 0.1, "worker 3": first, "worker 4": second, "valkey": 0.2}
        return Run("workers", 2, number, 1.0, 100.0, {"worker": 1.0, "valkey": 1.0}, cores, 1.5)

    found = scale_document(Measured(1000, 2, {"python": "3"}, [turn(1, 0.2, 0.95), turn(2, 0.95, 0.2)]))
    (value,) = found["axes"]["workers"]
    assert value["cores"] == {"producer": 0.1, "valkey": 0.2, "worker 1": 0.95, "worker 2": 0.2}
    assert value["limit"] == "the core of worker 1"


@pytest.mark.parametrize("wrong", [["--entries", "0"], ["--entries", "10000001"], ["--workers", "9"]])
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert run(["bench", "scale", *wrong]) == 2

"""The sandbox as a process: its settings, its end, and what it keeps."""

import asyncio
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import httpx
import pytest

from ops.sandbox import server, webhooks
from ops.sandbox.config import SandboxConfig
from ops.sandbox.control import BehaviourChange
from ops.sandbox.server import build_app, run
from ops.sandbox.store import Store
from streamproc.api import connection as api_connection
from streamproc.clients import http as clients_http
from tests.bank import free_port, receiving_webhooks, running_sandbox, until


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_stop_ends_it_with_status_0_even_while_a_call_is_never_answered(how: signal.Signals) -> None:
    async with running_sandbox(alone=True) as bank:
        await bank.faults(api=[{"kind": "timeout"}])
        unanswered = asyncio.create_task(bank.call("POST", "/v1/contacts", {"name": "Asha"}))

        async def was_told() -> bool:
            return bool(await bank.record())

        await until(was_told, what="the bank was told")
        assert await bank.stop(how) == 0
        await asyncio.gather(unanswered, return_exceptions=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_payouts_keys_balance_record_and_undelivered_events_outlive_the_process(
    tmp_path: Path, how: signal.Signals
) -> None:
    kept = {"alone": True, "data_file": str(tmp_path / "deep" / "bank.db"), "workflow": "all", "seed": 7}
    order = {
        "account_number": "7878780080316316",
        "fund_account": {
            "account_type": "vpa",
            "vpa": {"address": "asha@ybl"},
            "contact": {"name": "Asha"},
        },
        "amount": 250_000,
        "currency": "INR",
        "mode": "UPI",
        "purpose": "payout",
    }
    nobody = f"http://127.0.0.1:{free_port()}/"
    async with running_sandbox(webhook_url=nobody, webhook_retry_base_s=0.05, **kept) as bank:
        made = (await bank.call("POST", "/v1/payouts", order, key="key-0001")).json()
        balance = await bank.balance(add=5)
        await bank.stop(how)
    async with (
        receiving_webhooks() as inbox,
        running_sandbox(webhook_url=inbox.url, webhook_retry_base_s=0.05, **kept) as bank,
    ):
        again = (await bank.call("POST", "/v1/payouts", order, key="key-0001")).json()
        assert again["id"] == made["id"]
        assert await bank.balance(add=0) == balance
        assert [line["effect"] for line in await bank.record(command="payout.create")] == [True, False]
        await inbox.holds(1)
        await bank.call("POST", f"/v1/payouts/{made['id']}/approve", {"remarks": "ok"}, auth="bearer")
        await bank.reaches(made["id"], "processed")
        assert (await bank.pay(1000))["id"] != made["id"]


async def test_a_seed_draws_the_same_ids_again() -> None:
    drawn = []
    for _ in range(2):
        async with running_sandbox(seed=42) as bank:
            drawn.append((await bank.pay(1000))["id"])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SANDBOX_PORT", "x"),
        ("SANDBOX_PORT", "70000"),
        ("SANDBOX_WORKFLOW", "some"),
        ("SANDBOX_PROCESSING_S", "-1"),
        ("SANDBOX_PROCESSING_S", "nan"),
        ("SANDBOX_WEBHOOK_URL", "nope"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        SandboxConfig.from_env({name: value})
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sandbox: {name} ")


def test_the_state_is_for_its_owner_only(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "sandbox.db"))
    store.save([("payout", "pout_1", {"amount": 1})])
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    store.close()


def a_directory(path: Path) -> None:
    path.mkdir()


def no_database(path: Path) -> None:
    path.write_text("not SQLite, and longer than its header, which has a hundred bytes" * 2)


def of_another_version(path: Path) -> None:
    store = Store(str(path))
    store.save([("payout", "pout_1", {"amount": 1})])
    store.close()


@pytest.mark.parametrize("what", [a_directory, no_database, of_another_version])
def test_a_file_of_the_state_that_cannot_be_used_ends_the_start_with_one_line_that_names_it(
    tmp_path: Path, what: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    what(kept := tmp_path / "sandbox.db")
    with pytest.raises(SystemExit) as ended:
        run(SandboxConfig(port=free_port(), data_file=str(kept)))
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sandbox: SANDBOX_DATA_FILE {kept} cannot be used: ")


@pytest.mark.parametrize(
    ("allowed", "caller", "status"),
    [
        ("loopback", "127.0.0.1", 200),
        ("loopback", "::1", 200),
        ("loopback", "192.0.2.7", 403),
        ("anywhere", "192.0.2.7", 200),
    ],
)
async def test_the_controls_are_for_this_machine_unless_configured(
    allowed: Literal["loopback", "anywhere"], caller: str, status: int
) -> None:
    app = build_app(SandboxConfig(control_from=allowed))
    transport = httpx.ASGITransport(app=app, client=(caller, 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sandbox") as http,
    ):
        assert (await http.get("/_control/record")).status_code == status
        assert (await http.get("/healthz")).status_code == 200


def test_idle_connections_are_closed_by_clients_before_servers_do() -> None:
    """A call on one that its server closes just then is lost."""
    assert clients_http.KEEPALIVE_S < server.KEEP_ALIVE_S
    assert webhooks.KEEP_ALIVE_S < api_connection.KEEP_ALIVE_S


def test_settings_are_read_from_the_environment_and_unknown_ones_left_alone() -> None:
    config = SandboxConfig.from_env(
        {"SANDBOX_PORT": "9", "SANDBOX_BALANCE": "5", "SANDBOX_ID": "host", "PORT": "1"}
    )
    assert (config.port, config.balance, config.workflow) == (9, 5, "all")


def test_the_readme_names_every_setting_and_every_behaviour() -> None:
    text = (Path(__file__).parents[2] / "ops" / "sandbox" / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(SANDBOX_[A-Z_]+)`", text)) | set(re.findall(r"[a-z_]+", text))
    wanted = {f"SANDBOX_{name.upper()}" for name in SandboxConfig.__struct_fields__}
    wanted |= set(BehaviourChange.__struct_fields__)
    assert not wanted - told, f"name {sorted(wanted - told)} in ops/sandbox/README.md"


async def test_a_sandbox_that_cannot_listen_takes_none_of_those_that_share_its_process_with_it() -> None:
    """Else whatever else listens there fails all tests that come after this one, too."""
    async with running_sandbox() as neighbour:
        with socket.create_server(("127.0.0.1", free_port())) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(AssertionError, match="500"):
                await running_sandbox(port=port).__aenter__()
        assert (await neighbour.http.get("/healthz")).status_code == 200
    async with running_sandbox(port=port) as another:
        assert (await another.http.get("/healthz")).status_code == 200

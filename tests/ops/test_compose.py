"""The compose file, the Collector's and the neighbours' configurations fit each other and our own settings.

Docker does not run here: what is read are the files, with the meaning that our code gives to what they say.
"""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml
from redis.exceptions import AuthenticationError, NoPermissionError

from ops.sandbox.config import SandboxConfig
from streamproc.cli import cli
from streamproc.embedded import _valkey_program
from streamproc.log.connection import connected
from streamproc.log.health import _WANTED as WANTED_OF_REDIS
from streamproc.log.health import server_settings
from streamproc.log.stream import open_log
from streamproc.settings import PREFIX, VARIABLES, Role, Settings, load, require
from streamproc.telemetry.spans import ENDPOINTS
from tests.ports import free_port

OPS = Path(__file__).parents[2] / "ops"
PROMTOOL = shutil.which("promtool")
HOST_VARIABLES = {
    "POSTGRES_PASSWORD": "a-password-of-a-test",
    "VALKEY_PASSWORD": "rolesPasswordOfATest",
    "VALKEY_ADMIN_PASSWORD": "adminPasswordOfATest",
    "STREAMPROC_METRICS_TOKEN": "a-metrics-token-of-a-test",
    "GRAFANA_PASSWORD": "a-password-of-a-test",
}


NOT_PASSED = {
    "REDIS_URL": "the stack's own store",
    "POSTGRES_DSN": "the stack's own store",
    "DATA_DIR": "the volume",
    "HOST": "the ports say who may come in",
    "PORT": "the ports, the simulator and Prometheus name it",
    "METRICS_TOKEN": "a secret of the stack, which Prometheus has too",
    "DRAIN": "stop_grace_period must be longer",
    "METRICS_PORT": "`serve` shows all roles",
    "WORKERS": "of `up`",
    "REDIS_MAXMEMORY": "of `up`",
    "SANDBOX_PORT": "of `up`",
    "TOKEN": "of `pay`",
    "MCP_PORT": "of `mcp`, whose port is said by the ports",
    "MCP_HOSTS": "of `mcp`, which is given nothing of the others",
}
"""Settings that compose sets itself, and those that no role here reads."""


def filled(node: Any, exported: Mapping[str, str] = HOST_VARIABLES) -> Any:
    """What compose makes of `${NAME:-text}`, `${NAME:+text}`, `${NAME:?problem}` and `$$` where *exported* is set."""
    if isinstance(node, dict):
        return {name: filled(value, exported) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(value, exported) for value in node]
    if not isinstance(node, str):
        return node

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if kind == ":+":
            return rest if exported.get(name) else ""
        if exported.get(name):
            return exported[name]
        assert kind == ":-", f"{name} is needed and nobody is told to set it"
        return rest

    return re.sub(r"\$\{(\w+)(:[-+?])([^}]*)\}", value, node).replace("$$", "$")


def read(name: str) -> Any:
    return yaml.safe_load((OPS / name).read_text())


def environment_of(service: str, exported: Mapping[str, str]) -> dict[str, str]:
    """What a container is given: the lines of its env_file, and over them its `environment`."""
    found = filled(read("compose.yaml"), HOST_VARIABLES | exported)["services"][service]
    lines = [
        line
        for name in found.get("env_file", [])
        for line in (OPS / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    of_files = dict(filled(line, HOST_VARIABLES | exported).split("=", 1) for line in lines)
    assert not set(of_files) & set(found["environment"]), "what is in both is never taken from the file"
    return of_files | found["environment"]


STACK: dict[str, Any] = filled(read("compose.yaml"))
SERVICES: dict[str, Any] = STACK["services"]
ROLES = [name for name in SERVICES if name in get_args(Role)]


def settings_of(service: str, directory: Path) -> Settings:
    """The settings that our process finds in its container."""
    env = environment_of(service, {})
    for name in SERVICES[service].get("secrets", []):
        variable = STACK["secrets"][name]["environment"]
        path = directory / name
        path.write_text(HOST_VARIABLES[variable])
        env = {k: str(path) if v == f"/run/secrets/{name}" else v for k, v in env.items()}
    return load(env)


def test_every_role_is_there_and_has_all_that_it_needs_and_nothing_that_is_no_setting(tmp_path: Path) -> None:
    assert set(ROLES) == set(get_args(Role))
    known = {PREFIX + variable.name for variable in VARIABLES}
    for service in ROLES:
        given = {name for name in environment_of(service, {}) if name.startswith(PREFIX)}
        assert {name.removesuffix("_FILE") for name in given} <= known
        found = settings_of(service, tmp_path)
        require(found, service)  # type: ignore[arg-type]
        assert found.metrics_token
    for service in (*ROLES, "sandbox"):
        assert SERVICES[service]["command"][0] in cli.commands
        assert SERVICES[service]["image"] == "streamproc"


def test_mcp_is_given_where_the_api_is_and_no_key_store_or_secret() -> None:
    given = SERVICES["mcp"]
    assert given["command"] == ["mcp", "--http", "--url", "http://serve:8080"]
    assert not {"env_file", "secrets", "volumes"} & set(given)
    found = load(given["environment"])
    assert msgspec.structs.replace(found, host=Settings().host) == Settings()
    [port] = given["ports"]
    assert port == f"127.0.0.1:{found.mcp_port}:{found.mcp_port}"


def test_what_is_exported_for_the_real_bank_reaches_every_role_under_its_own_name() -> None:
    passed = {f"{PREFIX}{v.name}" for v in VARIABLES if v.name not in NOT_PASSED}
    passed |= {f"{PREFIX}{v.name}_FILE" for v in VARIABLES if v.secret and v.name not in NOT_PASSED}
    exported = {name: f"the value of {name}" for name in passed}
    for service in ROLES:
        given = environment_of(service, exported)
        left_out = sorted(name for name in passed if name not in given)
        assert not left_out, (
            f"pass {left_out} on in x-environment of ops/compose.yaml, or name them in NOT_PASSED"
        )
        assert {name: given[name] for name in passed} == exported
        fixed = {name for name in given if name.startswith(PREFIX)} - passed
        assert {name.removeprefix(PREFIX).removesuffix("_FILE") for name in fixed} <= set(NOT_PASSED)
    assert set(NOT_PASSED) <= {variable.name for variable in VARIABLES}


def test_nothing_of_the_simulator_is_left_in_a_role_that_has_a_key_of_the_real_bank() -> None:
    for service in ROLES:
        given = environment_of(service, {f"{PREFIX}RAZORPAY_KEY_ID": "rzp_live_1"})
        assert [name for name, value in given.items() if "sandbox" in value.lower()] == []
        assert given[f"{PREFIX}RAZORPAY_KEY_ID"] == "rzp_live_1"
        assert given[f"{PREFIX}RAZORPAY_OAUTH_TOKEN"] == given[f"{PREFIX}SAFE_BROWSING_KEY"] == ""


def test_a_real_key_of_safe_browsing_does_not_go_to_the_simulator() -> None:
    given = environment_of("worker", {f"{PREFIX}SAFE_BROWSING_KEY": "a-real-key"})
    assert "a-real-key" not in given.values()


def test_roles_share_the_directory_by_which_one_page_shows_them_all(tmp_path: Path) -> None:
    for service in ROLES:
        directory = settings_of(service, tmp_path).data_dir
        assert f"data:{directory}" in SERVICES[service]["volumes"]
    dockerfile = (OPS / "Dockerfile").read_text()
    assert f"VOLUME {directory}" in dockerfile
    assert "USER streamproc" in dockerfile


def test_nothing_of_ours_may_do_more_than_an_ordinary_user() -> None:
    ours = [found for found in SERVICES.values() if found["image"] == "streamproc"]
    assert len(ours) == len(ROLES) + 2
    for found in ours:
        assert found["cap_drop"] == ["ALL"]
        assert found["security_opt"] == ["no-new-privileges:true"]
        assert not {"user", "privileged", "cap_add", "network_mode", "pid"} & set(found)


def test_a_role_is_given_longer_to_end_than_it_takes(tmp_path: Path) -> None:
    for service in ROLES:
        seconds = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
        assert seconds > settings_of(service, tmp_path).drain_s


def test_the_simulator_and_our_roles_know_each_other(tmp_path: Path) -> None:
    bank = SandboxConfig.from_env(SERVICES["sandbox"]["environment"])
    ours = settings_of("worker", tmp_path)
    assert ours.razorpay_base_url == f"http://sandbox:{bank.port}/v1"
    assert ours.safe_browsing_url.startswith(f"http://sandbox:{bank.port}/")
    assert (ours.razorpay_key_id, ours.razorpay_key_secret.reveal()) == (bank.key_id, bank.key_secret)
    assert ours.razorpay_oauth_token.reveal() == bank.oauth_token
    assert [one.reveal() for one in ours.razorpay_webhook_secrets] == [bank.webhook_secret]
    assert (ours.razorpay_account_id, ours.razorpay_account_number) == (bank.account_id, bank.account_number)
    assert bank.webhook_url == f"http://serve:{ours.port}/webhooks/razorpay"
    assert bank.host == ours.host == "0.0.0.0"  # who may come in is said by the ports
    assert bank.control_from == "loopback"


def test_stores_are_set_as_the_log_needs_them_and_found_where_they_are(tmp_path: Path) -> None:
    command = SERVICES["valkey"]["command"]
    for name, (wanted, _) in WANTED_OF_REDIS.items():
        assert command[command.index(f"--{name}") + 1] == wanted
    # Without a limit StreamprocRedisFull cannot fire.
    assert re.fullmatch(r"[1-9]\d*gb", command[command.index("--maxmemory") + 1])
    found = settings_of("worker", tmp_path)
    assert urlsplit(found.redis_url).hostname == "valkey"
    dsn = urlsplit(found.postgres_dsn.reveal())
    postgres = SERVICES["postgres"]["environment"]
    assert (dsn.hostname, dsn.username, dsn.password, dsn.path[1:]) == (
        "postgres", postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"],
    )  # fmt: skip


@pytest.fixture
async def valkey_of_the_stack(tmp_path: Path) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """Valkey as its service starts it: our entrypoint and arguments, by a stand-in for the image's own script."""
    port, found = free_port(), SERVICES["valkey"]
    script = tmp_path / "docker-entrypoint.sh"
    script.write_text(f'#!/bin/sh\nshift\nexec {_valkey_program()} --port {port} --bind 127.0.0.1 "$@"\n')
    script.chmod(0o700)
    process = await asyncio.create_subprocess_exec(
        *found["entrypoint"], *found["command"], cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.defpath}", **found["environment"]}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"Ready to accept" not in (line := await process.stdout.readline()):
                assert line, "it ended"
        yield port, process
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.embedded
async def test_valkey_knows_roles_and_people_by_passwords_that_no_list_of_processes_shows(
    valkey_of_the_stack: tuple[int, asyncio.subprocess.Process], tmp_path: Path
) -> None:
    port, process = valkey_of_the_stack
    shown = Path(f"/proc/{process.pid}/cmdline").read_text()
    declared = [*SERVICES["valkey"]["entrypoint"], *SERVICES["valkey"]["healthcheck"]["test"]]
    for password in (HOST_VARIABLES["VALKEY_PASSWORD"], HOST_VARIABLES["VALKEY_ADMIN_PASSWORD"]):
        assert password not in shown + str(declared)
    url = settings_of("worker", tmp_path).redis_url.replace("valkey:6379", f"127.0.0.1:{port}")
    admin = SERVICES["valkey"]["environment"]["REDISCLI_AUTH"]
    async with connected(url) as roles, connected(f"redis://:{admin}@127.0.0.1:{port}/0") as people:
        await open_log(roles, partitions=1, groups=["governance"])
        assert await server_settings(roles) == []
        for wanted in ("INFO", "CONFIG GET save", "CLIENT LIST", "CLIENT UNBLOCK 1", "XADD sp:{0}:log * e x"):
            assert await people.execute_command("ACL", "DRYRUN", "streamproc", *wanted.split()) in (
                b"OK",
                "OK",
            )
        for refused in ("CONFIG SET dir /", "FLUSHALL", "SHUTDOWN", "REPLICAOF NO ONE", "SET other 1"):
            with pytest.raises(NoPermissionError):
                await roles.execute_command(*refused.split())
        assert await people.execute_command("CONFIG", "SET", "maxmemory", "4gb")
    async with connected(f"redis://127.0.0.1:{port}/0") as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


def test_nothing_is_open_to_the_network_and_every_image_says_its_version() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if service["image"] != "streamproc":
            assert re.search(r":v?\d+\.?\d*", service["image"]), name


def test_what_is_mounted_is_there_and_what_is_named_is_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (OPS / source).exists() if source.startswith(".") else source in STACK["volumes"], (
                name,
                volume,
            )
        assert set(service.get("depends_on", [])) <= set(SERVICES)
        assert set(service.get("secrets", [])) <= set(STACK["secrets"])


# ---- what shows it ----


def test_traces_go_from_our_roles_over_the_collector_to_tempo_and_grafana_asks_there() -> None:
    collector, tempo = read("collector/collector.yaml"), read("tempo/tempo.yaml")
    sent_to = urlsplit(SERVICES["worker"]["environment"][ENDPOINTS[0]])
    assert sent_to.hostname == "collector"
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == f"0.0.0.0:{sent_to.port}"
    taken = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert collector["exporters"]["otlp/tempo"]["endpoint"] == taken.replace("0.0.0.0", "tempo")
    sources = {one["uid"]: one for one in read("grafana/provisioning/datasources.yml")["datasources"]}
    assert sources["tempo"]["url"] == f"http://tempo:{tempo['server']['http_listen_port']}"
    assert sources["prometheus"]["url"] == "http://prometheus:9090"
    [provider] = read("grafana/provisioning/dashboards.yml")["providers"]
    mounts = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


def test_each_pipeline_of_the_collector_is_made_of_what_is_configured_and_refuses_before_it_holds() -> None:
    collector = read("collector/collector.yaml")
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in collector["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    assert used == {kind: set(collector[kind]) for kind in used}
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])


def test_prometheus_scrapes_serve_with_the_token_that_it_asks_for(tmp_path: Path) -> None:
    config = read("prometheus/compose.yml")
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"serve:{settings_of('serve', tmp_path).port}"]}]
    secret = job["authorization"]["credentials_file"]
    assert secret == SERVICES["serve"]["environment"][f"{PREFIX}METRICS_TOKEN_FILE"]
    assert Path(secret).name in SERVICES["prometheus"]["secrets"]
    assert config["rule_files"] == read("prometheus/prometheus.yml")["rule_files"]
    # What is scraped is not sent as well: it would be there twice.
    assert "OTEL_METRICS_EXPORTER" not in SERVICES["worker"]["environment"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not there")
@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_prometheus_itself_takes_its_configuration(name: str) -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "config", "--syntax-only", name],
        cwd=OPS / "prometheus", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

"""The manifests in ops/kubernetes: what each pod is given is what its role needs, and no more, and the roles run by it.

No cluster runs here: the files are read with the meaning that our code gives to them.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import yaml
from redis.asyncio import Redis

from streamproc.archive.read import payout_view
from streamproc.cli import cli
from streamproc.errors import TryAgain
from streamproc.settings import PREFIX, VARIABLES, Settings, load, require
from tests.bank import Sandbox, free_port, running_sandbox, until
from tests.signals import killed
from tests.words import NOON_ZONE, apply_policies

KUBERNETES = Path(__file__).parents[2] / "ops" / "kubernetes"
PROMTOOL = shutil.which("promtool")
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    found
    for name in KUSTOMIZATION["resources"]
    for found in yaml.safe_load_all((KUBERNETES / name).read_text())
]
WORKLOADS = {
    found["metadata"]["name"]: found for found in OBJECTS if found["kind"] in ("Deployment", "StatefulSet")
}
ROLES = ("serve", "worker", "poller", "projector")
SECRETS = {
    "streamproc-stores": ("REDIS_URL", "POSTGRES_DSN"),
    "streamproc-archive": ("REDIS_URL", "POSTGRES_DSN"),
    "streamproc-owner": ("REDIS_URL", "POSTGRES_DSN"),
    "streamproc-metrics": ("METRICS_TOKEN",),
    "streamproc-webhooks": ("RAZORPAY_WEBHOOK_SECRETS",),
    "streamproc-bank": ("RAZORPAY_KEY_ID", "RAZORPAY_KEY_SECRET"),
    "streamproc-approvals": ("RAZORPAY_OAUTH_TOKEN",),
    "streamproc-vendors": ("SAFE_BROWSING_KEY",),
    "streamproc-people": ("SLACK_BOT_TOKEN", "SLACK_SIGNING_SECRET", "NTFY_TOKEN"),
    "streamproc-signing": ("SIGNING_KEY", "CHECKPOINT_TOKEN"),
}
MAY_BE_ABSENT = {"streamproc-approvals", "streamproc-people", "streamproc-signing"}
POLICIES = "policies: {bot: {daily_limit: 10_000_000}}"
START_MAX_S, STEP_MAX_S, DRAIN_MAX_S = 120.0, 90.0, 60.0


def pod(name: str) -> dict[str, Any]:
    found: dict[str, Any] = WORKLOADS[name]["spec"]["template"]["spec"]
    return found


def containers() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Every container by its name, with the pod that it is in."""
    found = {}
    for name in WORKLOADS:
        for one in (*pod(name).get("initContainers", ()), *pod(name)["containers"]):
            found[one["name"]] = (one, pod(name))
    return found


CONTAINERS = containers()
SETTINGS = dict(
    line.split("=", 1)
    for line in (KUBERNETES / "settings.env").read_text().splitlines()
    if line and not line.startswith("#")
)


def secrets_of(container: str) -> dict[str, bool]:
    """The secrets that a container is given: whether each may be absent."""
    sources = [one["secretRef"] for one in CONTAINERS[container][0].get("envFrom", ()) if "secretRef" in one]
    return {one["name"]: one.get("optional", False) for one in sources}


def environment_of(container: str, values: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a container finds; `values`: what is in the secrets."""
    given = dict(SETTINGS)
    for name, optional in secrets_of(container).items():
        assert optional or name in values, f"{container} does not start without {name}"
        given |= {f"{PREFIX}{key}": value for key, value in values.get(name, {}).items()}
    return given | {one["name"]: one["value"] for one in CONTAINERS[container][0].get("env", ())}


def plainly(*names: str) -> dict[str, dict[str, str]]:
    """A value for each key of these secrets."""
    text = {
        "REDIS_URL": "redis://redis:6379/0",
        "POSTGRES_DSN": "postgresql://u@postgres/d",
        "METRICS_TOKEN": "a-metrics-token-of-a-test",
    }
    return {name: {key: text.get(key, f"the-{key.lower()}") for key in SECRETS[name]} for name in names}


def test_every_role_has_all_that_it_needs_with_and_without_what_may_be_absent() -> None:
    needed = plainly(*(SECRETS.keys() - MAY_BE_ABSENT))
    for role in (*ROLES, "migrate"):
        assert CONTAINERS[role][0]["args"] == [role]
        assert role in cli.commands
        require(load(environment_of(role, needed)), role)  # type: ignore[arg-type]
    slack = {**plainly("streamproc-people"), **needed}
    for role in ("serve", "worker"):
        given = environment_of(role, slack) | {f"{PREFIX}SLACK_CHANNEL_ID": "C0123ABCD"}
        require(load(given), role)  # type: ignore[arg-type]


def test_what_is_named_is_a_setting_and_no_secret_is_among_the_settings() -> None:
    known = {variable.name: variable.secret for variable in VARIABLES}
    for name in SETTINGS:
        assert name.startswith("OTEL_") or known[name.removeprefix(PREFIX)] is False, name
    for keys in SECRETS.values():
        assert set(keys) <= set(known)


def test_the_readme_names_each_secret_with_its_keys_and_who_is_given_it() -> None:
    rows = re.findall(
        r"^\| `(streamproc-\w+)`( \(may be absent\))? \| (.*) \| (.*) \|$",
        (KUBERNETES / "README.md").read_text(),
        re.M,
    )
    assert {name for name, *_ in rows} == set(SECRETS)
    for name, absent, keys, who in rows:
        assert set(SECRETS[name]) <= set(re.findall(r"[A-Z_]{5,}", keys)), name
        assert bool(absent) is (name in MAY_BE_ABSENT)
        given = {container for container in CONTAINERS if name in secrets_of(container)}
        assert given == {one for one in CONTAINERS if re.search(rf"\b{one}\b", who)}, name
        assert {secrets_of(one)[name] for one in given} == {name in MAY_BE_ABSENT}


def test_no_role_is_given_a_secret_that_it_has_no_use_for() -> None:
    assert (
        set(secrets_of("serve")) & {"streamproc-bank", "streamproc-approvals", "streamproc-signing"} == set()
    )
    assert set(secrets_of("worker")) & {"streamproc-webhooks", "streamproc-signing"} == set()
    assert set(secrets_of("projector")) == {"streamproc-archive", "streamproc-metrics", "streamproc-signing"}
    assert [one for one in ROLES if "streamproc-owner" in secrets_of(one)] == []
    assert WORKLOADS["operator"]["spec"]["replicas"] == 0, "it has every secret, so there is none at rest"


def test_mcp_is_given_where_the_api_is_and_no_key_store_or_secret() -> None:
    container, _ = CONTAINERS["mcp"]
    [service] = [one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == ("Service", "serve")]
    assert container["args"] == ["mcp", "--http", "--url", f"http://{service['metadata']['name']}"]
    assert service["spec"]["ports"][0]["port"] == 80
    assert "envFrom" not in container
    found = load({one["name"]: one["value"] for one in container["env"]})
    assert (found.redis_url, found.mcp_port) == ("", container["ports"][0]["containerPort"])


def test_a_container_may_do_no_more_than_an_ordinary_user_and_write_where_its_data_is() -> None:
    user = re.search(r"useradd --uid (\d+)", (KUBERNETES.parent / "Dockerfile").read_text())
    assert user
    for name, (container, its_pod) in CONTAINERS.items():
        context = its_pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, int(user[1])), name
        assert its_pod["automountServiceAccountToken"] is False
        assert its_pod["enableServiceLinks"] is False, "else STREAMPROC_PORT may be a Service's"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        volumes = {one["name"] for one in its_pod["volumes"]} | {
            claim["metadata"]["name"]
            for workload in WORKLOADS.values()
            for claim in workload["spec"].get("volumeClaimTemplates", ())
        }
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes
        assert set(mounts) == ({"/tmp"} if name == "migrate" else {SETTINGS[f"{PREFIX}DATA_DIR"], "/tmp"})
        assert container["image"] == KUSTOMIZATION["images"][0]["name"]


def test_a_role_is_given_longer_to_end_than_it_takes() -> None:
    assert f"{PREFIX}DRAIN" not in SETTINGS
    for name in WORKLOADS:
        takes_s = waits_s(name) + Settings().drain_s
        assert pod(name)["terminationGracePeriodSeconds"] > takes_s


def waits_s(name: str) -> int:
    """How long a pod goes on before it is told to end."""
    waits = pod(name)["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    if waits is None:
        return 0
    assert waits[0] == "sleep"
    return int(waits[1])


def test_what_a_service_leads_to_listens_until_the_service_knows_that_it_ends() -> None:
    """A role closes its port as soon as it is told to end, and that takes a while to be known on every node."""
    called = {found["metadata"]["name"] for found in OBJECTS if found["kind"] == "Service"} - {"projector"}
    assert {name for name in WORKLOADS if waits_s(name) >= 5} == called == {"serve", "mcp"}


def test_labels_select_what_they_are_meant_to_select() -> None:
    for name, workload in WORKLOADS.items():
        labels = {"app.kubernetes.io/name": "streamproc", "app.kubernetes.io/component": name}
        assert workload["spec"]["template"]["metadata"]["labels"] == labels
        assert workload["spec"]["selector"]["matchLabels"] == labels
        for spread in pod(name).get("topologySpreadConstraints", ()):
            assert spread["labelSelector"]["matchLabels"] == labels
    for found in OBJECTS:
        if found["kind"] in ("Service", "PodDisruptionBudget"):
            selector = found["spec"]["selector"]
            chosen = selector.get("matchLabels", selector)
            assert chosen["app.kubernetes.io/component"] == found["metadata"]["name"]
    for name in KUBERNETES.iterdir():
        assert name.name in {*KUSTOMIZATION["resources"], "kustomization.yaml", "settings.env", "README.md"}


def test_prometheus_scrapes_the_ports_that_the_pods_name() -> None:
    config = yaml.safe_load((KUBERNETES.parent / "prometheus" / "kubernetes.yml").read_text())
    [job] = config["scrape_configs"]
    kept = next(one["regex"] for one in job["relabel_configs"] if one.get("action") == "keep")
    for name in ROLES:
        [port] = CONTAINERS[name][0]["ports"]
        assert re.fullmatch(kept, port["name"])
        given = load(environment_of(name, plainly(*(SECRETS.keys() - MAY_BE_ABSENT))))
        assert port["containerPort"] == (given.port if name == "serve" else given.metrics_port)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not there")
def test_prometheus_itself_takes_the_rest_of_the_job(tmp_path: Path) -> None:
    directory = KUBERNETES.parent / "prometheus"
    config = yaml.safe_load((directory / "kubernetes.yml").read_text())
    [job] = config["scrape_configs"]
    assert [one["role"] for one in job.pop("kubernetes_sd_configs")] == ["pod"], (
        "which Debian's was made without"
    )
    config["rule_files"] = [str(directory / name) for name in config["rule_files"]]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [str(PROMTOOL), "check", "config", "--syntax-only", tmp_path / "config.yml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the roles, run by them ----


class Pods:
    """The containers' commands as processes of this machine, each with the variables of its pod.

    Only addresses and directories are this machine's, since there is no cluster.
    """

    def __init__(self, here: Path, bank: Sandbox, values: Mapping[str, Mapping[str, str]]) -> None:
        self.ports = {name: free_port() for name in ROLES}
        self._here, self._bank, self._values = here, bank, values
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> asyncio.subprocess.Process:
        container, _ = CONTAINERS[name]
        given = environment_of(name, self._values)
        listens = {"serve": "PORT"}.get(name, "METRICS_PORT")
        given |= {
            f"{PREFIX}DATA_DIR": str(self._here / name), f"{PREFIX}HOST": "127.0.0.1",
            f"{PREFIX}{listens}": str(self.ports.get(name, 0)),
            f"{PREFIX}RAZORPAY_BASE_URL": f"{self._bank.url}/v1",
            f"{PREFIX}SAFE_BROWSING_URL": f"{self._bank.url}/safebrowsing/v4/threatMatches:find",
            f"{PREFIX}POLL_INTERVAL": "500ms", f"{PREFIX}TIMEZONE": NOON_ZONE,
            "OTEL_SDK_DISABLED": "true",
        }  # fmt: skip
        (self._here / name).mkdir(exist_ok=True)
        self._running[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", *container["args"],
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)} | given,
        )  # fmt: skip
        return self._running[name]

    async def passes(self, name: str, probe: str) -> bool:
        """Whether the kubelet's question is answered with 2xx."""
        path = CONTAINERS[name][0][probe]["httpGet"]["path"]
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                return (await client.get(f"http://127.0.0.1:{self.ports[name]}{path}")).is_success
        except httpx.TransportError:
            return False

    async def stop(self, name: str) -> int:
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(process.wait(), DRAIN_MAX_S)

    async def kill(self) -> None:
        for process in self._running.values():
            await killed(process)


@asynccontextmanager
async def pods(here: Path, redis_url: str, dsn: str) -> AsyncIterator[tuple[Pods, Sandbox]]:
    with_role = "&role=" if "?" in dsn else "?role="
    async with AsyncExitStack() as stack:
        hook = free_port()
        bank = await stack.enter_async_context(
            running_sandbox(
                account_id=SETTINGS[f"{PREFIX}RAZORPAY_ACCOUNT_ID"], processing_s=0.02, utr_s=0.02,
                webhook_url=f"http://127.0.0.1:{hook}/webhooks/razorpay", webhook_retry_base_s=0.5,
            )
        )  # fmt: skip
        values = plainly(*(SECRETS.keys() - MAY_BE_ABSENT)) | {
            "streamproc-stores": {"REDIS_URL": redis_url, "POSTGRES_DSN": f"{dsn}{with_role}streamproc_reader"},
            "streamproc-archive": {"REDIS_URL": redis_url, "POSTGRES_DSN": f"{dsn}{with_role}streamproc_projector"},
            "streamproc-owner": {"REDIS_URL": redis_url, "POSTGRES_DSN": dsn},
            "streamproc-webhooks": {"RAZORPAY_WEBHOOK_SECRETS": bank.config.webhook_secret},
            "streamproc-bank": {
                "RAZORPAY_KEY_ID": bank.config.key_id, "RAZORPAY_KEY_SECRET": bank.config.key_secret,
            },
            "streamproc-approvals": {"RAZORPAY_OAUTH_TOKEN": bank.config.oauth_token},
        }  # fmt: skip
        made = Pods(here, bank, values)
        made.ports["serve"] = hook
        stack.push_async_callback(made.kill)
        yield made, bank


@pytest.mark.embedded
async def test_each_role_runs_by_its_pods_variables_and_a_payout_gets_through_all_of_them(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with pods(tmp_path, redis_url, postgres) as (running, bank):
        migrate = await running.start("migrate")
        assert await asyncio.wait_for(migrate.wait(), START_MAX_S) == 0
        for name in ROLES:
            await running.start(name)
        for name in ROLES:
            for probe in {"livenessProbe", "readinessProbe"} & CONTAINERS[name][0].keys():
                asked = partial(running.passes, name, probe)
                await until(asked, what=f"{name}: {probe}", deadline_s=START_MAX_S)
        async with Redis.from_url(redis_url) as redis:
            await apply_policies(redis, POLICIES)
        payout = (await bank.pay(250_000, notes={"agent_id": "bot"}))["id"]
        pool = await asyncpg.create_pool(postgres, min_size=0, max_size=1)

        async def paid() -> bool:
            try:
                record = await payout_view(pool, payout)
            except TryAgain:
                return False
            return record is not None and record.state == "processed"

        await until(paid, what="it is decided, executed and archived", deadline_s=STEP_MAX_S)
        await pool.close()
        assert [await running.stop(name) for name in ROLES] == [0, 0, 0, 0]

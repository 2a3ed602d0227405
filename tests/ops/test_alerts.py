"""Alerts and dashboards ask for what the code really exports, and each alert has its test and its page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from streamproc.telemetry.metrics import Meters

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "ops" / "prometheus"
DASHBOARDS = sorted((ROOT / "ops" / "grafana" / "dashboards").glob("*.json"))
OTHERS = {"process_resident_memory_bytes", "process_start_time_seconds", "up"}
NOT_TOLD = "is in no table of docs/telemetry.md"
PROMTOOL = shutil.which("promtool")
NAME = re.compile(r"\bup\b|\b(?:streamproc|process)_[a-z_]+|\b[a-z_]+:[a-z_]+:[a-z0-9_]+")


def rules(file: str) -> list[dict[str, str]]:
    """The rules of a file."""
    read = yaml.safe_load((PROMETHEUS / file).read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    """Names that docs/telemetry.md tells of, which tests/journeys/test_metrics.py compares with a real page."""
    text = (ROOT / "docs" / "telemetry.md").read_text()
    names = set(re.findall(r"`(streamproc_[a-z_]+)`", text))
    return names | {f"{name}{end}" for name in names for end in ("_bucket", "_count", "_sum")} | OTHERS


def asked(expression: str) -> set[str]:
    """The metrics in an expression, without what stands in quotes or in the braces of a legend."""
    return set(NAME.findall(re.sub(r'"[^"]*"', "", expression)))


def alerts() -> set[str]:
    return {rule["alert"] for rule in rules("alerts.yml")}


def test_every_rule_asks_for_what_is_exported_or_recorded() -> None:
    known = exported() | {rule["record"] for rule in rules("rules.yml")}
    for rule in (*rules("rules.yml"), *rules("alerts.yml")):
        assert asked(rule["expr"]), rule
        unknown = asked(rule["expr"]) - known
        assert not unknown, f"{rule.get('alert') or rule['record']}: {unknown} {NOT_TOLD}"


def test_a_quantile_is_compared_with_a_bound_of_its_histogram() -> None:
    """Between two bounds a quantile is a guess."""
    registry = CollectorRegistry()
    Meters(registry).decision_seconds.labels("APPROVED")
    bounds = {
        (sample.name, float(sample.labels["le"]))
        for metric in registry.collect()
        for sample in metric.samples
        if "le" in sample.labels
    }
    histograms = {
        rule["record"]: bucket[0]
        for rule in rules("rules.yml")
        if (bucket := re.findall(r"[a-z_]+_bucket", rule["expr"]))
    }
    compared = {
        (histograms[name], float(limit))
        for rule in rules("alerts.yml")
        for name, limit in re.findall(r"([a-z_]+:[a-z_]+:[a-z0-9_]+) > ([0-9.]+)", rule["expr"])
        if name in histograms
    }
    assert len(compared) == len(histograms) == 2
    assert compared <= bounds


def test_nothing_is_recorded_that_no_alert_asks_for() -> None:
    recorded = {rule["record"] for rule in rules("rules.yml")}
    assert recorded <= {name for rule in rules("alerts.yml") for name in asked(rule["expr"])}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_dashboard_asks_for_what_is_exported(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["panels"]
    for panel in dashboard["panels"]:
        assert panel["description"]
        for target in panel["targets"]:
            if target["datasource"]["type"] != "prometheus":
                continue
            assert asked(target["expr"]), panel["title"]
            unknown = asked(target["expr"]) - exported()
            assert not unknown, f"{panel['title']}: {unknown} {NOT_TOLD}"


def prometheus_targets() -> list[tuple[str, str, str]]:
    """Title, expression and legend of what the panels of all dashboards ask Prometheus."""
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in panels
        for target in panel["targets"]
        if target["datasource"]["type"] == "prometheus"
    ]


def test_a_query_of_a_dashboard_tells_machines_apart_and_asks_for_our_processes_and_its_group_alone() -> None:
    of_processes = 0
    for title, expression, legend in prometheus_targets():
        if "process" in re.findall(r"\w+", "".join(re.findall(r"by \(([^)]*)\)", expression)) + legend):
            of_processes += 1
            assert "{{instance}}" in legend, title
            assert " by (" not in expression or "by (instance, " in expression, title
        if asked(expression) & OTHERS:
            assert 'job="streamproc"' in expression, title
        if "governance" in title:
            assert 'group="governance"' in expression, title
    assert of_processes == 3


def test_a_single_number_is_that_of_this_moment_and_not_the_last_before_a_store_went_away() -> None:
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    single = [target for panel in panels if panel["type"] == "stat" for target in panel["targets"]]
    assert len(single) == 5
    assert all(target["instant"] and not target["range"] for target in single)


def test_amounts_are_shown_in_rupees_which_is_what_people_read() -> None:
    amounts = 0
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for expression in (target.get("expr", "") for target in panel["targets"]):
                in_paise, unit = "_paise" in expression, panel.get("fieldConfig", {})["defaults"].get("unit")
                assert (unit == "currencyINR") is in_paise, panel["title"]
                assert expression.endswith(" / 100") is in_paise, panel["title"]
                amounts += in_paise
    assert amounts == 3


def test_the_journey_is_a_trace_that_is_named_by_the_id_that_explain_shows() -> None:
    journey = json.loads((ROOT / "ops" / "grafana" / "dashboards" / "journey.json").read_text())
    asked_for = {one["name"] for one in journey["templating"]["list"]}
    [target] = [t for panel in journey["panels"] if panel["type"] == "traces" for t in panel["targets"]]
    assert target["datasource"] == {"type": "tempo", "uid": "${traces}"}
    assert target["query"] == "${trace}"
    assert asked_for == {"datasource", "traces", "trace"}


def test_each_alert_has_a_case_that_fires_it_one_that_does_not_and_a_section_of_the_runbook() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fires, quiet = set(), set()
    for case in cases:
        for one in case["alert_rule_test"]:
            (fires if one["exp_alerts"] else quiet).add(one["alertname"])
    for cased, what in ((fires, "fires it"), (quiet, "does not")):
        wrong = cased ^ alerts()
        assert not wrong, f"{wrong}: in ops/prometheus/alerts_test.yml one case that {what}, of each alert"
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M))
    assert sections == alerts(), f"one section of docs/runbook.md for each alert: {sections ^ alerts()}"
    for rule in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not there: the rules are read by nobody who knows PromQL"
)
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yml", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=["check", "test"],
)
def test_prometheus_itself_takes_the_rules_and_they_fire_when_they_should(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

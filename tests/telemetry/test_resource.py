"""Who tells of spans and numbers: the environment's word is taken, and ours where it says nothing."""

import pytest

from streamproc import __version__
from streamproc.telemetry.otlp_metrics import Exporter
from streamproc.telemetry.otlp_traces import open_tracer, resource_of


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said by the environment of the tests."""
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)


@pytest.mark.parametrize(
    ("name", "attributes", "told"),
    [
        ("", "", "streamproc"),
        ("payouts", "", "payouts"),
        ("", "service.name=payouts", "payouts"),
        ("payouts", "service.name=other", "payouts"),
        ("", "service.name=", "streamproc"),
        ("", "deployment.environment.name=live , service.name = payouts", "payouts"),
    ],
)
def test_the_service_is_called_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, name: str, attributes: str, told: str
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    assert resource_of("worker").attributes["service.name"] == told


def test_an_instance_and_a_version_that_are_given_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"service.instance.id": "host:worker-1"}
    assert resource_of("worker", own).attributes["service.instance.id"] == "host:worker-1"
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,service.version=9.9,streamproc.role=x"
    )
    told = resource_of("worker", own).attributes
    assert told["service.instance.id"] == "pod-7"
    assert told["service.version"] == "9.9" != __version__
    assert told["streamproc.role"] == "worker"
    assert told["telemetry.sdk.language"] == "python"


@pytest.mark.parametrize("name", ["worker-1", "worker"])
def test_spans_and_numbers_of_a_process_name_the_same_instance(name: str) -> None:
    tracer, numbers = open_tracer("worker", name), Exporter("worker", name)
    told = [one._resource.attributes["service.instance.id"] for one in (tracer, numbers)]
    tracer.close()
    numbers.close()
    assert told[0] == told[1]

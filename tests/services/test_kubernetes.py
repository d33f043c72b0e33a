"""The manifests in deploy/kubernetes fit the code: no cluster runs here, so their words are compared with ours."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml

from amqpjobs.beat.beat import LAST_WORDS
from amqpjobs.cli import COMMANDS
from amqpjobs.health.endpoint import is_loopback
from amqpjobs.settings import Settings, load_settings, place_of
from amqpjobs.topology import Topology
from services.email.settings import EmailSettings
from tests.services.test_compose import settings_named

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
Document = dict[str, Any]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def documents() -> Iterator[Document]:
    for file in sorted(FOLDER.glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text())


EVERY = list(documents())
DEPLOYMENTS = [each for each in EVERY if each["kind"] == "Deployment"]
deployments = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["metadata"]["name"])


def of_kind(kind: str) -> Document:
    (found,) = (each for each in EVERY if each["kind"] == kind)
    return found


def pod_of(deployment: Document) -> Document:
    return cast("Document", deployment["spec"]["template"]["spec"])


def container_of(deployment: Document) -> Document:
    (found,) = pod_of(deployment)["containers"]
    return cast("Document", found)


def environment_of(deployment: Document) -> dict[str, Any]:
    """What is written there, or the reference to a secret."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container_of(deployment)["env"]}


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    program, verb, *rest = words
    assert (program, verb in COMMANDS) == ("amqpjobs", True)
    return cast("click.Command", import_module(f"amqpjobs.cli.{verb}").command), rest


def test_there_are_workers_beats_their_secret_and_their_scaling() -> None:
    kinds = sorted(each["kind"] for each in EVERY)

    assert kinds == ["Deployment", "Deployment", "ScaledObject", "Secret", "TriggerAuthentication"]
    assert all(each["apiVersion"] and each["metadata"]["name"] for each in EVERY)


@deployments
def test_a_deployment_selects_its_own_pods(deployment: Document) -> None:
    spec = deployment["spec"]

    assert deployment["apiVersion"] == "apps/v1"
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@deployments
def test_it_runs_a_command_of_ours_on_a_target_that_imports(deployment: Document) -> None:
    command, (target,) = command_of(container_of(deployment)["command"])

    command.make_context("command", [target])
    assert import_module(f"{target}.app").app


@deployments
def test_its_environment_is_known_and_accepted(deployment: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(deployment)
    for name, value in environment.items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)

    assert set(environment) <= settings_named("AMQPJOBS_", Settings) | settings_named("EMAIL_", EmailSettings)
    assert load_settings().health == environment["AMQPJOBS_HEALTH"]
    assert EmailSettings().smtp_url or "EMAIL_SMTP_URL" not in environment


@deployments
def test_what_is_secret_is_in_the_secret_and_nowhere_else(deployment: Document) -> None:
    secret, environment = of_kind("Secret"), environment_of(deployment)
    references = [each["secretKeyRef"] for each in environment.values() if not isinstance(each, str)]

    assert isinstance(environment["AMQPJOBS_URL"], dict)
    assert {each["name"] for each in references} == {secret["metadata"]["name"]}
    assert {each["key"] for each in references} <= set(secret["stringData"])


@deployments
def test_what_is_reached_from_outside_of_the_pod_has_a_token(deployment: Document) -> None:
    host, port = place_of(environment_of(deployment)["AMQPJOBS_HEALTH"])
    ports = [each["containerPort"] for each in container_of(deployment).get("ports", [])]

    assert is_loopback(host) or "AMQPJOBS_HEALTH_TOKEN" in environment_of(deployment)
    assert ports == ([] if is_loopback(host) else [port])


def test_the_token_of_the_example_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_HEALTH_TOKEN", of_kind("Secret")["stringData"]["health-token"])

    assert load_settings().health_token


@deployments
@pytest.mark.parametrize("name", PROBES)
def test_each_probe_asks_what_it_should_and_can_be_answered(deployment: Document, name: str) -> None:
    container = container_of(deployment)
    probe, is_live = container[name], name != "readinessProbe"

    assert set(probe) & {"exec", "httpGet"}
    if "exec" in probe:
        command, rest = command_of(probe["exec"]["command"])
        assert command.make_context("status", rest).params["live"] is is_live
    else:
        assert probe["httpGet"]["path"] == ("/livez" if is_live else "/readyz")
        assert probe["httpGet"]["port"] in [each["name"] for each in container["ports"]]


@deployments
def test_a_probe_waits_longer_than_an_answer_takes_and_one_failure_is_none(deployment: Document) -> None:
    for name in PROBES[1:]:
        probe = container_of(deployment)[name]

        assert probe["timeoutSeconds"] >= 5
        assert probe["failureThreshold"] >= 2
    live = container_of(deployment)["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 60


def test_a_worker_gets_more_time_to_stop_than_it_takes() -> None:
    worker = DEPLOYMENTS[[each["metadata"]["name"] for each in DEPLOYMENTS].index("email-worker")]
    grace = float(environment_of(worker)["AMQPJOBS_GRACE"])

    assert grace == load_settings().grace
    # Beside its grace, a worker has 5 s each to end its consumers, what was cut short, and its settling.
    assert pod_of(worker)["terminationGracePeriodSeconds"] >= grace + 15


def test_a_beat_gets_more_time_to_stop_than_it_takes() -> None:
    beat = DEPLOYMENTS[[each["metadata"]["name"] for each in DEPLOYMENTS].index("reports-beat")]

    assert beat["spec"]["replicas"] == 2
    assert pod_of(beat)["terminationGracePeriodSeconds"] >= LAST_WORDS + 5


@deployments
def test_it_may_do_no_more_than_it_needs(deployment: Document) -> None:
    pod, container = pod_of(deployment), container_of(deployment)

    assert pod["securityContext"]["runAsNonRoot"]
    assert f"--uid {pod['securityContext']['runAsUser']} " in (ROOT / "deploy/Dockerfile").read_text()
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}


def test_the_scaling_counts_what_waits_and_what_runs_in_the_queue_of_the_workers() -> None:
    spec, settings = of_kind("ScaledObject")["spec"], load_settings()
    (trigger,) = spec["triggers"]
    metadata = trigger["metadata"]

    assert spec["scaleTargetRef"]["name"] in [each["metadata"]["name"] for each in DEPLOYMENTS]
    assert metadata["queueName"] == Topology(settings.namespace).work_queue("email")
    assert (metadata["protocol"], metadata["mode"]) == ("http", "QueueLength")
    assert metadata["excludeUnacknowledged"] == "false"
    assert float(metadata["value"]) > settings.concurrency
    assert all(isinstance(each, str) for each in metadata.values())
    assert 0 < spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_the_scaler_finds_its_login_in_the_secret() -> None:
    authentication, secret = of_kind("TriggerAuthentication"), of_kind("Secret")
    (reference,) = authentication["spec"]["secretTargetRef"]
    (trigger,) = of_kind("ScaledObject")["spec"]["triggers"]

    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert (reference["parameter"], reference["name"]) == ("host", secret["metadata"]["name"])
    assert secret["stringData"][reference["key"]].startswith("http")

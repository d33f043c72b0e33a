"""docker-compose.yml and deploy/observe.yml fit the code: no engine runs here, so their words are compared."""

import json
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from pydantic import BaseModel

from amqpjobs.cli import COMMANDS
from amqpjobs.settings import Settings, load_settings
from services.email.settings import EmailSettings
from tests.conftest import MakeNode
from tests.services.test_email_traces import exported
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.promtool import promtool
from tests.support.rabbitmq import HOST, free_ports
from tests.unit.telemetry.test_promql import unknown_in

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
#: Where our containers are reached inside the network; the images' own documentation says so.
PORTS = {
    "rabbitmq": {5672, 15672, 15692},
    "mailpit": {1025, 8025},
    "email": {8080},
    "jaeger": {4318, 16686},
    "prometheus": {9090},
    "grafana": {3000},
}


def read(file: str) -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load((ROOT / file).read_text()))


COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EMAIL = SERVICES["email"]
#: What deploy/observe.yml adds, and what it says of the email service instead.
OBSERVING: dict[str, dict[str, Any]] = read("deploy/observe.yml")["services"]
OBSERVED = EMAIL | OBSERVING["email"]
SCRAPES: dict[str, dict[str, Any]] = {
    each["job_name"]: each for each in read("deploy/prometheus/prometheus.yml")["scrape_configs"]
}
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/amqpjobs.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
#: Metrics of RabbitMQ's own that are asked for, and the family they come with.
OF_RABBITMQ = {"rabbitmq_detailed_queue_messages_ready": "queue_coarse_metrics"}


def settings_named(prefix: str, settings: type[BaseModel]) -> set[str]:
    return {f"{prefix}{field.upper()}" for field in settings.model_fields}


def test_the_worker_runs_a_target_that_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EMAIL["environment"].items():
        monkeypatch.setenv(name, value)

    program, verb, target = EMAIL["command"]

    assert (program, verb) == ("amqpjobs", "run")
    assert import_module(f"{target}.app").app.name == "email"


def test_every_variable_is_a_setting() -> None:
    known = settings_named("AMQPJOBS_", Settings) | settings_named("EMAIL_", EmailSettings)

    assert set(EMAIL["environment"]) <= known
    assert {name for name in OBSERVING["email"]["environment"] if not name.startswith("OTEL_")} <= known


def test_the_environment_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (EMAIL["environment"] | OBSERVED["environment"]).items():
        monkeypatch.setenv(name, value)

    assert load_settings().urls == [EMAIL["environment"]["AMQPJOBS_URL"]]
    assert EmailSettings().smtp_url is not None


@pytest.mark.parametrize("variable", ["AMQPJOBS_URL", "EMAIL_SMTP_URL"])
def test_every_url_names_a_service_and_its_port(variable: str) -> None:
    place = urlsplit(str(EMAIL["environment"][variable]))

    assert place.hostname in SERVICES
    assert place.port in PORTS[place.hostname]


def test_the_published_ports_are_the_services_own_and_for_this_machine_only() -> None:
    together = [*SERVICES.items(), *OBSERVING.items()]
    published = [(name, port) for name, each in together for port in each.get("ports", [])]

    assert published
    for name, port in published:
        address, _, inside = port.rpartition(":")
        assert address.startswith("127.0.0.1:")
        assert int(inside) in PORTS[name]


def test_the_worker_waits_for_services_that_say_when_they_are_ready() -> None:
    for name, needed in cast("dict[str, dict[str, str]]", EMAIL["depends_on"]).items():
        assert name in SERVICES
        assert needed["condition"] != "service_healthy" or "healthcheck" in SERVICES[name]


def test_the_worker_gets_more_time_to_stop_than_it_takes() -> None:
    seconds = float(EMAIL["stop_grace_period"].removesuffix("s"))

    # Beside its grace, a worker has 5 s each to end its consumers, what was cut short, and its settling.
    assert seconds >= load_settings().grace + 15


def test_its_health_is_asked_by_a_command_of_ours_where_it_tells_it() -> None:
    form, program, verb = EMAIL["healthcheck"]["test"]

    assert (form, program, verb in COMMANDS) == ("CMD", "amqpjobs", True)
    assert "AMQPJOBS_HEALTH" in EMAIL["environment"]


def test_the_image_is_built_of_files_that_exist() -> None:
    context = ROOT / EMAIL["build"]["context"]
    dockerfile = (context / EMAIL["build"]["dockerfile"]).read_text()

    lines = cast("list[str]", re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE))
    copied = [source for line in lines for source in line.split()]

    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = {project["readme"]} if "readme" in project else set[str]()
    assert {"pyproject.toml", "amqpjobs", "services"} | readme <= set(copied)
    assert all((context / each).exists() for each in copied)
    assert re.search(r"^USER (?!root)\w+", dockerfile, re.MULTILINE)


def test_every_named_volume_is_declared() -> None:
    mounts = [mount.split(":")[0] for each in SERVICES.values() for mount in each.get("volumes", [])]

    assert {mount for mount in mounts if not mount.startswith(("/", "."))} == set(COMPOSE["volumes"])


# With deploy/observe.yml


def test_the_observed_worker_is_the_same_one_under_the_command_of_the_docs() -> None:
    assert OBSERVED["command"] == ["opentelemetry-instrument", *EMAIL["command"]]
    assert exported().keys() <= OBSERVED["environment"].keys()
    assert OBSERVED["environment"]["OTEL_EXPORTER_OTLP_PROTOCOL"] == exported()["OTEL_EXPORTER_OTLP_PROTOCOL"]
    back_end = urlsplit(str(OBSERVED["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]))
    assert back_end.port in PORTS[str(back_end.hostname)]
    # 10 s more for a back end that is away.
    assert float(OBSERVED["stop_grace_period"].removesuffix("s")) >= load_settings().grace + 15 + 10


def test_the_image_has_what_it_takes_to_send_traces_and_to_show_metrics() -> None:
    extras: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    dockerfile = (ROOT / EMAIL["build"]["dockerfile"]).read_text()

    assert "[all]" in dockerfile
    assert {"otel", "prometheus", "email"} <= set(re.findall(r"\w+", extras["all"][0]))


def test_every_image_has_a_version() -> None:
    for name, service in OBSERVING.items():
        assert name in SERVICES or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_every_file_that_is_mounted_exists_and_cannot_be_written() -> None:
    mounts = [mount.split(":") for each in OBSERVING.values() for mount in each.get("volumes", [])]

    assert mounts
    for ours, _, mode in mounts:
        assert (ROOT / ours).is_file(), ours
        assert mode == "ro"


def test_prometheus_asks_services_that_there_are_at_their_ports() -> None:
    [lookup] = SCRAPES["email"]["dns_sd_configs"]
    [place] = SCRAPES["rabbitmq"]["static_configs"]
    rabbitmq = urlsplit(f"//{place['targets'][0]}")

    assert "SUCCESS: deploy/prometheus/prometheus.yml" in promtool(
        "check", "config", "deploy/prometheus/prometheus.yml"
    )
    assert [(name, lookup["port"]) for name in lookup["names"]] == [("email", 8080)]
    assert OBSERVED["environment"]["AMQPJOBS_HEALTH"] == "0.0.0.0:8080"
    assert (rabbitmq.hostname, rabbitmq.port) == ("rabbitmq", 15692)
    assert SCRAPES["rabbitmq"]["params"]["family"] == list(OF_RABBITMQ.values())


def test_prometheus_has_the_token() -> None:
    assert SCRAPES["email"]["authorization"]["credentials"] == OBSERVED["environment"]["AMQPJOBS_HEALTH_TOKEN"]


def test_grafana_finds_what_is_mounted_and_asks_who_is_there() -> None:
    inside = {mount.split(":")[0].removeprefix("./"): mount.split(":")[1] for mount in OBSERVING["grafana"]["volumes"]}
    [provider] = read("deploy/grafana/dashboards.yml")["providers"]
    sources = {each["uid"]: each for each in read("deploy/grafana/datasources.yml")["datasources"]}

    assert Path(inside["deploy/grafana/amqpjobs.json"]).parent == Path(provider["options"]["path"])
    for source in sources.values():
        place = urlsplit(str(source["url"]))
        assert place.hostname == source["type"]
        assert place.port in PORTS[source["type"]]
    for panel in DASHBOARD["panels"]:
        assert sources[panel["datasource"]["uid"]]["type"] == panel["datasource"]["type"] == "prometheus"


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_asks_only_for_metrics_that_there_are(title: str, query: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": [{"record": "a:panel", "expr": query}]}]}))

    assert "SUCCESS: 1 rules found" in promtool("check", "rules", rules)
    assert unknown_in(query) == set()
    assert set(re.findall(r"\brabbitmq_\w+", query)) <= OF_RABBITMQ.keys()
    assert re.search(r"\b(amqpjobs|messaging|rabbitmq)_", query)


def test_a_panel_names_labels_that_its_query_leaves() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]


def test_panels_do_not_lie_on_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]

    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)


async def test_a_rabbitmq_tells_what_the_dashboard_asks_it_for(make_node: MakeNode) -> None:
    [port] = free_ports(1)
    scrape = SCRAPES["rabbitmq"]
    node = make_node(conf=f"prometheus.tcp.ip = {HOST}\nprometheus.tcp.port = {port}")
    node.ctl("enable", "rabbitmq_prometheus", program="rabbitmq-plugins")
    async with plain_client(node.url) as broker:
        await broker.declare_queue("amqpjobs.queue.email", {"x-queue-type": "quorum"})

    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=PATIENCE) as http:

        async def tells_all() -> bool:
            text = (await http.get(scrape["metrics_path"], params=scrape["params"])).text
            named = (re.search(rf'^{name}{{.*queue="amqpjobs.queue.email"', text, re.MULTILINE) for name in OF_RABBITMQ)
            return all(named)

        await eventually(tells_all)

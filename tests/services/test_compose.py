"""docker-compose.yml fits the code: no engine runs here, so its words are compared with ours."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic_settings import BaseSettings

from amqpjobs.cli import COMMANDS
from amqpjobs.settings import Settings, load_settings
from services.email.settings import EmailSettings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
#: Where our containers are reached inside the network; the images' own documentation says so.
PORTS = {"rabbitmq": {5672, 15672}, "mailpit": {1025, 8025}}

COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EMAIL = SERVICES["email"]


def settings_named(prefix: str, settings: type[BaseSettings]) -> set[str]:
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


def test_the_environment_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EMAIL["environment"].items():
        monkeypatch.setenv(name, value)

    assert load_settings().urls == [EMAIL["environment"]["AMQPJOBS_URL"]]
    assert EmailSettings().smtp_url is not None


@pytest.mark.parametrize("variable", ["AMQPJOBS_URL", "EMAIL_SMTP_URL"])
def test_every_url_names_a_service_and_its_port(variable: str) -> None:
    place = urlsplit(str(EMAIL["environment"][variable]))

    assert place.hostname in SERVICES
    assert place.port in PORTS[place.hostname]


def test_the_published_ports_are_the_services_own_and_for_this_machine_only() -> None:
    published = [(name, port) for name, each in SERVICES.items() for port in each.get("ports", [])]

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

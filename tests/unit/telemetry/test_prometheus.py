"""The text for Prometheus. A meter provider is set once in a process, so each of these has one of its own."""

import json
import os
import subprocess
import sys

import pytest

from amqpjobs.telemetry.series import MOST_ERRORS, MOST_SERIES

BEGINNING = "from amqpjobs import exposition; from amqpjobs.errors import ExpositionError\n"


def ran(script: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGINNING + script],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_what_the_app_measures_itself_is_in_the_text() -> None:
    text = ran(
        "shown = exposition()\n"
        "from opentelemetry import metrics\n"
        'metrics.get_meter("shop").create_counter("shop.sales", "{sale}", "Sales").add(3, {"shop.town": "Bonn"})\n'
        "print(shown.text().decode())"
    )

    assert "# TYPE shop_sales_total counter" in text
    assert 'shop_sales_total{otel_scope_name="shop",' in text
    assert ',shop_town="Bonn"} 3.0' in text


def test_it_is_made_once() -> None:
    assert ran("print(exposition() is exposition(), exposition().content_type)") == (
        "True text/plain; version=0.0.4; charset=utf-8\n"
    )


def test_the_registry_of_others_is_left_alone() -> None:
    text = ran(
        "import prometheus_client\n"
        "shown = exposition()\n"
        'print(b"python_info" in shown.text(), b"target_info" in prometheus_client.generate_latest())'
    )

    assert text == "False False\n"


@pytest.mark.parametrize(
    ("environment", "given", "name"),
    [
        ({"OTEL_SERVICE_NAME": "mail"}, "'email'", "mail"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mail"}, "'email'", "mail"),
        ({}, "'email'", "email"),
        ({}, "", "unknown_service:python"),
    ],
)
def test_the_service_is_a_label_of_the_target(environment: dict[str, str], given: str, name: str) -> None:
    script = (
        f"shown = exposition({given})\n"
        "from opentelemetry import metrics\n"
        'metrics.get_meter("shop").create_counter("shop.sales").add(1)\n'
        "print(shown.text().decode())"
    )

    [line] = [line for line in ran(script, **environment).splitlines() if line.startswith("target_info")]

    assert f'service_name="{name}"' in line


def test_two_that_ask_at_once_get_a_whole_text_each() -> None:
    text = ran(
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "sys.setswitchinterval(1e-6)\n"
        "shown = exposition()\n"
        "from opentelemetry import metrics\n"
        'metrics.get_meter("shop").create_counter("shop.sales").add(1)\n'
        "with ThreadPoolExecutor(8) as pool:\n"
        "    texts = [each.result() for each in [pool.submit(shown.text) for _ in range(10_000)]]\n"
        'print({text.count(b"# TYPE shop_sales_total") for text in texts}, len(set(texts)))'
    )

    assert text == "{1} 1\n"


def test_without_the_extra_the_error_says_what_to_install() -> None:
    text = ran(
        "import sys\n"
        "sys.modules['opentelemetry.exporter.prometheus'] = None\n"
        "try: exposition()\n"
        "except ExpositionError as error: print(error)"
    )

    assert 'pip install "amqpjobs[prometheus]"' in text


def test_beside_a_provider_of_the_apps_own_it_says_what_to_do() -> None:
    text = ran(
        "from opentelemetry import metrics\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "metrics.set_meter_provider(MeterProvider())\n"
        "try: exposition()\n"
        "except ExpositionError as error: print(error)"
    )

    assert "opentelemetry.sdk.metrics.MeterProvider is set already" in text.replace("._internal", "")
    assert "PrometheusMetricReader" in text


@pytest.mark.parametrize("size", [2_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_so_many_kinds_queues_schedules_and_errors_make_a_text_of_bounded_size(size: int) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.support.crowded_app", str(size)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    for found in json.loads(child.stdout):
        assert max(found["series"].values()) <= MOST_SERIES + 10  # beyond it, sets that are `_OTHER`
        assert found["series"]["messaging_process_duration_seconds"] >= MOST_SERIES  # so the bound is met
        assert found["errors"] == MOST_ERRORS + 1
        assert found["bytes"] < 30e6
        assert found["seconds"] < 60
        assert found["gained"] < 500e6

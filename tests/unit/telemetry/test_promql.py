"""The queries of docs/metrics.md and the alerts that are shipped, as promtool sees them."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.support.promtool import METRICS, promtool

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
TESTS = ROOT / "deploy/prometheus/alerts.test.yml"
QUERIES = re.findall(r"```promql\n(.*?)```", DOCS, re.DOTALL)


def alerts() -> dict[str, str]:
    """The expression of each alert."""
    rules = cast("dict[str, Any]", yaml.safe_load(ALERTS.read_text(encoding="utf-8")))
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def unknown_in(query: str) -> set[str]:
    """Metrics and labels of ours that a query names, and that there are not."""
    attributes = DOCS.partition("| attribute | values |")[2].partition("\n\n")[0]
    labels = set(re.findall(r"`((?:amqpjobs|messaging|error)[.][a-z_.]+)`", attributes))
    known = set(METRICS) | {name.replace(".", "_") for name in labels}
    found = set(re.findall(r"\b(?:amqpjobs|messaging|error)_\w+", query))
    return {name for name in found if re.sub("_(bucket|count|sum)$", "", name) not in known}


def test_there_are_queries() -> None:
    assert len(QUERIES) > 10


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_docs_can_be_asked(query: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": [{"record": "docs:query", "expr": query}]}]}))

    assert "SUCCESS: 1 rules found" in promtool("check", "rules", rules)
    assert unknown_in(query) == set()


def test_a_query_that_cannot_be_asked_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="could not parse"):
        test_a_query_of_the_docs_can_be_asked("sum by (x", tmp_path)
    with pytest.raises(AssertionError, match="amqpjobs_job_outcomes"):
        test_a_query_of_the_docs_can_be_asked("rate(amqpjobs_job_outcomes[5m])", tmp_path)


def test_the_docs_name_each_metric_as_prometheus_does() -> None:
    assert {name for name in METRICS if f"| `{name}` |" not in DOCS} == set()


def test_the_alerts_are_rules_about_metrics_that_there_are() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", ALERTS)
    assert {name: unknown_in(query) for name, query in alerts().items() if unknown_in(query)} == {}


def test_each_alert_fires_when_it_should() -> None:
    told = cast("dict[str, Any]", yaml.safe_load(TESTS.read_text(encoding="utf-8")))
    expected = [each for test in told["tests"] for each in test["alert_rule_test"]]

    assert {each["alertname"] for each in expected if each["exp_alerts"]} == alerts().keys()
    assert "SUCCESS" in promtool("test", "rules", TESTS)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_that_never_fires_is_found(name: str, tmp_path: Path) -> None:
    rules = cast("dict[str, Any]", yaml.safe_load(ALERTS.read_text(encoding="utf-8")))
    for rule in rules["groups"][0]["rules"]:
        if rule["alert"] == name:
            rule["expr"] = f"({rule['expr']}) and vector(1) == 2"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "alerts.test.yml").write_text(TESTS.read_text(encoding="utf-8"))

    with pytest.raises(AssertionError, match=name):
        promtool("test", "rules", tmp_path / "alerts.test.yml")

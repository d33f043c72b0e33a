"""Whom `amqpjobs broker` may listen to. Nothing is started."""

import pytest
from click.testing import CliRunner

from amqpjobs.cli.broker import command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--host 0.0.0.0", "everybody knows guest's password"),
        ("--host ::", "everybody knows guest's password"),
        ("--host some.name", "everybody knows guest's password"),
        ("--host 0.0.0.0 --user dev --password guest", "everybody knows guest's password"),
        ("--host 0.0.0.0 --password topsecret", "everybody knows guest's password"),
        ("--user dev", "needs a --password"),
        ("--user dev --password -", "The password is empty"),
        ("--profile 3.9", "3.10"),
    ],
)
def test_a_broker_that_others_could_reach_needs_a_login_of_ones_own(words: str, told: str) -> None:
    result = CliRunner().invoke(command, words.split(), input="\n", env={"COLUMNS": "300"})

    assert result.exit_code == 2
    assert told in result.output
    assert "topsecret" not in result.output

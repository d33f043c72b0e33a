"""What `amqpjobs schedule` says without a broker: previews, help, and what was typed wrongly."""

import json
import shlex

import pytest
from click.testing import CliRunner

from amqpjobs import App, Job, cron, every
from amqpjobs.cli.schedule import command

TARGET = "tests.unit.cli.test_schedule"


class Sweep(Job[None], kind="sweep"):
    room: str = "hall"


app = App("sweeper")
app.schedule(every(60), job=Sweep(), name="sweep")
app.schedule(cron("0 9 * * mon-fri", timezone="Europe/Berlin"), job=Sweep(), name="mornings")


def typed(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, words)
    assert result.exit_code == code, result.output
    return result.output


def test_the_coming_instants_are_shown_in_the_zone_one_asks_for() -> None:
    shown = typed("next", TARGET, "mornings", "-n", "2", "--after", "2026-03-27T12:00", "--timezone", "Europe/Berlin")

    assert shown.splitlines() == [
        "mornings: cron 0 9 * * mon-fri Europe/Berlin",
        "  Mon 2026-03-30 09:00:00 CEST +0200",
        "  Tue 2026-03-31 09:00:00 CEST +0200",
    ]


def test_all_that_an_app_declares_is_shown_as_json_a_line_each() -> None:
    shown = typed("next", TARGET, "-n", "1", "--after", "2026-03-27T12:00", "--show-in", "Asia/Tokyo", "--json")

    assert [json.loads(line) for line in shown.splitlines()] == [
        {"name": "sweep", "schedule": "every 60 s", "next": ["2026-03-27T21:01:00+09:00"]},
        {
            "name": "mornings",
            "schedule": "cron 0 9 * * mon-fri Europe/Berlin",
            "next": ["2026-03-30T16:00:00+09:00"],
        },
    ]


def test_a_schedule_that_nobody_declared_yet_is_tried_out() -> None:
    after = ("--timezone", "Europe/Berlin", "--after", "2026-03-28T12:00")

    shown = typed("next", "--cron", "30 2 * * *", "-n", "2", *after)
    bounded = typed("next", "--every", "3600", "--from", "2026-03-28T20:00", "--until", "2026-03-28T21:30", *after)
    past = typed("next", "--at", "2026-03-28T11:00", *after)

    # The night in which clocks skip that hour.
    assert shown.splitlines()[1:] == ["  Sun 2026-03-29 03:00:00 CEST +0200", "  Mon 2026-03-30 02:30:00 CEST +0200"]
    assert bounded.splitlines()[1:] == ["  Sat 2026-03-28 20:00:00 CET +0100", "  Sat 2026-03-28 21:00:00 CET +0100"]
    assert past.splitlines()[1:] == ["  never again"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"next {TARGET} morning", "Did you mean 'mornings'?"),
        (f"next {TARGET} --show-in Mars/Base", "'Mars/Base'"),
        (f"next {TARGET} mornings more", "[TARGET] [NAME]"),
        (f"next {TARGET} --every 60", "not both"),
        ("next --every 0", "0.001 s to a hundred years"),
        ("next --at tomorrow", "'tomorrow' is no time"),
        ("pause", "Missing argument"),
        (f"pause {TARGET} sweep more", "Say [TARGET] NAME"),
        (f"add {TARGET} kitchen", "Name a TARGET, as in"),
        (f"add {TARGET} kitchen sweep", "When? Say --cron"),
        (f"add {TARGET} kitchen sweep --every 1 --at 2030-01-01", "Say one of --cron, --every and --at"),
        (f"add {TARGET} kitchen sweep --cron '0 0 31 2 *'", "can never fire"),
        (f"add {TARGET} kitchen swoop --every 1", "No job class of kind 'swoop'"),
        (f"add {TARGET} kitchen sweep rom=1 --every 1", "has no field 'rom'"),
        (f"add {TARGET} kitchen sweep {{}} {{}} --every 1", "Say [TARGET] NAME KIND"),
        (f"add {TARGET} kitchen sweep {{ --every 1", "is no JSON"),
    ],
)
def test_what_was_typed_wrongly_is_told(words: str, told: str) -> None:
    text = typed(*shlex.split(words), code=2)

    assert told in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("name", ["ls", "next", "trigger", "pause", "resume", "add", "remove"])
def test_each_command_shows_how_it_is_used(name: str) -> None:
    assert f"amqpjobs schedule {name} services.reports" in typed(name, "--help")

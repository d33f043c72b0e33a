"""The reports service: a year of it in virtual time, and once as a user runs it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import aio_pika
import pytest

from amqpjobs import App
from amqpjobs.outcome import Completed, Outcome
from amqpjobs.testing import Harness
from services.reports.holidays import easter, is_holiday
from services.reports.jobs import CleanUp, RecordSale, Report, WriteReport
from tests.support.broker import PATIENCE
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YEAR = datetime(2026, 1, 1, tzinfo=BERLIN)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("REPORTS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REPORTS_FOLDER", str(tmp_path / "reports"))
    monkeypatch.setenv("REPORTS_STORE", str(tmp_path / "reports.sqlite"))


def harness(*, start: datetime = NEW_YEAR, beats: bool = True) -> Harness[Any]:
    """The service as a fresh process would have it: the app reads its environment when imported."""
    sys.modules.pop("services.reports.app", None)
    app = cast("App[Any]", import_module("services.reports.app").app)
    return Harness(app, start=start.astimezone(UTC), beats=beats)


def sale(day: datetime, *, item: str = "tea", cents: int = 450) -> RecordSale:
    return RecordSale(item=item, cents=cents, at=day)


def reports(outcomes: list[Outcome]) -> list[Report]:
    return [cast("Report", each.result) for each in outcomes if isinstance(each, Completed)]


def working_days(first: date, count: int) -> list[date]:
    days = [first + timedelta(days=n) for n in range(count)]
    return [day for day in days if day.weekday() < 5 and not is_holiday(day)]


# A year


async def test_a_year_has_a_report_for_each_working_day_and_a_clean_up_each_night(tmp_path: Path) -> None:
    async with harness() as service:
        await service.advance(days=365)

        days = [report.day for report in reports(service.outcomes(WriteReport))]
        assert days == working_days(date(2026, 1, 1), 365)
        assert len(service.outcomes(CleanUp)) == 365
    kept = sorted(file.stem for file in (tmp_path / "reports").iterdir())
    assert kept == [day.isoformat() for day in days if day >= date(2026, 12, 31) - timedelta(days=90)]


async def test_each_sale_stands_in_one_report_also_those_of_weekends_and_holidays() -> None:
    async with harness(start=datetime(2026, 4, 1, tzinfo=BERLIN)) as service:
        for day in range(1, 15):
            await service.app.enqueue(sale(datetime(2026, 4, day, 12, tzinfo=BERLIN)))
        await service.advance(days=14)

        counts = {f"{report.day:%d}": report.sales for report in reports(service.outcomes(WriteReport))}
    # From Good Friday, the 3rd, to Easter Monday nobody reads reports.
    expected = {"01": 0, "02": 1, "07": 5, "08": 1, "09": 1, "10": 1, "13": 3, "14": 1}
    assert counts == expected


async def test_it_is_seven_in_the_morning_in_berlin_on_the_days_after_clocks_change() -> None:
    times = set[str]()
    for start in (datetime(2026, 3, 27, tzinfo=BERLIN), datetime(2026, 10, 23, tzinfo=BERLIN)):
        async with harness(start=start) as service:
            for _ in range(6 * 24):
                before = len(service.outcomes(WriteReport))
                await service.advance(hours=1)
                if len(service.outcomes(WriteReport)) > before:
                    times.add(f"{service.clock.now().astimezone(BERLIN):%H:%M}")

    assert times == {"07:00"}


async def test_reports_that_were_missed_are_written_for_their_days_and_one_clean_up_is_enough() -> None:
    async with harness(start=datetime(2026, 6, 1, tzinfo=BERLIN), beats=False) as service:
        async with service.beat():
            await service.advance(hours=12)
        for day in range(1, 12):
            await service.app.enqueue(sale(datetime(2026, 6, day, 12, tzinfo=BERLIN)), delay=timedelta(days=day))
        await service.advance(days=11)
        before = len(service.outcomes(CleanUp))
        async with service.beat():
            pass

        written = {f"{report.day:%d}": report.sales for report in reports(service.outcomes(WriteReport))}
        assert len(service.outcomes(CleanUp)) - before == 1
    assert written == {"01": 0, "02": 1, "03": 1, "04": 1, "05": 1, "08": 3, "09": 1, "10": 1, "11": 1, "12": 1}


async def test_what_runs_twice_counts_once(tmp_path: Path) -> None:
    async with harness(start=datetime(2026, 6, 2, tzinfo=BERLIN), beats=False) as service:
        monday = datetime(2026, 6, 1, 12, tzinfo=BERLIN)
        for _ in range(2):
            await service.app.enqueue(sale(monday), job_id="sale-1")
        await service.app.enqueue(sale(monday, item="biscuits", cents=99))
        await service.drain()
        for _ in range(2):
            await service.app.enqueue(WriteReport())
            await service.drain()

        assert reports(service.outcomes(WriteReport)) == [Report(day=date(2026, 6, 2), sales=2, cents=549)] * 2
    text = (tmp_path / "reports" / "2026-06-02.txt").read_text()
    assert [line.split() for line in text.splitlines()] == [
        ["Sold", "before", "Tuesday,", "02", "June", "2026"],
        [],
        ["biscuits", "1", "0.99"],
        ["tea", "1", "4.50"],
        ["in", "all", "2", "5.49"],
    ]


@pytest.mark.parametrize(
    ("year", "day"),
    [(1961, (4, 2)), (2000, (4, 23)), (2008, (3, 23)), (2026, (4, 5)), (2038, (4, 25)), (2049, (4, 18))],
)
def test_easter(year: int, day: tuple[int, int]) -> None:
    assert easter(year) == date(year, *day)


# As a user runs it


async def test_the_service_runs_with_a_beat_and_writes_a_report(url: str, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AMQPJOBS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    environment = clean | {"PATH": path, "AMQPJOBS_URL": url, "AMQPJOBS_LOG_FORMAT": "json"}
    environment |= {"AMQPJOBS_ENQUEUE_TIMEOUT": str(PATIENCE)}

    def send(*words: str) -> None:
        command = ["amqpjobs", "send", "services.reports", *words]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    try:
        with Terminal("amqpjobs run services.reports --beat", ROOT, environment) as terminal:
            assert await asyncio.to_thread(terminal.shows, '"the beat leads"'), terminal.text
            await asyncio.to_thread(send, "reports.sale", "item=tea", "cents=450", "at=2026-06-01T10:00:00Z")
            assert await asyncio.to_thread(terminal.shows, '"completed"'), terminal.text
            await asyncio.to_thread(send, "reports.daily", "day=2026-06-02")
            assert await asyncio.to_thread(terminal.shows, "1 sales, 4.50 in all"), terminal.text
            terminal.signal(signal.SIGTERM)
            assert await asyncio.to_thread(terminal.end) == 0
    finally:
        await _sweep(url)

    assert "tea" in (tmp_path / "reports" / "2026-06-02.txt").read_text()


def test_check_shows_its_schedules() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    ran = subprocess.run(
        ["amqpjobs", "check", "services.reports", "--no-broker", "--json"],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )

    assert {each["name"] for each in json.loads(ran.stdout)[0]["schedules"]} == {"reports.daily", "reports.clean_up"}


async def _sweep(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in ("queue.reports", "dead.reports", "beat.lease.v1.reports", "beat.register.v1.reports"):
            await channel.queue_delete(f"amqpjobs.{queue}")

"""The reports service: what was sold, each working day in the morning, and the oldest thrown away each night."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from amqpjobs import App, JobContext, cron
from services.reports.holidays import is_holiday
from services.reports.jobs import CleanUp, RecordSale, Report, WriteReport
from services.reports.settings import ReportsSettings
from services.reports.store import Line, Store

settings = ReportsSettings()
zone = ZoneInfo(settings.timezone)

mornings = cron(settings.daily, timezone=settings.timezone).except_on(is_holiday)
nights = cron(settings.clean_up, timezone=settings.timezone)


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Store]:
    """Around a worker's life: one open file."""
    store = Store(settings.store)
    try:
        yield store
    finally:
        store.close()


app = App("reports", lifespan=lifespan)


@app.handler(RecordSale)
async def record_sale(job: RecordSale, ctx: JobContext[Store]) -> None:
    ctx.state.add(ctx.job_id, job.at.astimezone(zone).date(), job.item, job.cents)


# Each day has a report of its own, so all that were missed are written, and a month of them at most.
@app.schedule(mornings, job=WriteReport(), misfire="all", limit=31)
@app.handler(WriteReport)
async def write_report(job: WriteReport, ctx: JobContext[Store]) -> Report:
    day = job.day or _day_of(ctx)
    lines = ctx.state.report(day)
    report = Report(day=day, sales=sum(line.sales for line in lines), cents=sum(line.cents for line in lines))
    _write(settings.folder / f"{day}.txt", _text(report, lines))
    ctx.log.info("%d sales, %.2f in all", report.sales, report.cents / 100)
    return report


# One clean-up makes up for all that were missed, so only the latest is; and it is for the night: never by day.
@app.schedule(nights, job=CleanUp(), misfire="once", expires=timedelta(hours=4))
@app.handler(CleanUp)
async def clean_up(job: CleanUp, ctx: JobContext[Store]) -> int:
    before = _today() - timedelta(days=settings.keep)
    old = [file for file in settings.folder.glob("????-??-??.txt") if file.stem < before.isoformat()]
    for file in old:
        file.unlink(missing_ok=True)
    ctx.state.forget(before)
    return len(old)


def _day_of(ctx: JobContext[Store]) -> date:
    """Of the tick's instant: a report that comes late is still that of its day."""
    if ctx.envelope.schedule is None:
        return _today()
    return datetime.fromisoformat(ctx.job_id.rpartition("@")[2]).astimezone(zone).date()


def _today() -> date:
    return app.clock.now().astimezone(zone).date()


def _text(report: Report, lines: Sequence[Line]) -> str:
    rows = [f"{line.item:<30} {line.sales:>6} {line.cents / 100:>12.2f}" for line in lines]
    total = f"{'in all':<30} {report.sales:>6} {report.cents / 100:>12.2f}"
    return "\n".join([f"Sold before {report.day:%A, %d %B %Y}", "", *rows, total, ""])


def _write(file: Path, text: str) -> None:
    """A second run writes the same file again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")

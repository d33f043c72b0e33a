"""Log lines: code emits an event, and the line is written here. One line per fact.

On a terminal a line is for a person; elsewhere it is one JSON object, its fields beside the
text. Whatever comes from the wire loses its control characters first: a kind or an error
text must not move a terminal's cursor or forge a line.
"""

import logging
import sys
from datetime import UTC, datetime

from amqpjobs.codec import dumps, traceback_of, words_of
from amqpjobs.envelope import Envelope
from amqpjobs.events import (
    BeatDeposed,
    BeatLeading,
    BeatStarted,
    ClockWentBack,
    ConnectionBlocked,
    ConnectionLost,
    ConnectionOpened,
    ConnectionUnblocked,
    Events,
    JobDropped,
    JobEnded,
    JobEnqueued,
    JobParked,
    JobStarted,
    LimitReached,
    MailboxFailed,
    MessageDied,
    ParkedReleased,
    ProcessEnded,
    ProcessStarted,
    Reloaded,
    Reloading,
    ReplyDropped,
    ReplyUndelivered,
    RunNotTold,
    RunPresumedOver,
    ScheduleChanged,
    ScheduleFailed,
    ScheduleLeftOut,
    ScheduleRefused,
    SettleFailed,
    ShardGivenUp,
    StateNotKept,
    SupervisorStopping,
    TickDropped,
    TickFailed,
    TickFound,
    TicksOverlapped,
    TicksSkipped,
    TickWaiting,
    TopologyDrifted,
    WorkerStarted,
    WorkerStopped,
    WorkerStopping,
)
from amqpjobs.outcome import Cancelled, Completed, Dead, Expired, Outcome, Retrying, Returned, Snoozed
from amqpjobs.settings import Settings, log_level_number, wants_readable_logs

_log = logging.getLogger("amqpjobs")
#: What a LogRecord has by itself; all else came as a field.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m", "DEBUG": "\x1b[2m"}
#: Names that one line shows.
_SHOWN = 20
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
#: The name of handlers that write our lines, or hand those of a child to its worker.
OURS = "amqpjobs"


def set_up_logging(settings: Settings, *, worker: int | None = None) -> None:
    """Send all log lines of this process to stderr, in the form the settings say.

    `worker` is this process's number among those of a supervisor, and stands in each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.name = OURS
    if worker is not None:
        handler.addFilter(_Numbering(worker))
    readable = wants_readable_logs(settings.log_format)
    handler.setFormatter(ReadableFormatter(colour=sys.stderr.isatty()) if readable else JsonFormatter())
    logging.basicConfig(level=log_level_number(settings.log_level), handlers=[handler], force=True)
    quiet_libraries()


def quiet_libraries() -> None:
    """The client library logs each failed connect and each close, with tracebacks; we tell them once.

    What watches files counts what changed; we name it.
    """
    for name in ("aiormq", "aio_pika", "watchfiles"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def add_to_lines(fields: logging.Filter) -> None:
    """Let it add its fields to all lines that we write, here and from now on in the lines of our children."""
    for handler in logging.getLogger().handlers:
        if handler.name == OURS and not any(type(each) is type(fields) for each in handler.filters):
            handler.addFilter(fields)


def log_events(events: Events) -> None:
    """Write a line for each event worth one."""
    events.subscribe(JobEnqueued, _enqueued)
    events.subscribe(JobParked, _parked)
    events.subscribe(JobDropped, _dropped)
    if _log.isEnabledFor(logging.DEBUG):
        events.subscribe(JobStarted, _started)
    events.subscribe(JobEnded, _ended)
    events.subscribe(MessageDied, _died)
    events.subscribe(SettleFailed, _settle_failed)
    events.subscribe(ReplyUndelivered, _reply_undelivered)
    events.subscribe(MailboxFailed, _mailbox_failed)
    events.subscribe(ReplyDropped, _reply_dropped)
    events.subscribe(ConnectionOpened, _opened)
    events.subscribe(ConnectionLost, _lost)
    events.subscribe(ConnectionBlocked, _blocked)
    events.subscribe(ConnectionUnblocked, _unblocked)
    events.subscribe(TopologyDrifted, _drifted)
    events.subscribe(ParkedReleased, _released)
    events.subscribe(ShardGivenUp, _given_up)
    events.subscribe(WorkerStarted, _worker_started)
    events.subscribe(WorkerStopping, _worker_stopping)
    events.subscribe(WorkerStopped, _worker_stopped)
    events.subscribe(LimitReached, _limit_reached)
    events.subscribe(ProcessStarted, _process_started)
    events.subscribe(ProcessEnded, _process_ended)
    events.subscribe(Reloading, _reloading)
    events.subscribe(Reloaded, _reloaded)
    events.subscribe(SupervisorStopping, _supervisor_stopping)
    events.subscribe(BeatStarted, _beat_started)
    events.subscribe(BeatLeading, _beat_leading)
    events.subscribe(BeatDeposed, _beat_deposed)
    events.subscribe(TickFailed, _tick_failed)
    events.subscribe(TicksSkipped, _ticks_skipped)
    events.subscribe(TicksOverlapped, _ticks_overlapped)
    events.subscribe(TickWaiting, _tick_waiting)
    events.subscribe(TickFound, _tick_found)
    events.subscribe(RunPresumedOver, _run_presumed_over)
    events.subscribe(TickDropped, _tick_dropped)
    events.subscribe(RunNotTold, _run_not_told)
    events.subscribe(ScheduleFailed, _schedule_failed)
    events.subscribe(ScheduleChanged, _schedule_changed)
    events.subscribe(ScheduleRefused, _schedule_refused)
    events.subscribe(ScheduleLeftOut, _schedule_left_out)
    events.subscribe(ClockWentBack, _clock_went_back)
    events.subscribe(StateNotKept, _state_not_kept)


def printable(text: str) -> str:
    """Text from the wire without control characters: line breaks and terminal escapes among them."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


class ReadableFormatter(logging.Formatter):
    """`12:30:01.250 INFO  completed  kind=email.send job_id=… attempt=1`, a traceback below."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname:<7} {printable(record.getMessage())}"
        if self._colour:
            line = f"{_COLOURS.get(record.levelname, '')}{line}{_PLAIN}"
            fields = f"{_DIM}{fields}{_PLAIN}" if fields else ""
        trace = _trace(record)
        return "  ".join(part for part in (line, fields) if part) + (f"\n{_keep_lines(trace)}" if trace else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        trace = _trace(record)
        if trace:
            line["traceback"] = trace
        return dumps(line).decode()


class _Numbering(logging.Filter):
    """Says which of several processes writes a line."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}


def _shown(value: object) -> str:
    text = printable(f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value))
    return f'"{text}"' if " " in text or not text else text


def _trace(record: logging.LogRecord) -> str:
    return traceback_of(record.exc_info[1]) if record.exc_info and record.exc_info[1] is not None else ""


def _keep_lines(text: str) -> str:
    return "\n".join(f"    {printable(line)}" for line in text.splitlines())


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


# One function an event.


def _enqueued(event: JobEnqueued) -> None:
    if not _log.isEnabledFor(logging.INFO):  # for each job
        return
    extra = _job(event.envelope, delay=event.delay or None, queue=event.envelope.queue or None)
    _log.info("enqueued", extra=extra)


def _parked(event: JobParked) -> None:
    _log.warning("parked: no queue is bound for its kind yet", extra=_job(event.envelope))


def _dropped(event: JobDropped) -> None:
    _log.error("dropped from the buffer", extra=_job(event.envelope, error=_error(event.error)))


def _started(event: JobStarted) -> None:
    _log.debug("started", extra=_job(event.envelope, queue=event.envelope.queue))


def _ended(event: JobEnded) -> None:
    if isinstance(event.outcome, Completed) and not _log.isEnabledFor(logging.INFO):  # nearly all of them
        return
    level, message, fields, error = _told(event.outcome)
    if not _log.isEnabledFor(level):
        return
    extra = _job(event.envelope, seconds=event.seconds, queue=event.envelope.queue, **fields)
    # A failed attempt shows its traceback when it was the last one, or at level DEBUG.
    shows = isinstance(event.outcome, Dead) or _log.isEnabledFor(logging.DEBUG)
    _log.log(level, message, extra=extra, exc_info=error if shows else None)


def _told(outcome: Outcome) -> tuple[int, str, dict[str, object], BaseException | None]:
    match outcome:
        case Completed():
            return logging.INFO, "completed", {}, None
        case Retrying(delay, error):
            return logging.WARNING, "failed, will be tried again", {"delay": delay, "error": _error(error)}, error
        case Snoozed(delay, reason, unknown):
            return (logging.WARNING if unknown else logging.INFO), "snoozed", {"delay": delay, "reason": reason}, None
        case Cancelled(reason):
            return logging.INFO, "cancelled itself", {"reason": reason}, None
        case Expired():
            return logging.WARNING, "expired before it started", {}, None
        case Returned():
            return logging.WARNING, "cut short and handed back", {}, None
        case Dead(reason, error):
            return logging.ERROR, "dead-lettered", {"reason": reason.value, "error": _error(error)}, error


def _died(event: MessageDied) -> None:
    _, message, fields, _ = _told(event.outcome)
    _log.error(message, extra={"queue": event.queue, "message_id": event.message_id, **fields})


def _settle_failed(event: SettleFailed) -> None:
    extra: dict[str, object] = {"error": _error(event.error), "pause": event.pause}
    if event.envelope is not None:
        extra |= _job(event.envelope)
    again = "will try again" if event.pause is not None else "the job may come again"
    _log.warning("the outcome could not be told to the broker; %s", again, extra=extra)


def _reply_undelivered(event: ReplyUndelivered) -> None:
    _log.info("its answer reached nobody", extra=_job(event.envelope, reason=event.why[:1_000]))


def _mailbox_failed(event: MailboxFailed) -> None:
    _log.warning("answers cannot be heard", extra={"queue": event.queue, "error": _error(event.error)})


def _reply_dropped(event: ReplyDropped) -> None:
    if event.garbage:
        extra = {"queue": event.queue, "job_id": event.job_id, "reason": event.garbage[:1_000]}
        _log.warning("what came as an answer is none", extra=extra)
    else:
        _log.debug("an answer that nobody awaits any more", extra={"job_id": event.job_id})


def _opened(event: ConnectionOpened) -> None:
    _log.info("connected", extra={"role": event.role, "url": event.url, "broker": event.broker})


def _lost(event: ConnectionLost) -> None:
    extra = {"role": event.role, "url": event.url, "pause": event.pause, "error": _error(event.error)}
    _log.warning("no connection", extra=extra)


def _blocked(event: ConnectionBlocked) -> None:
    extra = {"role": event.role, "url": event.url, "reason": event.reason}
    _log.warning("the broker takes no publications: it is short of memory or disk", extra=extra)


def _unblocked(event: ConnectionUnblocked) -> None:
    extra = {"role": event.role, "url": event.url, "seconds": event.seconds}
    _log.info("the broker takes publications again", extra=extra)


def _drifted(event: TopologyDrifted) -> None:
    extra = {"queue": event.queue, "argument": event.argument, "ours": event.ours, "theirs": event.theirs}
    _log.warning("a queue differs from ours in an argument that is safe to leave", extra=extra)


def _released(event: ParkedReleased) -> None:
    _log.info("parked jobs let out", extra={"count": event.count})


def _worker_started(event: WorkerStarted) -> None:
    extra = {"queues": ",".join(event.queues), "kinds": ",".join(event.kinds), "concurrency": event.concurrency}
    _log.info("working", extra=extra)


def _worker_stopping(event: WorkerStopping) -> None:
    _log.info("stopping", extra={"running": event.running, "handed_back": event.returned})


def _worker_stopped(event: WorkerStopped) -> None:
    _log.info("stopped", extra={"cut_short": event.cancelled or None})


def _given_up(event: ShardGivenUp) -> None:
    extra = {"queue": event.queue, "shard": event.shard, "workers": event.workers}
    line = "Shard %s goes to the next of %d workers; %d jobs went back with it"
    _log.info(line, event.shard, event.workers, event.handed_back, extra=extra)


def _limit_reached(event: LimitReached) -> None:
    _log.info("a limit is reached", extra={"limit": event.limit, "value": event.value})


def _process_started(event: ProcessStarted) -> None:
    _log.info("process started", extra={"worker": event.number, "pid": event.pid})


def _process_ended(event: ProcessEnded) -> None:
    level = logging.WARNING if event.code else logging.INFO
    extra = {"worker": event.number, "pid": event.pid, "seconds": event.seconds, "pause": event.pause}
    _log.log(level, "process %s", event.how, extra=extra)


def _reloading(event: Reloading) -> None:
    _log.info("replacing the processes one by one", extra={"count": event.count})


def _reloaded(event: Reloaded) -> None:
    if event.count < event.of:
        _log.warning("a new process did not start, so the others stay", extra={"replaced": event.count, "of": event.of})
    else:
        _log.info("all processes are replaced", extra={"count": event.count})


def _supervisor_stopping(event: SupervisorStopping) -> None:
    _log.info("stopping the processes", extra={"count": event.count, "why": event.why})


def _beat_started(event: BeatStarted) -> None:
    _log.info("a beat waits for its turn", extra={"app": event.app, "schedules": event.schedules})


def _beat_leading(event: BeatLeading) -> None:
    begun = ",".join(event.begun[:_SHOWN]) + (",…" if len(event.begun) > _SHOWN else "")
    _log.info("the beat leads", extra={"app": event.app, "schedules": event.schedules, "begun": begun or None})


def _beat_deposed(event: BeatDeposed) -> None:
    _log.info("the beat leads no longer", extra={"app": event.app, "error": _error(event.error)})


def _tick_failed(event: TickFailed) -> None:
    extra = {"schedule": event.schedule, "job_id": event.job_id, "failures": event.failures, "pause": event.pause}
    _log.warning("a tick could not be published, will try again", extra={**extra, "error": _error(event.error)})


def _ticks_skipped(event: TicksSkipped) -> None:
    extra = {"schedule": event.schedule, "after": event.after.isoformat(), "until": event.until.isoformat()}
    _log.warning("missed ticks are left out, as the policy says", extra=extra)


def _ticks_overlapped(event: TicksOverlapped) -> None:
    run = None if event.run is None else event.run.isoformat()
    extra = {"schedule": event.schedule, "until": event.until.isoformat(), "run": run}
    _log.info("ticks are left out, since the last run is not over", extra=extra)


def _tick_waiting(event: TickWaiting) -> None:
    extra = {"schedule": event.schedule, "run": event.run.isoformat()}
    _log.info("a tick waits until the last run is over", extra=extra)


def _tick_found(event: TickFound) -> None:
    extra = {"schedule": event.schedule, "job_id": event.job_id}
    _log.info("a tick is not published again: it was started", extra=extra)


def _run_presumed_over(event: RunPresumedOver) -> None:
    extra = {"schedule": event.schedule, "run": event.run.isoformat(), "limit": event.limit}
    _log.warning("nobody told of the end of a run; it is taken for over", extra=extra)


def _tick_dropped(event: TickDropped) -> None:
    _log.info("not run: another copy of this tick was started", extra=_job(event.envelope))


def _run_not_told(event: RunNotTold) -> None:
    extra = _job(event.envelope, word=event.word, error=_error(event.error))
    _log.warning("beats could not be told of a run, or asked for others", extra=extra)


def _schedule_failed(event: ScheduleFailed) -> None:
    extra = {"schedule": event.schedule, "pause": event.pause, "error": _error(event.error)}
    _log.error("a schedule cannot say when it is due", extra=extra, exc_info=event.error)


def _schedule_changed(event: ScheduleChanged) -> None:
    extra = {"app": event.app, "schedule": event.schedule, "verb": event.verb, "by": event.by}
    _log.info("a schedule was changed", extra={**extra, "job_id": event.job_id})


def _schedule_refused(event: ScheduleRefused) -> None:
    extra = {"app": event.app, "schedule": event.schedule, "verb": event.verb, "by": event.by}
    _log.warning("a command about a schedule was refused", extra={**extra, "error": event.problem})


def _schedule_left_out(event: ScheduleLeftOut) -> None:
    extra = {"app": event.app, "schedule": event.schedule, "error": event.problem}
    _log.warning("an added schedule is not followed", extra=extra)


def _clock_went_back(event: ClockWentBack) -> None:
    names = ",".join(event.schedules[:_SHOWN])
    _log.warning("the clock went back; schedules go on from now", extra={"count": len(event.schedules), "first": names})


def _state_not_kept(event: StateNotKept) -> None:
    extra = {"app": event.app, "pause": event.pause, "error": _error(event.error)}
    _log.warning("the state of the beat could not be written, will try again", extra=extra)


def _job(envelope: Envelope, **fields: object) -> dict[str, object]:
    return {"kind": envelope.kind, "job_id": envelope.job_id, "attempt": envelope.attempt, **fields}


def _error(error: BaseException | None) -> str | None:
    return None if error is None else words_of(error)[:1_000]

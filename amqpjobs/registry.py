"""Which handler runs which kind, and with which options; checked when they are registered.

Mistakes appear at import, before the first job: a misspelt option, an option of the other
side, a handler whose parameters or result do not fit its job class, a kind taken twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args

from pydantic import PydanticUserError

from amqpjobs.batch import Batch
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.codec import boxed
from amqpjobs.errors import DefinitionError, DuplicateKindError
from amqpjobs.job import ClassOptions, Job, JobOptions, TraceRelation, check_name, check_relation, hint, options_of
from amqpjobs.retry import RetryPolicy, exponential
from amqpjobs.settings import Settings
from amqpjobs.signatures import check_batch_signature, check_signature, is_async
from amqpjobs.topology import Queue, Subscription

#: 2, 4, 8, 16 s … up to an hour, each up to a fifth shorter by chance.
DEFAULT_RETRY = exponential(2)


#: Where a handler runs: in the worker's event loop, in a thread of it, or in a process of its own.
RunIn = Literal["loop", "thread", "process"]


class HandlerOptions(TypedDict, total=False):
    """What a handler may be registered with: the worker's side of the options."""

    queue: str
    max_attempts: int
    timeout: Seconds
    retry: RetryPolicy
    run_in: RunIn
    trace_relation: TraceRelation


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A function for a job class, with the options that hold for it (None: the settings')."""

    job: type[Job[Any]]
    function: Callable[..., Any]
    kind: str
    version: int
    queue: str
    wants_context: bool
    is_async: bool
    #: By default an async function runs in the event loop, any other in a thread.
    run_in: RunIn
    max_attempts: int | None
    timeout: float | None
    retry: RetryPolicy
    #: It takes so many jobs at once; None: one.
    batch: Batch | None = None
    trace_relation: TraceRelation | None = None

    @property
    def name(self) -> str:
        """Where the function is defined, for logs and `check`."""
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', repr(self.function))}"


class Registry:
    """The handlers of one app."""

    def __init__(self, default_queue: str, retry: RetryPolicy | None = None, declared: Iterable[Queue] = ()) -> None:
        self._default_queue = default_queue
        declared = list(declared)
        self._prefetch = {queue.name: queue.prefetch for queue in declared}
        self._sharded = {queue.name for queue in declared if queue.shards is not None}
        self._retry = retry or DEFAULT_RETRY
        self._by_kind: dict[str, Handler] = {}
        self._handlers: list[Handler] = []

    @property
    def handlers(self) -> Sequence[Handler]:
        return tuple(self._handlers)

    def get(self, kind: str) -> Handler | None:
        """The handler of a kind or alias."""
        return self._by_kind.get(kind)

    def add(
        self,
        job: type[Job[Any]],
        function: Callable[..., Any],
        options: HandlerOptions,
        *,
        is_method: bool = False,
        batch: Batch | None = None,
    ) -> None:
        """Register a handler. Raises DefinitionError and its kin."""
        _check_option_names(job, options)
        handler = self._made(job, function, options, is_method, batch)
        for kind in (handler.kind, *options_of(job).aliases):
            other = self._by_kind.get(kind)
            if other is not None:
                raise DuplicateKindError(
                    f"Kind {kind!r} is handled by {other.name} for {other.job.__name__} already; "
                    f"{handler.name} for {job.__name__} needs another kind."
                )
        self._by_kind.update(dict.fromkeys((handler.kind, *options_of(job).aliases), handler))
        self._handlers.append(handler)

    def queues(self, declared: Iterable[Queue]) -> list[Queue]:
        """The app's queues in their order: the declared ones, its own, and those handlers name."""
        named = {queue.name: queue for queue in declared}
        for name in (self._default_queue, *(handler.queue for handler in self._handlers)):
            named.setdefault(name, Queue(name))
        return list(named.values())

    def subscriptions(self) -> list[Subscription]:
        """Every kind and alias, with the queue that should get it."""
        return [
            Subscription(kind=kind, queue=handler.queue, exchange=options_of(handler.job).exchange)
            for kind, handler in self._by_kind.items()
        ]

    def check_timeouts(self, queues: Iterable[Queue], settings: Settings) -> None:
        """Raises DefinitionError when a job may run longer than the broker lets a worker hold it."""
        own = {queue.name: queue.consumer_timeout for queue in queues}
        for handler in self._handlers:
            timeout = handler.timeout or settings.timeout
            limit = own.get(handler.queue) or settings.consumer_timeout
            if timeout > limit:
                raise DefinitionError(
                    _held_too_long(handler, timeout, limit, is_queues=own.get(handler.queue) is not None)
                )

    def _made(
        self,
        job: type[Job[Any]],
        function: Callable[..., Any],
        options: HandlerOptions,
        is_method: bool,
        batch: Batch | None,
    ) -> Handler:
        own = options_of(job)
        queue = options.get("queue", self._default_queue)
        timeout = options.get("timeout")
        in_loop = is_async(function)
        handler = Handler(
            job=job,
            function=function,
            kind=own.kind,
            version=own.version,
            queue=check_name(queue, "Queue"),
            wants_context=(
                check_signature(job, function, is_method) if batch is None else check_batch_signature(job, function)
            ),
            is_async=in_loop,
            run_in=options.get("run_in", "loop" if in_loop else "thread"),
            max_attempts=options.get("max_attempts", own.max_attempts),
            timeout=own.timeout if timeout is None else in_seconds(timeout),
            retry=options.get("retry") or own.retry or self._retry,
            batch=batch,
            trace_relation=options.get("trace_relation", own.trace_relation),
        )
        if handler.trace_relation is not None:
            check_relation(handler.trace_relation, handler.name)
        if handler.max_attempts is not None and handler.max_attempts < 1:
            raise DefinitionError(f"max_attempts of {handler.name} must be 1 or more: it counts the first run too.")
        if handler.timeout is not None and handler.timeout <= 0:
            raise DefinitionError(f"timeout of {handler.name} must be more than 0 seconds.")
        _check_place(handler)
        self._check_room(handler)
        self._check_key(handler)
        return handler

    def _check_key(self, handler: Handler) -> None:
        if handler.queue in self._sharded and options_of(handler.job).shard_by is None:
            name = handler.job.__name__
            raise DefinitionError(
                f"{handler.name} takes {name} from queue {handler.queue!r}, which is sharded, and {name} does not say "
                f'by what. Write class {name}(Job[…], shard_by="…") with the name of a field, whose jobs of one value '
                f'keep their order, or with "job_id", which only spreads them.'
            )

    def _check_room(self, handler: Handler) -> None:
        prefetch = self._prefetch.get(handler.queue)
        if handler.batch is not None and prefetch is not None and prefetch < handler.batch.size:
            raise DefinitionError(
                f"{handler.name} takes batches of {handler.batch.size}, but queue {handler.queue!r} has "
                f"prefetch={prefetch}, so that its batches would never be full. Make the prefetch at least "
                f"{handler.batch.size}, or leave it out: it is then large enough by itself."
            )


def _held_too_long(handler: Handler, timeout: float, limit: float, *, is_queues: bool) -> str:
    whose = (
        f"its queue {handler.queue!r} has consumer_timeout={limit:g}"
        if is_queues
        else f"the broker takes a job away after {limit:g} s, as far as we know (AMQPJOBS_CONSUMER_TIMEOUT)"
    )
    return (
        f"{handler.name} may run for {timeout:g} s, but {whose}. Lower its timeout, or declare "
        f"Queue({handler.queue!r}, consumer_timeout={timeout + 60:g}) (RabbitMQ 3.12 and later), or raise "
        "consumer_timeout in rabbitmq.conf and say so in AMQPJOBS_CONSUMER_TIMEOUT."
    )


def _check_option_names(job: type[Job[Any]], options: HandlerOptions) -> None:
    known = list(HandlerOptions.__annotations__)
    producers = set(ClassOptions.__annotations__) | {each.name for each in fields(JobOptions)}
    for name in options:
        if name in known:
            continue
        if name in producers:
            raise DefinitionError(
                f"{name!r} is not an option of a handler but of the job class {job.__name__}: "
                f"producers need it too, and they do not import handlers."
            )
        raise DefinitionError(f"A handler has no option {name!r}.{hint(name, known)}")


def _check_place(handler: Handler) -> None:
    """Whether the function can run where it should. Raises DefinitionError."""
    if handler.run_in not in get_args(RunIn):
        raise DefinitionError(
            f"run_in of {handler.name} must be one of {', '.join(map(repr, get_args(RunIn)))}, not {handler.run_in!r}."
        )
    if handler.run_in == ("thread" if handler.is_async else "loop"):
        raise DefinitionError(
            f"{handler.name} is {'' if handler.is_async else 'not '}async, so it cannot run in the {handler.run_in} "
            f"but in the {'loop' if handler.is_async else 'thread'} or in a process."
        )
    if handler.run_in == "process" and handler.batch is not None:
        raise DefinitionError(
            f"{handler.name} takes batches, so it cannot run in a process: a process runs one job at a time, so that "
            "its crash costs one job an attempt, and not a whole batch. Leave run_in or batch out."
        )
    if handler.run_in == "process":
        _check_found_again(handler)
        _check_result_crosses(handler)


def _check_found_again(handler: Handler) -> None:
    for each in (handler.function, handler.job):
        name = str(getattr(each, "__qualname__", ""))
        if "<locals>" in name or "<lambda>" in name:
            raise DefinitionError(
                f"{handler.name} shall run in a process, and a fresh process that imports {each.__module__} would not "
                f"find {name}: it is made inside a function. Define handler and job class at the top of a module."
            )


def _check_result_crosses(handler: Handler) -> None:
    try:
        boxed(handler.job)
    except (PydanticUserError, NameError) as error:
        raise DefinitionError(
            f"{handler.name} shall run in a process, and its result would have to cross as JSON, but pydantic cannot "
            f"write {handler.job.result_type()!r} as JSON: {error}"
        ) from error

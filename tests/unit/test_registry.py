import functools
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import BaseModel

from amqpjobs.context import JobContext
from amqpjobs.errors import DefinitionError, DuplicateKindError, HandlerMismatchError
from amqpjobs.job import Job
from amqpjobs.registry import DEFAULT_RETRY, Handler, HandlerOptions, Registry
from amqpjobs.retry import fixed
from amqpjobs.settings import Settings
from amqpjobs.topology import Queue, Subscription

OWN_RETRY, CLASS_RETRY, APP_RETRY = fixed(1), fixed(2), fixed(3)


class Receipt(BaseModel):
    number: int


class LongReceipt(Receipt):
    lines: list[str]


class Send(Job[Receipt], kind="send", aliases=["post"], version=2, max_attempts=7, timeout=70):
    to: str


if TYPE_CHECKING:
    OnlyForCheckers = Send


class SendUrgently(Send):
    pass


class Ping(Job[None], kind="ping"):
    pass


class Weigh(Job[float], kind="weigh"):
    pass


class Retried(Job[None], retry=CLASS_RETRY):
    pass


def do_nothing(job: Any) -> None:
    return None


def anything(job: Any) -> Any:
    return job


async def only_job(job: Send) -> Receipt:
    return Receipt(number=1)


async def job_and_context(job: Send, ctx: JobContext[Any]) -> Receipt:
    return Receipt(number=1)


def sync(job: Send) -> LongReceipt:
    return LongReceipt(number=1, lines=[])


#: Made from text, since type checkers want hints of whatever they read.
without_hints: Callable[..., Any] = eval("lambda job, ctx: None")


def optional(job: Send) -> Receipt | None:
    return None


def promised(job: Send) -> Awaitable[Receipt]:
    return only_job(job)


def with_more(job: Send, *rest: object, **options: object) -> Receipt:
    return Receipt(number=1)


def forward(job: "Send", ctx: "JobContext[Any]") -> "Receipt":
    return Receipt(number=1)


def for_checkers_only(job: "OnlyForCheckers") -> Receipt:
    return Receipt(number=len(job.to))


@functools.wraps(only_job)
async def wrapped(*args: Any) -> Receipt:
    return await only_job(*args)


class Sender:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    async def send(self, job: Send, ctx: JobContext[Any]) -> Receipt:
        return Receipt(number=self.limit)

    async def __call__(self, job: Send) -> Receipt:
        return Receipt(number=self.limit)


class SyncSender:
    def __call__(self, job: Send, ctx: JobContext[Any]) -> Receipt:
        return Receipt(number=1)


@dataclass
class Limited:
    limit: int

    def __call__(self, job: Send) -> Receipt:
        return Receipt(number=self.limit)


async def needing(sender: Sender, job: Send, ctx: JobContext[Any]) -> Receipt:
    return await sender.send(job, ctx)


def named(value: object) -> str | None:
    return None if isinstance(value, bool) else getattr(value, "__name__", type(value).__name__)


def registered(function: Callable[..., Any], job: type[Job[Any]] = Send, **options: Any) -> Handler:
    registry = Registry("mail")
    registry.add(job, function, cast("HandlerOptions", options))
    return registry.handlers[0]


@pytest.mark.parametrize(
    ("function", "wants_context", "is_async"),
    [
        (only_job, False, True),
        (job_and_context, True, True),
        (sync, False, False),
        (without_hints, True, False),
        (optional, False, False),
        (promised, False, False),
        (with_more, False, False),
        (forward, True, False),
        (for_checkers_only, False, False),
        (wrapped, False, True),
        (Sender(1), False, True),
        (Sender(1).send, True, True),
        (SyncSender(), True, False),
        (Limited(1), False, False),
        (functools.partial(needing, Sender(1)), True, True),
        (anything, False, False),
    ],
    ids=named,
)
def test_a_handler_that_fits_is_taken(function: Callable[..., Any], wants_context: bool, is_async: bool) -> None:
    handler = registered(function)

    assert (handler.wants_context, handler.is_async) == (wants_context, is_async)
    assert handler.name


def nothing() -> Receipt:
    return Receipt(number=1)


def too_much(job: Send, ctx: JobContext[Any], more: int) -> Receipt:
    return Receipt(number=more)


def keyword_only(job: Send, *, more: int) -> Receipt:
    return Receipt(number=more)


def only_keywords(**job: object) -> Receipt:
    return Receipt(number=1)


def another_job(job: Ping) -> Receipt:
    return Receipt(number=1)


def subclass_job(job: SendUrgently) -> Receipt:
    return Receipt(number=1)


def another_result(job: Send) -> str:
    return ""


async def another_awaited_result(job: Send) -> str:
    return ""


def another_promised_result(job: Send) -> Awaitable[str]:
    return another_awaited_result(job)


def no_result(job: Send) -> None:
    return None


def generator(job: Send) -> Generator[int]:
    yield 1


async def async_generator(job: Send) -> Any:
    yield 1


class NoJob:
    def __call__(self) -> Receipt:
        return Receipt(number=1)


@pytest.mark.parametrize(
    "function",
    [
        nothing,
        too_much,
        keyword_only,
        only_keywords,
        another_job,
        subclass_job,
        another_result,
        another_awaited_result,
        another_promised_result,
        no_result,
        generator,
        async_generator,
        NoJob(),
        functools.partial(needing),
        "text",
        None,
    ],
    ids=named,
)
def test_a_handler_that_does_not_fit_is_refused(function: Any) -> None:
    with pytest.raises(HandlerMismatchError):
        registered(function)


def test_a_mismatch_names_both_sides() -> None:
    with pytest.raises(HandlerMismatchError, match=r"another_job is registered for Send.* is a Ping"):
        registered(another_job)
    with pytest.raises(HandlerMismatchError, match=r"another_result returns str, .*Send is a Job\[Receipt\]"):
        registered(another_result)


def test_a_job_of_nothing_refuses_a_result() -> None:
    def with_result(job: Ping) -> int:
        return 1

    with pytest.raises(HandlerMismatchError, match=r"Ping is a Job\[NoneType\]"):
        registered(with_result, Ping)


def test_an_int_is_a_float_here_as_it_is_for_type_checkers() -> None:
    def weigh(job: Weigh) -> int:
        return 5

    handler = registered(weigh, Weigh)

    assert handler.kind == "weigh"


def test_a_handler_of_a_base_class_takes_its_subclasses() -> None:
    handler = registered(only_job, SendUrgently)

    assert handler.job is SendUrgently


def test_a_second_parameter_with_a_default_is_not_overwritten_by_the_context() -> None:
    def with_default(job: Send, limit: int = 3) -> Receipt:
        return Receipt(number=limit)

    try:
        wants_context = registered(with_default).wants_context
    except HandlerMismatchError:
        wants_context = False

    assert not wants_context


def test_a_method_of_the_job_is_not_asked_for_its_self() -> None:
    class Runs(Job[None]):
        async def run(self, ctx: JobContext[Any]) -> None:
            assert ctx.state

    registry = Registry("mail")
    registry.add(Runs, Runs.run, {}, is_method=True)

    assert registry.handlers[0].wants_context
    assert registry.handlers[0].is_async


def test_a_kind_is_handled_once() -> None:
    registry = Registry("mail")
    registry.add(Send, only_job, {})

    with pytest.raises(DuplicateKindError, match=r"'send' is handled by .*only_job for Send already"):
        registry.add(Send, sync, {})


def test_an_alias_is_a_kind_too() -> None:
    class Post(Job[None], kind="post"):
        pass

    registry = Registry("mail")
    registry.add(Send, only_job, {})

    with pytest.raises(DuplicateKindError, match="'post'"):
        registry.add(Post, do_nothing, {})
    assert len(registry.handlers) == 1


def test_a_refused_handler_leaves_nothing_behind() -> None:
    class New(Job[None], kind="new", aliases=["send"]):
        pass

    registry = Registry("mail")
    registry.add(Send, only_job, {})

    with pytest.raises(DuplicateKindError):
        registry.add(New, do_nothing, {})

    assert registry.get("new") is None


def test_kind_and_aliases_find_the_same_handler() -> None:
    registry = Registry("mail")
    registry.add(Send, only_job, {})

    found = [registry.get(kind) for kind in ("send", "post", "other")]

    assert found == [registry.handlers[0], registry.handlers[0], None]


@pytest.mark.parametrize("name", ["priority", "exchange", "delay", "kind", "version", "headers", "aliases"])
def test_a_producers_option_on_a_handler_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"'{name}' is not an option of a handler but of the job class"):
        registered(only_job, Send, **{name: 1})


def test_a_misspelt_option_is_told_with_what_it_may_mean() -> None:
    with pytest.raises(DefinitionError, match=r"'tiemout'\. Did you mean 'timeout'"):
        registered(only_job, tiemout=1)


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"timeout": 0}, {"timeout": -1}, {"queue": "a b"}, {"queue": "0"}]
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        registered(only_job, **options)


def test_the_handler_wins_over_the_class_and_the_class_over_the_app() -> None:
    registry = Registry("mail", retry=APP_RETRY)
    registry.add(Send, only_job, {"max_attempts": 1, "timeout": 5, "queue": "bulk", "retry": OWN_RETRY})
    registry.add(Ping, do_nothing, {})
    registry.add(Retried, do_nothing, {})

    first, second, third = registry.handlers

    assert (first.max_attempts, first.timeout, first.queue, first.retry) == (1, 5.0, "bulk", OWN_RETRY)
    assert (second.max_attempts, second.timeout, second.queue, second.retry) == (
        None,
        None,
        "mail",
        APP_RETRY,
    )
    assert third.retry is CLASS_RETRY
    assert registered(only_job).max_attempts == 7
    assert registered(only_job).timeout == 70.0
    assert registered(only_job).retry is DEFAULT_RETRY


def test_the_queues_are_the_declared_ones_the_apps_own_and_the_named_ones() -> None:
    registry = Registry("mail")
    registry.add(Send, only_job, {"queue": "bulk"})
    registry.add(Ping, do_nothing, {"queue": "slow"})
    slow = Queue("slow", weight=5)

    queues = registry.queues([slow])

    assert [queue.name for queue in queues] == ["slow", "mail", "bulk"]
    assert queues[0] is slow


def test_subscriptions_are_all_kinds_and_aliases_with_their_queues() -> None:
    class Order(Job[None], exchange="orders"):
        pass

    registry = Registry("mail")
    registry.add(Send, only_job, {"queue": "bulk"})
    registry.add(Order, do_nothing, {})

    wanted = registry.subscriptions()

    assert wanted == [
        Subscription(kind="send", queue="bulk"),
        Subscription(kind="post", queue="bulk"),
        Subscription(kind="order", queue="mail", exchange="orders"),
    ]


def test_something_that_is_no_job_class_is_refused() -> None:
    with pytest.raises(DefinitionError):
        registered(do_nothing, Job[None])


# Where handlers run


class Placed(Job[int], kind="placed"):
    pass


class Odd:
    """Nothing that pydantic could write as JSON."""


class Oddly(Job[Odd], kind="oddly"):
    pass


async def placed_async(job: Placed) -> int:
    return 1


def placed_sync(job: Placed) -> int:
    return 1


placed_lambda: Callable[[Placed], int] = lambda job: 1  # noqa: E731  (its name is what is tested)


def oddly(job: Oddly) -> Odd:
    return Odd()


@pytest.mark.parametrize(
    ("function", "options", "place"),
    [
        (placed_async, {}, "loop"),
        (placed_sync, {}, "thread"),
        (placed_async, {"run_in": "loop"}, "loop"),
        (placed_sync, {"run_in": "thread"}, "thread"),
        (placed_async, {"run_in": "process"}, "process"),
        (placed_sync, {"run_in": "process"}, "process"),
    ],
)
def test_a_handler_runs_where_it_says(function: Any, options: Any, place: str) -> None:
    registry = Registry("work")

    registry.add(Placed, function, options)

    assert registry.handlers[0].run_in == place


@pytest.mark.parametrize(
    ("function", "place", "words"),
    [
        (placed_async, "thread", "is async, so it cannot run in the thread but in the loop"),
        (placed_sync, "loop", "is not async, so it cannot run in the loop but in the thread"),
        (placed_sync, "proces", "must be one of 'loop', 'thread', 'process', not 'proces'"),
        (placed_lambda, "process", "at the top of a module"),
    ],
)
def test_a_handler_that_cannot_run_there_is_refused(function: Any, place: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        Registry("work").add(Placed, function, {"run_in": place})


def test_a_closure_cannot_run_in_a_process() -> None:
    def closure(job: Placed) -> int:
        return 1

    with pytest.raises(DefinitionError, match=r"a fresh process that imports .* would not find .*closure"):
        Registry("work").add(Placed, closure, {"run_in": "process"})


def test_a_result_that_is_no_json_cannot_come_from_a_process() -> None:
    with pytest.raises(DefinitionError, match="its result would have to cross as JSON"):
        Registry("work").add(Oddly, oddly, {"run_in": "process"})


@pytest.mark.parametrize("options", [{"timeout": 3601}, {"timeout": 61, "queue": "short"}, {"queue": "short"}])
def test_a_job_that_may_outlast_the_brokers_patience_is_refused(options: HandlerOptions) -> None:
    registry = Registry("main")
    queues = [Queue("main"), Queue("short", consumer_timeout=60)]

    async def ping(job: Ping) -> None: ...

    registry.add(Ping, ping, options)

    with pytest.raises(DefinitionError, match=r"ping may run for .* consumer_timeout"):
        registry.check_timeouts(queues, Settings(consumer_timeout=3600, timeout=300))


@pytest.mark.parametrize("options", [{"timeout": 3600}, {"timeout": 7200, "queue": "long"}, {}])
def test_a_job_that_fits_into_the_brokers_patience_is_taken(options: HandlerOptions) -> None:
    registry = Registry("main")
    queues = [Queue("main"), Queue("long", consumer_timeout=7200)]

    async def ping(job: Ping) -> None: ...

    registry.add(Ping, ping, options)

    registry.check_timeouts(queues, Settings(consumer_timeout=3600, timeout=300))


def test_a_handlers_trace_relation_wins_over_its_classs_and_must_be_one() -> None:
    class Placed(Job[Receipt], trace_relation="link"):
        pass

    async def place(job: Placed) -> Receipt:
        return Receipt(number=1)

    assert registered(place, Placed).trace_relation == "link"
    assert registered(place, Placed, trace_relation="child").trace_relation == "child"
    with pytest.raises(DefinitionError, match="trace_relation of tests"):
        registered(place, Placed, trace_relation="twin")

"""Many jobs for one call of a handler: how a batch is asked for, and what type checkers hold it to.

`worker/batches.py` collects the jobs, `worker/joint.py` calls the handler for them.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, TypeGuard, TypeVar, get_args, get_origin, overload

from amqpjobs.context import BatchContext
from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job

#: What one consumer may hold of a queue: AMQP's prefetch ends there.
LARGEST = 65_535
#: Seconds; RabbitMQ closes the channel of a job that is not settled for 30 minutes, its run among them.
LONGEST = 600.0

R = TypeVar("R")
S = TypeVar("S")
J = TypeVar("J", bound=Job[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Call the handler when `size` jobs are there, or `seconds` after the first of them came.

    `size` is from 1 to 65,535, `seconds` more than 0 and at most 600. Raises DefinitionError.
    """

    size: int
    seconds: float

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= LARGEST:
            raise DefinitionError(f"size of a Batch must be a whole number from 1 to {LARGEST:,}, not {self.size!r}.")
        if not _is_number(self.seconds) or not isfinite(self.seconds) or not 0 < self.seconds <= LONGEST:
            raise DefinitionError(
                f"seconds of a Batch must be a number over 0, and at most {LONGEST:g}, not {self.seconds!r}: "
                "jobs that wait for their batch are lent by the broker, which takes them back after 30 minutes."
            )


class RegisterBatch(Protocol[J, R, S]):
    """Takes a batch handler that fits: async or not, with the context or without.

    It returns one entry a job, a result or an exception; where a job returns nothing, it may return nothing too.
    """

    @overload
    def __call__(
        self: "RegisterBatch[J, None, S]", function: Callable[[list[J], BatchContext[S]], Awaitable[None]], /
    ) -> Callable[[list[J], BatchContext[S]], Awaitable[None]]: ...
    @overload
    def __call__(
        self: "RegisterBatch[J, None, S]", function: Callable[[list[J]], Awaitable[None]], /
    ) -> Callable[[list[J]], Awaitable[None]]: ...
    @overload
    def __call__(
        self: "RegisterBatch[J, None, S]", function: Callable[[list[J], BatchContext[S]], None], /
    ) -> Callable[[list[J], BatchContext[S]], None]: ...
    @overload
    def __call__(
        self: "RegisterBatch[J, None, S]", function: Callable[[list[J]], None], /
    ) -> Callable[[list[J]], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[J], BatchContext[S]], Awaitable[Sequence[R | BaseException]]], /
    ) -> Callable[[list[J], BatchContext[S]], Awaitable[Sequence[R | BaseException]]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[J]], Awaitable[Sequence[R | BaseException]]], /
    ) -> Callable[[list[J]], Awaitable[Sequence[R | BaseException]]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[J], BatchContext[S]], Sequence[R | BaseException]], /
    ) -> Callable[[list[J], BatchContext[S]], Sequence[R | BaseException]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[J]], Sequence[R | BaseException]], /
    ) -> Callable[[list[J]], Sequence[R | BaseException]]: ...


def jobs_of(given: object, batch: object) -> type[Job[Any]]:
    """Row, of `list[Row]` and its batch. Raises DefinitionError when the two do not belong together."""
    inner: object = get_args(given)[0] if get_origin(given) is list else None
    if not _is_job_class(inner):
        raise DefinitionError(
            f"A handler with a batch is registered for a list of a job class, not for {_shown(given)}: "
            "@app.handler(list[Row], batch=Batch(size=100, seconds=1))."
        )
    if not isinstance(batch, Batch):
        raise DefinitionError(
            f"batch of the handler of {_shown(given)} must be such as Batch(size=100, seconds=1), not {batch!r}."
        )
    return inner


def refuse_list(given: object) -> None:
    """Raises DefinitionError for `list[Row]` without a batch."""
    if given is list or get_origin(given) is list:
        raise DefinitionError(
            f"A handler of {_shown(given)} needs a batch too: @app.handler({_shown(given)}, "
            "batch=Batch(size=100, seconds=1))."
        )


def _is_job_class(inner: object) -> TypeGuard[type[Job[Any]]]:
    return isinstance(inner, type) and issubclass(inner, Job)


def _shown(given: object) -> str:
    inner = get_args(given)
    if get_origin(given) is list and isinstance(inner[0], type):
        return f"list[{inner[0].__name__}]"
    return given.__name__ if isinstance(given, type) else repr(given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Whether a function fits the job class it shall handle, as far as its parameters and hints tell.

mypy and pyright say it better and earlier; this is for whoever runs neither. What a hint
leaves open is let pass.
"""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from amqpjobs.context import BatchContext, JobContext
from amqpjobs.errors import HandlerMismatchError
from amqpjobs.job import Job

#: What type checkers take for the other (PEP 484, the numeric tower).
_PROMOTED = {(int, float), (int, complex), (float, complex)}
Hints = Mapping[str, Any]


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine, for all that can be seen."""
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  (an object with async __call__)
    )


def check_signature(job: type[Job[Any]], function: Callable[..., Any], is_method: bool = False) -> bool:
    """Whether the handler takes a context. Raises HandlerMismatchError when it does not fit."""
    name, hints = _name(function), _hints(function)
    parameters = _parameters(function, f"the job and, if it wants, the context: ({job.__name__}, JobContext[State])")
    if not is_method:
        _check_first(job, hints.get(parameters[0].name, Any), name)
    _check_result(job, _awaited(hints), name)
    return _wants(JobContext, parameters, hints, name)


def check_batch_signature(job: type[Job[Any]], function: Callable[..., Any]) -> bool:
    """The same for a function that takes a list of jobs."""
    name, hints = _name(function), _hints(function)
    wanted = f"a list of jobs and, if it wants, the context: (list[{job.__name__}], BatchContext[State])"
    parameters = _parameters(function, wanted)
    _check_list(job, hints.get(parameters[0].name, Any), name)
    _check_results(job, _awaited(hints), name)
    return _wants(BatchContext, parameters, hints, name)


def may_return_nothing(job: type[Job[Any]]) -> bool:
    """Whether a handler of the job need not return anything."""
    return cast("object", job.result_type()) in (None, type(None), object, Any)


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", repr(function))
    if not callable(function):
        raise HandlerMismatchError(f"{name} is no function.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerMismatchError(f"{name} has a yield in it; a handler returns its result.")
    return name


def _parameters(function: Callable[..., Any], wanted: str) -> list[inspect.Parameter]:
    """Those that can be given by their place: one or two of them."""
    every = inspect.signature(function).parameters.values()
    parameters = [each for each in every if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    keywords = [each for each in every if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if not parameters or len(_required(parameters)) > 2 or keywords:
        raise HandlerMismatchError(f"{_name(function)} must take {wanted}. It takes {inspect.signature(function)}.")
    return parameters


def _required(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [each for each in parameters if each.default is each.empty]


def _wants(context: type, parameters: list[inspect.Parameter], hints: Hints, name: str) -> bool:
    if len(parameters) < 2:
        return False
    declared = hints.get(parameters[1].name)
    declared = get_origin(declared) or declared
    if declared in (JobContext, BatchContext) and declared is not context:
        takes = "one job" if context is JobContext else "a list of jobs"
        raise HandlerMismatchError(
            f"{name} handles {takes}, so that its context is a {context.__name__}, not a {declared.__name__}."
        )
    return len(_required(parameters)) > 1 or declared is context


def _check_first(job: type[Job[Any]], declared: object, name: str) -> None:
    if declared is not Any and isinstance(declared, type) and not _is_a(job, declared):
        raise HandlerMismatchError(
            f"{name} is registered for {job.__name__}, but its first parameter is a {declared.__name__}."
        )


def _check_list(job: type[Job[Any]], declared: object, name: str) -> None:
    origin = get_origin(declared) or declared
    if declared is Any or not isinstance(origin, type):
        return
    inner = [each for each in get_args(declared) if isinstance(each, type)]
    if not issubclass(list, origin) or not all(_is_a(job, each) for each in inner):
        raise HandlerMismatchError(
            f"{name} is registered for list[{job.__name__}], but its first parameter is a {_shown(declared)}."
        )


def _is_a(job: type[Job[Any]], declared: type) -> bool:
    # For pydantic, Job[Any] is a class of its own, and no base of any other.
    return issubclass(job, declared) or declared is Job[Any]


def _check_result(job: type[Job[Any]], declared: object, name: str) -> None:
    if not _fits(job, declared):
        raise HandlerMismatchError(
            f"{name} returns {_shown(declared)}, but {job.__name__} is a Job[{_shown(_result(job))}]."
        )


def _check_results(job: type[Job[Any]], declared: object, name: str) -> None:
    origin = get_origin(declared) or declared
    if declared is Any or not isinstance(origin, type):
        return
    if (origin is type(None) and may_return_nothing(job)) or (
        (issubclass(list, origin) or origin is tuple) and all(_fits(job, each) for each in _entries(declared))
    ):
        return
    raise HandlerMismatchError(
        f"{name} returns {_shown(declared)}, but for a list of {job.__name__}, each a Job[{_shown(_result(job))}], it "
        f"must return {'nothing, or ' if may_return_nothing(job) else ''}a list with one entry a job, in their order: "
        "its result, or an exception."
    )


def _entries(declared: object) -> list[object]:
    """What a list may hold by its hint, exceptions left out."""
    parts = list[object]()
    for each in get_args(declared):
        parts += get_args(each) if get_origin(each) in (Union, UnionType) else [each]
    return [
        each for each in parts if each is not ... and not (isinstance(each, type) and issubclass(each, BaseException))
    ]


def _fits(job: type[Job[Any]], declared: object) -> bool:
    wanted = _result(job)
    if Any in (wanted, declared) or wanted == declared or wanted is object or (declared, wanted) in _PROMOTED:
        return True
    return not (isinstance(wanted, type) and isinstance(declared, type) and not issubclass(declared, wanted))


def _result(job: type[Job[Any]]) -> object:
    wanted = cast("object", job.result_type())
    return type(None) if wanted is None else wanted


def _shown(declared: object) -> str:
    return declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)


def _awaited(hints: Hints) -> object:
    """What the function returns in the end."""
    declared = hints.get("return", Any)
    return get_args(declared)[-1] if _is_awaitable(get_origin(declared)) else declared


def _is_awaitable(origin: object) -> bool:
    return isinstance(origin, type) and hasattr(origin, "__await__")


def _hints(function: Callable[..., Any]) -> Hints:
    try:
        return get_type_hints(inspect.unwrap(function))
    except Exception:  # names that exist for type checkers only; mypy and pyright have looked
        return {}

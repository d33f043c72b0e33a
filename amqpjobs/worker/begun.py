"""A coroutine that has run up to its first wait.

Nothing can cut short what does not wait, so a handler that never does needs no timer and no task
of its own: making those costs more than anything else that is done for a job.
"""

from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Begun(Generic[T]):
    """The rest of a coroutine whose first step waits for `waits_for`.

    It is to be awaited at once, and once, in the task of that step. All its steps are run in `context`, if it gets
    one, instead of that of the task.
    """

    __slots__ = ("_context", "_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: object, context: Context | None = None) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for
        self._context = context

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for: object = self._waits_for
        while True:
            step: Callable[[], object]
            try:
                step = partial(self._coroutine.send, (yield waits_for))
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            try:
                waits_for = step() if self._context is None else self._context.run(step)
            except StopIteration as stop:
                return cast("T", stop.value)

"""When a failed job is tried again.

A policy is a value: the delay before each next try, which errors it covers, and how much
chance there is in it. It counts what failed and knows nothing of queues; how many attempts
there are in all is `max_attempts`, an option of the job.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import DefinitionError

#: Seconds to wait after the n-th failure (from 1).
Backoff = Callable[[int], float]
#: Seconds to wait after this failure of this attempt, or None: do not try again.
Decide = Callable[[int, BaseException], Seconds | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to wait after each failure.

    Make one with `fixed`, `linear`, `exponential`, `fibonacci`, `delays` or `decide`, and
    refine it with `on` (another policy for some errors) and `with_immediate`.
    """

    backoff: Backoff
    #: The longest delay, in seconds, before chance takes from it.
    cap: float = 3600.0
    #: The share of a delay that chance may take away, 0 to 1: each is drawn evenly from
    #: [delay × (1 − jitter), delay]. 1 is AWS's "full jitter".
    jitter: float = 0.0
    #: So many first retries wait for nothing; the backoff starts after them.
    immediate: int = 0
    #: For these errors another policy decides, or (None) the job is not tried again.
    rules: tuple[tuple[type[BaseException], "RetryPolicy | None"], ...] = ()
    #: A callable that decides alone; the other fields but `rules` are not looked at.
    decide: Decide | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= 1:
            raise DefinitionError(f"jitter is the share of a delay, from 0 to 1, not {self.jitter!r}.")
        if self.cap < 0 or self.immediate < 0:
            raise DefinitionError("cap and immediate cannot be negative.")

    def on(self, error: type[BaseException], policy: "RetryPolicy | None") -> "RetryPolicy":
        """This policy, but for `error` and its subclasses another one, or None: never try again.

        The first rule that fits wins.
        """
        return replace(self, rules=(*self.rules, (error, policy)))

    def with_immediate(self, retries: int) -> "RetryPolicy":
        """This policy after so many retries that wait for nothing."""
        return replace(self, immediate=retries)

    def delay_after(
        self, attempt: int, error: BaseException, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds until the next try after this attempt (from 1) failed, or None: give up."""
        for kind, policy in self.rules:
            if isinstance(error, kind):
                return None if policy is None else policy.delay_after(attempt, error, chance)
        if self.decide is not None:
            wish = self.decide(attempt, error)
            return None if wish is None else max(0.0, in_seconds(wish))
        if attempt <= self.immediate:
            return 0.0
        delay = min(self._raw(attempt - self.immediate), self.cap)
        return delay * (1 - self.jitter * chance())

    def _raw(self, failure: int) -> float:
        try:
            return max(0.0, self.backoff(failure))
        except OverflowError:  # 2.0 ** 1100
            return self.cap


def fixed(seconds: Seconds, *, jitter: float = 0.0) -> RetryPolicy:
    """The same delay each time."""
    span = _span(seconds)
    return RetryPolicy(backoff=lambda failure: span, cap=span, jitter=jitter)


def linear(seconds: Seconds, *, cap: Seconds = 3600.0, jitter: float = 0.0) -> RetryPolicy:
    """1, 2, 3, 4 … times `seconds`."""
    span = _span(seconds)
    return RetryPolicy(backoff=lambda failure: span * failure, cap=_span(cap), jitter=jitter)


def exponential(
    seconds: Seconds = 2.0, *, factor: float = 2.0, cap: Seconds = 3600.0, jitter: float = 0.2
) -> RetryPolicy:
    """`seconds`, then `factor` times the delay before: exponential(2) waits 2, 4, 8, 16 s …"""
    span = _span(seconds)
    if factor < 1:
        raise DefinitionError(f"factor must be at least 1, not {factor!r}: delays would shrink.")
    return RetryPolicy(backoff=lambda failure: span * factor ** (failure - 1), cap=_span(cap), jitter=jitter)


def fibonacci(seconds: Seconds, *, cap: Seconds = 3600.0, jitter: float = 0.0) -> RetryPolicy:
    """1, 1, 2, 3, 5, 8 … times `seconds`."""
    span = _span(seconds)
    return RetryPolicy(backoff=lambda failure: span * _fibonacci(failure), cap=_span(cap), jitter=jitter)


def delays(*seconds: Seconds, jitter: float = 0.0) -> RetryPolicy:
    """Just these delays, one after the other; the last repeats. delays(1, 5, 30)"""
    if not seconds:
        raise DefinitionError("delays() needs at least one delay, as in delays(1, 5, 30).")
    spans = tuple(_span(each) for each in seconds)
    return RetryPolicy(backoff=lambda failure: spans[min(failure, len(spans)) - 1], cap=max(spans), jitter=jitter)


def decide(function: Decide) -> RetryPolicy:
    """A callable of your own: (attempt, error) → seconds, or None not to try again."""
    return RetryPolicy(backoff=lambda failure: 0.0, decide=function)


def preview(policy: RetryPolicy, failures: int) -> Sequence[float | None]:
    """The delays after the first so many failures, without chance; for tests and documents."""
    error = Exception()
    return [policy.delay_after(attempt, error, chance=lambda: 0.0) for attempt in range(1, failures + 1)]


def _span(seconds: Seconds) -> float:
    span = in_seconds(seconds)
    if span < 0:
        raise DefinitionError(f"A delay cannot be negative: {seconds!r}.")
    return span


def _fibonacci(n: int) -> int:
    this, following = 1, 1
    for _ in range(min(n, 100) - 1):  # the 100th is beyond any cap
        this, following = following, this + following
    return this

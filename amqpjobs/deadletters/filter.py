"""Which letters are meant."""

from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.deadletters.letter import DeadLetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant; all conditions hold together. Kind, reason, exception take `*` and `?`."""

    #: Job ids or message ids.
    ids: frozenset[str] = frozenset()
    kind: str | None = None
    reason: str | None = None
    exception: str | None = None
    #: By `DeadLetter.since`; a letter that does not say is neither.
    older_than: Seconds | None = None
    newer_than: Seconds | None = None
    #: Only the first so many of a place are looked at.
    limit: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every letter is meant."""
        return self == Filter()

    def wants(self, letter: DeadLetter, now: datetime) -> bool:
        age = None if letter.since is None else (now - letter.since).total_seconds()
        return (
            (self.limit is None or letter.position <= self.limit)
            and (not self.ids or not self.ids.isdisjoint({letter.job_id, letter.message_id}))
            and _fits(self.kind, letter.kind)
            and _fits(self.reason, letter.reason)
            and _fits(self.exception, letter.exception)
            and (self.older_than is None or (age is not None and age > in_seconds(self.older_than)))
            and (self.newer_than is None or (age is not None and age <= in_seconds(self.newer_than)))
        )


ALL = Filter()


def _fits(pattern: str | None, text: str | None) -> bool:
    return pattern is None or (text is not None and fnmatchcase(text, pattern))

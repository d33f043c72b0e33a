"""What becomes of each message while a whole place is held: it is shown, moved, deleted, or let be.

These are sieves as `amqp.browse.sift` wants them; each keeps a tally.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from amqpjobs.deadletters.filter import Filter
from amqpjobs.deadletters.letter import DeadLetter, letter_of
from amqpjobs.deadletters.place import Place, PlaceName
from amqpjobs.errors import AmqpJobsError, BrokerUnavailableError, UnconfirmedError
from amqpjobs.wire import Delivery, Publication

Visit = Callable[[DeadLetter], object]
Onward = Callable[[DeadLetter], Publication]


@dataclass(slots=True)
class Tally:
    """How far something has come. Hand one in to watch or stop it; it also tells the end."""

    #: Messages there were at the start, of all places so far.
    total: int = 0
    #: Looked at.
    seen: int = 0
    #: Fit the filter.
    chosen: int = 0
    #: Moved, deleted, written; or shown.
    done: int = 0
    #: Why some of the chosen stayed, and how many.
    stayed: Counter[str] = field(default_factory=Counter[str])
    #: Ids that were published, but the confirm was lost: they may be doubled.
    in_doubt: list[str] = field(default_factory=list[str])
    #: Set it to end early: what is under way ends, the rest stays.
    is_stopped: bool = False

    def note(self, letter: DeadLetter, error: BaseException | None) -> None:
        """A chosen one is done, or an error kept it where it was."""
        if error is None:
            self.done += 1
            return
        self.stayed[str(error)] += 1
        if isinstance(error, UnconfirmedError | BrokerUnavailableError):
            self.in_doubt.append(_named(letter))


class Sieving:
    """Looks at what fits a filter. What it does with that is for its heirs to say: as it is, it takes nothing out."""

    def __init__(self, place: Place, where: Filter, now: datetime, tally: Tally | None) -> None:
        self.place = place
        self.tally = tally or Tally()
        self._where = where
        self._now = now
        self._keeps_bodies = True

    @property
    def is_stopped(self) -> bool:
        return self.tally.is_stopped

    def looks(self, delivery: Delivery, position: int) -> bool:
        if self._where.limit is not None and position > self._where.limit:
            return False
        self.tally.seen += 1
        letter = letter_of(delivery.properties, delivery.body, self.place, position, keep_body=self._keeps_bodies)
        if not self._where.wants(letter, self._now):
            return False
        self.tally.chosen += 1
        return self._takes(delivery, letter)

    def _takes(self, delivery: Delivery, letter: DeadLetter) -> bool:
        return False

    def unconfirmed(self) -> list[str]:
        """Ids of what may be in both places, should it end here."""
        return []

    def onward(self, delivery: Delivery) -> Publication | None:
        raise AssertionError("nothing was chosen")

    def ended(self, delivery: Delivery, error: AmqpJobsError | None) -> None:
        raise AssertionError("nothing was chosen")


class Reading(Sieving):
    """Shows what is chosen."""

    def __init__(
        self, place: Place, where: Filter, now: datetime, tally: Tally | None, visit: Visit, *, keep_bodies: bool
    ) -> None:
        super().__init__(place, where, now, tally)
        self._visit = visit
        self._keeps_bodies = keep_bodies

    def _takes(self, delivery: Delivery, letter: DeadLetter) -> bool:
        self._visit(letter)
        self.tally.done += 1
        return False


class Moving(Sieving):
    """Moves what is chosen to where `onward` says; deletes it when there is no `onward`."""

    def __init__(
        self, place: Place, where: Filter, now: datetime, tally: Tally | None, onward: Onward | None = None
    ) -> None:
        super().__init__(place, where, now, tally)
        self._onward = onward
        self._taken: dict[int, DeadLetter] = {}
        self._sent = set[int]()
        self.even_expired = False
        #: Only the letter that is this one, and of copies only the first.
        self.only: DeadLetter | None = None

    def _takes(self, delivery: Delivery, letter: DeadLetter) -> bool:
        if self.only is not None and (self._taken or letter.fingerprint != self.only.fingerprint):
            return False
        refusal = self._refusal(letter)
        if refusal:
            self.tally.stayed[refusal] += 1
            return False
        self._taken[delivery.tag] = letter
        return True

    def _refusal(self, letter: DeadLetter) -> str:
        if self._onward is None:
            return ""
        if not letter.kind and letter.place.name is not PlaceName.DEAD:
            return "it has no kind (the AMQP property `type`), so nobody can tell where it goes"
        if letter.expires_at is not None and letter.expires_at <= self._now and not self.even_expired:
            return "it has expired; --even-expired (in Python even_expired=True) runs it all the same"
        return ""

    def unconfirmed(self) -> list[str]:
        return [_named(self._taken[tag]) for tag in self._sent]

    def onward(self, delivery: Delivery) -> Publication | None:
        if self._onward is None:
            return None
        self._sent.add(delivery.tag)
        return self._onward(self._taken[delivery.tag])

    def ended(self, delivery: Delivery, error: AmqpJobsError | None) -> None:
        letter = self._taken[delivery.tag]
        self._sent.discard(delivery.tag)
        if self.only is None:
            del self._taken[delivery.tag]
        self.tally.note(letter, error)


def _named(letter: DeadLetter) -> str:
    return letter.job_id or f"position {letter.position}"

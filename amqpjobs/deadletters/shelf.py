"""The places on a broker, and what can be done with the letters in them."""

from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from amqpjobs.amqp.browse import sift
from amqpjobs.amqp.connection import Link, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher, is_forbidden
from amqpjobs.deadletters.filter import ALL, Filter
from amqpjobs.deadletters.letter import DeadLetter
from amqpjobs.deadletters.place import LetterError, Place
from amqpjobs.deadletters.portable import letter_from, line_of
from amqpjobs.deadletters.sieve import Moving, Reading, Sieving, Tally, Visit
from amqpjobs.deadletters.way import Ways
from amqpjobs.errors import AccessRefusedError, BrokerUnavailableError
from amqpjobs.producer import Producing
from amqpjobs.wire import Publication

#: Letters that `find` returns unless told otherwise: each may have 128 kB of headers.
MOST_LISTED = 10_000
#: Why an import leaves a letter out.
ALREADY_THERE = "it is there already"


class DeadLetters:
    """Works while it is entered, on one connection of its own.

        async with DeadLetters(app) as letters:
            await letters.requeue(dead_of("email"), Filter(exception="ConnectionError"))

    Methods raise BrokerError; LetterError where a place does not exist.
    """

    def __init__(self, app: Producing) -> None:
        self._settings = app.settings
        self._clock = app.clock
        self._ways = Ways(app.topology)
        self._declarer = Declarer(app.topology, app.events)
        # Not a Producer's, which declares: who only looks may lack the rights, or find a drift worth looking at.
        self._link = Link("dead letters", app.settings, app.events, _prepare_nothing)
        # What is here may be as large as it came.
        self._publisher = Publisher(self._link, longest_body=2**31)

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.__aexit__(kind, error, trace)

    async def count(self, place: Place) -> int | None:
        """Messages that wait there; None when there is no such place."""
        return await self._declarer.count(await self._session(), self._ways.queue(place))

    async def scan(
        self, place: Place, visit: Visit, where: Filter = ALL, *, bodies: bool = False, tally: Tally | None = None
    ) -> Tally:
        """Show each letter to `visit`, the oldest first; none is kept in memory here."""
        return await self._sift(Reading(place, where, self._clock.now(), tally, visit, keep_bodies=bodies))

    async def find(
        self, place: Place, where: Filter = ALL, *, bodies: bool = False, most: int = MOST_LISTED
    ) -> list[DeadLetter]:
        """The letters, the oldest first; the first `most` of them."""
        found = list[DeadLetter]()

        def keep(letter: DeadLetter) -> None:
            if len(found) < most:
                found.append(letter)

        await self.scan(place, keep, where, bodies=bodies)
        return found

    async def requeue(
        self, place: Place, where: Filter = ALL, *, even_expired: bool = False, tally: Tally | None = None
    ) -> Tally:
        """Run them again: dead letters from attempt 1 in the queue they died in, others on the way they had.

        What has expired stays, unless `even_expired` takes the expiry from it.
        """
        now = self._clock.now()
        moving = Moving(place, where, now, tally, lambda letter: self._ways.again(letter, now))
        moving.even_expired = even_expired
        return await self._sift(moving)

    async def purge(self, place: Place, where: Filter, *, tally: Tally | None = None) -> Tally:
        """Delete them for good."""
        return await self._sift(Moving(place, where, self._clock.now(), tally))

    async def edit(self, letter: DeadLetter, body: bytes, *, requeue: bool = True) -> bool:
        """Replace the payload and requeue the job, or leave it where it is, at the tail. The job id stays.

        False when the letter is no longer there, or nothing differs. It is not validated here.
        The letter must have its body: find it with `bodies=True`.
        """
        if letter.body is None:
            raise ValueError("The letter to edit has no body; find it with bodies=True.")
        if body == letter.body:
            return False
        now, key = self._clock.now(), letter.message_id or letter.job_id
        where = Filter(ids=frozenset({key}) if key else frozenset(), limit=None if key else letter.position)

        def changed(found: DeadLetter) -> Publication:
            return self._ways.edited(found, body, now, requeue=requeue)

        moving = Moving(letter.place, where, now, None, changed)
        moving.even_expired, moving.only = True, letter
        tally = await self._sift(moving)
        if tally.stayed:
            raise LetterError(f"Nothing was changed: {next(iter(tally.stayed))}")
        return tally.done == 1

    async def export(
        self, place: Place, write: Callable[[str], object], where: Filter = ALL, *, tally: Tally | None = None
    ) -> Tally:
        """Write each as one line of JSON, with all it takes to import it again. They stay where they are."""
        return await self.scan(place, lambda letter: write(line_of(letter) + "\n"), where, bodies=True, tally=tally)

    async def import_lines(self, lines: Iterable[str], *, dry_run: bool = False, tally: Tally | None = None) -> Tally:
        """Put letters back into the places they came from. Those that are there already are left out.

        Raises LetterError at a line that cannot be read, before anything is published.
        """
        tally, letters = tally or Tally(), [letter_from(line, n) for n, line in enumerate(lines, 1) if line.strip()]
        tally.total = tally.seen = len(letters)
        missing = list[DeadLetter]()
        for place in dict.fromkeys(letter.place for letter in letters):
            missing += await self._missing(place, [each for each in letters if each.place == place], tally)
        tally.chosen = len(missing)
        if not dry_run:
            await self._publish(missing, tally)
        return tally

    async def _missing(self, place: Place, letters: Iterable[DeadLetter], tally: Tally) -> list[DeadLetter]:
        """Those that are not in this place, copies counted."""
        there, missing = Counter[str](), list[DeadLetter]()
        await self.scan(place, lambda letter: there.update([letter.fingerprint]), bodies=True)
        for letter in letters:
            mark = letter.fingerprint
            there[mark] -= 1
            if there[mark] >= 0:
                tally.stayed[ALREADY_THERE] += 1
            else:
                missing.append(letter)
        return missing

    async def _publish(self, letters: list[DeadLetter], tally: Tally) -> None:
        refusal: BaseException | None = None

        class Results(dict[int, BaseException | None]):
            def __setitem__(self, position: int, error: BaseException | None) -> None:
                nonlocal refusal
                refusal = error if is_forbidden(error) else refusal
                tally.note(letters[position], error)

        unstopped = (self._ways.back(letter) for letter in letters if not (tally.is_stopped or refusal))
        await self._publisher.send_all(unstopped, Results())
        if refusal is not None:
            raise AccessRefusedError(str(refusal)) from refusal

    async def _sift(self, sieve: Sieving) -> Tally:
        session, queue = await self._session(), self._ways.queue(sieve.place)
        count = await self._declarer.count(session, queue)
        if count is None:
            raise LetterError(
                f"There is no queue {queue!r} on the broker. `amqpjobs topology apply` makes it; "
                "perhaps the queue or the namespace (AMQPJOBS_NAMESPACE) is another one."
            )
        sieve.tally.total += count
        try:
            await sift(session, queue, sieve, self._declarer, self._publisher)
        except BaseException:  # a cancellation too: what was sent and not confirmed is named
            sieve.tally.in_doubt += sieve.unconfirmed()
            raise
        return sieve.tally

    async def _session(self) -> Session:
        seconds = 2 * self._settings.connect_timeout
        try:
            async with self._clock.timeout(seconds):
                return await self._link.first_session()
        except TimeoutError:
            raise self._link.last_error or BrokerUnavailableError(
                f"The broker at {self._settings.shown_url} did not answer within {seconds:g} s."
            ) from None


async def _prepare_nothing(session: Session) -> None:
    """The connection needs no more than to be open."""

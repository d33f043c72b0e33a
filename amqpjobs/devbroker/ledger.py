"""What a channel was delivered and has not settled, by delivery tag."""

from collections.abc import Iterable
from dataclasses import dataclass

from amqpjobs.devbroker.backlog import FOREVER, Entry
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import failed
from amqpjobs.devbroker.queue import Queue

#: Tags that were taken back and may still be settled; more than that is a client that never does.
_REMEMBERED = 10_000


@dataclass(slots=True, eq=False)
class Loan:
    """One delivery; without a consumer it came by basic.get."""

    tag: int
    queue: Queue
    entry: Entry
    consumer: Consumer | None
    #: When it must be settled.
    due: float = FOREVER


class Ledger:
    """In the order of the tags."""

    def __init__(self) -> None:
        self._loans: dict[int, Loan] = {}
        #: Tags that were taken back, which may still be settled, to no effect.
        self._overdue: set[int] = set()

    def __len__(self) -> int:
        return len(self._loans)

    def add(self, loan: Loan) -> None:
        self._loans[loan.tag] = loan

    def take(self, tag: int, *, multiple: bool) -> list[Loan]:
        """Those that a settlement means. Raises `RefusedError` for a tag that is not open."""
        if multiple and tag == 0:
            return self.take_all()
        if tag not in self._loans:
            if tag in self._overdue:
                self._overdue.discard(tag)
                return []
            raise failed(f"unknown delivery tag {tag}")
        if not multiple:
            return [self._loans.pop(tag)]
        taken = list[Loan]()
        for number in self._loans:
            if number > tag:
                break
            taken.append(self._loans[number])
        for loan in taken:
            del self._loans[loan.tag]
        return taken

    def take_all(self) -> list[Loan]:
        loans, self._loans = list(self._loans.values()), {}
        return loans

    def overdue(self, now: float) -> list[Loan]:
        """Those that should have been settled by now."""
        return [loan for loan in self._loans.values() if loan.due <= now]

    def next_due(self) -> float:
        return min((loan.due for loan in self._loans.values()), default=FOREVER)

    def take_back(self, loans: Iterable[Loan]) -> None:
        """Settling them has no effect from now on."""
        for loan in loans:
            del self._loans[loan.tag]
            self._overdue.add(loan.tag)
        if len(self._overdue) > _REMEMBERED:
            self._overdue.clear()

    def restore(self, loans: Iterable[Loan]) -> None:
        """As if they had not been taken."""
        self._loans = {loan.tag: loan for loan in sorted([*self._loans.values(), *loans], key=lambda loan: loan.tag)}


def by_queue(loans: Iterable[Loan]) -> dict[Queue, list[Entry]]:
    """Their entries, queue by queue, in this order."""
    queues = dict[Queue, list[Entry]]()
    for loan in loans:
        queues.setdefault(loan.queue, []).append(loan.entry)
    return queues

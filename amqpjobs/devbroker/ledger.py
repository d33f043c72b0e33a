"""What a channel was delivered and has not settled, by delivery tag."""

from collections.abc import Iterable
from dataclasses import dataclass

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import failed
from amqpjobs.devbroker.queue import Queue


@dataclass(slots=True, eq=False)
class Loan:
    """One delivery; without a consumer it came by basic.get."""

    tag: int
    queue: Queue
    entry: Entry
    consumer: Consumer | None


class Ledger:
    """In the order of the tags."""

    def __init__(self) -> None:
        self._loans: dict[int, Loan] = {}

    def __len__(self) -> int:
        return len(self._loans)

    def add(self, loan: Loan) -> None:
        self._loans[loan.tag] = loan

    def take(self, tag: int, *, multiple: bool) -> list[Loan]:
        """Those that a settlement means. Raises `RefusedError` for a tag that is not open."""
        if multiple and tag == 0:
            return self.take_all()
        if tag not in self._loans:
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

    def restore(self, loans: Iterable[Loan]) -> None:
        """As if they had not been taken."""
        self._loans = {loan.tag: loan for loan in sorted([*self._loans.values(), *loans], key=lambda loan: loan.tag)}


def by_queue(loans: Iterable[Loan]) -> dict[Queue, list[Entry]]:
    """Their entries, queue by queue, in this order."""
    queues = dict[Queue, list[Entry]]()
    for loan in loans:
        queues.setdefault(loan.queue, []).append(loan.entry)
    return queues

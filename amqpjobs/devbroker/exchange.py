"""Exchanges: which bindings a message matches, as RabbitMQ matches them. Nothing here knows a queue.

A destination is whatever it was bound as; the vhost binds queues and other exchanges.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from amqpjobs.devbroker.errors import failed
from amqpjobs.devbroker.table import Field, Table

D = TypeVar("D")

DIRECT, FANOUT, TOPIC, HEADERS = "direct", "fanout", "topic", "headers"
TYPES = (DIRECT, FANOUT, TOPIC, HEADERS)
_ANY, _ANY_WITH_X, _ALL_WITH_X = "any", "any-with-x", "all-with-x"
_MATCHES = ("all", _ANY, _ALL_WITH_X, _ANY_WITH_X)


@dataclass(frozen=True)
class Binding(Generic[D]):
    """The same binding made twice is one."""

    key: str
    #: In the order of their names.
    arguments: tuple[tuple[bytes, Field], ...]
    destination: D


@dataclass(eq=False)
class Exchange(Generic[D]):
    """Its attributes, and what is bound to it."""

    name: str
    type: str
    is_durable: bool = True
    is_auto_delete: bool = False
    is_internal: bool = False
    #: Whether 1 and 1.0 are two values to a headers exchange.
    is_exact: bool = True
    arguments: Table = field(default_factory=Table)
    bindings: dict[Binding[D], None] = field(default_factory=dict[Binding[D], None])
    _by_key: dict[str, dict[Binding[D], None]] = field(default_factory=dict[str, dict[Binding[D], None]])
    _tree: "_Branch[D]" = field(default_factory=lambda: _Branch())

    @property
    def alternate(self) -> str | None:
        """Where what matches nothing goes."""
        given = self.arguments.look("alternate-exchange")
        return None if given is None else given.text

    def bind(self, binding: Binding[D]) -> None:
        self.bindings[binding] = None
        match self.type:
            case "direct":
                self._by_key.setdefault(binding.key, {})[binding] = None
            case "topic":
                self._tree.add(words_of(binding.key), binding)
            case _:
                pass

    def unbind(self, binding: Binding[D]) -> bool:
        """Whether it was bound."""
        if binding not in self.bindings:
            return False
        del self.bindings[binding]
        match self.type:
            case "direct":
                del self._by_key[binding.key][binding]
                if not self._by_key[binding.key]:
                    del self._by_key[binding.key]
            case "topic":
                self._tree.remove(words_of(binding.key), binding)
            case _:
                pass
        return True

    def matching(self, keys: Iterable[str], headers: Table) -> Iterator[D]:
        """The destinations of a message with these keys and headers; some of them twice, perhaps."""
        match self.type:
            case "direct":
                for key in keys:
                    yield from (binding.destination for binding in self._by_key.get(key, ()))
            case "fanout":
                yield from (binding.destination for binding in self.bindings)
            case "topic":
                for key in keys:
                    yield from (binding.destination for binding in self._tree.matching(words_of(key), 0))
            case _:
                yield from (binding.destination for binding in self.bindings if self._agrees(binding, headers))

    def _agrees(self, binding: Binding[D], headers: Table) -> bool:
        return _agree(binding.arguments, headers, _exactly if self.is_exact else _roughly)


def check_binding(exchange_type: str, arguments: Table) -> None:
    """Raises `RefusedError` for arguments that such an exchange cannot match."""
    given = arguments.look("x-match") if exchange_type == HEADERS else None
    if given is None or given.text in _MATCHES:
        return
    expected = "expected all, any, all-with-x, or any-with-x"
    if given.text is not None:
        raise failed(f'Invalid x-match field value <<"{given.text}">>; {expected}')
    raise failed(f"Invalid x-match field type {given.type_name} (value {given.value}); expected longstr")


def words_of(key: str) -> list[str]:
    """An empty key has no words; dots beside each other have an empty one between them."""
    return key.split(".") if key else []


class _Branch(Generic[D]):
    """The bindings of a topic exchange by the words of their patterns."""

    __slots__ = ("branches", "leaves")

    def __init__(self) -> None:
        self.branches: dict[str, _Branch[D]] = {}
        self.leaves: dict[Binding[D], None] = {}

    def add(self, words: list[str], binding: Binding[D]) -> None:
        branch = self
        for word in words:
            branch = branch.branches.setdefault(word, _Branch())
        branch.leaves[binding] = None

    def remove(self, words: list[str], binding: Binding[D]) -> None:
        if not words:
            del self.leaves[binding]
            return
        branch = self.branches[words[0]]
        branch.remove(words[1:], binding)
        if not branch.leaves and not branch.branches:
            del self.branches[words[0]]

    def matching(self, words: list[str], at: int) -> Iterator[Binding[D]]:
        if (rest := self.branches.get("#")) is not None:
            for skipped in range(at, len(words) + 1):
                yield from rest.matching(words, skipped)
        if at == len(words):
            yield from self.leaves
            return
        for word in {words[at], "*"} - {"#"}:
            if (branch := self.branches.get(word)) is not None:
                yield from branch.matching(words, at + 1)


def _agree(
    arguments: tuple[tuple[bytes, Field], ...], headers: Table, meaning: Callable[[Field], tuple[str, object]]
) -> bool:
    mode = next((value.text for name, value in arguments if name == b"x-match"), "all")
    counts_x = mode in (_ALL_WITH_X, _ANY_WITH_X)
    answers = (
        _has(headers, name, value, meaning)
        for name, value in arguments
        if name != b"x-match" and (counts_x or not name.startswith(b"x-"))
    )
    return any(answers) if mode in (_ANY, _ANY_WITH_X) else all(answers)


def _has(headers: Table, name: bytes, wanted: Field, meaning: Callable[[Field], tuple[str, object]]) -> bool:
    """Types do not matter, values do; a wanted value of none asks for the name only."""
    given = headers.get(name)
    if given is None:
        return False
    return wanted.letter == "V" or meaning(given) == meaning(wanted)


def _exactly(value: Field) -> tuple[str, object]:
    if value.letter in "Sx":
        return "text", value.raw
    return "int" if value.letter == "T" else value.type_class, value.value


def _roughly(value: Field) -> tuple[str, object]:
    kind, known = _exactly(value)
    return "number" if kind in ("int", "float") else kind, known

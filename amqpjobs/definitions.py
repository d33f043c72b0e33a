"""Plans as data: put together, and as the definitions that RabbitMQ imports.

`rabbitmqctl import_definitions` makes what is missing and leaves alone what is there, so
that a broker on which our processes may declare nothing gets all they need. Definitions hold
exchanges, queues and bindings only: users and permissions are other people's business.
"""

from collections.abc import Iterable, Mapping
from typing import TypedDict, TypeVar

from amqpjobs.errors import DefinitionError
from amqpjobs.topology import Arguments, Binding, ExchangeSpec, Plan, QueueSpec

Spec = TypeVar("Spec", ExchangeSpec, QueueSpec)


class ExchangeDefinition(TypedDict):
    name: str
    vhost: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: dict[str, str | int | bool]


class QueueDefinition(TypedDict):
    name: str
    vhost: str
    durable: bool
    auto_delete: bool
    arguments: dict[str, str | int | bool]


class BindingDefinition(TypedDict):
    source: str
    vhost: str
    destination: str
    destination_type: str
    routing_key: str
    arguments: dict[str, str | int | bool]


class Definitions(TypedDict):
    """The part of RabbitMQ's definitions file that is ours."""

    exchanges: list[ExchangeDefinition]
    queues: list[QueueDefinition]
    bindings: list[BindingDefinition]


def together(plans: Iterable[Plan]) -> Plan:
    """All that the plans want, each once. Raises DefinitionError when two want a name with different properties.

    What one of them binds is not stale for another.
    """
    every = list(plans)
    bindings = list(dict.fromkeys(each for plan in every for each in plan.bindings))
    return Plan(
        exchanges=_distinct(each for plan in every for each in plan.exchanges),
        queues=_distinct(each for plan in every for each in plan.queues),
        bindings=bindings,
        stale=[each for each in dict.fromkeys(each for plan in every for each in plan.stale) if each not in bindings],
        moved=[each for each in dict.fromkeys(each for plan in every for each in plan.moved) if each not in bindings],
    )


def definitions(plans: Mapping[str, Plan]) -> Definitions:
    """Plans by their vhost, as RabbitMQ imports them."""
    return Definitions(
        exchanges=[_exchange(each, vhost) for vhost, plan in plans.items() for each in plan.exchanges],
        queues=[_queue(each, vhost) for vhost, plan in plans.items() for each in plan.queues],
        bindings=[_binding(each, vhost) for vhost, plan in plans.items() for each in plan.bindings],
    )


def _distinct(specs: Iterable[Spec]) -> list[Spec]:
    found = dict[str, Spec]()
    for spec in specs:
        if found.setdefault(spec.name, spec) != spec:
            raise DefinitionError(
                f"{spec.name!r} is wanted with different properties: {_told(found[spec.name].arguments)}, and "
                f"{_told(spec.arguments)}. Give one of the two queues another name."
            )
    return list(found.values())


def _told(arguments: Arguments) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"


def _exchange(spec: ExchangeSpec, vhost: str) -> ExchangeDefinition:
    return ExchangeDefinition(
        name=spec.name,
        vhost=vhost,
        type=spec.type,
        durable=True,
        auto_delete=False,
        internal=False,
        arguments=dict(spec.arguments),
    )


def _queue(spec: QueueSpec, vhost: str) -> QueueDefinition:
    return QueueDefinition(name=spec.name, vhost=vhost, durable=True, auto_delete=False, arguments=dict(spec.arguments))


def _binding(binding: Binding, vhost: str) -> BindingDefinition:
    return BindingDefinition(
        source=binding.source,
        vhost=vhost,
        destination=binding.destination,
        destination_type="exchange" if binding.to_exchange else "queue",
        routing_key=binding.key,
        arguments={},
    )

"""Definitions as RabbitMQ exports and imports them: exchanges, queues and bindings, made all at once.

What is there already has to be the same. Users, permissions and policies are not looked at.
"""

from collections.abc import Mapping
from typing import TypedDict

from amqpjobs.devbroker.errors import missing
from amqpjobs.devbroker.exchange import Exchange
from amqpjobs.devbroker.queue import Attributes
from amqpjobs.devbroker.table import Field, Table, flag, long, text
from amqpjobs.devbroker.vhost import VHost

Arguments = dict[str, str | int | bool]


class ExchangeDefinition(TypedDict):
    name: str
    vhost: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: Arguments


class QueueDefinition(TypedDict):
    name: str
    vhost: str
    durable: bool
    auto_delete: bool
    arguments: Arguments


class BindingDefinition(TypedDict):
    source: str
    vhost: str
    destination: str
    #: "queue" or "exchange".
    destination_type: str
    routing_key: str
    arguments: Arguments


class Definitions(TypedDict):
    """The part of a definitions file that is read."""

    exchanges: list[ExchangeDefinition]
    queues: list[QueueDefinition]
    bindings: list[BindingDefinition]


def import_definitions(vhosts: Mapping[str, VHost], given: Definitions) -> None:
    """Make all of it. Raises `RefusedError`."""
    for exchange in given["exchanges"]:
        _make_exchange(_vhost(vhosts, exchange["vhost"]), exchange)
    for queue in given["queues"]:
        attributes = Attributes(is_durable=queue["durable"], is_auto_delete=queue["auto_delete"])
        _vhost(vhosts, queue["vhost"]).declare_queue(queue["name"], _table(queue["arguments"]), attributes)
    for binding in given["bindings"]:
        _bind(_vhost(vhosts, binding["vhost"]), binding)


def _make_exchange(vhost: VHost, given: ExchangeDefinition) -> None:
    vhost.declare_exchange(
        Exchange(
            given["name"],
            given["type"],
            is_durable=given["durable"],
            is_auto_delete=given["auto_delete"],
            is_internal=given["internal"],
            is_exact=not vhost.profile.are_deaths_headers,
            arguments=_table(given["arguments"]),
        )
    )


def _bind(vhost: VHost, given: BindingDefinition) -> None:
    name = given["destination"]
    destination = vhost.exchange(name) if given["destination_type"] == "exchange" else vhost.queue(name, None)
    vhost.bind(vhost.exchange(given["source"]), destination, given["routing_key"], _table(given["arguments"]))


def _vhost(vhosts: Mapping[str, VHost], name: str) -> VHost:
    if name not in vhosts:
        raise missing(f"vhost '{name}'")
    return vhosts[name]


def _table(arguments: Arguments) -> Table:
    return Table({name.encode(): _field(value) for name, value in arguments.items()})


def _field(value: str | int | bool) -> Field:
    match value:
        case bool():
            return flag(value)
        case int():
            return long(value)
        case str():
            return text(value)

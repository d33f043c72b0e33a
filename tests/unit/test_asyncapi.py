"""The AsyncAPI document: every reference leads somewhere, and what AsyncAPI 3.0 wants is there."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from amqpjobs.asyncapi import asyncapi
from amqpjobs.job import Job, options_of
from amqpjobs.subschemas import is_dict, is_list
from amqpjobs.topology import Topology


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Feed(Job[Cat | None], kind="pets.feed", aliases=["feed"], version=2):
    """Give it something."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Wash(Job[None], kind="pets.feed.result", exchange="water"):
    pets: list[Cat]


def made() -> dict[str, Any]:
    topology, jobs = Topology("house"), (Wash, Feed)
    routed = [(job, topology.by_kind(options_of(job).kind, options_of(job).exchange)) for job in jobs]
    return asyncapi("Pets", routed)


def references(node: object) -> Iterator[str]:
    for each in node if is_list(node) else node.values() if is_dict(node) else ():
        yield from references(each)
    if is_dict(node) and "$ref" in node:
        yield node["$ref"]


def test_every_reference_leads_somewhere() -> None:
    document = made()

    found = list(references(document))

    assert len(found) > 8
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_a_kind_is_a_channel_that_the_service_receives_from() -> None:
    document = made()

    channel, operation = document["channels"]["pets.feed"], document["operations"]["pets.feed"]
    message = document["components"]["messages"]["pets.feed"]
    assert channel["address"] == "pets.feed"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "house"
    assert document["channels"]["pets.feed.result"]["bindings"]["amqp"]["exchange"]["name"] == "water"
    assert operation["action"] == "receive"
    assert (message["name"], message["title"], message["description"]) == ("pets.feed", "Feed", "Give it something.")
    assert (message["x-amqpjobs-version"], message["x-amqpjobs-aliases"]) == (2, ["feed"])


def test_only_a_result_that_is_something_has_a_reply() -> None:
    document = made()

    replying = {kind for kind, operation in document["operations"].items() if "reply" in operation}

    assert replying == {"pets.feed"}
    assert set(document["channels"]) == {"pets.feed", "pets.feed..result", "pets.feed.result"}
    assert document["channels"]["pets.feed..result"]["address"] is None


def test_all_that_the_specification_requires_is_there() -> None:
    document = made()

    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    for operation in document["operations"].values():
        assert {"action", "channel"} <= set(operation)
    for schema in document["components"]["schemas"].values():
        assert isinstance(schema.get("discriminator", ""), str)


def test_each_model_stands_there_once() -> None:
    assert set(made()["components"]["schemas"]) == {"Cat", "Dog", "Feed", "Wash"}

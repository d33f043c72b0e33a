"""The command that `amqpjobs dev` shows: it can be pasted, and the job it makes is valid."""

import shlex
from datetime import datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, EmailStr, Field

from amqpjobs import Job
from amqpjobs.cli.example import example_of


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Place(BaseModel):
    street: str


class Simple(Job[None], kind="example.simple"):
    name: str
    count: int
    price: float
    is_new: bool
    note: str = "not needed"


class Formats(Job[None], kind="example.formats"):
    to: EmailStr
    at: datetime
    order: UUID
    words: list[str]
    size: Size
    mode: Literal["fast", "slow"]
    least: int = Field(ge=18)
    either: int | str


class Named(Job[None], kind="example.named"):
    sender: str = Field(alias="from")


class Hard(Job[None], kind="example.hard"):
    place: Place
    code: str = Field(pattern="^[A-Z]{3}$")


class Empty(Job[None], kind="example.empty"):
    pass


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        (Simple, "example.simple name=text count:=1 price:=1.5 is_new:=true"),
        (
            Formats,
            "example.formats to=ada@example.org at=2030-01-31T12:00:00Z order=0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e "
            "words:=[] size=s mode=fast least:=18 either:=1",
        ),
        (Named, "example.named from=text"),
        (Hard, "example.hard place=… code=…"),
        (Empty, "example.empty"),
    ],
)
def test_required_fields_have_values_that_fit(job: type[Job[Any]], shown: str) -> None:
    assert " ".join(shlex.split(example_of(job))) == shown

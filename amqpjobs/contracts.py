"""Contracts as a document, and whether the next code still reads what the last one wrote.

A contract is what a job class promises on the wire: its kind and aliases, its exchange, the
version of its payload, and JSON Schemas of payload and result. `exported` writes those of some
classes down, so that they can be kept, compared by line, and compared by `compared`: first
whether what is queued can still be read, which must hold, and then whether workers of the
older code can read what the newer producers send, which a rolling deployment would like.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amqpjobs.codec import problems_of
from amqpjobs.errors import DuplicateKindError
from amqpjobs.inclusion import Narrowing, narrowings
from amqpjobs.job import Job, hint, options_of, upgrades_of
from amqpjobs.schemas import payload_schema, place_of, result_schema


class Contract(BaseModel):
    """What a job class promises on the wire."""

    model_config = ConfigDict(frozen=True)

    kind: str
    aliases: tuple[str, ...] = ()
    exchange: str = ""
    version: int = 1
    oldest_version: int = 1
    #: The versions that upgrades begin with.
    upgrades: tuple[int, ...] = ()
    #: What a producer may send.
    payload: dict[str, Any]
    #: What we send.
    sends: dict[str, Any]
    #: What a handler returns.
    result: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return self.kind, *self.aliases


class Contracts(BaseModel):
    """The document."""

    model_config = ConfigDict(frozen=True)

    #: Another number is another layout.
    amqpjobs: Literal["contracts/1"] = "contracts/1"
    contracts: tuple[Contract, ...] = Field(max_length=100_000)


class Severity(StrEnum):
    """What a finding means for a deployment."""

    #: What is queued, or what older producers send, can no longer be read.
    BREAKING = "breaking"
    #: Nobody can tell; breaking, unless one is lenient.
    UNSURE = "cannot tell"
    #: Something else suffers, such as workers or callers that still have the older code.
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between two documents that somebody should know of."""

    severity: Severity
    kind: str
    what: str
    advice: str = ""
    #: Where in the payload: `items[].price`.
    path: str = ""


def exported(jobs: Iterable[type[Job[Any]]]) -> Contracts:
    """The document of these job classes. Raises DefinitionError where a payload has no JSON Schema."""
    found = dict[str, type[Job[Any]]]()
    for job in dict.fromkeys(jobs):
        for name in (options_of(job).kind, *options_of(job).aliases):
            other = found.setdefault(name, job)
            if other is not job:
                raise DuplicateKindError(
                    f"Kind {name!r} is that of {place_of(other)} and of {place_of(job)}. "
                    "Look at their services one by one."
                )
    made = [contract_of(job) for job in dict.fromkeys(found.values())]
    return Contracts(contracts=tuple(sorted(made, key=lambda each: each.kind)))


def contract_of(job: type[Job[Any]]) -> Contract:
    """The contract of one job class. Raises DefinitionError."""
    own = options_of(job)
    return Contract(
        kind=own.kind,
        aliases=tuple(sorted(own.aliases)),
        exchange=own.exchange,
        version=own.version,
        oldest_version=own.oldest_version,
        upgrades=tuple(upgrades_of(job)),
        payload=payload_schema(job, "validation"),
        sends=payload_schema(job, "serialization"),
        result=result_schema(job),
    )


def read(text: str | bytes, name: str) -> Contracts:
    """A document that `exported` wrote. Raises ValueError."""
    try:
        return Contracts.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"{name} is no document of `amqpjobs contracts export`: {'; '.join(problems_of(error)[:3])}."
        ) from None


def compared(old: Contracts, new: Contracts) -> list[Finding]:
    """What has changed for whoever has the old code, the worst first."""
    found = list[Finding]()
    now = {name: contract for contract in new.contracts for name in contract.names}
    before = {name for contract in old.contracts for name in contract.names}
    for contract in old.contracts:
        found += _missing(contract, now)
        for heir in dict.fromkeys(now[name].kind for name in contract.names if name in now):
            found += _changed(contract, now[heir])
    for contract in new.contracts:
        if not before & set(contract.names):
            found.append(
                Finding(Severity.NOTE, contract.kind, "is new", "Apply the topology before producers send it.")
            )
    return sorted(found, key=lambda each: (list(Severity).index(each.severity), each.kind, each.path))


def _missing(old: Contract, now: Mapping[str, Contract]) -> Iterable[Finding]:
    for name in old.names:
        if name in now:
            continue
        what = "has no job class any more" if name == old.kind else f"is no longer read under its alias {name!r}"
        advice = f"Add aliases=[{name!r}] to the class that takes its place, or keep the class until none is queued."
        yield Finding(Severity.BREAKING, old.kind, what, advice + hint(name, list(now)) if now else advice)


def _changed(old: Contract, new: Contract) -> Iterable[Finding]:
    kind = new.kind
    if old.exchange != new.exchange:
        what = f"moved from exchange {old.exchange or 'of jobs'!r} to {new.exchange or 'of jobs'!r}"
        advice = "Older producers send to the old one: keep it, or let the job have a new kind there."
        yield Finding(Severity.BREAKING, kind, what, advice)
    yield from _read(old, new)
    yield from _rolling(old, new)
    for each in narrowings(new.result, old.result):
        what = f"result {each.what.replace('no longer takes', 'may now be', 1)}" if each.what else "result"
        yield Finding(Severity.WARNING, kind, f"the {what}, by the view of older callers", "", each.path)


def _read(old: Contract, new: Contract) -> Iterable[Finding]:
    """Whether the new code reads what the old one wrote."""
    kind, versions = new.kind, f"from version {old.version} to {new.version}"
    if new.version < old.version:
        what = f"its version went down {versions}, and workers do not read versions above their own"
        yield Finding(Severity.BREAKING, kind, what, f"Say version={old.version}, or more.")
        return
    if new.oldest_version > old.version:
        what = f"payloads of version {old.version} are no longer read"
        yield Finding(Severity.BREAKING, kind, what, f"Say oldest_version={old.version} and write the upgrades.")
        return
    if new.oldest_version > old.oldest_version:
        what = f"payloads of the versions {old.oldest_version} to {new.oldest_version - 1} are no longer read"
        yield Finding(Severity.WARNING, kind, what, "See that none is queued, delayed or among the dead letters.")
    elif old.upgrades and not new.upgrades:
        what = f"its upgrades from version {old.upgrades[0]} on are gone, and older payloads are read as they are"
        yield Finding(Severity.BREAKING, kind, what, "Keep them, or say oldest_version.")
    narrowed = narrowings(old.payload, new.payload)
    if new.version == old.version or not new.upgrades:
        bump = f"version={old.version + 1} and @upgrade(from_version={old.version})"
        yield from (_finding(kind, each, bump) for each in narrowed)
    elif narrowed:
        what = f"its payload changed {versions}; older ones go through the upgrade"
        advice = f"A producer that sends no amqpjobs-version is read as version {new.version}: tell it."
        yield Finding(Severity.NOTE, kind, what, advice)


def _rolling(old: Contract, new: Contract) -> Iterable[Finding]:
    """Whether workers of the old code read what new producers send."""
    if new.version > old.version:
        what = f"workers that know version {old.version} let jobs of version {new.version} wait for others that do"
        yield Finding(Severity.NOTE, new.kind, what, "Deploy those within AMQPJOBS_UNKNOWN_WINDOW (15 min).")
        return
    # Either proof will do: the schemas of the two directions may say the same in different words.
    narrowed = narrowings(new.payload, old.payload)
    if new.version < old.version or not narrowed or not narrowings(new.sends, old.payload):
        return
    for each in narrowed:
        advice = "Deploy workers before producers, or raise the version: then the jobs wait for new workers."
        what = f"older workers may refuse what newer producers send; seen from the new one, it {each.what}"
        yield Finding(Severity.WARNING, new.kind, what, advice, each.path)


def _finding(kind: str, narrowing: Narrowing, bump: str) -> Finding:
    severity = Severity.BREAKING if narrowing.certain else Severity.UNSURE
    advice = narrowing.advice.replace("the version and write an @upgrade", f"it: {bump}", 1)
    return Finding(severity, kind, narrowing.what, advice, narrowing.path)

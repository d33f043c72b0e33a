"""The typed job class: a pydantic model that knows its kind and its result.

    class SendEmail(Job[Receipt], kind="email.send", max_attempts=5, timeout=30):
        to: EmailStr

Class options live in one private place, so that a job may have a field called `version` or
`queue`. A class is matched by type checkers through the two classmethods of `JobType`: a
plain `type[Job[R]]` would let wrong results through.

When the payload changes so that old ones no longer fit, the class gets a higher `version`
and an `@upgrade` from each older one. The version is read from the wire alone: an alias is
only another name, so a renamed class goes on counting where its old name stopped.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    cast,
    get_args,
    get_origin,
    runtime_checkable,
)

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json, to_jsonable_python
from typing_extensions import Unpack

from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import DefinitionError
from amqpjobs.retry import RetryPolicy
from amqpjobs.sharding import JOB_ID

R = TypeVar("R")
J_co = TypeVar("J_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)

#: Takes the payload of one version, as JSON has it, and returns that of the next.
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
U = TypeVar("U", bound=Upgrade)

#: What the run of a job is to its enqueue in a trace; see the setting `trace_relation`.
TraceRelation = Literal["auto", "child", "link"]

_WORD = re.compile(r"[A-Za-z0-9_-]+")
_EXCHANGE = re.compile(r"[A-Za-z0-9_.:-]{1,80}")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_UPGRADES = "__amqpjobs_upgrades_from__"
_FUNCTIONS: tuple[type, ...] = (staticmethod, classmethod, FunctionType)
#: Names become routing keys, and AMQP cuts those at 255 bytes; the delay levels need 100 of them.
LONGEST_NAME = 100


class Traceable:
    """Marks a field whose value traces may show: `order: Annotated[int, Traceable()]`. No other field is in one."""


@runtime_checkable
class _HoldsSecret(Protocol):
    """SecretStr, SecretBytes, Secret[…]."""

    def get_secret_value(self) -> object: ...


class JobType(Protocol[J_co, R_co]):
    """A job class, as type checkers see it."""

    def job_type(self) -> type[J_co]: ...

    def result_type(self) -> type[R_co]: ...


class ClassOptions(TypedDict, total=False):
    """What may stand behind the base class: `class A(Job[None], kind="a", timeout=5)`."""

    kind: str
    aliases: Sequence[str]
    version: int
    oldest_version: int
    exchange: str
    queue: str
    priority: int
    delay: Seconds
    expires: Seconds
    headers: Mapping[str, str]
    max_attempts: int
    timeout: Seconds
    retry: RetryPolicy
    trace_relation: TraceRelation
    shard_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The class options of a job, checked. None means: what the app or the settings say."""

    #: The name on the wire. Default: the class name in snake case.
    kind: str
    #: Old names this class still answers to.
    aliases: tuple[str, ...] = ()
    #: Version of the payload, from 1.
    version: int = 1
    #: Payloads older than this are no longer read.
    oldest_version: int = 1
    #: The exchange it is published to; "" is the namespace's own.
    exchange: str = ""
    #: One queue to send it to, past all bindings; "" is by kind.
    queue: str = ""
    priority: int | None = None
    delay: float | None = None
    expires: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    max_attempts: int | None = None
    timeout: float | None = None
    retry: RetryPolicy | None = None
    #: How its runs relate to its enqueue in traces.
    trace_relation: TraceRelation | None = None
    #: On a sharded queue: the name in the payload of the field whose value says to which shard, or "job_id".
    shard_by: str | None = None


class Job(BaseModel, Generic[R]):
    """Base of all job classes; R is what its handler returns (None for nothing).

    Surplus fields of a payload are ignored unless the class forbids them by
    `model_config = ConfigDict(extra="forbid")`.

    JSON has no word for an infinite float or one that is no number. They are written as the texts "Infinity",
    "-Infinity" and "NaN", which a float field reads again; a field of another kind, as `Any`, gets the text. A model
    within a job that is to do the same needs `ser_json_inf_nan="strings"` in its own configuration.
    """

    # Else pydantic writes null, and the value is lost.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    __amqpjobs__: ClassVar[JobOptions]
    __amqpjobs_upgrades__: ClassVar[Mapping[int, Upgrade]]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        if cls.__pydantic_generic_metadata__["origin"] is None:  # not Job[Receipt] itself
            cls.__amqpjobs__ = _checked(cls, options)
            cls.__amqpjobs_upgrades__ = _checked_upgrades(cls, cls.__amqpjobs__)
            _check_traceable(cls)

    def __init_subclass__(cls, **options: Unpack[ClassOptions]) -> None:
        super().__init_subclass__()

    if TYPE_CHECKING:

        @classmethod
        def __amqpjobs_takes__(cls, result: R, /) -> None:
            """Holds R from above, where `result_type` holds it from below: see `App.register`."""

    @classmethod
    def job_type(cls) -> type[Self]:
        return cls

    @classmethod
    def result_type(cls) -> type[R]:
        known: dict[object, object] = {}
        for base in cls.__mro__:
            generic = cast("dict[str, Any]", base.__dict__.get("__pydantic_generic_metadata__") or {})
            origin, arguments = generic.get("origin"), [_resolved(each, known) for each in generic.get("args", ())]
            if origin is Job and arguments:
                return cast("type[R]", arguments[0])
            if origin is not None:
                known.update(zip(origin.__pydantic_generic_metadata__["parameters"], arguments, strict=False))
        return cast("type[R]", object)


def options_of(job: type[Job[Any]]) -> JobOptions:
    """The class options of a job class."""
    try:
        return job.__amqpjobs__
    except AttributeError:
        raise DefinitionError(
            f"{job!r} is not a job class. Derive one: class {job.__name__.split('[')[0]}(Job[None]): …"
        ) from None


def upgrade(*, from_version: int) -> Callable[[U], U]:
    """Marks the static method of a job class that makes a payload of one version one of the next.

        @upgrade(from_version=1)
        @staticmethod
        def _in_cents(payload: dict[str, Any]) -> dict[str, Any]:
            return {"order": payload["order"], "cents": round(payload["euros"] * 100)}

    It gets and returns what JSON can hold, and runs in the worker's event loop: it should be
    quick and know nothing but the payload. Where a class has one, it needs one for each
    version from `oldest_version` (1) to the last but one; a job whose upgrade raises becomes
    a dead letter `invalid_arguments`.
    """
    if type(from_version) is not int or from_version < 1:
        raise DefinitionError(f"from_version of an upgrade must be a whole number from 1 up, not {from_version!r}.")

    def mark(function: U) -> U:
        setattr(getattr(function, "__func__", function), _UPGRADES, from_version)
        return function

    return mark


def upgrades_of(job: type[Job[Any]]) -> Mapping[int, Upgrade]:
    """The upgrades of a job class, by the version each begins with."""
    options_of(job)
    return job.__amqpjobs_upgrades__


def payload_of(job: Job[Any]) -> bytes:
    """The job's own JSON. Secrets are written out: the worker needs them, and only logs may not see them."""
    if _has_secrets(type(job)):
        shown = job.model_dump(mode="json", by_alias=True)
        return to_json(_revealed(job.model_dump(by_alias=True), shown), inf_nan_mode="strings")
    return job.__pydantic_serializer__.to_json(job, by_alias=True)


@cache
def traceable_fields(job: type[Job[Any]]) -> Mapping[str, str]:
    """The fields that traces may show, each with its name in the payload."""
    return {
        name: info.serialization_alias or info.alias or name
        for name, info in job.model_fields.items()
        if any(isinstance(each, Traceable) or each is Traceable for each in info.metadata)
    }


def check_name(name: str, what: str) -> str:
    """A kind, queue or exchange name that may become part of a routing key."""
    words = name.split(".")
    if len(name) > LONGEST_NAME or not all(_WORD.fullmatch(word) for word in words):
        raise DefinitionError(
            f"{what} {name!r} must be 1 to {LONGEST_NAME} letters, digits, '-' or '_', in words joined by dots."
        )
    if any(word in ("0", "1") for word in words):
        raise DefinitionError(f"No word of {what} {name!r} may be '0' or '1': the delay levels use them.")
    return name


def hint(word: str, known: Sequence[str]) -> str:
    """What a misspelt word may have meant, as the end of a sentence."""
    close = get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(sorted(known))}."


def _checked(cls: type[Job[Any]], options: Mapping[str, object]) -> JobOptions:
    known = [each.name for each in fields(JobOptions)]
    for name in options:
        if name not in known:
            raise DefinitionError(f"Job class {cls.__name__} has no option {name!r}.{hint(name, known)}")
        _check_type(cls.__name__, name, options[name])
    for name in ("job_type", "result_type"):
        if name in cls.model_fields:
            raise DefinitionError(f"Job class {cls.__name__} cannot have a field called {name!r}: Job uses it.")
    parent = next((base.__dict__["__amqpjobs__"] for base in cls.__mro__[1:] if "__amqpjobs__" in base.__dict__), None)
    inherited = {} if parent is None else {n: getattr(parent, n) for n in known if n not in ("kind", "aliases")}
    given = inherited | {name: _plain(value) for name, value in options.items()}
    given.setdefault("kind", _HUMP.sub("_", cls.__name__).lower())
    if given.get("shard_by") is not None:
        given["shard_by"] = _shard_name(cls, given["shard_by"])
    made = JobOptions(**given)
    _check_values(cls.__name__, made)
    return made


def _shard_name(cls: type[Job[Any]], wanted: str) -> str:
    """The name in the payload of the field that a class is sharded by; "job_id" for its jobs' ids."""
    names = {name: info.serialization_alias or info.alias or name for name, info in cls.model_fields.items()}
    if JOB_ID in (*names, *names.values()) and wanted in (JOB_ID, names.get(JOB_ID)):
        raise DefinitionError(
            f"shard_by={wanted!r} of {cls.__name__} could be the id of the job or its field: "
            f"give the field a name other than {JOB_ID!r}."
        )
    if wanted == JOB_ID:
        return JOB_ID
    # A subclass inherits the name in the payload.
    field = next((name for name in names if wanted in (name, names[name])), None)
    if field is None:
        raise DefinitionError(
            f"shard_by of {cls.__name__} must be one of its fields, or {JOB_ID!r}, not {wanted!r}."
            f"{hint(wanted, [*names, JOB_ID])}"
        )
    if cls.model_fields[field].exclude:
        raise DefinitionError(f"shard_by of {cls.__name__} cannot be {field!r}: it is not in the payload (exclude).")
    if _mentions_secret(cls.model_fields[field].annotation, set()):
        raise DefinitionError(
            f"shard_by of {cls.__name__} cannot be {field!r}: it holds a secret, and its hash goes into a header."
        )
    return names[field]


def _checked_upgrades(cls: type[Job[Any]], options: JobOptions) -> Mapping[int, Upgrade]:
    versions = range(options.oldest_version, options.version)
    for version, function in _declared_upgrades(cls).items():
        if version not in versions:
            raise DefinitionError(
                f"{function.__qualname__} upgrades from version {version}, but {cls.__name__} has version "
                f"{options.version} and reads payloads from version {options.oldest_version} on."
            )
    found: dict[int, Upgrade] = {}
    for base in reversed(cls.__mro__):
        found |= {version: made for version, made in _declared_upgrades(base).items() if version in versions}
    missing = [version for version in versions if version not in found]
    if found and missing:
        raise DefinitionError(
            f"{cls.__name__} has no upgrade from version {missing[0]}. Write one, which may return the payload as "
            f"it is, or say oldest_version={missing[-1] + 1} when none of these is queued any more."
        )
    return {version: found[version] for version in sorted(found)}


def _check_traceable(cls: type[Job[Any]]) -> None:
    for name in traceable_fields(cls):
        if _mentions_secret(cls.model_fields[name].annotation, set()):
            raise DefinitionError(f"{name} of {cls.__name__} holds a secret, so traces may not show it: not Traceable.")


def _declared_upgrades(cls: type) -> dict[int, Upgrade]:
    """The upgrades that stand in the body of this class."""
    found: dict[int, Upgrade] = {}
    for value in vars(cls).values():
        function: Any = getattr(value, "__func__", value) if isinstance(value, _FUNCTIONS) else None
        version: int | None = getattr(function, _UPGRADES, None)
        if version is None:
            continue
        if not isinstance(value, staticmethod) or inspect.iscoroutinefunction(function):
            raise DefinitionError(f"The upgrade {function.__qualname__} must be a @staticmethod and not async.")
        if version in found:
            raise DefinitionError(
                f"{found[version].__qualname__} and {function.__qualname__} both upgrade from version {version}."
            )
        found[version] = function
    return found


def _check_type(owner: str, name: str, value: object) -> None:
    wanted, words = _TYPES[name]
    if isinstance(value, bool) or not isinstance(value, wanted) or value != value:  # NaN is not itself
        raise DefinitionError(f"{name} of {owner} must be {words}, not {value!r}.")


_SPAN = ((int, float, timedelta), "a number of seconds or a timedelta")
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "kind": (str, "a string"),
    "aliases": ((list, tuple, set, frozenset), "a list of strings"),
    "version": (int, "a whole number"),
    "oldest_version": (int, "a whole number"),
    "exchange": (str, "a string"),
    "queue": (str, "a string"),
    "priority": (int, "a whole number"),
    "delay": _SPAN,
    "expires": _SPAN,
    "headers": (Mapping, "a mapping"),
    "max_attempts": (int, "a whole number"),
    "timeout": _SPAN,
    "retry": (RetryPolicy, "a RetryPolicy, as exponential(2) makes one"),
    "trace_relation": (str, "a string"),
    "shard_by": (str, "a string"),
}


def _check_values(owner: str, made: JobOptions) -> None:
    for kind in (made.kind, *made.aliases):
        check_name(kind, f"The kind of {owner},")
    if made.exchange:
        check_exchange(made.exchange)
    if made.queue:
        check_name(made.queue, f"The queue of {owner},")
    for name, number in {"version": made.version, "max_attempts": made.max_attempts}.items():
        if number is not None and number < 1:
            raise DefinitionError(f"{name} of {owner} must be a whole number from 1 up, not {number!r}.")
    if not 1 <= made.oldest_version <= made.version:
        raise DefinitionError(
            f"oldest_version of {owner} must be from 1 to its version {made.version}, not {made.oldest_version!r}."
        )
    for name, span in {"timeout": made.timeout, "expires": made.expires}.items():
        if span is not None and span <= 0:
            raise DefinitionError(f"{name} of {owner} must be more than 0 seconds, not {span!r}.")
    if made.delay is not None and made.delay < 0:
        raise DefinitionError(f"delay of {owner} cannot be negative, not {made.delay!r}.")
    if made.trace_relation is not None:
        check_relation(made.trace_relation, owner)
    if made.priority is not None and not 0 <= made.priority <= 255:
        raise DefinitionError(f"priority of {owner} must be from 0 to 255, not {made.priority!r}.")


def check_relation(relation: str, owner: str) -> None:
    """Raises DefinitionError for what is no `TraceRelation`."""
    if relation not in get_args(TraceRelation):
        known = ", ".join(map(repr, get_args(TraceRelation)))
        raise DefinitionError(f"trace_relation of {owner} must be one of {known}, not {relation!r}.")


def check_exchange(name: str) -> str:
    """An exchange of the user's own. Its name travels in the delay levels' keys, beside the kind."""
    if not _EXCHANGE.fullmatch(name) or name.startswith("amq."):
        raise DefinitionError(
            f"Exchange {name!r} must be 1 to 80 letters, digits, '-', '_', '.' or ':', and not begin with 'amq.'."
        )
    return name


def _plain(value: object) -> Any:
    if isinstance(value, list | set | frozenset):
        return tuple(cast("list[object]", value))
    return in_seconds(value) if isinstance(value, timedelta) else value


@cache
def _has_secrets(cls: type[Job[Any]]) -> bool:
    return _mentions_secret(cls, set())


def _mentions_secret(annotation: Any, seen: set[int]) -> bool:
    """Whether a value of this type can hold one of pydantic's secrets, however deep."""
    if id(annotation) in seen:
        return False
    seen.add(id(annotation))
    inner: list[Any] = [*get_args(annotation), get_origin(annotation), getattr(annotation, "__value__", None)]
    is_class = isinstance(annotation, type)
    if is_class and hasattr(annotation, "get_secret_value"):
        return True
    if is_class and issubclass(annotation, BaseModel):
        inner += [each.annotation for each in annotation.model_fields.values()]
    elif is_class:
        inner += vars(annotation).get("__annotations__", {}).values()
    return any(_mentions_secret(each, seen) for each in inner if each is not None)


def _revealed(value: object, shown: object) -> object:
    """The JSON form `shown` of a value, with its secrets written out."""
    match value:
        case _HoldsSecret():
            return to_jsonable_python(value.get_secret_value())
        case dict() if isinstance(shown, dict):
            pairs = zip(
                cast("dict[str, object]", value).values(), cast("dict[str, object]", shown).items(), strict=True
            )
            return {name: _revealed(inner, seen) for inner, (name, seen) in pairs}
        case list() | tuple() | set() | frozenset() if isinstance(shown, list):
            both = zip(cast("list[object]", value), cast("list[object]", shown), strict=True)
            return [_revealed(inner, seen) for inner, seen in both]
        case _:
            return shown


def _resolved(argument: Any, known: Mapping[object, object]) -> object:
    """A type argument with the type variables that are known filled in."""
    if argument in known:
        return known[argument]
    parameters = getattr(argument, "__parameters__", ())
    return argument[tuple(known.get(each, each) for each in parameters)] if parameters else argument

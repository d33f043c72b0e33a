"""Settings, and the only room that reads the environment.

A value comes from, in order: an argument in the code, an environment variable
(`AMQPJOBS_<NAME>`), `[tool.amqpjobs]` in the nearest pyproject.toml, the default. They are
read here and not by pydantic-settings, which loads more than all of this package does.
"""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from amqpjobs.errors import SettingsError

DEFAULT_URL = "amqp://guest:guest@localhost:5672/"
UNREADABLE = "<a URL that cannot be read>"
#: Characters that a token for the health endpoint has at least.
SHORTEST_TOKEN = 16
PREFIX = "AMQPJOBS_"
#: Folders above this one in which a pyproject.toml is looked for.
DEPTH = 8
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def _checked_urls(value: SecretStr) -> SecretStr:
    for url in split_urls(value):
        if masked(url) == UNREADABLE or not url.startswith(("amqp://", "amqps://")):
            raise ValueError(
                f"{masked(url)} is not a broker URL; it should look like amqp://user:password@host:5672/vhost, "
                "with '/', '@', ':' and ',' in the password written %2F, %40, %3A and %2C"
            )
    return value


def _checked_namespace(value: str) -> str:
    # Not topology.check_name: settings lie below it, and the namespace has one more rule.
    if not value or len(value) > 40 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in value):
        raise ValueError("a namespace is 1 to 40 letters, digits, '-', '_' or '.'")
    if any(word in ("", "0", "1") for word in value.split(".")) or value.startswith("amq."):
        raise ValueError("no word of a namespace may be empty, '0' or '1', and it may not begin with 'amq.'")
    return value


def place_of(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8080" or "[::1]:8080". Raises ValueError."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    is_whole = address.lower() in (f"{host}:{port}", f"[{host}]:{port}")  # no login, no path
    if not host or port is None or not is_whole or any(each.isspace() for each in address):
        raise ValueError(f"{address!r} is no address; it should look like 127.0.0.1:8080 or [::1]:8080")
    return host, port


def _checked_address(value: str) -> str:
    place_of(value)
    return value


def _checked_token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < SHORTEST_TOKEN or not all("!" <= each <= "~" for each in text):
        raise ValueError(
            f"a token is {SHORTEST_TOKEN} letters, digits or signs at least, without blanks; make one with "
            "`python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )
    return value


def _as_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def size_of(text: str) -> int:
    """Bytes of "512M", "1.5 GiB" or "65536", K, M, G and T being powers of 1024. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if size < 1:
        raise ValueError(f"{text!r} is no size; it should look like 512M or 1.5G")
    return size


def _as_size(value: object) -> object:
    return size_of(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """All settings of amqpjobs. Spans are seconds, sizes are bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Broker URL; several of one cluster, comma-separated, are tried in turn.
    url: Annotated[SecretStr, AfterValidator(_checked_urls)] = SecretStr(DEFAULT_URL)
    #: What the names of all our exchanges and queues begin with.
    namespace: Annotated[str, AfterValidator(_checked_namespace)] = "amqpjobs"
    #: Default TARGETs of the command line.
    apps: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list[str])
    #: Whether producers and workers declare and bind; if not, they only look whether all is there.
    declare: bool = True

    #: Jobs that one process runs at once.
    concurrency: int = Field(default=10, ge=1, le=10_000)
    #: Processes for handlers with run_in="process"; None: as many as there are CPUs for us.
    processes: int | None = Field(default=None, ge=1, le=10_000)
    #: Worker processes of `amqpjobs run`, kept by a supervisor; None: one, without a supervisor.
    worker_processes: int | None = Field(default=None, ge=1, le=1_000)
    #: After so many jobs a process of `amqpjobs run` stops, or is replaced; None: never.
    max_jobs: int | None = Field(default=None, ge=1)
    #: With more resident memory than this a process of `amqpjobs run` stops, or is replaced; None: never.
    max_memory: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_as_size)] = None
    #: Whether jobs that may have killed a worker run in processes apart until it is known.
    quarantine: bool = True
    max_attempts: int = Field(default=5, ge=1)
    #: How long one attempt may take.
    timeout: float = Field(default=300.0, gt=0)
    #: How long the broker lets a worker hold a job (its `consumer_timeout`); AMQP cannot ask for it.
    consumer_timeout: float = Field(default=1800.0, gt=0)
    #: How long a stopping worker waits for what runs.
    grace: float = Field(default=25.0, ge=0)
    #: Deadline of an enqueue.
    enqueue_timeout: float = Field(default=5.0, gt=0)
    #: How long answers wait for a process that asked for them and is not connected.
    reply_expires: float = Field(default=120.0, ge=1, le=86_400)
    #: How long a job of unknown kind or version waits for a worker that knows it.
    unknown_window: float = Field(default=900.0, ge=0)
    #: The first of these waits; each next one is as long as all before together.
    unknown_delay: float = Field(default=10.0, gt=0)
    #: Larger bodies are neither sent nor run. RabbitMQ 4 takes 16 MiB at most.
    max_body: int = Field(default=8 * 1024 * 1024, ge=1, le=512 * 1024 * 1024)

    #: Whether deliveries, acks and publications pass by the client library, which is far cheaper.
    fast_lane: bool = True
    #: Heartbeat of a connection; a dead peer is noticed after at most three.
    heartbeat: int = Field(default=10, ge=1, le=600)
    #: Deadline of one attempt to connect.
    connect_timeout: float = Field(default=5.0, gt=0)
    #: Longest pause between attempts to connect.
    reconnect_cap: float = Field(default=5.0, gt=0)
    #: A CA file for amqps:// (default: the system's), and a client certificate.
    tls_cafile: Path | None = None
    tls_certfile: Path | None = None
    tls_keyfile: Path | None = None

    #: What runs are to their enqueue in traces; "auto": a child at once, a trace of its own with a link later.
    trace_relation: Literal["auto", "child", "link"] = "auto"
    #: Whether settling is a span of its own.
    trace_settle: bool = False
    #: Where a worker or beat process tells its health, as 127.0.0.1:8080; None: nowhere.
    health: Annotated[str, AfterValidator(_checked_address)] | None = None
    #: What must be known to read more of it than a word; without it only a loopback address is served.
    health_token: Annotated[SecretStr, AfterValidator(_checked_token)] | None = None
    #: "auto": readable on a terminal, JSON elsewhere.
    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _with_sources(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**_from_pyproject(), **_from_environment(cls.model_fields), **given}

    @property
    def process_count(self) -> int:
        """How many processes for handlers a worker may have."""
        return self.processes or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)

    @property
    def urls(self) -> list[str]:
        """The broker URLs with their passwords. For `amqp/` only; show `masked` ones."""
        return split_urls(self.url)

    @property
    def shown_url(self) -> str:
        """The broker URLs as they may be shown."""
        return ", ".join(masked(url) for url in self.urls)

    @property
    def names_broker(self) -> bool:
        """Whether somebody said where the broker is, be it with the default's own words."""
        return "url" in self.model_fields_set

    @property
    def is_default_url(self) -> bool:
        """Whether the broker is where it is when nobody says where."""
        return self.url.get_secret_value() == DEFAULT_URL


def load_settings(**given: object) -> Settings:
    """The settings in force, `given` first; SettingsError when one cannot be used."""
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic validates what callers pass by name
    except ValidationError as error:
        raise SettingsError(_told(error)) from None


def _from_environment(names: Iterable[str]) -> dict[str, Any]:
    """What variables say of these settings, whatever their case."""
    known = {f"{PREFIX}{name}".upper(): name for name in names}
    return {known[key.upper()]: value for key, value in os.environ.items() if key.upper() in known}


def _from_pyproject() -> dict[str, Any]:
    """`[tool.amqpjobs]` of the pyproject.toml in this folder, or in the next one above. Raises SettingsError."""
    here = Path.cwd()
    for folder in (here, *here.parents[:DEPTH]):
        file = folder / "pyproject.toml"
        if file.is_file():
            return _table_of(file)
    return {}


def _table_of(file: Path) -> dict[str, Any]:
    import tomllib  # where services run there is often no such file

    try:
        whole: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(file.read_text(encoding="utf-8"))
        return dict(whole.get("tool", {}).get("amqpjobs", {}))
    except Exception as error:  # it is no TOML, it must not be read, what should be a table is none
        raise SettingsError(f"The settings cannot be read: {error}") from None


def split_urls(value: SecretStr) -> list[str]:
    """A comma-separated list of URLs, apart."""
    return [part.strip() for part in value.get_secret_value().split(",") if part.strip()] or [""]


def masked(url: str) -> str:
    """The URL without its password and without the query, where clients keep secrets too."""
    try:
        parts = urlsplit(url)
        user, place, port = parts.username, parts.hostname, parts.port
    except ValueError:
        return UNREADABLE
    # An '@' behind the host means that what looks like the host is a piece of a password.
    if not parts.scheme or not place or "@" in f"{parts.path}{parts.query}{parts.fragment}" or url != url.strip():
        return UNREADABLE
    host = f"[{place}]" if ":" in place else place
    login = f"{quote(unquote(user))}:***@" if user else ""
    return urlunsplit((parts.scheme, f"{login}{host}{f':{port}' if port else ''}", parts.path, "", ""))


def environment_for(url: str) -> dict[str, str]:
    """This process's environment, for a child whose broker is at this URL."""
    return {**os.environ, "AMQPJOBS_URL": url}


def host_name() -> str:
    """This machine's name, for dead letters and connections."""
    return socket.gethostname()


def wants_readable_logs(log_format: str) -> bool:
    """Whether logs go to a person."""
    return log_format == "text" or (log_format == "auto" and sys.stderr.isatty())


def log_level_number(name: str) -> int:
    """The logging module's number for a level's name."""
    return logging.getLevelNamesMapping()[name]


def _told(error: ValidationError) -> str:
    lines: list[str] = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"AMQPJOBS_{name.upper()} ({name} in pyproject.toml): {text}")
    return "A setting cannot be used. " + "; ".join(lines)

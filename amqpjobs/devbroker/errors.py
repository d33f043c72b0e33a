"""What the broker says when it refuses: RabbitMQ's codes, names and words.

A soft error closes the channel, a hard one the connection. The reply text begins with the code's name, as
clients and people know it: `NOT_FOUND - no queue 'x' in vhost '/'`.
"""

from enum import Enum


class Code(Enum):
    """Reply codes of AMQP 0-9-1 that this broker uses: the number, and whether the connection ends."""

    ACCESS_REFUSED = (403, False)
    NOT_FOUND = (404, False)
    RESOURCE_LOCKED = (405, False)
    PRECONDITION_FAILED = (406, False)
    CONNECTION_FORCED = (320, True)
    FRAME_ERROR = (501, True)
    SYNTAX_ERROR = (502, True)
    COMMAND_INVALID = (503, True)
    CHANNEL_ERROR = (504, True)
    UNEXPECTED_FRAME = (505, True)
    RESOURCE_ERROR = (506, True)
    NOT_ALLOWED = (530, True)
    NOT_IMPLEMENTED = (540, True)
    INTERNAL_ERROR = (541, True)

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def is_hard(self) -> bool:
        """Whether the connection ends, not just the channel."""
        return self.value[1]


#: A reply text is a short string.
_LONGEST = 255


class RefusedError(Exception):
    """Ends a channel or a connection; `text` is what the client reads."""

    def __init__(self, code: Code, words: str = "", *, is_nameless: bool = False) -> None:
        whole = (f"{code.name} - {words}" if words else code.name).encode("utf-8", "replace")
        self.code = code
        #: Whether the client is not told which method it was.
        self.is_nameless = is_nameless
        self.text = whole[:_LONGEST].decode("utf-8", "ignore")
        super().__init__(self.text)


def refused(words: str) -> RefusedError:
    return RefusedError(Code.ACCESS_REFUSED, words)


def missing(what: str) -> RefusedError:
    """`what` as `place` writes it."""
    return RefusedError(Code.NOT_FOUND, f"no {what}")


def locked(words: str) -> RefusedError:
    return RefusedError(Code.RESOURCE_LOCKED, words)


def failed(words: str) -> RefusedError:
    """PRECONDITION_FAILED, RabbitMQ's answer to most mistakes."""
    return RefusedError(Code.PRECONDITION_FAILED, words)


def forbidden(words: str) -> RefusedError:
    return RefusedError(Code.NOT_ALLOWED, words)


def unsupported(words: str) -> RefusedError:
    return RefusedError(Code.NOT_IMPLEMENTED, words)


def place(kind: str, name: str, vhost: str) -> str:
    """A queue or an exchange, as RabbitMQ's messages name it."""
    return f"{kind} '{name}' in vhost '{vhost}'"


def unknown_frame(kind: int, payload: bytes) -> RefusedError:
    return RefusedError(Code.FRAME_ERROR, f"type {kind}, {octets(payload)}: unknown_frame", is_nameless=True)


def octets(payload: bytes) -> str:
    """The beginning of a frame, as RabbitMQ shows it."""
    start = payload[:16]
    shown = (
        f'"{start.decode()}"'
        if start and start.isascii() and start.decode().isprintable()
        else ",".join(map(str, start))
    )
    return f"{'all' if len(payload) <= 16 else 'first 16'} octets = <<{shown}>>"

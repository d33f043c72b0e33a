"""Who may connect, and what they may touch: users, their vhosts, and patterns of names for each.

As in RabbitMQ: `configure` for declaring and deleting, `write` and `read` for the rest. A pattern need match
a part of the name only, and an empty one matches nothing but the empty name.
"""

import hmac
import re
from dataclasses import dataclass, field

from amqpjobs.devbroker.errors import refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Permissions:
    """Regular expressions for names of queues and exchanges."""

    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"


@dataclass(slots=True)
class User:
    name: str
    password: str
    #: By vhost; a vhost that is missing may not be entered.
    permissions: dict[str, Permissions] = field(default_factory=dict[str, Permissions])

    def is_right(self, password: str) -> bool:
        return hmac.compare_digest(
            password.encode("utf-8", "surrogateescape"), self.password.encode("utf-8", "surrogateescape")
        )


class Access:
    """What one user may do in one vhost; answers are remembered, so that they cost nothing per message."""

    def __init__(self, user: User, vhost: str) -> None:
        self._user = user
        self._vhost = vhost
        self._granted: set[tuple[str, str, str]] = set()

    @property
    def user(self) -> str:
        return self._user.name

    def check(self, permission: str, kind: str, name: str) -> None:
        """Raises `RefusedError` for a name that the user has no `permission` for."""
        asked = (permission, kind, name)
        if asked in self._granted:
            return
        shown = name or "amq.default"
        permissions = self._user.permissions.get(self._vhost, _NONE)
        pattern: str = getattr(permissions, permission) or "^$"
        if re.search(pattern, shown) is None:
            words = f"{permission} access to {kind} '{shown}' in vhost '{self._vhost}'"
            raise refused(f"{words} refused for user '{self.user}'")
        if len(self._granted) >= _REMEMBERED:
            self._granted.clear()
        self._granted.add(asked)


_REMEMBERED = 4096
_NONE = Permissions(configure="", write="", read="")

"""Who a client is: PLAIN and AMQPLAIN."""

from collections.abc import Mapping

from amqpjobs.devbroker.errors import Code, RefusedError, refused
from amqpjobs.devbroker.table import Table
from amqpjobs.devbroker.users import User

#: What it offers.
SASL = ("PLAIN", "AMQPLAIN")


def find_user(users: Mapping[str, User], mechanism: str, response: str) -> User:
    """Raises `RefusedError`; which part was wrong it does not tell."""
    if mechanism not in SASL:
        raise RefusedError(Code.COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    name, password = _plain(response) if mechanism == "PLAIN" else _amqplain(response)
    user = users.get(name)
    if user is None or not user.is_right(password):
        raise refused(
            f"Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
        )
    return user


def _plain(response: str) -> tuple[str, str]:
    parts = response.split("\0")
    if len(parts) != 3:
        raise RefusedError(Code.SYNTAX_ERROR, "response is no PLAIN login")
    return parts[1], parts[2]


def _amqplain(response: str) -> tuple[str, str]:
    given = Table.of(response.encode("utf-8", "surrogateescape"))
    name, password = given.look("LOGIN"), given.look("PASSWORD")
    if name is None or password is None:
        raise RefusedError(Code.SYNTAX_ERROR, "AMQPLAIN auth info is missing LOGIN or PASSWORD field")
    return name.raw.decode("utf-8", "surrogateescape"), password.raw.decode("utf-8", "surrogateescape")

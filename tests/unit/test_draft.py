"""What cannot be enqueued is found without a broker, and says what is wrong."""

import os
from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from amqpjobs import App, BlockingClient, DefinitionError, Job, TooLargeError
from amqpjobs.handle import EnqueueOptions
from amqpjobs.settings import load_settings

#: Nobody listens there.
APP = App("shop", settings=load_settings(url="amqp://guest:guest@127.0.0.1:1/", max_body=2_000))


class Order(Job[None], kind="order"):
    text: str = ""


class Odd(Job[None], kind="odd"):
    what: Any = None


WRONG: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"dealy": 5}, TypeError, "no option 'dealy'. Did you mean 'delay'"),
    ({"delay": -1}, ValueError, "0 or more seconds"),
    ({"delay": float("nan")}, ValueError, "0 or more seconds"),
    ({"delay": timedelta(days=36_500)}, ValueError, "13.6 years"),
    ({"delay": 1, "run_at": datetime.fromisoformat("2030-01-01T00:00Z")}, ValueError, "not both"),
    ({"run_at": datetime.fromisoformat("2030-01-01")}, ValueError, "must carry a time zone"),
    ({"expires": 0}, ValueError, "expires must be more than 0"),
    ({"timeout": -1}, ValueError, "timeout must be more than 0"),
    ({"deadline": 0}, ValueError, "deadline must be more than 0"),
    ({"priority": 256}, ValueError, "from 0 to 255"),
    ({"priority": "high"}, ValueError, "not 'high'"),
    ({"job_id": "a\nb"}, ValueError, "printable"),
    ({"max_attempts": 0}, ValueError, "1 or more"),
    ({"max_attempts": 2**31}, ValueError, "not 2147483648"),
    ({"queue": "no such queue"}, DefinitionError, "Queue 'no such queue'"),
    ({"on_unroutable": "ignore"}, ValueError, '"raise" or "park"'),
    ({"headers": {"x-death": "no"}}, ValueError, "reserved"),
    ({"headers": {"mine": "x" * 60_000}}, TooLargeError, "may have 50000"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG, ids=lambda each: str(each)[:40])
def test_options_that_cannot_be_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    given = cast("EnqueueOptions", options)

    with pytest.raises(error) as own:
        APP.check(Order(), **given)
    with pytest.raises(error) as blocking:
        BlockingClient(APP).check(Order(), **given)

    assert words in str(own.value)
    assert str(blocking.value) == str(own.value)


def test_a_job_that_is_too_large_or_cannot_be_written_is_refused() -> None:
    with pytest.raises(TooLargeError, match=r"has 2011 bytes, and 2000 are the most"):
        APP.check(Order(text="x" * 2_000))
    with pytest.raises(ValueError, match="Unable to serialize"):
        APP.check(Odd(what=object()))
    with pytest.raises(DefinitionError):
        APP.check(cast("Any", object()))


async def test_what_can_be_enqueued_passes_and_opens_nothing() -> None:
    before = os.listdir("/proc/self/fd")

    APP.check(Order(text="x"), delay=5, priority=255, headers={"tenant": "acme"}, on_unroutable="park")

    assert os.listdir("/proc/self/fd") == before


async def test_a_blocking_check_is_refused_where_the_enqueue_would_be() -> None:
    with pytest.raises(RuntimeError, match=r"await app\.enqueue"):
        BlockingClient(APP).check(Order())

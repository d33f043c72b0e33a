"""What opening a connection leaves behind."""

import asyncio
import gc
from collections.abc import Coroutine

import pytest

from amqpjobs import BrokerUnavailableError
from amqpjobs.amqp.connection import open_session
from tests.support.apps import Bench
from tests.support.broker import PATIENCE
from tests.support.rabbitmq import HOST, free_ports


async def test_the_garbage_collector_need_not_close_what_was_opened_or_could_not_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bench.settings(connect_timeout=PATIENCE)
    closing, ensure = list[str](), asyncio.ensure_future

    def watched(work: Coroutine[object, object, object]) -> asyncio.Future[object]:
        closing.append(str(work))
        return ensure(work)

    monkeypatch.setattr(asyncio, "ensure_future", watched)
    session = await open_session(settings.urls[0], settings, "test")
    await session.close()
    with pytest.raises(BrokerUnavailableError):
        await open_session(f"amqp://{HOST}:{free_ports(1)[0]}/", settings, "test")
    del session
    gc.collect()

    assert not [work for work in closing if "Connection.close" in work]

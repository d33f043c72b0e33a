"""Serves one address from a thread of its own, whatever the process's own event loop does.

Whoever is slow, or sends what is no request, harms nobody else: connections are served side by side, each has some
seconds, its head some kilobytes, and of too many the one that came first is closed.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from amqpjobs.clock import Clock
from amqpjobs.health.messages import BadRequestError, Request, Response, request_of, told, written

_log = logging.getLogger(__name__)

#: Bytes of a request line and its headers.
LONGEST_HEAD = 8 * 1024
#: Connections at once.
MOST = 32
#: Seconds for a head to come, and for a connection in all.
HEAD_WITHIN, SERVED_WITHIN = 5.0, 10.0
#: What a client may still send after it was answered, in bytes and seconds, so that the answer is not lost.
LINGER, LINGER_WITHIN = 64 * 1024, 0.5
#: Seconds that the thread may take to begin, and to end.
PATIENCE = 10.0

Answer = Callable[[Request], Awaitable[Response]]


class Server:
    """Answers what comes to a listening socket, from `start` to `stop`."""

    def __init__(self, listener: socket.socket, answer: Answer, clock: Clock) -> None:
        self._listener = listener
        self._answer = answer
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="amqpjobs-health", daemon=True)
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()
        #: Who came first is first.
        self._connections: dict[asyncio.Task[object], None] = {}

    def start(self) -> None:
        self._thread.start()
        self._begun.wait(PATIENCE)

    def stop(self) -> None:
        """End it with what it has begun. Blocks for a moment."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._asked.set)
        self._thread.join(PATIENCE)
        self._listener.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # nobody else would hear of it
            _log.exception("The health endpoint has ended")
        finally:
            self._begun.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._attend, sock=self._listener, limit=LONGEST_HEAD)
        self._begun.set()
        await self._asked.wait()
        server.close()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._make_room()
        self._connections[task] = None
        try:
            async with self._clock.timeout(SERVED_WITHIN):
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it went away, was too slow, or gave way: there is nobody to tell, and the task is asyncio's own
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    def _make_room(self) -> None:
        if len(self._connections) >= MOST:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = "GET"
        try:
            async with self._clock.timeout(HEAD_WITHIN):
                head = await reader.readuntil(b"\r\n\r\n")
            request = request_of(head)
            method = request.method
            response = await self._answered(request)
        except asyncio.LimitOverrunError:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            response = told(status, f"A request may have {LONGEST_HEAD} bytes before its body.")
        except BadRequestError as error:
            response = told(HTTPStatus.BAD_REQUEST, str(error))
        writer.write(written(response, with_body=method != "HEAD"))
        await writer.drain()
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(LINGER_WITHIN):
                await reader.readexactly(LINGER)

    async def _answered(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except TimeoutError:
            raise
        except Exception:
            _log.exception("A question about health could not be answered")
            return told(HTTPStatus.INTERNAL_SERVER_ERROR, "This could not be answered; the log tells why.")

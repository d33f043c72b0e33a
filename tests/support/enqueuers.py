"""Programs that enqueue through a `BlockingClient` in processes of their own: they fork, and they end.

Each writes a line `id …` for every confirmed job: its ledger. What it enqueues to is in the environment.
"""

import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import import_module
from tempfile import TemporaryDirectory
from types import new_class
from typing import Protocol

from amqpjobs import App, BlockingClient, EnqueueError
from amqpjobs.envelope import Envelope
from amqpjobs.events import ConnectionLost
from amqpjobs.settings import load_settings
from amqpjobs.topology import Topology
from tests.support.apps import NAMESPACE, Note

KIND = "ENQUEUERS_KIND"
#: How many children the forking program has, and how many jobs each enqueues.
CHILDREN, EACH = 20, 5
#: How many tasks Celery's worker is sent.
TASKS = 100
#: How many jobs wait in a buffer at once.
BUFFERED = 300

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Wsgi(Protocol):
    def __call__(self, environ: dict[str, object], start_response: StartResponse, /) -> Iterable[bytes]: ...


def environment(url: str, kind: str) -> dict[str, str]:
    """What these programs are told."""
    return {**os.environ, "AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE, KIND: kind}


def note_class() -> type[Note]:
    made: type[Note] = new_class("Note", (Note,), {"kind": os.environ[KIND]})
    return made


def make_client() -> tuple[BlockingClient, App[None]]:
    app = App("enqueuer", settings=load_settings())
    return BlockingClient(app), app


def say(word: str, rest: object) -> None:
    os.write(1, f"{word} {rest}\n".encode())  # in one piece, whoever else writes


def wsgi() -> Wsgi:
    """For gunicorn: each request enqueues one job; the client has connected before any worker is forked."""
    client, _ = make_client()
    kind = note_class()
    say("id", client.enqueue(kind(text="master")).job_id)

    def serve(environ: dict[str, object], start_response: StartResponse) -> Iterable[bytes]:
        try:
            handle = client.enqueue(kind(n=int(str(environ["QUERY_STRING"]))), deadline=20)
        except EnqueueError as error:
            start_response("503 Service Unavailable", [])
            return [str(error).encode()]
        start_response("200 OK", [("Content-Length", str(len(handle.job_id))), ("X-Pid", str(os.getpid()))])
        return [handle.job_id.encode()]

    return serve


class Task(Protocol):
    def delay(self, n: int, /) -> object: ...


class Celery(Protocol):
    """What we use of a Celery app, which has no types."""

    def task(self, *, name: str) -> Callable[[Callable[[int], None]], Task]: ...
    def worker_main(self, argv: Sequence[str], /) -> None: ...


def celery_worker() -> None:
    """Celery's prefork pool, its tasks in a folder: each enqueues one job by a client that has connected before.

    Children end after a few tasks, and new ones are forked from a parent whose client's thread runs.
    """
    client, _ = make_client()
    kind = note_class()
    say("id", client.enqueue(kind(text="parent")).job_id)
    with TemporaryDirectory() as folder:
        places = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), folder)
        celery: Celery = import_module("celery").Celery(broker="filesystem://", broker_transport_options=places)

        def enqueue(n: int) -> None:
            say("id", client.enqueue(kind(n=n), deadline=20).job_id)
            say("pid", os.getpid())

        def send(**about: object) -> None:
            for n in range(TASKS):
                task.delay(n)

        task = celery.task(name="enqueue")(enqueue)
        import_module("celery.signals").worker_ready.connect(send)
        pool = ("--pool", "prefork", "--concurrency", "4", "--max-tasks-per-child", "10")
        celery.worker_main(["worker", *pool, "--without-gossip", "--without-mingle", "--loglevel", "warning"])


def fork_under_load() -> None:
    """Threads enqueue without a pause while the main thread forks children that enqueue too."""
    client, app = make_client()
    kind = note_class()
    app.on(ConnectionLost)(lambda event: say("lost", event))
    is_over = threading.Event()

    def enqueue_on() -> None:
        while not is_over.is_set():
            say("id", client.enqueue(kind(text="parent"), deadline=20).job_id)

    threads = [threading.Thread(target=enqueue_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    children = [pid for _ in range(CHILDREN) if (pid := fork_child(client, kind))]
    for pid in children:
        say("child", os.waitpid(pid, 0)[1])
    is_over.set()
    for thread in threads:
        thread.join()
    say("id", client.enqueue(kind(text="last")).job_id)
    client.close()
    say("threads", threading.active_count())


def fork_child(client: BlockingClient, kind: type[Note]) -> int:
    """The child's pid; the child itself enqueues, and ends as programs do."""
    pid = os.fork()
    if pid == 0:
        say("inherited", inherited_sockets())
        for n in range(EACH):
            say("id", client.enqueue(kind(n=n, text="child"), deadline=20).job_id)
        sys.exit()
    return pid


def inherited_sockets() -> int:
    """How many sockets this process has; asked before it makes any of its own."""
    return sum(os.readlink(f"/proc/self/fd/{number}").startswith("socket:") for number in open_descriptors())


def open_descriptors() -> list[str]:
    return [number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]


def fork_between() -> None:
    """Fork while the client's thread holds a lock, as libraries have them, that a child could never get."""
    client, app = make_client()
    kind = note_class()
    lock, is_held = threading.Lock(), threading.Event()

    async def hold(envelope: Envelope, send: Callable[[Envelope], Awaitable[Envelope]]) -> Envelope:
        with lock:
            is_held.set()
            threading.Event().wait(0.3)
        return await send(envelope)

    app.enqueue_middleware(hold)
    thread = threading.Thread(target=lambda: say("id", client.enqueue(kind()).job_id))
    thread.start()
    is_held.wait()
    pid = os.fork()
    if pid == 0:
        say("locked", lock.locked())
        say("id", client.enqueue(kind()).job_id)
        sys.exit()
    os.waitpid(pid, 0)
    thread.join()


def fork_at_birth() -> None:
    """Fork while another thread is making what its client needs: sockets are open, no thread runs yet."""
    is_begun = threading.Event()

    class SlowApp(App[None]):
        @property
        def topology(self) -> Topology:
            if not is_begun.is_set():
                is_begun.set()
                threading.Event().wait(0.3)
            return super().topology

    client = BlockingClient(SlowApp("enqueuer", settings=load_settings()))
    kind = note_class()
    thread = threading.Thread(target=lambda: say("id", client.enqueue(kind()).job_id))
    thread.start()
    is_begun.wait()
    pid = os.fork()
    if pid == 0:
        say("inherited", inherited_sockets())
        say("id", client.enqueue(kind(), deadline=20).job_id)
        sys.exit()
    os.waitpid(pid, 0)
    thread.join()


def at_exit(*, is_connected: bool) -> None:
    """Enqueue in a handler that was registered before amqpjobs had anything to close, and in one after."""
    client, _ = make_client()
    kind = note_class()

    def enqueue() -> None:
        try:
            say("id", client.enqueue(kind(text="exit"), deadline=3).job_id)
        except EnqueueError as error:
            say("failed", type(error).__name__)

    atexit.register(enqueue)
    if is_connected:
        say("id", client.enqueue(kind(text="before")).job_id)


def abandon() -> None:
    """End with a daemon thread in the middle of a call, and with a client that nobody closed."""
    client, _ = make_client()
    kind = note_class()
    say("id", client.enqueue(kind(text="before")).job_id)
    started = threading.Event()

    def enqueue_on() -> None:
        while True:
            started.set()
            client.enqueue(kind(text="daemon"), on_unroutable="park")

    threading.Thread(target=enqueue_on, daemon=True).start()
    started.wait()


def buffer_at_exit() -> None:
    """End right after jobs were put into a buffer that nobody flushes."""
    client, _ = make_client()
    kind = note_class()
    buffer = client.buffer()
    for n in range(BUFFERED):
        say("id", buffer.enqueue(kind(n=n)).job_id)


def fork_with_a_buffer() -> None:
    """Fork while jobs wait; the children put their own, and end as programs do."""
    client, _ = make_client()
    kind = note_class()
    buffer = client.buffer(timeout=20)
    for _ in range(4):
        for n in range(BUFFERED // 4):
            say("id", buffer.enqueue(kind(n=n)).job_id)
        if os.fork() == 0:
            if len(buffer):
                say("inherited", len(buffer))
                os._exit(1)
            for n in range(EACH):
                say("id", buffer.enqueue(kind(n=n, text="child")).job_id)
            sys.exit()
    for _ in range(4):
        if os.wait()[1]:
            sys.exit("A child failed.")
    buffer.close()


PROGRAMS: dict[str, Callable[[], None]] = {
    "fork_under_load": fork_under_load,
    "fork_between": fork_between,
    "fork_at_birth": fork_at_birth,
    "at_exit": lambda: at_exit(is_connected=True),
    "first_at_exit": lambda: at_exit(is_connected=False),
    "abandon": abandon,
    "celery_worker": celery_worker,
    "buffer_at_exit": buffer_at_exit,
    "fork_with_a_buffer": fork_with_a_buffer,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()

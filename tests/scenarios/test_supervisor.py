"""Several worker processes and their supervisor: who is replaced, who stops, and that nobody is left behind."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

import pytest

from amqpjobs.clock import SystemClock
from amqpjobs.events import Events, ProcessEnded, ProcessStarted
from amqpjobs.worker.supervisor import Command, Supervisor
from tests.support.apps import watch
from tests.support.broker import PATIENCE
from tests.support.service import Service, is_alive, lines_of, until
from tests.support.terminal import Terminal

STARTED, WORKING = '"message":"process started"', '"message":"working"'
#: What a supervisor promises: so many seconds after its end, however it ended, no process of it is left.
PROMISE = 10.0
#: For a service that is to hand back its jobs after that, however busy the machine is.
PATIENT = """
from amqpjobs.worker import supervised
supervised.KILLED_AFTER, supervised._ALARM = 30.0, 31
"""
#: Makes its standard input its controlling terminal, and becomes the command; hangups count, also under nohup.
LEAD_TERMINAL = """\
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def pids_of(supervisor: Terminal) -> list[int]:
    """The processes it has started so far."""
    return [line["pid"] for line in lines_of(supervisor, "process started")]


async def works(supervisor: Terminal, count: int) -> list[int]:
    """Wait until so many of its processes consume; all it has started."""
    await until(lambda: len(lines_of(supervisor, "working")) >= count)
    return pids_of(supervisor)


async def until_gone(pids: Sequence[int]) -> None:
    """Until none of them is left, within what is promised and what a busy machine needs; who stays is killed."""
    try:
        await until(lambda: not any(is_alive(pid) for pid in pids), within=PROMISE + PATIENCE)
    finally:
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


async def test_a_killed_process_is_replaced_and_sigterm_drains_all(service: Service) -> None:
    with service.type("amqpjobs run shop --processes 2 -c 1") as supervisor:
        first, second = await works(supervisor, 2)
        await service.until_consumed_by(2)

        os.kill(first, signal.SIGKILL)
        assert supervisor.shows('"message":"process was killed by SIGKILL'), supervisor.text
        third = (await works(supervisor, 3))[2]
        await service.until_consumed_by(2)
        await service.send(0, 1, do="wait")
        await service.until_noted("start", 0, 1)
        supervisor.signal(signal.SIGTERM)
        await until(lambda: len(lines_of(supervisor, "stopping")) == 2)
        service.let_go()

        assert supervisor.end() == 0, supervisor.text
    assert sorted(service.noted("start")) == sorted(service.noted("end")) == [0, 1]
    assert service.pids() == {second, third}
    assert {line["worker"] for line in lines_of(supervisor, "completed")} == {1, 2}
    assert not any(is_alive(pid) for pid in (first, second, third))


async def test_a_second_signal_cuts_short_in_all_processes_and_shows_in_the_exit_code(service: Service) -> None:
    with service.type("amqpjobs run shop --processes 2 -c 1 --drain-timeout 600") as supervisor:
        await works(supervisor, 2)
        await service.send(0, 1, do="wait")
        await service.until_noted("start", 0, 1)

        supervisor.signal(signal.SIGINT)
        await until(lambda: len(lines_of(supervisor, "stopping")) == 2)
        supervisor.signal(signal.SIGINT)

        assert supervisor.end() == 6, supervisor.text
    await service.broker.await_count(service.queue, 2)


async def test_a_service_manager_that_signals_every_process_cuts_nothing_short(service: Service) -> None:
    with service.type("amqpjobs run shop --processes 2") as supervisor:
        pids = await works(supervisor, 2)
        await service.send(0, do="wait")
        await service.until_noted("start", 0)

        for pid in pids:  # as systemd does by default, the supervisor last
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGTERM)
        supervisor.signal(signal.SIGTERM)
        await until(lambda: len(lines_of(supervisor, "stopped")) >= 1)  # one more if it was replaced before
        service.let_go()

        assert supervisor.end() == 0, supervisor.text
    assert service.noted("end") == [0]


async def test_a_reload_replaces_each_process_loses_no_job_and_leaves_no_gap(service: Service) -> None:
    fewest, is_over = 99, False

    async def watch_consumers() -> None:
        nonlocal fewest
        while not is_over:
            fewest = min(fewest, await service.consumers())

    with service.type("amqpjobs run shop --processes 2 -c 1") as supervisor:
        old = await works(supervisor, 2)
        await service.until_consumed_by(2)
        watching = asyncio.create_task(watch_consumers())
        supervisor.signal(signal.SIGHUP)
        await service.send(*range(20), do="sleep", seconds=0.2)
        assert await asyncio.to_thread(supervisor.shows, '"message":"all processes are replaced"'), supervisor.text
        new = pids_of(supervisor)[2:]
        await service.until_noted("end", *range(20))
        is_over = True
        await watching  # cancelled in the middle of a question, it would close the channel that the rest needs
        supervisor.signal(signal.SIGTERM)
        assert supervisor.end() == 0, supervisor.text

    assert len(new) == 2
    assert set(old).isdisjoint(new)
    assert sorted(service.noted("end")) == list(range(20))
    assert fewest >= 2


async def test_a_reload_with_code_that_cannot_start_leaves_the_old_processes(service: Service) -> None:
    with service.type("amqpjobs run shop --processes 2") as supervisor:
        await works(supervisor, 2)
        source = (service.folder / "shop.py").read_text()
        (service.folder / "shop.py").write_text("import nowhere_at_all\n")

        supervisor.signal(signal.SIGHUP)

        assert supervisor.shows("a new process did not start, so the others stay"), supervisor.text
        assert await service.consumers() == 2
        (service.folder / "shop.py").write_text(source)
        supervisor.signal(signal.SIGHUP)
        assert supervisor.shows('"message":"all processes are replaced"'), supervisor.text
        supervisor.signal(signal.SIGTERM)
        assert supervisor.end() == 0, supervisor.text


@pytest.mark.parametrize("do", ["end", "wait", "block"])
async def test_no_process_outlives_a_killed_supervisor(service: Service, do: str) -> None:
    if do == "wait":
        with (service.folder / "shop.py").open("a") as source:
            source.write(PATIENT)
    with service.type("amqpjobs run shop --processes 2") as supervisor:
        pids = await works(supervisor, 2)
        await service.send(0, do=do)
        await service.until_noted("start", 0)
        assert all(is_alive(pid) for pid in pids)

        supervisor.signal(signal.SIGKILL)

        await until_gone(pids)
    # What did not end is there again, and what could be told was handed back rather than lost with its process.
    await service.broker.await_count(service.queue, 0 if do == "end" else 1)
    assert len(lines_of(supervisor, "cut short and handed back")) == (do == "wait")


async def test_processes_of_handlers_do_not_outlive_a_killed_supervisor(service: Service) -> None:
    source = (service.folder / "shop.py").read_text()
    in_process = source.replace("retry=fixed(3600)", 'retry=fixed(3600), run_in="process"')
    (service.folder / "shop.py").write_text(in_process)
    with service.type("amqpjobs run shop --processes 1") as supervisor:
        pids = await works(supervisor, 1)
        await service.send(0, do="block")
        await service.until_noted("start", 0)
        pids += list(service.pids())

        supervisor.signal(signal.SIGKILL)

        await until_gone(pids)
    assert len(pids) == 2
    await service.broker.await_count(service.queue, 1)


@contextmanager
def on_a_terminal(service: Service, command: str) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """The command as the leader of a terminal of its own, and that terminal's other end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LEAD_TERMINAL, *command.split()],
        cwd=service.folder,
        env=service.environment,
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    try:
        yield process, master
    finally:
        process.kill()
        process.wait()
        os.close(master)


def read_until(terminal: int, words: str, times: int = 1) -> None:
    shown = b""
    while shown.count(words.encode()) < times:
        shown += os.read(terminal, 65536)


def read_to_end(terminal: int) -> None:
    """What nobody reads would hold up those who write it."""
    with suppress(OSError):  # how a terminal says that nobody has it open any more
        while os.read(terminal, 65536):
            pass


@pytest.mark.parametrize(("keys", "code"), [("\x03", 0), ("\x03\x03", 6)], ids=["once", "twice"])
async def test_ctrl_c_in_a_terminal_reaches_the_processes_as_often_as_it_is_typed(
    service: Service, keys: str, code: int
) -> None:
    with on_a_terminal(service, "amqpjobs run shop --processes 2 --drain-timeout 600") as (supervisor, terminal):
        await asyncio.to_thread(read_until, terminal, WORKING, 2)
        await service.send(0, do="wait")
        await service.until_noted("start", 0)

        os.write(terminal, keys[0].encode())
        # Of both: two signals that come before one of them looks are one.
        await asyncio.to_thread(read_until, terminal, '"stopping"', 2)
        os.write(terminal, keys[1:].encode())  # the exit code tells whether it was heard
        if code == 0:
            service.let_go()
        reading = asyncio.create_task(asyncio.to_thread(read_to_end, terminal))

        assert await asyncio.to_thread(supervisor.wait, PATIENCE) == code
        await reading


async def test_a_terminal_that_is_closed_stops_all(service: Service) -> None:
    with on_a_terminal(service, "amqpjobs run shop --processes 2") as (supervisor, terminal):
        await asyncio.to_thread(read_until, terminal, WORKING, 2)
        spare = os.open(os.devnull, os.O_RDONLY)

        os.dup2(spare, terminal)  # the last one that had it open
        os.close(spare)

        assert await asyncio.to_thread(supervisor.wait, PATIENCE) == 0
    await service.until_consumed_by(0)


async def test_processes_that_reach_a_limit_are_replaced_at_once(service: Service) -> None:
    with service.type("amqpjobs run shop --processes 2 -c 1 --max-jobs 2") as supervisor:
        await works(supervisor, 2)
        await service.send(*range(10))
        await service.until_noted("end", *range(10), within=4 * PATIENCE)  # three times two processes have to start
        supervisor.signal(signal.SIGTERM)
        assert supervisor.end() == 0, supervisor.text

    assert len(service.pids()) >= 5
    assert sorted(service.noted("end")) == list(range(10))
    assert all(not line.get("pause") for line in lines_of(supervisor, "process ended with exit code 0"))


async def test_a_burst_of_several_processes_ends(service: Service) -> None:
    with service.type("amqpjobs run shop --burst") as empty:
        assert empty.end() == 0, empty.text
    await service.send(*range(30), do="wait")

    with service.type("amqpjobs run shop --burst -c 1", AMQPJOBS_WORKER_PROCESSES="2") as supervisor:
        # One that starts slowly would else find nothing left to do.
        await until(lambda: len(service.noted("start")) == 2, within=2 * PATIENCE)
        service.let_go()
        assert supervisor.end() == 0, supervisor.text

    assert sorted(service.noted("end")) == list(range(30))
    assert len(service.pids()) == len(pids_of(supervisor)) == 2


async def test_what_can_never_start_ends_the_supervisor_with_its_exit_code_and_is_told_once(service: Service) -> None:
    await service.broker.declare_queue(service.queue, {"x-queue-type": "classic"})
    for words, code, told in (
        ("nosuch", 3, "There is no module 'nosuch'"),
        ("shop shop:app --queue a", 2, "--queue names queues of one service"),
        ("shop", 5, "exists with x-"),
    ):
        with service.type(f"amqpjobs run {words} --processes 4") as supervisor:
            assert supervisor.end() == code, supervisor.text
        assert supervisor.text.count(told) == 1, supervisor.text
        assert len(pids_of(supervisor)) == 1


# Without a broker: the processes are small programs.


def program(source: str) -> Command:
    def command(number: int, fd: int) -> Sequence[str]:
        return [sys.executable, "-c", f"import os, sys, time; fd, number = {fd}, {number}\n{source}"]

    return command


def supervisor_of(command: Command, events: Events, *, count: int = 1, grace: float = 5) -> Supervisor:
    return Supervisor(
        command,
        count=count,
        clock=SystemClock(),
        events=events,
        grace=grace,
        hopeless=frozenset({3}),
        unclean=6,
    )


@pytest.mark.parametrize("source", ["sys.exit(1)", "os.write(fd, b'ready\\n'); sys.exit(3)"])
async def test_a_process_that_ends_young_again_and_again_is_replaced_ever_later(source: str) -> None:
    events = Events()
    ended, started = watch(events, ProcessEnded), watch(events, ProcessStarted)
    supervisor = supervisor_of(program(source), events)
    running = asyncio.create_task(supervisor.run())

    await ended.until(3)
    supervisor.stop()

    assert await asyncio.wait_for(running, PATIENCE) == 0
    assert [event.pause for event in ended] == [0.5, 1.0, 2.0]
    assert len(started) == 3


async def test_the_others_wait_until_the_first_process_consumes() -> None:
    events = Events()
    started = watch(events, ProcessStarted)
    slow_first = "number > 1 or time.sleep(1); os.write(fd, b'ready\\n'); time.sleep(600)"
    supervisor = supervisor_of(program(slow_first), events, count=3)
    running = asyncio.create_task(supervisor.run())

    await started.until(1)
    only = [event.number for event in started]
    await started.until(3)
    supervisor.stop()
    supervisor.stop()

    assert only == [1]
    assert sorted(event.number for event in started) == [1, 2, 3]
    assert await asyncio.wait_for(running, PATIENCE) in (
        0,
        6,
    )  # those that were ready, and knew no SIGTERM, were cut short


async def test_a_process_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.worker.supervisor.LAST_WORDS", 0.2)
    events = Events()
    ended = watch(events, ProcessEnded)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(fd, b'ready\\n'); time.sleep(600)"
    supervisor = supervisor_of(program(deaf + "\n"), events, grace=0)
    started = watch(events, ProcessStarted)
    running = asyncio.create_task(supervisor.run())
    await started.until(1)
    await until(lambda: supervisor.has_begun)

    supervisor.stop()

    assert await asyncio.wait_for(running, PATIENCE) == 6
    assert ended[0].code == -signal.SIGKILL


async def test_a_reload_ends_the_pause_before_a_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.worker.supervisor.FIRST_PAUSE", 3600.0)
    monkeypatch.setattr("amqpjobs.worker.supervisor.LONGEST_PAUSE", 3600.0)
    events = Events()
    ended = watch(events, ProcessEnded)
    supervisor = supervisor_of(program("sys.exit(1)"), events)
    running = asyncio.create_task(supervisor.run())
    await ended.until(1)

    supervisor.reload()

    await ended.until(2)
    supervisor.stop()
    assert await asyncio.wait_for(running, PATIENCE) == 0

"""Private RabbitMQ nodes for the tests.

A test may only stop, kill or freeze a broker that nobody else uses, and must find the same broker on
every machine. So each `Node` has its own ports, folder, cookie and epmd, reads no configuration of the
machine, and works with any RabbitMQ from 3.10 on, also one that lives in a chroot.

Nothing may stay behind, not even after `kill -9` of the test run. So the cleaning is done by another
process, the guard: this very file, run as a script. It waits on a pipe that breaks when the run ends,
kills whatever has the node's folder as its HOME, which only this module's children have, and deletes
the folder. `close` asks it to do so at once.

Everything here blocks; async tests call it through `asyncio.to_thread`.
"""

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

HOST = "127.0.0.1"
START_DEADLINE = 120.0  # a start takes 2 to 6 s; a busy machine may need far longer
STOP_DEADLINE = 60.0
#: Below the ports that systems hand out to outgoing connections. A client that keeps dialling a stopped
#: node on one of those is in the end given that very port, connects to itself, and blocks the restart.
PORTS = range(20_000, 30_000)
#: Whom a port was given to has locked its byte of this file, until the end of its process.
_GIVEN = os.open(f"/tmp/amqpjobs-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)
_given_here = set[int]()
#: Where Linux packages keep the real programs; theirs in /usr/sbin switch to the user `rabbitmq`.
PACKAGED = Path("/usr/lib/rabbitmq/bin")


class NodeError(Exception):
    """A node, or the program that speaks to it, did not do what it was told."""


class Entered:
    """Starts on the way in and closes on the way out, also when the start fails."""

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.close)
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Node(Entered):
    """One RabbitMQ broker of our own, which keeps its ports and its data until it is closed.

    `conf` is appended to rabbitmq.conf, `advanced` becomes advanced.config; all else is RabbitMQ's default.
    As a context manager it starts on the way in and closes on the way out.
    """

    def __init__(self, *, conf: str = "", advanced: str = "[].", epmd_port: int | None = None) -> None:
        self._server_program = find_program("rabbitmq-server")
        self._conf = conf
        self._advanced = advanced
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._version = ""
        self.port, self._distribution_port, own_epmd_port = free_ports(3)
        self.epmd_port = epmd_port or own_epmd_port
        # /tmp itself and not TMPDIR: it is what a chroot sees, too.
        self.folder = Path(tempfile.mkdtemp(prefix="amqpjobs-node-", dir="/tmp"))
        self._log = self.folder / "node.log"
        self._output = self.folder / "output.log"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/"

    @property
    def name(self) -> str:
        """What Erlang calls it."""
        return f"amqpjobs-{self.port}@localhost"

    @property
    def version(self) -> str:
        """What the broker said when it was started, such as `4.0.5`; empty before."""
        return self._version

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def configure(self, conf: str) -> None:
        """Append to rabbitmq.conf, before the first start."""
        self._conf = f"{self._conf}\n{conf}"

    def start(self) -> None:
        """Return when the broker answers AMQP. Does nothing if it is running."""
        if self.is_running:
            return
        if self._guard is None:
            self._write_files()
            self._guard = start_guard(self.folder)
        with self._output.open("ab") as output:
            self._server = subprocess.Popen(
                [self._server_program],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the tests, which still need it to end well
            )
        self._await_amqp(self._server)

    def stop(self) -> None:
        """End it gracefully; what is durable stays. Does nothing if it is not running."""
        if self._server is None:
            return
        self.thaw()
        self._server.terminate()
        try:
            self._server.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"did not stop within {STOP_DEADLINE:.0f} s") from error
        self._server = None

    def kill(self) -> None:
        """End it as a power cut would: no goodbye to clients, nothing flushed."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Hold it still with its connections open, as a host that went away looks from outside."""
        if self._server is not None:
            self._server.send_signal(signal.SIGSTOP)
            # Its threads run on for a moment. NOWAIT leaves an exit for Popen to see.
            os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str, timeout: float = 60, program: str = "rabbitmqctl") -> str:
        """Run `rabbitmqctl` and return what it prints: `node.ctl("list_queues", "name")`. Takes a second."""
        run = subprocess.run(
            [find_program(program), "--quiet", *arguments],
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if run.returncode != 0:
            raise NodeError(f"{program} {' '.join(arguments)} failed with {run.returncode}:\n{run.stdout}{run.stderr}")
        return run.stdout

    def close(self) -> None:
        """End all its processes and delete its folder. Any number of times; it cannot be started again."""
        guard, self._guard = self._guard, None
        if guard is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        # A byte and not just an end of file: a fork of this process may hold the pipe open, too.
        _, complaint = guard.communicate(b"\n")
        self.kill()  # it is dead already; this takes note of it
        if guard.returncode != 0:
            raise NodeError(f"Look for processes with HOME={self.folder}; its guard failed:\n{complaint.decode()}")

    def _write_files(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("amqpjobs-tests")
        cookie.chmod(0o600)  # Erlang refuses one that others may read
        listener = f"listeners.tcp.1 = {HOST}:{self.port}\n"
        (self.folder / "rabbitmq.conf").write_text(f"{listener}{self._conf}\n")
        (self.folder / "advanced.config").write_text(self._advanced)
        (self.folder / "enabled_plugins").write_text("[].")

    def _environment(self) -> dict[str, str]:
        """The same for the server and for rabbitmqctl, which finds the server by it."""
        ours = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return inherited | {
            "HOME": str(self.folder),  # where Erlang looks for its cookie, and the guard's mark
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",  # none: it takes long to write, and nobody reads it
            # The script then becomes the broker by exec, so that our signals reach the broker itself.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": str(self._log),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),  # not the one in /etc
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            # Several nodes share a few cores with the tests: few schedulers, none bound to a core.
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _await_amqp(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while server.poll() is None and time.monotonic() < deadline:
            try:
                self._version = broker_version(HOST, self.port)
            except OSError:
                time.sleep(0.05)
            else:
                return
        ended = server.returncode
        raise self._failure(
            f"did not answer within {START_DEADLINE:.0f} s"
            if ended is None
            else f"ended with {ended} instead of starting"
        )

    def _failure(self, what: str) -> NodeError:
        tails = (f"{file.name}:\n{tail(file)}" for file in (self._output, self._log))
        return NodeError("\n".join((f"RabbitMQ ({self._server_program}) {what}.", *tails)))


class Cluster(Entered):
    """Several nodes that are one broker. They find each other by a list of names, and form it when started.

    They share one epmd, which belongs to the one that was first, and outlives its stop and kill but not its `close`.
    """

    def __init__(self, size: int = 3, *, conf: str = "") -> None:
        first = Node(conf=conf)
        self.nodes = [first, *(Node(conf=conf, epmd_port=first.epmd_port) for _ in range(size - 1))]
        peers = [f"cluster_formation.classic_config.nodes.{n} = {each.name}" for n, each in enumerate(self.nodes, 1)]
        for node in self.nodes:
            node.configure("\n".join(["cluster_formation.peer_discovery_backend = classic_config", *peers]))

    @property
    def url(self) -> str:
        """Of all nodes, as the settings take them."""
        return ",".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Return when all nodes answer and are one cluster."""
        with ThreadPoolExecutor() as pool:  # together: from 4.0 on the first waits until it has seen others
            list(pool.map(Node.start, self.nodes))
        self._await_members()

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.close()

    def _await_members(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while (members := self._members()) != {node.name for node in self.nodes}:
            if time.monotonic() > deadline:
                raise NodeError(f"No cluster of {len(self.nodes)} nodes, but of {sorted(members)}.")
            time.sleep(0.5)

    def _members(self) -> set[str]:
        said = self.nodes[0].ctl("eval", "rabbit_nodes:all_running().")
        return set(re.findall(r"[\w-]+@localhost", said))


def find_program(name: str) -> str:
    """The program that runs as whoever calls it. Raises `NodeError` if RabbitMQ is not installed."""
    found = shutil.which(name)
    packaged = PACKAGED / name
    is_system = found is None or Path(found).parent in (
        Path("/usr/sbin"),
        Path("/usr/bin"),
        Path("/sbin"),
        Path("/bin"),
    )
    if is_system and packaged.exists():
        return str(packaged)
    if found is None:
        raise NodeError(f"No {name} on PATH nor in {PACKAGED}. The tests need RabbitMQ's server: run `make rabbitmq`.")
    return found


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now, and that nobody else is given who runs tests on this machine.

    Not even while nobody listens there: a node that is stopped finds its ports free when it starts again.
    """
    free = (port for port in random.sample(PORTS, len(PORTS)) if is_free(port) and _take(port))
    return list(islice(free, count))


def _take(port: int) -> bool:
    """Make it ours, if it was nobody's; whether it is."""
    if port in _given_here:  # such a lock does not keep out the process that holds it
        return False
    try:
        fcntl.lockf(_GIVEN, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given_here.add(port)
    return True


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Erlang does it: a port whose last connections are still fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def broker_version(host: str, port: int) -> str:
    """Say hello in AMQP and read the version from the answer. Raises `OSError` while nobody answers."""
    with socket.create_connection((host, port), timeout=5) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        head = answer.read(7)  # type, channel, size
        if len(head) < 7:
            raise ConnectionError("The broker closed the connection.")
        properties = answer.read(struct.unpack(">I", head[3:])[0])
    found = re.search(rb"\x07versionS.{3}.([\w.+-]+)", properties, re.DOTALL)
    return found[1].decode() if found else "unknown"


def tail(file: Path, lines: int = 100) -> str:
    text = file.read_text(errors="replace") if file.exists() else "(nothing)"
    return "\n".join(text.splitlines()[-lines:])


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C ends the run, and only then the guard's wait
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything a node started: the broker, its epmd, which is a daemon and nobody's child, and helpers."""
    return [process for process in psutil.process_iter(["environ"]) if lives_in(folder, process)]


def lives_in(folder: Path, process: psutil.Process) -> bool:
    environment = process.info["environ"]  # None for what is not ours to read
    return environment is not None and environment.get("HOME") == str(folder)


def guard(folder: Path) -> None:
    sys.stdin.readline()
    while processes := processes_of(folder):  # again, for those born meanwhile
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # helpers end by themselves when their broker does
                process.kill()
        psutil.wait_procs(processes, timeout=0.1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))

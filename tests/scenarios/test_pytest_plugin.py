"""The pytest plugin in users' suites: with pytest-asyncio in both modes and with anyio, and nothing configured.

Each story is a pytest of its own, which finds the plugin as an installed package would offer it.
"""

import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHOP = """
from amqpjobs import App, Job, JobContext

class Flaky(Job[None], kind="flaky"):
    fail_times: int

def make_app():
    app = App("shop")

    @app.handler(Flaky)
    async def flaky(job: Flaky, ctx: JobContext[None]) -> None:
        if ctx.attempt <= job.fail_times:
            raise ValueError("not yet")

    return app

app = make_app()
"""

CONFTEST = """
import pytest
from shop import app

@pytest.fixture
def amqpjobs_app():
    return app
"""

TESTS = """
import pytest
from amqpjobs.outcome import Completed, Retrying
from shop import Flaky, app

{marks}

@pytest.fixture
def times():
    return 1

async def test_a_failing_job_is_tried_again_later(harness, times):
    await harness.app.enqueue(Flaky(fail_times=times))

    await harness.drain()

    assert harness.outcomes(Flaky) == [Retrying(delay=2.0), Completed()]

class TestMethods:
    @pytest.mark.parametrize("times", [0, 2])
    async def test_in_a_class(self, times, harness):
        await app.enqueue(Flaky(fail_times=times))
        await harness.drain()
        assert len(harness.outcomes(Flaky)) == times + 1

async def test_each_test_has_its_own(harness):
    assert harness.enqueued(Flaky) == []

@pytest.mark.parametrize("nothing", [None])
async def test_that_fails(harness, nothing):
    harness.assert_enqueued(Flaky)
"""

ANYIO = """
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


class Suite:
    """A user's folder of tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
        installed = folder / "site" / "users_amqpjobs-1.0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: users-amqpjobs\nVersion: 1.0\n")
        lines = [f"{name} = {module}" for name, module in entry_points.items()]
        (installed / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
        self.write("shop.py", SHOP)
        self.write("conftest.py", CONFTEST)
        self.write("pytest.ini", "[pytest]\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, *arguments: str) -> str:
        """What pytest printed; warnings are errors."""
        path = os.pathsep.join([str(self.folder / "site"), str(self.folder), str(ROOT)])
        command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *arguments]
        # pytest-asyncio's own advice to who has configured nothing.
        command += ["-W", "ignore:The configuration option"]
        ran = subprocess.run(
            command, cwd=self.folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        return ran.stdout + ran.stderr


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


@pytest.mark.parametrize(
    ("marks", "arguments"),
    [
        pytest.param("pytestmark = pytest.mark.asyncio", [], id="pytest-asyncio, strict"),
        pytest.param("", ["-o", "asyncio_mode=auto"], id="pytest-asyncio, auto"),
        pytest.param(ANYIO, [], id="anyio"),
        pytest.param(ANYIO, ["-p", "no:asyncio"], id="anyio alone"),
    ],
)
def test_the_harness_is_open_in_tests(suite: Suite, marks: str, arguments: list[str]) -> None:
    suite.write("test_shop.py", TESTS.format(marks=marks))

    printed = suite.run(*arguments)

    assert "1 failed, 4 passed" in printed, printed
    assert "AssertionError: No Flaky of that description were enqueued. Nothing was enqueued." in printed, printed


def test_a_harness_that_a_fixture_has_opened_is_left_alone(suite: Suite) -> None:
    suite.write(
        "test_shop.py",
        """
import pytest
from amqpjobs.testing import Harness
from shop import Flaky, app

@pytest.fixture
async def harness():
    async with Harness(app, works=False) as harness:
        yield harness

async def test_it(harness):
    await app.enqueue(Flaky(fail_times=0))
    assert len(harness.enqueued(Flaky)) == 1
""",
    )

    printed = suite.run("-o", "asyncio_mode=auto")

    assert "1 passed" in printed, printed


def test_schedules_are_due_where_a_test_or_its_fixture_asks_for_a_beat(suite: Suite) -> None:
    suite.write(
        "test_shop.py",
        """
import pytest
from amqpjobs import every
from amqpjobs.testing import Harness
from shop import Flaky, make_app

@pytest.fixture
def amqpjobs_app():
    app = make_app()
    app.schedule(every(3600), job=Flaky(fail_times=0))
    return app

async def test_nobody_asked(harness):
    await harness.advance(days=1)
    assert harness.enqueued(Flaky) == []

async def test_a_block(harness):
    async with harness.beat():
        await harness.advance(days=1)
    harness.assert_enqueued(Flaky, count=25)

class TestAll:
    @pytest.fixture
    def harness(self, amqpjobs_app):
        return Harness(amqpjobs_app, beats=True)

    async def test_a_fixture(self, harness):
        await harness.advance(days=1)
        assert len(harness.outcomes(Flaky)) == 25
""",
    )

    printed = suite.run("-o", "asyncio_mode=auto")

    assert "3 passed" in printed, printed


def test_without_a_fixture_the_app_of_pyproject_is_taken(suite: Suite) -> None:
    suite.write("conftest.py", "")
    suite.write("pyproject.toml", '[tool.amqpjobs]\napps = ["shop"]\n')
    suite.write("test_shop.py", "import shop\n\nasync def test_it(harness):\n    assert harness.app is shop.app\n")

    printed = suite.run("-o", "asyncio_mode=auto")

    assert "1 passed" in printed, printed


def test_who_names_no_app_is_told_how(suite: Suite) -> None:
    suite.write("conftest.py", "")
    suite.write("test_shop.py", "async def test_it(harness):\n    pass\n")

    printed = suite.run("-o", "asyncio_mode=auto")

    assert "Which app shall `harness` run? Write a fixture that returns it" in printed, printed


def test_a_test_that_is_not_async_is_told_that_the_harness_is_not_open(suite: Suite) -> None:
    suite.write("test_shop.py", "def test_it(harness):\n    harness.app\n")

    printed = suite.run()

    assert "The harness is not open" in printed, printed


def test_the_plugin_imports_nothing_until_it_is_asked(suite: Suite) -> None:
    suite.write(
        "test_shop.py",
        """
import sys

def test_it():
    assert "amqpjobs.testing.plugin" in sys.modules
    assert not {"aio_pika", "aiormq", "pydantic", "amqpjobs.app", "amqpjobs.testing.harness"} & set(sys.modules)
""",
    )
    suite.write("conftest.py", "")

    printed = suite.run()

    assert "1 passed" in printed, printed


def test_a_suite_of_two_hundred_tests_is_fast(suite: Suite) -> None:
    suite.write(
        "test_shop.py",
        """
import pytest
from amqpjobs.outcome import Completed, Retrying
from shop import Flaky, make_app

@pytest.fixture
def amqpjobs_app():
    return make_app()

@pytest.mark.parametrize("number", range(200))
async def test_it(harness, number):
    await harness.app.enqueue(Flaky(fail_times=1))
    await harness.drain()
    assert harness.outcomes(Flaky) == [Retrying(delay=2.0), Completed()]
""",
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    printed = suite.run("-o", "asyncio_mode=auto", "-q")

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "200 passed" in printed, printed
    # Ten seconds are promised; the time of the CPU, as others may be busy on this machine.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{printed.splitlines()[-1]}, {seconds:.1f} s of CPU time")  # noqa: T201  (with -s or -rP)
    assert seconds < 60

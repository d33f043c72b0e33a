"""One pass over places: progress on the way, a total at the end, Ctrl-C in between."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amqpjobs.app import App
from amqpjobs.cli.common import FAILED, run_async
from amqpjobs.cli.console import err
from amqpjobs.cli.dead.choice import Chosen
from amqpjobs.cli.dead.output import say, say_err, say_json
from amqpjobs.deadletters import ALREADY_THERE, DeadLetter, DeadLetters, Filter, LetterError, Place, Tally
from amqpjobs.errors import AmqpJobsError
from amqpjobs.logs import printable

T = TypeVar("T")

#: What a shell reports for a command that Ctrl-C ended.
INTERRUPTED = 130
#: Seconds between two lines of progress where there is no terminal.
TELL_EVERY = 2.0


class Run:
    """One pass over places: progress on the way, a total at the end, Ctrl-C in between."""

    def __init__(
        self, app: App[Any], places: Sequence[Place], verb: str, *, quiet: bool, to_stderr: bool = False
    ) -> None:
        self.tally = Tally()
        self.where = ", ".join(map(str, places)) if len(places) < 4 else f"{len(places)} queues"
        self._app = app
        self._places = places
        self._verb = verb
        self._quiet = quiet
        self._say = say_err if to_stderr else say

    def each(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        """Do it with each place; what went wrong is raised after saying how far it got."""
        try:
            return run_async(self._each(act))
        except (AmqpJobsError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                say_err(f"stopped at once: {self.tally.done:,} {self._verb} of {self.tally.seen:,} looked at")
                self._tell_doubt()
                raise click.Abort from None
            if self.tally.seen and not self._quiet:
                say_err(f"{self.tally.done:,} {self._verb} of {self.tally.seen:,} looked at, before this:")
            self._tell_doubt()
            raise

    def count(self, where: Filter) -> dict[Place, int]:
        """Change nothing; how many were looked at in each place."""

        async def look(letters: DeadLetters, place: Place) -> tuple[Place, int]:
            before = self.tally.seen
            await letters.scan(place, lambda _: None, where, tally=self.tally)
            return place, self.tally.seen - before

        return dict(self.each(look))

    def code(self) -> int:
        if self.tally.is_stopped:
            say_err("stopped before the end; the rest is as it was")
            return INTERRUPTED
        return FAILED if set(self.tally.stayed) - {ALREADY_THERE} else 0

    def end(self, as_json: bool) -> int:
        """The total."""
        tally, would = self.tally, self._verb.startswith("would")
        done = tally.chosen if would else tally.done
        if as_json:
            say_json(
                {
                    "done": done,
                    "verb": self._verb,
                    "seen": tally.seen,
                    "stayed": dict(tally.stayed),
                    "in_doubt": tally.in_doubt,
                    "stopped": tally.is_stopped,
                }
            )
            return self.code()
        self._say(f"{done:,} {self._verb} of {tally.seen:,} in {self.where}")
        for reason, count in tally.stayed.most_common(10):
            self._say(f"{count:,} left out: {printable(reason)}")
        self._tell_doubt()
        return self.code()

    def _tell_doubt(self) -> None:
        if self.tally.in_doubt:
            say_err("not confirmed, so perhaps in both places: " + printable(", ".join(self.tally.in_doubt)))

    async def _each(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        task = asyncio.ensure_future(self._work(act))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, task)
        watching = asyncio.ensure_future(self._tell_progress())
        try:
            return await task
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    def _stop(self, task: "asyncio.Future[list[T]]") -> None:
        if self.tally.is_stopped or not self.tally.total:  # hurried, or nothing has begun
            task.cancel()
        else:
            say_err("stopping after what is under way; once more stops at once")
        self.tally.is_stopped = True

    async def _work(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        results = list[T]()
        async with DeadLetters(self._app) as letters:
            there = [place for place in self._places if await letters.count(place) is not None]
            for place in there or self._places:  # an app's queues may not all be declared yet
                if not self.tally.is_stopped:
                    results.append(await act(letters, place))
        return results

    async def _tell_progress(self) -> None:
        if err.is_terminal:
            await self._show_bar()
        else:
            await self._write_lines()

    async def _write_lines(self) -> None:
        while True:
            await self._app.clock.sleep(TELL_EVERY)
            if not self._quiet:
                far = f"{self._moved():,} of {self.tally.total:,}" if self.tally.total else "waiting for the broker"
                say_err(f"{far} …")

    async def _show_bar(self) -> None:
        columns = (TextColumn(self._verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task(self._verb, total=None)
            while True:
                progress.update(task, completed=self._moved(), total=self.tally.total or None)
                await self._app.clock.sleep(0.1)

    def _moved(self) -> int:
        """Looked at and, where it is chosen, done."""
        tally = self.tally
        return tally.seen - max(0, tally.chosen - tally.done - tally.stayed.total())


def found(words: Sequence[str], chosen: Chosen) -> tuple[App[Any], list[DeadLetter], Run]:
    """The letters of the id that is the last word."""
    app, letter_id = chosen.app(words[:-1]), words[-1]
    where = replace(chosen.where, ids=frozenset({letter_id}))
    run = Run(app, chosen.places(app), "read", quiet=True)
    places = run.each(lambda letters, place: letters.find(place, where, bodies=True, most=100))
    every = [letter for letters in places for letter in letters]
    if not every:
        raise LetterError(f"No letter {letter_id!r} in {run.where}. `amqpjobs dead ls` shows their ids.")
    return app, every, run

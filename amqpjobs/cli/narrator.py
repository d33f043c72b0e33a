"""What happens in `amqpjobs dev` to its worker and its files, told to who sits before it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from amqpjobs.cli.console import out
from amqpjobs.events import Events, ProcessEnded, Reloaded, Reloading, SupervisorStopping
from amqpjobs.logs import printable

#: Names of changed files that are shown at once.
_SHOWN = 3


class Narrator:
    """Asks for a reload when files change, and says what becomes of it."""

    def __init__(self, events: Events, reload: Callable[[], None], here: Path) -> None:
        self._reload = reload
        self._here = here.resolve()
        self._is_reloading = False
        self._is_stopping = False
        events.subscribe(Reloading, self._reloading)
        events.subscribe(Reloaded, self._reloaded)
        events.subscribe(ProcessEnded, self._ended)
        events.subscribe(SupervisorStopping, self._stopping)

    def changed(self, files: Sequence[Path]) -> None:
        """These have."""
        names = [str(file.relative_to(self._here) if file.is_relative_to(self._here) else file) for file in files]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        what = "next, when the last change is through" if self._is_reloading else "starting the new code"
        _say(f"{shown} changed: {what}", "cyan")
        self._reload()

    def lost(self, why: str) -> None:
        """The files are no longer watched."""
        _say(f"Changes are no longer taken up: {why}", "yellow")

    def _reloading(self, event: Reloading) -> None:
        self._is_reloading = event.count > 0

    def _reloaded(self, event: Reloaded) -> None:
        self._is_reloading = False
        if self._is_stopping or not event.of:
            return
        if event.count < event.of:
            _say("The new code does not start, and why is said above. The old one goes on.", "red")
        else:
            _say("The new code works; what ran on the old one has ended.", "green")

    def _ended(self, event: ProcessEnded) -> None:
        if event.pause is None or self._is_reloading or self._is_stopping:
            return
        when = f"in {event.pause:g} s, or with the next change" if event.pause else "now"
        _say(f"The worker's process {event.how}; another one starts {when}.", "yellow")

    def _stopping(self, event: SupervisorStopping) -> None:
        self._is_stopping = True
        _say(f"Stopping: {event.why or 'what runs may finish. Again (Ctrl-C) cuts it short'}.", "cyan")


def _say(text: str, style: str) -> None:
    out.print(Text(printable(text), style))

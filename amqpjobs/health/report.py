"""What is told of a process's health: a word, and the reasons when it is not well."""

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """An answer to one of the probes."""

    is_well: bool
    word: str
    reasons: tuple[str, ...] = ()

    def as_text(self) -> str:
        """The word, and a line for each reason."""
        return "".join(f"{line}\n" for line in (self.word, *self.reasons))

    def as_json(self) -> str:
        return json.dumps({"status": self.word, "reasons": self.reasons})

    def bare(self) -> "Report":
        """For who may not know more."""
        return Report(self.is_well, self.word)


def liveness(reasons: Iterable[str]) -> Report:
    """Whether the process must be restarted."""
    told = _lines(reasons)
    return Report(not told, "stalled" if told else "ok", told)


def readiness(reasons: Iterable[str]) -> Report:
    """Whether it does what it is there for."""
    told = _lines(reasons)
    return Report(not told, "not ready" if told else "ready", told)


def _lines(reasons: Iterable[str]) -> tuple[str, ...]:
    """Each once, in one line; some quote a broker, or a library."""
    return tuple(dict.fromkeys(" ".join(each.split()) for each in reasons))

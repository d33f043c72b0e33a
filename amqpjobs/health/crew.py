"""The health of worker processes and their supervisor, told by the supervisor at one address.

Not a port for each process: a reload has a second process beside the first, and what a place's port said then would
be true of one of them only. Each process tells its own health on a port of its choice, on loopback, and its supervisor
asks all of them.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

from amqpjobs.clock import Clock
from amqpjobs.health.asked import Asked
from amqpjobs.health.asking import HERE, Answer, ask
from amqpjobs.health.merging import merged
from amqpjobs.health.messages import JSON, Response, told
from amqpjobs.health.pulse import Pulse
from amqpjobs.health.report import Report, liveness, readiness

#: Seconds for a process to answer, and with all its metrics.
ANSWER_WITHIN, METRICS_WITHIN = 3.0, 8.0


class Post(Protocol):
    """Where one process is to be."""

    @property
    def number(self) -> int: ...
    @property
    def is_filled(self) -> bool: ...
    @property
    def port(self) -> int | None:
        """Where the process tells its health; None: nowhere yet."""
        ...


class Supervising(Protocol):
    """What is asked of a supervisor, in its event loop."""

    @property
    def is_stopping(self) -> bool: ...
    @property
    def posts(self) -> Sequence[Post]: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """The supervisor, at one moment."""

    is_stopping: bool
    posts: Sequence[Post]


class Crew:
    """Made in the supervisor's event loop."""

    def __init__(self, supervisor: Supervising, pulse: Pulse, token: str | None, clock: Clock) -> None:
        self._pulse = pulse
        self._token = token
        self._clock = clock
        self._seen = Asked(
            asyncio.get_running_loop(), lambda: _Seen(supervisor.is_stopping, list(supervisor.posts)), clock
        )

    async def live(self) -> Report:
        try:
            seen = await self._seen.answer()
        except TimeoutError:
            return liveness([self._pulse.stalled] if self._pulse.is_stalled else [])
        # Who is about to start, or has just ended, is replaced by the supervisor: that is no reason to end all.
        return liveness(await self._reasons("/livez", [each for each in seen.posts if each.port], gone=[]))

    async def ready(self) -> Report:
        try:
            seen = await self._seen.answer()
        except TimeoutError:
            return readiness([self._pulse.stalled])
        if seen.is_stopping:
            return readiness(["draining"])
        absent = [
            f"process {each.number}: {'starting' if each.is_filled else 'not running'}"
            for each in seen.posts
            if not each.port
        ]
        there = [each for each in seen.posts if each.port]
        return readiness([*absent, *await self._reasons("/readyz", there, gone=["it does not answer"])])

    async def metrics(self) -> Response:
        try:
            seen = await self._seen.answer()
        except TimeoutError:
            return told(HTTPStatus.SERVICE_UNAVAILABLE, self._pulse.stalled)
        posts = [each for each in seen.posts if each.port]
        answers = await asyncio.gather(*(self._ask(each, "/metrics", METRICS_WITHIN) for each in posts))
        came = {post.number: each for post, each in zip(posts, answers, strict=True) if isinstance(each, Answer)}
        good = {number: each for number, each in came.items() if each.status == HTTPStatus.OK}
        if good:
            text = merged({number: each.body.decode() for number, each in good.items()})
            return Response(HTTPStatus.OK, text.encode(), next(iter(good.values())).content_type)
        for each in came.values():
            return Response(HTTPStatus(each.status), each.body)
        return told(HTTPStatus.SERVICE_UNAVAILABLE, "No process has answered.")

    async def _reasons(self, path: str, posts: Sequence[Post], *, gone: Sequence[str]) -> list[str]:
        """What these say is wrong with them; `gone` of those where nobody listens."""
        answers = await asyncio.gather(*(self._ask(each, path, ANSWER_WITHIN) for each in posts))
        return [
            f"process {post.number}: {reason}"
            for post, answer in zip(posts, answers, strict=True)
            for reason in (_reasons_in(answer) if isinstance(answer, Answer) else gone if answer is None else [answer])
        ]

    async def _ask(self, post: Post, path: str, within: float) -> Answer | str | None:
        """Its answer, what is wrong with that, or None when nobody listens."""
        try:
            return await ask(
                HERE, post.port or 0, path, token=self._token, within=within, clock=self._clock, accept=JSON
            )
        except TimeoutError:
            return f"it did not answer within {within:g} s"
        except OSError:
            return None
        except ValueError as error:
            return str(error)


def _reasons_in(answer: Answer) -> list[str]:
    found = cast("dict[str, list[str]]", json.loads(answer.body))
    return found["reasons"]

"""`amqpjobs schedule trigger`, `pause`, `resume` and `remove`: one schedule, by its name."""

import click

from amqpjobs.cli.command import Command
from amqpjobs.cli.schedule.choice import app_and_name, change, deadline_option, json_option

_words = click.argument("words", nargs=-1, required=True, metavar="[TARGET] NAME")


@click.command("trigger", cls=Command, short_help="Enqueue a schedule's job now.")
@_words
@deadline_option
@json_option
def trigger(words: tuple[str, ...], deadline: float, as_json: bool) -> None:
    """Enqueue a schedule's job now, paused or not, and print its id. Its ticks are not disturbed.

    If no beat reads that within an hour, nothing is enqueued.

    \b
      amqpjobs schedule trigger services.reports report
    """
    app, name = app_and_name(words)
    change(app, lambda schedules: schedules.trigger(name, deadline=deadline), "triggered", as_json=as_json)


@click.command("pause", cls=Command, short_help="Let a schedule rest until it is resumed.")
@_words
@deadline_option
@json_option
def pause(words: tuple[str, ...], deadline: float, as_json: bool) -> None:
    """Let a schedule rest until it is resumed, whichever beat leads, and over any deployment.

    \b
      amqpjobs schedule pause services.reports report
    """
    app, name = app_and_name(words)
    change(app, lambda schedules: schedules.pause(name, deadline=deadline), "paused", as_json=as_json)


@click.command("resume", cls=Command, short_help="Let a paused schedule go on from now.")
@_words
@deadline_option
@json_option
def resume(words: tuple[str, ...], deadline: float, as_json: bool) -> None:
    """Let a paused schedule go on from now. What was missed in the pause is not made up for: see trigger.

    \b
      amqpjobs schedule resume services.reports report
    """
    app, name = app_and_name(words)
    change(app, lambda schedules: schedules.resume(name, deadline=deadline), "resumed", as_json=as_json)


@click.command("remove", cls=Command, short_help="Remove a schedule that was added.")
@_words
@deadline_option
@json_option
def remove(words: tuple[str, ...], deadline: float, as_json: bool) -> None:
    """Remove a schedule that was added at runtime. One that the code declares can be paused.

    \b
      amqpjobs schedule remove services.reports weekly
    """
    app, name = app_and_name(words)
    change(app, lambda schedules: schedules.remove(name, deadline=deadline), "removed", as_json=as_json)

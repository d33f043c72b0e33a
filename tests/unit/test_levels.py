import os

import pytest

from amqpjobs.levels import Level, Levels


def test_what_several_tell_is_added_up() -> None:
    levels = Levels()
    levels.tell({Level.CAPACITY: lambda: 3, Level.BUSY: lambda: 1})
    levels.tell({Level.CAPACITY: lambda: 4})

    assert (levels.sum(Level.CAPACITY), levels.sum(Level.BUSY)) == (7, 1)


def test_what_nobody_tells_is_not_zero() -> None:
    levels = Levels()
    fall_silent = levels.tell({Level.LEADING: lambda: 0})
    told = levels.sum(Level.LEADING)

    fall_silent()
    fall_silent()

    assert (told, levels.sum(Level.LEADING)) == (0, None)


def test_a_fork_does_not_tell_for_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, parent = Levels(), os.getpid()
    levels.tell({Level.UNCONFIRMED: lambda: 5})

    monkeypatch.setattr("os.getpid", lambda: parent + 1)

    assert levels.sum(Level.UNCONFIRMED) is None

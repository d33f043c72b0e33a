import logging
from dataclasses import FrozenInstanceError, replace

import pytest

from amqpjobs.events import Event, Events, JobStarted, ParkedReleased, ProcessStarted, WorkerStopped
from tests.unit.making import envelope


def test_who_watches_a_class_sees_its_events_and_no_others() -> None:
    events, seen = Events(), list[Event]()
    events.subscribe(ParkedReleased, seen.append)

    events.emit(ParkedReleased(3))
    events.emit(WorkerStopped(0))

    assert seen == [ParkedReleased(3)]


def test_subscribers_are_told_in_the_order_they_came() -> None:
    events, seen = Events(), list[str]()
    events.subscribe(ParkedReleased, lambda event: seen.append("first"))
    events.subscribe(ParkedReleased, lambda event: seen.append("second"))

    events.emit(ParkedReleased(1))

    assert seen == ["first", "second"]


def test_an_error_of_a_subscriber_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    events, seen = Events(), list[Event]()

    def fail(event: ParkedReleased) -> None:
        raise ValueError("mine")

    events.subscribe(ParkedReleased, fail)
    events.subscribe(ParkedReleased, seen.append)
    with caplog.at_level(logging.ERROR):
        events.emit(ParkedReleased(1))

    assert seen == [ParkedReleased(1)]
    assert "An event subscriber failed on ParkedReleased" in caplog.text


def test_an_event_is_wanted_when_somebody_watches_its_class() -> None:
    events = Events()
    before = events.wanted(JobStarted)

    events.subscribe(JobStarted, lambda event: None)

    assert (before, events.wanted(JobStarted), events.wanted(WorkerStopped)) == (False, True, False)


def test_who_unsubscribes_is_told_no_more() -> None:
    events, seen = Events(), list[Event]()
    events.subscribe(ParkedReleased, seen.append)

    events.unsubscribe(ParkedReleased, seen.append)
    events.emit(ParkedReleased(1))

    assert seen == []
    assert not events.wanted(ParkedReleased)


def test_an_event_that_nobody_watches_goes_nowhere() -> None:
    events = Events()

    events.emit(JobStarted(envelope()))

    assert not events.wanted(JobStarted)


def test_an_event_is_a_frozen_dataclass() -> None:
    event = ProcessStarted(1, pid=4711)

    assert repr(event) == "ProcessStarted(number=1, pid=4711)"
    assert event == ProcessStarted(1, 4711) != ProcessStarted(2, 4711)
    assert hash(event) == hash(ProcessStarted(1, 4711))
    assert replace(event, number=2) == ProcessStarted(2, 4711)
    with pytest.raises(FrozenInstanceError):
        event.number = 2  # type: ignore[misc]  # that it must not be is what is tested
    with pytest.raises(TypeError, match="pid"):
        ProcessStarted(1)  # type: ignore[call-arg]  # that it must be given is what is tested


def test_an_event_of_a_users_own_has_the_fields_of_its_base_although_that_never_happened() -> None:
    class Base(Event):
        first: int

    class Derived(Base):
        second: int = 2

    assert repr(Derived(1)).endswith("Derived(first=1, second=2)")


def test_events_that_hold_the_same_are_no_equals_when_their_classes_differ() -> None:
    events: list[Event] = [ParkedReleased(3), WorkerStopped(3)]

    assert events[0] != events[1]

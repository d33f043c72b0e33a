"""Schedules are seen and changed from outside of the beat that leads, and while none does."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest

from amqpjobs import App, Beat, BrokerError, ScheduleError, TooLargeError, Worker, at, every
from amqpjobs.amqp.connection import Session, open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.inbox import attend
from amqpjobs.amqp.register import Register
from amqpjobs.errors import BrokerUnavailableError, TopologyMismatchError
from amqpjobs.events import BeatDeposed, BeatLeading, ScheduleChanged, ScheduleRefused, TickPublished
from amqpjobs.wire import Delivery
from tests.support.apps import Bench, Note, Ran, Seen, record, watch
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.faults import FaultyProxy
from tests.support.ticks import Each, instant_of


class Stage:
    """A service with a worker, a schedule that is due every fifth of a second, and any number of its processes."""

    def __init__(self, bench: Bench, broker: Broker) -> None:
        self.bench = bench
        self.broker = broker
        self.kind = bench.kind()
        self.worker = bench.app()
        self.ran: Seen[Ran] = record(self.worker, self.kind)
        self.name = self.worker.name
        self.control = self.worker.topology.beat_control(self.name)

    def app(self, *, url: str = "", declare: bool = True) -> App[None]:
        """The app as one process has it."""
        app = self.bench.app(self.name, settings=self.bench.settings(url=url or self.bench.url, declare=declare))
        app.schedule(Each(0.2), job=self.kind(text="tick"), name="tick")
        return app

    def ids(self, name: str) -> list[str]:
        return [each.envelope.job_id for each in self.ran if each.envelope.job_id.startswith(f"{name}@")]

    async def until_ran(self, name: str, count: int) -> None:
        async def is_so() -> bool:
            return len(self.ids(name)) >= count

        await eventually(is_so)


@pytest.fixture
async def stage(bench: Bench, broker: Broker) -> AsyncGenerator[Stage]:
    stage = Stage(bench, broker)
    yield stage
    for queue in stage.worker.topology.beat(stage.name).queues:
        await broker.delete_queue(queue.name)


def job(stage: Stage, text: str) -> Note:
    return stage.kind(text=text)


async def test_a_beat_that_leads_pauses_and_resumes(stage: Stage) -> None:
    async with Worker(stage.worker), Beat(stage.app()), stage.app() as desk:
        await stage.until_ran("tick", 3)
        paused = await desk.schedules.pause("tick", deadline=PATIENCE)
        rested = datetime.now(UTC)
        (status,) = (await desk.schedules.overview()).schedules
        await asyncio.gather(*(desk.schedules.pause("tick") for _ in range(5)))
        woken = datetime.now(UTC)  # before: ticks come before we hear of it
        resumed = await desk.schedules.resume("tick", deadline=PATIENCE)
        await stage.until_ran("tick", len(stage.ids("tick")) + 3)

    assert (paused.is_done, resumed.is_done) == (True, True)
    assert status.paused_since is not None
    assert status.next_run is None
    slack = timedelta(seconds=0.2)
    assert not [each for each in map(instant_of, stage.ids("tick")) if rested + slack < each < woken - slack]


async def test_what_is_asked_while_no_beat_runs_is_recorded_and_honoured_by_the_next(stage: Stage) -> None:
    async with Worker(stage.worker):
        async with stage.app() as desk:
            paused = await desk.schedules.pause("tick")
            added = await desk.schedules.add("extra", every(0.2), job=job(stage, "extra"))
            triggered = await desk.schedules.trigger("tick")
            assert [each.is_done for each in (paused, added, triggered)] == [False, False, False]
            await stage.broker.await_count(stage.control, 3)
            before = await desk.schedules.overview()
        app = stage.app()
        changed, published = watch(app.events, ScheduleChanged), watch(app.events, TickPublished)
        async with Beat(app):
            await changed.until(3)
            await stage.until_ran("extra", 3)
            ticks = [each for each in published if each.schedule == "tick"]

    assert [each.verb for each in changed] == ["pause", "add", "trigger"]
    assert [each for each in stage.ids("tick") if each == triggered.job_id] == [triggered.job_id]
    assert ticks == []
    assert (before.leader, before.is_led) == (None, False)


async def test_what_was_said_is_so_for_the_next_leader(stage: Stage) -> None:
    async with Worker(stage.worker), stage.app() as desk:
        async with Beat(stage.app()):
            await desk.schedules.pause("tick", deadline=PATIENCE)
            await desk.schedules.add("extra", every(0.2), job=job(stage, "extra"), deadline=PATIENCE)
        second = stage.app()
        published, leading = watch(second.events, TickPublished), watch(second.events, BeatLeading)
        async with Beat(second):
            await published.until(5)
            removed = await desk.schedules.remove("extra", deadline=PATIENCE)
            overview = await desk.schedules.overview()

    assert removed.is_done
    assert leading[0].begun == []
    assert {each.schedule for each in published} == {"extra"}
    assert {each.text for each in stage.ran if each.envelope.schedule == "extra"} == {"extra"}
    assert [each.name for each in overview.schedules] == ["tick"]


async def test_a_triggered_job_has_an_id_that_tells_it_and_runs_once(stage: Stage) -> None:
    async with Worker(stage.worker), Beat(stage.app()), stage.app() as desk:
        changes = [await desk.schedules.trigger("tick") for _ in range(3)]
        for change in changes:

            async def has_run(wanted: str | None = change.job_id) -> bool:
                return wanted in stage.ids("tick")

            await eventually(has_run)

    ids = stage.ids("tick")
    assert all(ids.count(str(each.job_id)) == 1 and f"{each.name}@trigger." in str(each.job_id) for each in changes)


async def test_how_schedules_are_is_told_with_and_without_a_beat(stage: Stage) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    async with Worker(stage.worker), stage.app() as desk:
        never = await desk.schedules.overview()
        app, other = stage.app(), stage.app()
        published = watch(app.events, TickPublished)
        async with Beat(app), Beat(other):
            await desk.schedules.add("party", at(soon), job=job(stage, "party"), misfire="skip", deadline=PATIENCE)
            await published.until(3)

            async def is_written_down() -> bool:  # after it was published
                return (await desk.schedules.overview()).schedules[0].last_run is not None

            await eventually(is_written_down)
            tick, party = (led := await desk.schedules.overview()).schedules
            await stage.until_ran("tick", 1)

        async def has_ended() -> bool:  # 4.3 counts consumers for a moment after they have gone
            return not (await desk.schedules.overview()).is_led

        await eventually(has_ended)
        left = await desk.schedules.overview()

    assert (never.leader, never.is_led, never.schedules[0].problem) == (None, False, "no beat has seen it yet")
    assert led.is_led
    assert led.leader is not None
    assert left.leader is not None
    assert tick.last_run is not None
    assert tick.next_run is not None
    assert tick.next_run > tick.last_run
    assert (party.is_added, party.next_run, party.last_run, party.misfire) == (True, soon, None, "skip")
    assert party.kind == stage.ran[0].envelope.kind
    assert left.schedules[0].last_run == max(each.instant for each in published)


async def test_what_a_beat_refuses_is_raised_with_its_reason(stage: Stage) -> None:
    app = stage.app()
    refused = watch(app.events, ScheduleRefused)
    async with Beat(app), stage.app() as desk:
        with pytest.raises(ScheduleError, match=r"no schedule 'tock'. Did you mean 'tick'"):
            await desk.schedules.pause("tock", deadline=PATIENCE)
        with pytest.raises(ScheduleError, match="is declared in the code"):
            await desk.schedules.remove("tick", deadline=PATIENCE)
        with pytest.raises(ScheduleError, match="The code declares a schedule 'tick'"):
            await desk.schedules.add("tick", every(1), job=job(stage, "mine"))
        with pytest.raises(ScheduleError, match="No queue is bound"):
            await desk.schedules.trigger("tick", deadline=PATIENCE)
        with pytest.raises(TooLargeError, match="are the most"):
            await desk.schedules.add("large", every(1), job=job(stage, "x" * 70_000))

    assert [each.verb for each in refused] == ["pause", "remove", "trigger"]


async def test_what_is_no_command_is_told_and_the_next_command_is_done(stage: Stage) -> None:
    app = stage.app()
    refused = watch(app.events, ScheduleRefused)
    async with Beat(app), stage.app() as desk:
        for body in (b"nonsense", b"{}", b"x" * 1_000_000, b'{"verb":"drop"}'):
            await stage.broker.publish(app.topology.beats, stage.control, body, kind="anything", headers={"a": 1})
        change = await desk.schedules.pause("tick", deadline=PATIENCE)
        await refused.until(4)

        assert change.is_done
        await stage.broker.await_count(stage.control, 0)


async def test_many_commands_at_once_are_all_done(stage: Stage) -> None:
    async with Beat(stage.app()), stage.app() as desk:
        adds = [
            desk.schedules.add(f"extra-{number}", every(3600), job=job(stage, "extra"), deadline=PATIENCE)
            for number in range(50)
        ]
        changes = await asyncio.gather(*adds)
        overview = await desk.schedules.overview()

    assert all(change.is_done for change in changes)
    assert len(overview.schedules) == 51


async def test_commands_survive_leaders_that_are_cut_off_and_none_is_done_twice(stage: Stage, url: str) -> None:
    async with FaultyProxy(url).running() as proxy, Worker(stage.worker), stage.app() as desk:
        first, second = stage.app(url=proxy.url), stage.app()
        deposed, leading = watch(first.events, BeatDeposed), watch(second.events, BeatLeading)
        triggered = list[str]()
        async with Beat(first) as beat:

            async def leads() -> bool:
                return beat.is_leading

            await eventually(leads)
            async with Beat(second):
                asking = [asyncio.create_task(desk.schedules.trigger("tick", deadline=PATIENCE)) for _ in range(40)]
                await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                proxy.cut()
                changes = await asyncio.gather(*asking)
                await deposed.until(1)
                await leading.until(1)
                triggered = [str(each.job_id) for each in changes]

                async def all_ran() -> bool:
                    return set(triggered) <= set(stage.ids("tick"))

                await eventually(all_ran)
                await stage.broker.await_count(stage.control, 0)

    assert all(change.is_done for change in changes)
    doubles = [each for each in triggered if stage.ids("tick").count(each) > 1]
    assert len(doubles) <= 1  # the one that was under way


async def test_an_app_without_schedules_of_its_own_follows_those_that_are_added(stage: Stage, bench: Bench) -> None:
    def app() -> App[None]:
        return App(stage.name, settings=bench.settings(), takes_schedules=True)

    async with Worker(stage.worker), Beat(app()), app() as desk:
        change = await desk.schedules.add("extra", every(0.2), job=job(stage, "extra"), deadline=PATIENCE)
        await stage.until_ran("extra", 3)

    assert change.is_done
    assert [each.name for each in app().plan().exchanges] == [stage.worker.topology.beats]


async def test_where_nothing_may_be_declared_what_is_missing_is_said(stage: Stage) -> None:
    async with Worker(stage.worker), stage.app(declare=False) as desk:
        with pytest.raises(TopologyMismatchError, match=r"beat\.control\.v1"):
            await desk.schedules.pause("tick")
        overview = await desk.schedules.overview()

    assert not overview.is_led


async def test_a_register_that_others_have_written_to_is_told(stage: Stage) -> None:
    async with stage.app() as desk:
        await desk.schedules.pause("tick")
        topology = stage.worker.topology
        await stage.broker.publish(topology.beats, topology.beat_register(stage.name), b"nonsense", kind="value")

        with pytest.raises(BrokerError, match="holds what no beat has written"):
            await desk.schedules.overview()


# The inbox and the followed register by themselves


async def session_of(stage: Stage) -> Session:
    app = stage.worker
    settings = stage.bench.settings(connect_timeout=PATIENCE)
    session = await open_session(settings.urls[0], settings, "test")
    await Declarer(app.topology, app.events).plan(session, app.topology.beat(app.name))
    return session


async def test_an_inbox_serves_in_order_and_what_was_not_served_comes_again(stage: Stage) -> None:
    beats, numbers = stage.worker.topology.beats, [b"%d" % number for number in range(100)]
    first, second = await session_of(stage), await session_of(stage)
    await stage.broker.publish_all(beats, stage.control, [(number, {}) for number in numbers])
    served, all_served = list[bytes](), asyncio.Event()

    async def serve_some(delivery: Delivery) -> None:
        if len(served) == 50:
            raise ZeroDivisionError
        served.append(delivery.body)

    async def serve(delivery: Delivery) -> None:
        served.append(delivery.body)
        if len(served) == 100:
            all_served.set()

    with pytest.raises(ZeroDivisionError):
        await attend(first, stage.control, serve_some)
    await first.close()
    serving = asyncio.create_task(attend(second, stage.control, serve))
    async with asyncio.timeout(PATIENCE):
        await all_served.wait()
    await stage.broker.await_count(stage.control, 0)
    serving.cancel()
    await second.close()

    assert served == numbers


async def test_who_follows_a_register_gets_all_that_is_written_meanwhile(stage: Stage) -> None:
    session, other = await session_of(stage), await session_of(stage)
    topology = stage.worker.topology
    queue, route = topology.beat_register(stage.name), topology.to_beat_register(stage.name)
    writer, follower = Register(session, queue, route), Register(other, queue, route)
    for given in ([b"before"], []):
        for value in given:
            await writer.write(value)
        seen, ended = list[bytes](), asyncio.Event()
        async with follower.followed(seen.append, ended.set):
            await writer.write(b"value")
            for number in range(20):
                await writer.amend(b"%d" % number)
            await follower.read()  # its fence is no entry

            async def has_all(seen: list[bytes] = seen) -> bool:
                return b"19" in seen

            await eventually(has_all)
        assert ended.is_set()
        assert seen[seen.index(b"value") :][:21] == [b"value", *(b"%d" % number for number in range(20))]
    await session.close()
    await other.close()


async def test_who_follows_a_register_is_told_when_the_connection_ends(stage: Stage) -> None:
    session, ended = await session_of(stage), asyncio.Event()
    topology = stage.worker.topology
    register = Register(session, topology.beat_register(stage.name), topology.to_beat_register(stage.name))
    async with register.followed(lambda entry: None, ended.set):
        await session.close()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()


async def test_a_register_that_is_not_there_cannot_be_followed(stage: Stage) -> None:
    session = await session_of(stage)
    topology = stage.worker.topology
    await stage.broker.delete_queue(topology.beat_register(stage.name))
    register = Register(session, topology.beat_register(stage.name), topology.to_beat_register(stage.name))
    with pytest.raises(BrokerUnavailableError, match="could not be read"):
        async with register.followed(lambda entry: None, lambda: None):
            pass
    await session.close()

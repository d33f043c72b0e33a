"""Frames in and out, and the small books that a channel keeps."""

import pytest
from pamqp import commands, frame

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.confirms import Confirms
from amqpjobs.devbroker.errors import Code, RefusedError, failed
from amqpjobs.devbroker.intake import Intake
from amqpjobs.devbroker.ledger import Ledger, Loan
from amqpjobs.devbroker.message import published
from amqpjobs.devbroker.users import Access, Permissions, User
from amqpjobs.devbroker.wire import arguments_of, content, decode, delivery, method, read_publish, short
from amqpjobs.devbroker.wire import frame as framed
from tests.unit.devbroker.rig import Rig, table


def test_a_method_is_read_as_the_library_writes_it() -> None:
    written = frame.marshal(
        commands.Queue.Declare(0, "q", False, True, False, True, False, {"x-queue-type": "quorum", "n": 1}), 1
    )

    asked = decode(written[7:-1])

    assert isinstance(asked, commands.Queue.Declare)
    assert (asked.queue, asked.passive, asked.durable, asked.exclusive, asked.auto_delete) == ("q", 0, 1, 0, 1)
    assert sorted(arguments_of(asked)) == [b"n", b"x-queue-type"]


def test_a_method_is_written_as_the_library_reads_it() -> None:
    payload = method(commands.Queue.DeclareOk, queue="any name, even this?", message_count=3, consumer_count=2)

    _, channel, read = frame.unmarshal(framed(7, payload))

    assert isinstance(read, commands.Queue.DeclareOk)
    assert (channel, read.queue, read.message_count, read.consumer_count) == (7, "any name, even this?", 3, 2)


def test_a_delivery_is_written_as_the_library_reads_it() -> None:
    raw = delivery(3, short("tag"), 2**40, True, short("exchange") + short("key"))

    _, channel, read = frame.unmarshal(raw)

    assert isinstance(read, commands.Basic.Deliver)
    assert (channel, read.consumer_tag, read.delivery_tag, read.redelivered) == (3, "tag", 2**40, True)
    assert (read.exchange, read.routing_key) == ("exchange", "key")


@pytest.mark.parametrize(("size", "frames"), [(0, 0), (1, 1), (4088, 1), (4089, 2), (20_000, 5)])
def test_a_body_is_cut_into_frames(size: int, frames: int) -> None:
    body = bytes(range(256)) * 100
    raw, parts = content(1, b"header", body[:size], 4096), list[bytes]()

    at = 0
    while at < len(raw):
        length = int.from_bytes(raw[at + 3 : at + 7], "big")
        parts.append(raw[at + 7 : at + 7 + length])
        assert length + 8 <= 4096
        assert raw[at + 7 + length] == 0xCE
        at += length + 8

    assert parts[0] == b"header"
    assert len(parts) == frames + 1
    assert b"".join(parts[1:]) == body[:size]


BROKEN = [
    (b"", Code.FRAME_ERROR),
    (b"\x00\x32\x00\x0a", Code.FRAME_ERROR),
    (b"\x00\x3c\x00\x63", Code.COMMAND_INVALID),
    (b"\x00\x32\x00\x0a\x00\x00\x02\xff\xfe\x00\x00\x00\x00\x00", Code.FRAME_ERROR),
]


@pytest.mark.parametrize(("payload", "code"), BROKEN)
def test_a_method_that_cannot_be_read_is_refused(payload: bytes, code: Code) -> None:
    with pytest.raises(RefusedError) as caught:
        decode(payload)

    assert caught.value.code is code


def test_a_routing_key_need_not_be_utf8() -> None:
    payload = b"\x00\x3c\x00\x28\x00\x00\x01x\x02\xff\xfe\x01"

    exchange, key, is_mandatory, is_immediate = read_publish(payload)
    message = published(exchange, key, b"\x00\x00", b"")

    assert (exchange, is_mandatory, is_immediate) == ("x", True, False)
    assert message.way == b"\x01x\x02\xff\xfe"


PUBLISH = b"\x00\x3c\x00\x28\x00\x00\x00\x01k\x00"


def header(size: int, kind: int = 60) -> bytes:
    return kind.to_bytes(2, "big") + b"\x00\x00" + size.to_bytes(8, "big") + b"\x00\x00"


def test_a_message_is_put_together_from_its_frames() -> None:
    intake = Intake(100)
    intake.begin(PUBLISH)
    assert intake.header(header(5)) is None
    assert intake.body(b"abc") is None

    whole = intake.body(b"de")

    assert whole is not None
    assert (whole.key, whole.body, whole.size) == ("k", b"abcde", 5)
    assert not intake.is_waiting


def test_a_body_that_is_too_large_is_not_kept() -> None:
    intake = Intake(4)
    intake.begin(PUBLISH)
    intake.header(header(5))

    whole = intake.body(b"abcde")

    assert whole is not None
    assert (whole.body, whole.size) == (b"", 5)


def test_frames_out_of_order_are_refused() -> None:
    intake = Intake(100)
    with pytest.raises(RefusedError, match="expected method frame"):
        intake.header(header(1))
    with pytest.raises(RefusedError, match="expected method frame"):
        intake.body(b"x")
    intake.begin(PUBLISH)
    with pytest.raises(RefusedError, match="expected content header for class 60"):
        intake.body(b"x")
    with pytest.raises(RefusedError, match="expected content header for class 60"):
        intake.header(header(1, 50))
    intake.header(header(3))
    with pytest.raises(RefusedError, match="exceeds remaining content size"):
        intake.body(b"four")


def confirmed(*taken: bool) -> list[tuple[str, int, bool]]:
    confirms = Confirms()
    for each in taken:
        confirms.add(each)
    raw, found = confirms.taken(1), list[tuple[str, int, bool]]()
    while raw:
        used, _, read = frame.unmarshal(raw)
        assert isinstance(read, commands.Basic.Ack | commands.Basic.Nack)
        found.append((read.name, read.delivery_tag, read.multiple))
        raw = raw[used:]
    assert confirms.taken(1) == b""
    return found


def test_confirms_say_as_much_as_they_can_at_once() -> None:
    ack, nack = "Basic.Ack", "Basic.Nack"
    assert confirmed(True) == [(ack, 1, False)]
    assert confirmed(True, True, True) == [(ack, 3, True)]
    assert confirmed(True, True, False, True) == [(ack, 2, True), (ack, 4, False), (nack, 3, False)]
    assert confirmed(False, False, True) == [(ack, 3, False), (nack, 2, True)]


def test_a_settlement_of_several_takes_all_up_to_its_tag() -> None:
    rig, ledger = Rig(), Ledger()
    queue = rig.queue()
    for tag in range(1, 6):
        ledger.add(Loan(tag, queue, Entry(tag, published("", "q", b"\x00\x00", b"")), None))

    assert [loan.tag for loan in ledger.take(2, multiple=False)] == [2]
    assert [loan.tag for loan in ledger.take(4, multiple=True)] == [1, 3, 4]
    with pytest.raises(RefusedError, match="PRECONDITION_FAILED - unknown delivery tag 4"):
        ledger.take(4, multiple=True)
    assert [loan.tag for loan in ledger.take(0, multiple=True)] == [5]
    assert ledger.take(0, multiple=True) == []


def test_a_reply_text_is_a_short_string() -> None:
    error = failed("é" * 300)

    assert len(error.text.encode()) <= 255
    assert error.text.startswith("PRECONDITION_FAILED - é")


def test_permissions_are_patterns() -> None:
    user = User("bob", "secret", {"/": Permissions(configure="", write="^out\\.", read=".*")})
    access = Access(user, "/")

    access.check("read", "queue", "anything")
    access.check("write", "exchange", "out.x")
    access.check("write", "exchange", "out.x")
    for permission, name, shown in (("write", "x", "x"), ("configure", "out.x", "out.x"), ("write", "", "amq.default")):
        words = f"ACCESS_REFUSED - {permission} access to exchange '{shown}' in vhost '/' refused for user 'bob'"
        with pytest.raises(RefusedError, match=words):
            access.check(permission, "exchange", name)


def test_a_vhost_without_permissions_allows_nothing() -> None:
    with pytest.raises(RefusedError, match="refused for user 'bob'"):
        Access(User("bob", "secret"), "/").check("read", "queue", "q")


def test_a_table_in_a_method_keeps_its_types() -> None:
    given = table(a=1, b="x", c=True)

    payload = method(commands.Queue.Bind, queue="q", exchange="x", routing_key="k", arguments=given)

    asked = decode(payload)
    assert arguments_of(asked) == given

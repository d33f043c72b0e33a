"""What no client should send ends its connection, in these words, and nobody else's."""

import pytest
from pamqp import commands, frame

from tests.support.broker import PATIENCE, Broker
from tests.support.nonsense import SCRIPT, WRONG, Caller

#: How RabbitMQ ends the connection.
WORDS = {
    "a wrong frame end": "FRAME_ERROR - type 1, all octets = <<0,60,0,10>>: {invalid_frame_end_marker,0}",
    "a frame too large": "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,200000,131064}",
    "a frame of four gigabytes": "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,4294967295,131064}",
    "an unknown kind of frame": 'FRAME_ERROR - type 9, all octets = <<"abcd">>: unknown_frame',
    "a heartbeat on a channel": "UNEXPECTED_FRAME - type 8, all octets = <<>>",
    "a method of the broker's": "COMMAND_INVALID - unimplemented method",
    "a method without arguments": "FRAME_ERROR - cannot decode <<>>",
    "a method frame without a method": "FRAME_ERROR - type 1, all octets = <<0,60>>: unknown_frame",
    "a header without a message": "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
    "a body without a message": "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
    "a method instead of a header": "UNEXPECTED_FRAME - expected content header for class 60, "
    "got non content header frame instead",
    "a body instead of a header": "UNEXPECTED_FRAME - expected content header for class 60, "
    "got non content header frame instead",
    "a method instead of a body": "UNEXPECTED_FRAME - expected content body, got non content body frame instead",
    "a header instead of a body": "UNEXPECTED_FRAME - expected content body, got non content body frame instead",
    "a header of another class": "UNEXPECTED_FRAME - expected content header for class 60, "
    "got one for class 10 instead",
    "a header that is cut": "FRAME_ERROR - type 2, all octets = <<0,60,0>>: unknown_frame",
    "properties that are cut": "INTERNAL_ERROR",
    "a header of an unknown type": "INTERNAL_ERROR",
    "a channel that is not open": "CHANNEL_ERROR - expected 'channel.open'",
    "content on a channel that is not open": "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
    "a second opening": "CHANNEL_ERROR - second 'channel.open' seen",
    "a channel's method on channel 0": "CHANNEL_ERROR - unexpected method in connection state running",
    "content on channel 0": 'UNEXPECTED_FRAME - type 3, all octets = <<"x">>',
    "an unknown kind of frame on channel 0": 'FRAME_ERROR - type 9, all octets = <<"x">>: unknown_frame',
    "a second login": "CHANNEL_ERROR - unexpected method in connection state running",
    "a second vhost": "CHANNEL_ERROR - unexpected method in connection state running",
    "a name that is no UTF-8": "FRAME_ERROR - Malformed UTF-8 in shortstr",
    "recovery without requeue": "NOT_IMPLEMENTED - requeue=false",
}
#: Where RabbitMQ hangs up without a word, the embedded broker says these.
UNSAID = {
    "an unknown class": "COMMAND_INVALID - unknown method",
    "an unknown method": "COMMAND_INVALID - unknown method",
    "an unknown method on channel 0": "COMMAND_INVALID - unknown method",
    "a table with an unknown type": "SYNTAX_ERROR - field type 'q' is unknown",
    "a table that is cut": "SYNTAX_ERROR - malformed field table",
    "a table without a value": "SYNTAX_ERROR - malformed field table",
}


def farewell(url: str, data: bytes) -> str:
    """What the broker says when it closes the connection, or nothing."""
    with Caller(url, within=PATIENCE) as caller:
        caller.say(*SCRIPT, data)
        for raw in caller.frames():
            said = frame.unmarshal(raw)[2]
            if isinstance(said, commands.Connection.Close):
                return said.reply_text
    return ""


@pytest.mark.parametrize("what", WORDS)
async def test_nonsense_is_answered_in_these_words(url: str, broker: Broker, what: str) -> None:
    assert farewell(url, WRONG[what]) == WORDS[what]
    assert not await broker.exists("nonsense")


@pytest.mark.parametrize("what", UNSAID)
async def test_what_cannot_be_read_ends_the_connection(url: str, broker: Broker, what: str) -> None:
    assert farewell(url, WRONG[what]) in ("", UNSAID[what])
    assert not await broker.exists("nonsense")

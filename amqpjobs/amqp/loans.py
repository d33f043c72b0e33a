"""The deliveries of one channel on the lane: read, lent, and settled.

Acks are said once for each turn of the event loop, no later than one alone would have left the
process. What was lent first and has ended, without a gap, is one `multiple`; what has ended behind
it is acked one by one. So an ack never covers a delivery that has not ended.
"""

import logging
import struct
from collections.abc import Callable, Iterable
from itertools import takewhile

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.guard import DEFECT_HEADER, read_header, read_names
from amqpjobs.amqp.lane import Exit, Lane
from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.wire import Delivery, make_delivery

_log = logging.getLogger(__name__)

OnDelivery = Callable[[Delivery], None]

#: Delivery tag, whether it was delivered before.
_TAG = struct.Struct(">QB")
#: A whole frame: type, channel, length, class, method, tag, one bit, end.
_SETTLING = struct.Struct(">BHIHHQBB")
_ACK, _REJECT, _NACK = 80, 90, 120
_MULTIPLE, _REQUEUE = 1, 2


class Loans(Exit):
    """What the broker lends to the one consumer of a channel; settles it, too."""

    begins = b"\x00\x3c\x00\x3c"

    def __init__(self, lane: Lane, number: int, session: Session, name: str, on_delivery: OnDelivery) -> None:
        super().__init__(lane, number)
        self._session = session
        self._name = name
        self._on_delivery = on_delivery
        #: The tags of what is not settled, in their order.
        self._lent: dict[int, None] = {}
        #: Those of them whose ack is still to be said.
        self._ended: set[int] = set()

    @property
    def is_open(self) -> bool:
        # A session that was given up may leave a channel that looks open: nobody would hear what is said on it.
        return not self.is_closed and self._session.is_open

    async def ack(self, tag: int) -> None:
        if self.is_closed or not self._session.is_open:  # as `is_open`, said here since it is asked for every job
            raise _closed()
        if not self._ended:
            self._lane.soon(self.speak)
        self._ended.add(tag)

    async def nack(self, tag: int) -> None:
        self._say_at_once(_NACK, tag, _REQUEUE)

    async def reject(self, tag: int) -> None:
        self._say_at_once(_REJECT, tag, 0)

    def speak(self) -> None:
        """Say the acks of what has ended."""
        ended, self._ended = self._ended, set()
        if not ended or self.is_closed:
            return
        first = list(takewhile(ended.__contains__, self._lent))
        if first:
            self._settle(_ACK, first[-1], _MULTIPLE if len(first) > 1 else 0)
            self._forget(first)
            ended.difference_update(first)
        for tag in ended:
            self._settle(_ACK, tag, 0)
        self._forget(ended)

    def lost(self, error: Exception) -> None:
        self._lent.clear()
        self._ended.clear()

    def _take_message(self, method: bytes, header: bytes, body: bytes) -> None:
        names = 14 + method[4]  # consumer tag, delivery tag, redelivered
        tag, redelivered = _TAG.unpack_from(method, 5 + method[4])
        exchange, routing_key = read_names(method[names:])
        properties = read_header(header)
        self._lent[tag] = None
        delivery = make_delivery(
            body=body,
            properties=properties,
            queue=self._name,
            exchange=exchange,
            routing_key=routing_key,
            redelivered=redelivered != 0,
            tag=tag,
            settler=self,
            defect=str(properties.headers[DEFECT_HEADER]) if DEFECT_HEADER in properties.headers else "",
        )
        try:
            self._on_delivery(delivery)
        except Exception:  # the others must come all the same
            _log.exception("A delivery could not be taken")

    def _say_at_once(self, method: int, tag: int, bit: int) -> None:
        self._check()
        self._lent.pop(tag, None)
        self._settle(method, tag, bit)

    def _settle(self, method: int, tag: int, bit: int) -> None:
        self._lane.write(_SETTLING.pack(1, self._number, 13, 60, method, tag, bit, 0xCE))

    def _forget(self, tags: Iterable[int]) -> None:
        for tag in tags:
            self._lent.pop(tag, None)

    def _check(self) -> None:
        if not self.is_open:
            raise _closed()


def _closed() -> BrokerUnavailableError:
    return BrokerUnavailableError("The channel is closed, so the delivery will come again.")

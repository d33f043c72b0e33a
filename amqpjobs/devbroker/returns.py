"""Why a message that was lent to a client is not with it any more, unless it was acked."""

from enum import Enum


class Return(Enum):
    """The first three go back into the queue, the others away."""

    #: Handed back unstarted: basic.nack, basic.recover.
    NACKED = "nacked"
    #: Tried and failed: basic.reject.
    REJECTED = "rejected"
    #: Its channel or connection ended.
    LOST = "lost"
    #: basic.nack without requeue.
    DISCARDED = "discarded"
    #: basic.reject without requeue.
    REFUSED = "refused"

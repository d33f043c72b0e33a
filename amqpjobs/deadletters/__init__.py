"""Look into the places where messages wait for a person, and move them on.

There are three: the dead letters of each queue, `unroutable` and `parked`. Everything here
reads a whole place once, O(n), whatever it looks for: a queue has no index, and what was lent
in part would come back in another order. What is not chosen is handed back as it lay. What is
chosen is published, confirmed, and then acked: a crash loses nothing, doubles at most what was
under way (`amqp.browse.WINDOW`), and the same call may be made again.

Two at once on one place see a part each. Everything else, workers too, may go on meanwhile.
"""

from amqpjobs.deadletters.filter import ALL, Filter
from amqpjobs.deadletters.grouping import Group, Groups
from amqpjobs.deadletters.letter import (
    EDITED_AT,
    EDITED_FROM,
    PREVIEW,
    REQUEUED_AT,
    REQUEUED_FROM,
    REQUEUES,
    DeadLetter,
    letter_of,
)
from amqpjobs.deadletters.place import PARKED, UNROUTABLE, LetterError, Place, PlaceName, dead_of
from amqpjobs.deadletters.portable import from_json, letter_from, line_of, to_json
from amqpjobs.deadletters.shelf import ALREADY_THERE, MOST_LISTED, DeadLetters
from amqpjobs.deadletters.sieve import Tally

__all__ = [
    "ALL",
    "ALREADY_THERE",
    "EDITED_AT",
    "EDITED_FROM",
    "MOST_LISTED",
    "PARKED",
    "PREVIEW",
    "REQUEUED_AT",
    "REQUEUED_FROM",
    "REQUEUES",
    "UNROUTABLE",
    "DeadLetter",
    "DeadLetters",
    "Filter",
    "Group",
    "Groups",
    "LetterError",
    "Place",
    "PlaceName",
    "Tally",
    "dead_of",
    "from_json",
    "letter_from",
    "letter_of",
    "line_of",
    "to_json",
]

import inspect

import pytest

from amqpjobs import errors
from amqpjobs.errors import (
    AmqpJobsError,
    EnqueueError,
    EnqueueManyError,
    InvalidArgumentsError,
    UnroutableError,
)

TREE = {
    "DefinitionError": ["DuplicateKindError", "HandlerMismatchError"],
    "SettingsError": [],
    "BrokerError": ["BrokerUnavailableError", "AccessRefusedError", "TopologyMismatchError"],
    "EnqueueError": [
        "UnroutableError",
        "UnconfirmedError",
        "RefusedError",
        "TooLargeError",
        "EnqueueTimeoutError",
        "EnqueueManyError",
        "BufferFullError",
        "FlushError",
    ],
    "DecodeError": ["UnreadableError", "UnknownKindError", "UnknownVersionError", "InvalidArgumentsError"],
}


def test_the_tree_is_the_one_that_is_drawn() -> None:
    branches = AmqpJobsError.__subclasses__()

    found = {branch.__name__: [leaf.__name__ for leaf in branch.__subclasses__()] for branch in branches}

    assert found.keys() >= TREE.keys()
    assert all(set(TREE[name]) <= set(found[name]) for name in TREE)


@pytest.mark.parametrize("name", [*TREE, *(leaf for leaves in TREE.values() for leaf in leaves)])
def test_the_drawing_names_each_error(name: str) -> None:
    drawing = inspect.getdoc(errors) or ""

    assert name in drawing


def test_an_error_of_a_job_that_had_no_id_yet_has_none() -> None:
    error = EnqueueError("no")

    assert error.job_id is None


def test_a_batch_tells_how_many_failed_and_the_first_of_them() -> None:
    first, second = UnroutableError("nobody wants it"), UnroutableError("nor this")

    error = EnqueueManyError({0: "id-0", 2: "id-2"}, {3: second, 1: first})

    assert str(error) == "2 of 4 jobs were not enqueued; the first, at position 1: nobody wants it"
    assert error.enqueued == {0: "id-0", 2: "id-2"}
    assert error.errors[3] is second


def test_invalid_arguments_list_their_problems() -> None:
    error = InvalidArgumentsError("does not fit", ["to: missing"])

    assert error.problems == ["to: missing"]
    assert str(error) == "does not fit"

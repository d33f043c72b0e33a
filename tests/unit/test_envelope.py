from dataclasses import FrozenInstanceError
from uuid import UUID

import pytest

from amqpjobs.envelope import Envelope, new_id


def test_an_envelope_is_changed_by_making_another_one() -> None:
    first = Envelope(kind="a", payload=b"{}", job_id="1")

    second = first.evolve(attempt=2)

    assert (first.attempt, second.attempt) == (1, 2)
    assert second == Envelope(kind="a", payload=b"{}", job_id="1", attempt=2)


def test_an_envelope_cannot_be_changed_in_place() -> None:
    envelope = Envelope(kind="a", payload=b"{}", job_id="1")

    with pytest.raises(FrozenInstanceError):
        envelope.attempt = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  (what is tested)


def test_a_field_that_does_not_exist_cannot_be_changed() -> None:
    envelope = Envelope(kind="a", payload=b"{}", job_id="1")

    with pytest.raises(TypeError):
        envelope.evolve(atempt=2)


def test_two_envelopes_do_not_share_their_headers() -> None:
    first, second = (Envelope(kind="a", payload=b"", job_id=name) for name in "12")

    assert first.headers == {}
    assert first.headers is not second.headers


def test_ids_are_uuids_that_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]

    assert {UUID(each).version for each in ids} == {7}
    assert len(set(ids)) == 1000
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)

"""By what a job finds its shard, as numbers: its key, and the slot into which keys fall.

There are always as many slots as the most shards, so that a producer need not know how many shards a
queue has: it stamps the slot, and bindings lead from there. Whoever can hash the JSON of a value can
do the same in any language.
"""

from typing import cast
from zlib import crc32

from pydantic_core import from_json, to_json

SLOTS = 64
#: How many shards a queue may have: each then gets as many slots as the others.
SHARD_COUNTS = (1, 2, 4, 8, 16, 32, 64)
#: `shard_by` of a class whose jobs are only to be spread.
JOB_ID = "job_id"
#: Keys are from 0 up to here: 31 bits, which every client can send as an AMQP integer.
KEYS = 2**31
#: One word, so that no binding of the delay levels, whose keys have 33, can match it.
_WORDS = tuple(f"amqpjobs-slot-{slot:02}" for slot in range(SLOTS))


def key_of(value: object) -> int:
    """The key of a value: of its JSON, without spaces and in UTF-8, the lower 31 bits of the CRC-32."""
    return crc32(to_json(value)) % KEYS


def key_in(payload: bytes, field: str, job_id: str) -> int:
    """The key of a job, by the name of a field in its payload or by its id."""
    if field == JOB_ID:
        return key_of(job_id)
    found: object = from_json(payload)
    return key_of(cast("dict[str, object]", found).get(field) if isinstance(found, dict) else None)


def slot_word(key: int) -> str:
    """The routing key of a key's slot."""
    return _WORDS[key % SLOTS]

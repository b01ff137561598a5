"""What has happened, counted in the transaction that did it: exact, however many processes there are and whoever ends.

Keys:
    loraq:counts    a hash, each field JSON: ["submissions"], ["attempts", outcome, reason], ["ends", status, reason],
                    ["wait", class, upper bound in seconds] and ["wait_ms", class]

A reason is "" where there is none. Owners and jobs have no field of their own, so the hash stays small.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import json
from typing import cast

from redis import Redis
from redis.client import Pipeline

from jobs.record import JobRecord
from jobs.status import Status

COUNTS = "loraq:counts"

WAIT_BOUNDS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86_400.0)
"""Upper bounds of the buckets in which waits are counted; longer ones count under the last, "+Inf"."""


def note(pipeline: "Pipeline", old: JobRecord | None, new: JobRecord) -> None:
    """Count a change of status, inside the caller's transaction."""
    if old is None:
        if new.status is Status.QUEUED and not new.attempts:
            _add(pipeline, "submissions")
        return
    if old.status is Status.QUEUED and new.status.running and new.attempt is not None:
        waited_s = max(0.0, (new.attempt.started_at - old.updated_at).total_seconds())
        bound = next((str(bound) for bound in WAIT_BOUNDS_S if waited_s <= bound), "+Inf")
        _add(pipeline, "wait", new.needs, bound)
        _add(pipeline, "wait_ms", new.needs, by=round(waited_s * 1000))
    if old.status.running and not new.status.running and new.attempt is not None:
        failure = new.attempt.failure
        _add(pipeline, "attempts", new.attempt.outcome or "", failure.reason if failure else "")
    if new.status.final:
        _add(pipeline, "ends", new.status, new.failure.reason if new.failure else "")


def read(redis: "Redis") -> dict[tuple[str, ...], int]:
    """Every count, by its field."""
    counts = cast(dict[bytes, bytes], redis.hgetall(COUNTS))
    return {tuple(json.loads(field)): int(value) for field, value in counts.items()}


def _add(pipeline: "Pipeline", *field: str, by: int = 1) -> None:
    pipeline.hincrby(COUNTS, json.dumps([str(part) for part in field]), by)

"""What Redis keeps of a job whose record lies in the bucket only: enough to list it, and to find its folder.

Keys:
    loraq:ended                        ids of jobs that have ended and are not archived yet, by when they ended
    loraq:archived:{owner}:{status}    "<id> <entry as JSON>" of each archived job, sorted by id, so by time
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections.abc import Iterator
from datetime import datetime
from typing import Self, cast

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.client import Pipeline

from jobs.record import Failure, JobRecord
from jobs.status import Status

ENDED = "loraq:ended"

_FINAL = tuple(status for status in Status if status.final)


class Archived(BaseModel):
    """An archived job, as a list shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: Status
    created_at: datetime
    updated_at: datetime
    attempts: int
    failure: Failure | None
    output_uri: str  # where its record lies
    sha256: str  # of its record's bytes there: whoever may write into the folder may not change the job

    @classmethod
    def of(cls, record: JobRecord, sha256: str) -> Self:
        """The entry of a record."""
        return cls(
            id=record.id,
            name=record.spec.name,
            status=record.status,
            created_at=record.created_at,
            updated_at=record.updated_at,
            attempts=len(record.attempts),
            failure=record.failure,
            output_uri=record.output_uri,
            sha256=sha256,
        )


def add(pipeline: "Pipeline", record: JobRecord, sha256: str) -> None:
    """Note that a record lies in the bucket, as bytes of this sum, inside the caller's transaction."""
    entry = Archived.of(record, sha256).model_dump_json()
    pipeline.zadd(_key(record.owner, record.status), {f"{record.id} {entry}": 0})


def find(redis: "Redis", owner: str, job_id: str) -> Archived | None:
    """An owner's archived job; None if there is none of that id."""
    with redis.pipeline(transaction=False) as pipeline:
        for status in _FINAL:
            # From "<id> " on and before "<id>!", the character behind the blank.
            pipeline.zrangebylex(_key(owner, status), f"[{job_id} ", f"({job_id}!", start=0, num=1)
        found = _entries(cast(list[list[bytes]], pipeline.execute()))
    return next((each for each in found if each.id == job_id), None)


def newest(redis: "Redis", owner: str, status: Status | None, cursor: str | None, limit: int) -> list[Archived]:
    """An owner's archived jobs, newest first, behind the job id `cursor`: `limit` at most."""
    with redis.pipeline(transaction=False) as pipeline:
        for each in _FINAL if status is None else (status,):
            pipeline.zrevrangebylex(_key(owner, each), "+" if cursor is None else f"({cursor}", "-", start=0, num=limit)
        found = _entries(cast(list[list[bytes]], pipeline.execute()))
    return sorted(found, key=lambda each: each.id, reverse=True)[:limit]


def _entries(answers: list[list[bytes]]) -> Iterator[Archived]:
    for members in answers:
        for member in members:
            yield Archived.model_validate_json(member.partition(b" ")[2])


def _key(owner: str, status: Status) -> str:
    return f"loraq:archived:{owner}:{status}"

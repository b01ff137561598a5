"""Job records in Redis: read, listed, and replaced by compare-and-set, with all that follows from a change.

jobs/writing.py has the keys that each change writes, jobs/turns.py those of the jobs that wait.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections.abc import Callable
from typing import cast

from pydantic import BaseModel
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from jobs import turns
from jobs.errors import JobNotFound, StaleAttempt
from jobs.queue import Queues
from jobs.record import JobRecord
from jobs.status import Status
from jobs.writing import Writer, record_key

Also = Callable[[Pipeline, JobRecord], None]
"""What a caller wants written in the same transaction, about the record that it writes."""


class Page(BaseModel):
    """A part of a list, newest first."""

    jobs: list[JobRecord]
    next_cursor: str | None  # None: this was the last page


class Records:
    """All records, in one Redis.

    Args:
        limited: whether owners have a limit of running jobs.
    """

    def __init__(self, redis: "Redis", queues: Queues, limited: bool) -> None:
        self.redis = redis
        self.queues = queues
        self.writer = Writer(queues, limited)

    def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The job's record; with `owner`, only if it is theirs.

        Raises:
            JobNotFound: no such job, or another owner's: the two look the same from outside.
        """
        record = decode(job_id, cast(bytes | None, self.redis.get(record_key(job_id))))
        if owner is not None and record.owner != owner:
            raise JobNotFound(job_id)
        return record

    def page(self, owner: str, status: Status | None = None, cursor: str | None = None, limit: int = 50) -> Page:
        """An owner's jobs, newest first, behind the job id `cursor`; one range of a sorted set, whatever its size."""
        newest = "+" if cursor is None else f"({cursor}"
        key = turns.index_key(owner, status)
        ids = cast(list[bytes], self.redis.zrevrangebylex(key, newest, "-", start=0, num=limit + 1))
        raws = cast(list[bytes | None], self.redis.mget([record_key(i.decode()) for i in ids[:limit]])) if ids else []
        jobs = [JobRecord.model_validate_json(raw) for raw in raws if raw is not None]
        return Page(jobs=jobs, next_cursor=ids[limit - 1].decode() if len(ids) > limit else None)

    def change(
        self,
        job_id: str,
        change: Callable[[JobRecord], JobRecord],
        attempt: int | None = None,
        also: Also | None = None,
    ) -> JobRecord:
        """Replace a record by `change(record)`, atomically; `change` may run more than once.

        A change of status is appended to the events, and a job that goes back to the queue is delivered again, both in
        the same transaction.

        Args:
            attempt: the fencing token. With it, the change is refused unless this attempt still holds the job.

        Raises:
            StaleAttempt: the attempt no longer holds the job.
            JobNotFound, IllegalTransition.
        """
        while True:
            with self.redis.pipeline() as pipeline:
                try:
                    return self.change_once(pipeline, job_id, change, attempt, also)
                except WatchError:
                    continue  # the record moved: look again

    def restore(self, record: JobRecord) -> bool:
        """Write a record that Redis has lost. Returns False if Redis has it, and then nothing changes."""
        with self.redis.pipeline() as pipeline:
            try:
                pipeline.watch(record_key(record.id))
                if pipeline.exists(record_key(record.id)):
                    return False
                pipeline.multi()
                self.writer.write(pipeline, None, record)
                pipeline.execute()
            except WatchError:
                return False
        return True

    def change_once(
        self,
        pipeline: "Pipeline",
        job_id: str,
        change: Callable[[JobRecord], JobRecord],
        attempt: int | None = None,
        also: Also | None = None,
    ) -> JobRecord:
        """One try at `change`. Raises WatchError if the record, or what the caller watches, moved meanwhile."""
        pipeline.watch(record_key(job_id))
        old = decode(job_id, cast(bytes | None, pipeline.get(record_key(job_id))))
        if attempt is not None:
            check_fence(old, attempt)
        new = change(old)
        if new == old:
            return old
        pipeline.multi()
        self.writer.write(pipeline, old, new)
        if also is not None:
            also(pipeline, new)
        pipeline.execute()
        return new


def decode(job_id: str, raw: bytes | None) -> JobRecord:
    """The record that lies under a job's key.

    Raises:
        JobNotFound: nothing does.
    """
    if raw is None:
        raise JobNotFound(job_id)
    return JobRecord.model_validate_json(raw)


def check_fence(record: JobRecord, attempt: int) -> None:
    """Raise StaleAttempt unless `attempt` holds the job."""
    if not record.status.running or record.attempt is None or record.attempt.number != attempt:
        holder = f"attempt {record.attempt.number}" if record.attempt and record.status.running else "no attempt"
        raise StaleAttempt(
            f"Job {record.id} is {record.status}, held by {holder}: attempt {attempt} may write no more."
        )

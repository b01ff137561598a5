"""Job records in Redis. Every change is a compare-and-set, and writes record, indexes, event and delivery at once.

Keys:
    loraq:job:{id}                      the record, JSON: the truth
    loraq:job:{id}:progress             where the running attempt stands, JSON: replaced every few seconds
    loraq:job:{id}:events               a stream, see jobs/events.py
    loraq:jobs:{owner}                  ids of an owner's jobs, all with score 0: sorted by id, so by time
    loraq:jobs:{owner}:{status}         the same, by status
    loraq:idempotency:{owner}:{sha256}  which job an Idempotency-Key made, for seven days
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import cast

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue

from jobs import events
from jobs.errors import IdempotencyConflict, JobNotFound, StaleAttempt
from jobs.queue import deliver, open_queue, withdraw
from jobs.record import Failure, JobRecord, advance, begin_attempt, now
from jobs.settings import Settings
from jobs.status import Status

IDEMPOTENCY_DAYS = 7


class Progress(BaseModel):
    """Where the running attempt stands."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    phase: str  # as the trainer names it: reading, encoding, loading, training, …
    step: int = 0  # optimizer steps done
    steps: int = 0  # optimizer steps in all
    loss: float | None = None
    seconds_per_step: float | None = None
    peak_bytes: int | None = None  # GPU memory at its highest so far; None on a CPU
    at: datetime


class Submission(BaseModel):
    """One submission under an Idempotency-Key."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    body_sha256: str


class Page(BaseModel):
    """A part of a list, newest first."""

    jobs: list[JobRecord]
    next_cursor: str | None  # None: this was the last page


class Store:
    """All jobs, in one Redis."""

    def __init__(self, redis: "Redis", queue: Queue) -> None:
        self.redis = redis
        self.queue = queue

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The job's record; with `owner`, only if it is theirs.

        Raises:
            JobNotFound: no such job, or another owner's: the two look the same from outside.
        """
        raw = cast(bytes | None, self.redis.get(_record_key(job_id)))
        if raw is None:
            raise JobNotFound(job_id)
        record = JobRecord.model_validate_json(raw)
        if owner is not None and record.owner != owner:
            raise JobNotFound(job_id)
        return record

    def page(self, owner: str, status: Status | None = None, cursor: str | None = None, limit: int = 50) -> Page:
        """An owner's jobs, newest first, behind the job id `cursor`; one range of a sorted set, whatever its size."""
        newest = "+" if cursor is None else f"({cursor}"
        key = _index_key(owner, status)
        ids = cast(list[bytes], self.redis.zrevrangebylex(key, newest, "-", start=0, num=limit + 1))
        raws = cast(list[bytes | None], self.redis.mget([_record_key(i.decode()) for i in ids[:limit]])) if ids else []
        jobs = [JobRecord.model_validate_json(raw) for raw in raws if raw is not None]
        return Page(jobs=jobs, next_cursor=ids[limit - 1].decode() if len(ids) > limit else None)

    def progress(self, job_id: str) -> Progress | None:
        """Where the running attempt stands; None before the first report."""
        raw = cast(bytes | None, self.redis.get(_progress_key(job_id)))
        return Progress.model_validate_json(raw) if raw else None

    # -- submitting ---------------------------------------------------------------------------------------------------

    def submit(self, record: JobRecord, idempotency_key: str | None = None) -> JobRecord:
        """Acknowledge a job: record, indexes, first event and delivery in one MULTI.

        With an idempotency key, the same owner, key and spec give the job that the first call made.

        Raises:
            IdempotencyConflict: the key came with another spec before.
        """
        body_sha256 = hashlib.sha256(record.spec.model_dump_json().encode()).hexdigest()
        key = _idempotency_key(record.owner, idempotency_key) if idempotency_key is not None else None
        while True:
            with self.redis.pipeline() as pipeline:
                try:
                    if key is not None:
                        pipeline.watch(key)
                        if raw := cast(bytes | None, pipeline.get(key)):
                            earlier = Submission.model_validate_json(raw)
                            if earlier.body_sha256 != body_sha256:
                                raise IdempotencyConflict(earlier.job_id)
                            return self.get(earlier.job_id, record.owner)
                    pipeline.multi()
                    if key is not None:
                        submission = Submission(job_id=record.id, body_sha256=body_sha256)
                        pipeline.set(key, submission.model_dump_json(), ex=IDEMPOTENCY_DAYS * 86_400)
                    self._write(pipeline, None, record)
                    self._deliver(pipeline, record)
                    pipeline.execute()
                    return record
                except WatchError:
                    continue  # someone used the same key in between: read what they made

    # -- changing -----------------------------------------------------------------------------------------------------

    def change(self, job_id: str, change: Callable[[JobRecord], JobRecord], attempt: int | None = None) -> JobRecord:
        """Replace a record by `change(record)`, atomically; `change` may run more than once.

        A change of status is appended to the events, and a job that goes back to the queue is delivered again, both in
        the same transaction.

        Args:
            attempt: the fencing token. With it, the change is refused unless this attempt still holds the job.

        Raises:
            StaleAttempt: the attempt no longer holds the job.
            JobNotFound, IllegalTransition.
        """
        key = _record_key(job_id)
        while True:
            with self.redis.pipeline() as pipeline:
                try:
                    pipeline.watch(key)
                    raw = cast(bytes | None, pipeline.get(key))
                    if raw is None:
                        raise JobNotFound(job_id)
                    old = JobRecord.model_validate_json(raw)
                    if attempt is not None:
                        _check_fence(old, attempt)
                    new = change(old)
                    if new == old:
                        return old
                    pipeline.multi()
                    self._write(pipeline, old, new)
                    if new.status is Status.QUEUED and old.status is not Status.QUEUED:
                        self._deliver(pipeline, new)
                    pipeline.execute()
                    return new
                except WatchError:
                    continue  # the record moved: look again

    def claim(self, job_id: str, worker: str) -> JobRecord | None:
        """Begin an attempt, if the job waits for one. None for a duplicate or outdated delivery: do nothing then."""

        def begin(record: JobRecord) -> JobRecord:
            if record.status is not Status.QUEUED:
                raise _NothingToClaim
            return begin_attempt(record, worker)

        try:
            return self.change(job_id, begin)
        except _NothingToClaim:
            return None

    def move(self, job_id: str, attempt: int, to: Status, failure: Failure | None = None) -> JobRecord:
        """One arrow in the status table, by the attempt that holds the job."""
        return self.change(job_id, lambda record: advance(record, to, failure), attempt)

    def report(self, job_id: str, progress: Progress) -> JobRecord:
        """Heartbeat of a running attempt; gives the record, so that the attempt sees a cancel.

        Raises:
            StaleAttempt: the attempt no longer holds the job.
        """
        record = self.get(job_id)
        _check_fence(record, progress.attempt)
        self.redis.set(_progress_key(job_id), progress.model_dump_json())
        return record

    def request_cancel(self, job_id: str, owner: str | None = None) -> JobRecord:
        """Cancel a waiting job at once, and ask the attempt of a running one to stop. A final job stays as it is."""
        self.get(job_id, owner)

        def cancel(record: JobRecord) -> JobRecord:
            if record.status.final or record.cancel_requested_at is not None:
                return record
            asked = record.model_copy(update={"cancel_requested_at": now(), "updated_at": now()})
            return advance(asked, Status.CANCELLED) if record.status is Status.QUEUED else asked

        return self.change(job_id, cancel)

    # -- inside a transaction -----------------------------------------------------------------------------------------

    def _write(self, pipeline: "Pipeline", old: JobRecord | None, new: JobRecord) -> None:
        pipeline.set(_record_key(new.id), new.model_dump_json())
        number = new.attempt.number if new.attempt else 0
        if old is None:
            pipeline.zadd(_index_key(new.owner, None), {new.id: 0})
        if old is None or old.status is not new.status:
            if old is not None:
                pipeline.zrem(_index_key(new.owner, old.status), new.id)
            pipeline.zadd(_index_key(new.owner, new.status), {new.id: 0})
            failure = new.failure or (new.attempt.failure if new.attempt and new.status is Status.QUEUED else None)
            data = {"from": old.status if old else None, "to": new.status}
            events.append(
                pipeline, new.id, "status", number, data | (failure.model_dump(mode="json") if failure else {})
            )
        elif old.cancel_requested_at is None and new.cancel_requested_at is not None:
            events.append(pipeline, new.id, "cancel_requested", number, {})
        if new.status is Status.CANCELLED and old is not None and old.status is Status.QUEUED:
            withdraw(self.queue, pipeline, new.id, number + 1)

    def _deliver(self, pipeline: "Pipeline", record: JobRecord) -> None:
        deliver(
            self.queue,
            pipeline,
            record.id,
            len(record.attempts) + 1,
            max_duration_s=record.spec.max_duration_s,
            at_front=record.spec.priority == "high",
        )


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Connects at the first call, not now."""
    redis = Redis.from_url(settings.redis_url.get_secret_value(), health_check_interval=30, socket_keepalive=True)
    return Store(redis, open_queue(settings.queue, redis))


class _NothingToClaim(Exception):
    """The job does not wait for an attempt."""


def _check_fence(record: JobRecord, attempt: int) -> None:
    """Raise StaleAttempt unless `attempt` holds the job."""
    if not record.status.running or record.attempt is None or record.attempt.number != attempt:
        holder = f"attempt {record.attempt.number}" if record.attempt and record.status.running else "no attempt"
        raise StaleAttempt(
            f"Job {record.id} is {record.status}, held by {holder}: attempt {attempt} may write no more."
        )


def _record_key(job_id: str) -> str:
    return f"loraq:job:{job_id}"


def _progress_key(job_id: str) -> str:
    return f"loraq:job:{job_id}:progress"


def _index_key(owner: str, status: Status | None) -> str:
    return f"loraq:jobs:{owner}:{status}" if status else f"loraq:jobs:{owner}"


def _idempotency_key(owner: str, key: str) -> str:
    return f"loraq:idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"

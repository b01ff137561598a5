"""What happens to jobs: submitted, moved along the status table, given back, cancelled. Each is one transaction.

Keys:
    loraq:job:{id}:progress             where the running attempt stands, JSON: replaced every few seconds
    loraq:idempotency:{owner}:{sha256}  which job an Idempotency-Key made, for seven days

jobs/records.py holds the records themselves, jobs/claims.py lets attempts begin.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import hashlib
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.exceptions import WatchError

from jobs import events, turns
from jobs.claims import Claims
from jobs.errors import IdempotencyConflict, NotRetryable, TooManyJobs
from jobs.gpu_class import GpuClass
from jobs.queue import Queues
from jobs.record import Failure, JobRecord, advance, commit, give_back, now
from jobs.records import Also, check_fence, decode
from jobs.retries import RetryPolicy
from jobs.settings import Settings
from jobs.spec_text import with_steps
from jobs.status import Status
from jobs.writing import RUNNING, holds_key, progress_key, record_key

IDEMPOTENCY_DAYS = 7

REDIS_CONNECT_S = 5
REDIS_ANSWER_S = 15
"""How long a connection and an answer may take: a Redis that hangs is as good as one that is gone."""


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


class Store(Claims):
    """All jobs, in one Redis.

    Args:
        retries: None for the defaults.
        max_running_per_owner, max_queued_per_owner: None for no limit.
    """

    def __init__(
        self,
        redis: "Redis",
        queues: Queues,
        retries: RetryPolicy | None = None,
        max_running_per_owner: int | None = None,
        max_queued_per_owner: int | None = None,
    ) -> None:
        super().__init__(redis, queues, max_running_per_owner)
        self.retries = retries or RetryPolicy()
        self.max_queued_per_owner = max_queued_per_owner

    # -- submitting ---------------------------------------------------------------------------------------------------

    def submit(self, record: JobRecord, idempotency_key: str | None = None, also: Also | None = None) -> JobRecord:
        """Acknowledge a job: record, indexes, first event and delivery in one MULTI.

        With an idempotency key, the same owner, key and spec give the job that the first call made.

        Raises:
            IdempotencyConflict: the key came with another spec before.
            TooManyJobs: of this owner wait. Submissions at the same instant may exceed the limit by their number.
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
                    self._check_room(record.owner)
                    pipeline.multi()
                    if key is not None:
                        submission = Submission(job_id=record.id, body_sha256=body_sha256)
                        pipeline.set(key, submission.model_dump_json(), ex=IDEMPOTENCY_DAYS * 86_400)
                    self.writer.write(pipeline, None, record)
                    if also is not None:
                        also(pipeline, record)
                    pipeline.execute()
                    return record
                except WatchError:
                    continue  # someone used the same key in between: read what they made

    def _check_room(self, owner: str) -> None:
        """Raise TooManyJobs if no more jobs of this owner may wait."""
        limit = self.max_queued_per_owner
        if limit is not None and self.redis.zcard(turns.index_key(owner, Status.QUEUED)) >= limit:
            raise TooManyJobs(limit)

    def retry(self, old: JobRecord, also: Also | None = None, steps: int | None = None) -> JobRecord:
        """Submit a failed or cancelled job anew; it goes on from the old one's newest checkpoint.

        A final status never changes, so this is another job. Asked twice for as many steps, it gives the same one.

        Args:
            steps: of the new job, those before its checkpoint included; None: as many as the old one's.

        Raises:
            NotRetryable: the job has not ended, or ended well.
            InvalidSpec: with so many steps its spec cannot be carried out.
        """
        if old.status not in (Status.FAILED, Status.CANCELLED):
            raise NotRetryable(f"Job {old.id} is {old.status}: only one that failed or was cancelled is tried again.")
        spec = old.spec if steps is None else with_steps(old.spec, steps)
        new = JobRecord.create(old.owner, spec, retry_of=(old.id, *old.retry_of))
        other = "" if spec == old.spec else f" with {steps} steps"
        return self.submit(new, f"retry of {old.id}{other}", also)

    # -- changing -----------------------------------------------------------------------------------------------------

    def move(self, job_id: str, attempt: int, to: Status, failure: Failure | None = None) -> JobRecord:
        """One arrow in the status table, by the attempt that holds the job.

        Made twice, because the first answer was lost, it changes nothing the second time.
        """
        return self.change(
            job_id, lambda record: record if record.status is to else advance(record, to, failure), attempt
        )

    def commit(self, job_id: str, attempt: int, manifest_sha256: str) -> JobRecord:
        """Decide the job's output, by the attempt that holds the job; see jobs.record.commit.

        Made twice, because the first answer was lost, it changes nothing the second time.
        """
        return self.change(job_id, lambda record: commit(record, manifest_sha256), attempt)

    def give_back(self, job_id: str, attempt: int, failure: Failure | None) -> JobRecord:
        """End an attempt early: the job is tried again, fails for good, or is cancelled, as `record.give_back` says."""
        return self.change(job_id, lambda record: give_back(record, failure, self.retries), attempt)

    def report(
        self, job_id: str, progress: Progress, happened: Iterable[tuple[events.Kind, Mapping[str, Any]]] = ()
    ) -> JobRecord:
        """Heartbeat of a running attempt, with the events since the last one, all at once or not at all.

        Gives the record, so that the attempt sees a cancel.

        Raises:
            StaleAttempt: the attempt no longer holds the job.
        """
        while True:
            with self.redis.pipeline() as pipeline:
                try:
                    pipeline.watch(record_key(job_id))
                    record = decode(job_id, cast(bytes | None, pipeline.get(record_key(job_id))))
                    check_fence(record, progress.attempt)
                    pipeline.multi()
                    pipeline.set(progress_key(job_id), progress.model_dump_json())
                    pipeline.zadd(RUNNING, {job_id: time.time()})
                    for kind, data in happened:
                        events.append(pipeline, job_id, kind, progress.attempt, dict(data))
                    pipeline.execute()
                    return record
                except WatchError:
                    continue

    def progress(self, job_id: str) -> Progress | None:
        """Where the running attempt stands; None before the first report."""
        raw = cast(bytes | None, self.redis.get(progress_key(job_id)))
        return Progress.model_validate_json(raw) if raw else None

    # -- watching over attempts ---------------------------------------------------------------------------------------

    def running(self) -> dict[str, float]:
        """Every job that an attempt holds, with its last heartbeat in seconds since 1970 by the worker's clock."""
        entries = cast(list[tuple[bytes, float]], self.redis.zrange(RUNNING, 0, -1, withscores=True))
        return {job_id.decode(): score for job_id, score in entries}

    def held_by(self, worker: str) -> tuple[str, int] | None:
        """Job id and attempt that a worker holds, None if it holds none."""
        raw = cast(bytes | None, self.redis.get(holds_key(worker)))
        if raw is None:
            return None
        job_id, attempt = raw.decode().split()
        return job_id, int(attempt)

    def request_cancel(self, job_id: str, owner: str | None = None, also: Also | None = None) -> JobRecord:
        """Cancel a waiting job at once, and ask the attempt of a running one to stop.

        A final job stays as it is, and so does one that has committed its output and is about to say so.
        """
        self.get(job_id, owner)

        def cancel(record: JobRecord) -> JobRecord:
            if record.status.final or record.cancel_requested_at is not None or record.commit is not None:
                return record
            asked = record.model_copy(update={"cancel_requested_at": now(), "updated_at": now()})
            return advance(asked, Status.CANCELLED) if record.status is Status.QUEUED else asked

        return self.change(job_id, cancel, also=also)


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Connects at the first call, not now."""
    redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        health_check_interval=30,
        socket_keepalive=True,
        socket_connect_timeout=REDIS_CONNECT_S,
        socket_timeout=REDIS_ANSWER_S,
    )
    retries = RetryPolicy(
        max_failures=settings.max_failures,
        max_preemptions=settings.max_preemptions,
        wait_s_first=settings.retry_wait_s,
        wait_s_longest=settings.retry_wait_max_s,
    )
    queues = Queues(settings.queue, redis, map(GpuClass.parse, settings.gpu_classes))
    return Store(redis, queues, retries, settings.max_running_per_owner, settings.max_queued_per_owner)


def _idempotency_key(owner: str, key: str) -> str:
    return f"loraq:idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"

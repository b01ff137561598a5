"""An attempt's hold on its job: it reports every few seconds, and learns whether it may go on.

A thread of its own reports, so that the hold lasts through downloads and uploads as well. `check()` is called from
wherever the attempt is busy, and raises what ends it:

Ending
├── Cancelled      the owner asked for it
├── Preempted      SIGTERM: the job goes back to the queue
├── TimedOut       max_duration_s is over
└── LeaseLost      another attempt holds the job, or nobody needs it any more
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from jobs import events
from jobs.errors import FailureReason, JobNotFound, StaleAttempt
from jobs.outage import Outage
from jobs.record import Failure, JobRecord, now
from jobs.settings import Settings
from jobs.status import Status
from jobs.store import Progress, Store
from worker import stop

log = logging.getLogger(__name__)

REDIS_PATIENCE_S = 600
"""How long a finished attempt waits for Redis, to report what it has: a training must not die of an outage."""

MAX_BUFFERED_EVENTS = 5_000
"""Kept for Redis while it is gone: more than an hour of one a second."""

EVENTS_TOGETHER_S = 0.1
"""Events that come within this time are told in one transaction."""

UPLOAD_SHARE_OF_GRACE = 0.8
"""How much of the grace period a finished training may spend on its upload, when its worker is told to stop."""

REDIS_GONE = (RedisConnectionError, RedisTimeoutError)

T = TypeVar("T")


class Ending(Exception):
    """The attempt ends here, for a reason that is not its own."""


class Cancelled(Ending):
    """The owner cancelled the job."""


class Preempted(Ending):
    """This worker is shutting down."""


class TimedOut(Ending):
    """The attempt took longer than max_duration_s."""


class LeaseLost(Ending):
    """This attempt no longer holds the job."""


class Lease:
    """The hold of one attempt; a context manager that reports from its own thread until it is left."""

    def __init__(self, store: Store, record: JobRecord, settings: Settings) -> None:
        assert record.attempt is not None
        self.job_id = record.id
        self.attempt = record.attempt.number
        self._store = store
        self._settings = settings
        self._max_duration_s = record.spec.max_duration_s
        self._deadline_s = time.monotonic() + record.spec.max_duration_s
        self._progress = Progress(attempt=self.attempt, phase="fetching", at=now())
        self._cancelled = record.cancel_requested_at is not None
        self._lost: str | None = None
        self._uploading = False
        self._checked_s = time.monotonic()
        self._events: deque[tuple[events.Kind, dict[str, Any]]] = deque(maxlen=MAX_BUFFERED_EVENTS)
        self._reporting = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._report_until_closed, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._wake.set()
        self._thread.join()

    def check(self, _bytes: int = 0) -> None:
        """Raise the Ending that has come, if any. Takes and ignores a number, to serve as a transfer's callback."""
        self._checked_s = time.monotonic()
        if self._lost is not None:
            raise LeaseLost(self._lost)
        if self._cancelled:
            raise Cancelled(f"Job {self.job_id} was cancelled.")
        if time.monotonic() > self._deadline_s:
            raise TimedOut(
                f"The attempt took longer than max_duration_s, {self._max_duration_s} s. Allow more, or fewer steps."
            )
        # A training that is done is uploaded within the grace period, rather than given back.
        patience_s = self._settings.grace_s * UPLOAD_SHARE_OF_GRACE if self._uploading else 0
        if stop.requested.is_set() and stop.seconds_ago() >= patience_s:
            raise Preempted(f"The worker is shutting down; job {self.job_id} goes back to the queue.")

    def update(self, **changes: Any) -> None:
        """Change what the next report says: phase, step, steps, loss, seconds_per_step, peak_bytes."""
        self._progress = self._progress.model_copy(update=changes)

    def event(self, kind: events.Kind, data: dict[str, Any]) -> None:
        """Append an event, as soon as Redis answers; a long outage may cost the oldest of many."""
        self._events.append((kind, data))
        self._wake.set()

    def move(self, to: Status) -> None:
        """Take the job one arrow further, waiting for Redis if need be.

        Raises:
            LeaseLost: this attempt no longer holds the job.
        """
        self._uploading = to is Status.UPLOADING
        self._held(lambda: self._store.move(self.job_id, self.attempt, to))

    def give_back(self, failure: Failure | None) -> None:
        """End the attempt early, waiting for Redis if need be; None says that its worker is shutting down.

        Raises:
            LeaseLost: this attempt no longer holds the job.
        """
        self._held(lambda: self._store.give_back(self.job_id, self.attempt, failure))

    def resumed(self, step: int) -> None:
        """Note in the record which checkpoint the attempt goes on from."""

        def note(record: JobRecord) -> JobRecord:
            assert record.attempt is not None
            attempt = record.attempt.model_copy(update={"resumed_from_step": step})
            return record.model_copy(update={"attempts": (*record.attempts[:-1], attempt)})

        self._held(lambda: self._store.change(self.job_id, note, self.attempt))

    def commit(self, manifest_sha256: str) -> None:
        """Make this attempt's manifest the job's output, waiting for Redis if need be.

        Raises:
            Cancelled: the owner was faster.
            LeaseLost: this attempt no longer holds the job.
        """
        record = self._held(lambda: self._store.commit(self.job_id, self.attempt, manifest_sha256))
        if record.commit is None:
            raise Cancelled(f"Job {self.job_id} was cancelled.")

    def _held(self, change: Callable[[], JobRecord]) -> JobRecord:
        """Report what has happened so far, then make a change that only the holder may make."""

        def both() -> JobRecord:
            self._report()
            return change()

        try:
            return _until_redis_answers(both)
        except (StaleAttempt, JobNotFound) as error:
            self._lost = str(error)
            raise LeaseLost(str(error)) from error

    def _report_until_closed(self) -> None:
        outage = Outage(log, f", job {self.job_id} goes on without reporting")
        while not self._closed.is_set():
            self._wake.wait(self._settings.heartbeat_s)
            self._wake.clear()
            if self._closed.wait(EVENTS_TOGETHER_S):  # what comes at once is told at once
                return
            self._end_if_deaf()
            try:
                self._report()
                outage.over()
            except REDIS_GONE as error:
                outage.met(error)
                self._closed.wait(self._settings.heartbeat_s)

    def _report(self) -> None:
        with self._reporting:
            self.update(at=now())
            happened = list(self._events)
            try:
                record = self._store.report(self.job_id, self._progress, happened)
                self._cancelled = record.cancel_requested_at is not None
            except (StaleAttempt, JobNotFound) as error:
                self._lost = str(error)
            for _ in range(min(len(happened), len(self._events))):
                self._events.popleft()

    def _end_if_deaf(self) -> None:
        """End this process when the attempt itself, not its trainer, stands still: for twice what a trainer may, and
        when the job was cancelled, for the grace period.
        """
        still_s = time.monotonic() - self._checked_s
        if still_s <= (self._settings.grace_s if self._cancelled else 2 * self._settings.hang_s):
            return
        message = f"The attempt stood still for {still_s:.0f} s while {self._progress.phase}."
        log.critical("%s Ending its process.", message)
        failure = None if self._cancelled else Failure(reason=FailureReason.HUNG, message=message)
        try:
            self._store.give_back(self.job_id, self.attempt, failure)
        finally:
            os._exit(os.EX_SOFTWARE)


def _until_redis_answers(call: Callable[[], T]) -> T:
    """The result of `call`, tried again while Redis is gone, for REDIS_PATIENCE_S at most."""
    retrying = Retrying(
        retry=retry_if_exception_type(REDIS_GONE),
        wait=wait_exponential_jitter(initial=0.5, max=15),
        stop=stop_after_delay(REDIS_PATIENCE_S),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    return retrying(call)

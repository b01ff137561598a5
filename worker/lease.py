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
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from jobs import events
from jobs.errors import JobNotFound, StaleAttempt
from jobs.record import Failure, JobRecord, now
from jobs.settings import Settings
from jobs.status import Status
from jobs.store import Progress, Store
from worker import stop

log = logging.getLogger(__name__)

REDIS_PATIENCE_S = 600
"""How long a finished attempt waits for Redis, to report what it has: a training must not die of an outage."""

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
        self._heartbeat_s = settings.heartbeat_s
        self._max_duration_s = record.spec.max_duration_s
        self._deadline_s = time.monotonic() + record.spec.max_duration_s
        self._progress = Progress(attempt=self.attempt, phase="fetching", at=now())
        self._cancelled = record.cancel_requested_at is not None
        self._lost: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._report_until_closed, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def check(self, _bytes: int = 0) -> None:
        """Raise the Ending that has come, if any. Takes and ignores a number, to serve as a transfer's callback."""
        if self._lost is not None:
            raise LeaseLost(self._lost)
        if self._cancelled:
            raise Cancelled(f"Job {self.job_id} was cancelled.")
        if time.monotonic() > self._deadline_s:
            raise TimedOut(
                f"The attempt took longer than max_duration_s, {self._max_duration_s} s. Allow more, or fewer steps."
            )
        if stop.requested.is_set():
            raise Preempted(f"The worker is shutting down; job {self.job_id} goes back to the queue.")

    def update(self, **changes: Any) -> None:
        """Change what the next report says: phase, step, steps, loss, seconds_per_step, peak_bytes."""
        self._progress = self._progress.model_copy(update=changes)

    def event(self, kind: events.Kind, data: dict[str, Any]) -> None:
        """Append an event. One that finds Redis gone is dropped, and the log says so: the training goes on."""
        try:
            events.append(self._store.redis, self.job_id, kind, self.attempt, data)
        except REDIS_GONE as error:
            log.warning("Dropped a %s event of job %s: Redis does not answer: %s", kind, self.job_id, error)

    def move(self, to: Status, failure: Failure | None = None) -> None:
        """Take the job one arrow further, waiting for Redis if need be.

        Raises:
            LeaseLost: this attempt no longer holds the job.
        """
        try:
            _until_redis_answers(lambda: self._store.move(self.job_id, self.attempt, to, failure))
        except (StaleAttempt, JobNotFound) as error:
            self._lost = str(error)
            raise LeaseLost(str(error)) from error

    def confirm(self) -> None:
        """Make sure, with Redis and not from memory, that this attempt still holds the job and may commit it.

        Raises:
            Ending: it may not.
        """
        _until_redis_answers(self._report)
        self.check()

    def _report_until_closed(self) -> None:
        gone = False
        while not self._closed.wait(self._heartbeat_s):
            try:
                self._report()
                if gone:
                    log.warning("Redis is back: job %s reports again", self.job_id)
                gone = False
            except REDIS_GONE as error:
                if not gone:  # one line an outage, not one a heartbeat
                    log.warning("Redis is gone, job %s goes on without reporting: %s", self.job_id, error)
                gone = True

    def _report(self) -> None:
        self.update(at=now())
        try:
            record = self._store.report(self.job_id, self._progress)
            self._cancelled = record.cancel_requested_at is not None
        except (StaleAttempt, JobNotFound) as error:
            self._lost = str(error)


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

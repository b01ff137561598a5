"""`python -m api.reaper`: gives back what dead workers held, and wakes what waits. It depends on no idle worker.
The sender of webhooks runs beside it, in a thread of its own.

An attempt is lost when this process has watched its heartbeat not *change* for `lease_s`. So no clock is compared with
another's, and time that nobody watched counts for nothing: neither an outage of Redis, in which nobody could report,
nor a sleep of this process ends an attempt. Every change it makes is a compare-and-set with the attempt's number: a
reaper that wakes from a long sleep, or two at once, can do no harm; a lock keeps the second one idle.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
import signal
import sys
import threading
import time
from types import FrameType

from redis.exceptions import LockError, RedisError

from api.logs import set_up_logging
from api.public_address import Allowed
from api.webhook_sender import WebhookSender
from jobs import turns
from jobs.alive import Pulse
from jobs.errors import FailureReason, IllegalTransition, JobNotFound, StaleAttempt
from jobs.mirror import Mirror
from jobs.outage import Outage
from jobs.record import Failure
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store, open_store
from jobs.writing import RUNNING

log = logging.getLogger(__name__)

LOCK = "loraq:reaper"
LOCK_LIVES_FOR_TICKS = 4


class Reaper:
    """One reaper. At most one of many works at a time.

    Args:
        store: all jobs.
        lease_s: how long an attempt may be silent.
        every_s: how often it looks.
        pulse: told that it is well.
    """

    def __init__(self, store: Store, lease_s: float, every_s: float, pulse: Pulse | None = None) -> None:
        self._store = store
        self._lease_s = lease_s
        self._every_s = every_s
        self._pulse = pulse or Pulse(None)
        # Owner-checked, and it expires: a reaper that dies with it holds up the next for a few ticks only.
        self._lock = store.redis.lock(
            LOCK, timeout=LOCK_LIVES_FOR_TICKS * every_s + 1, blocking=False, thread_local=False
        )
        self._silent: dict[str, tuple[float, float]] = {}  # job id: its heartbeat, and seconds watched since it came
        self._ticked_s = time.monotonic()
        self._short_of_tickets = False

    def run(self, stop: threading.Event) -> None:
        """Look every `every_s` seconds until `stop` is set; a Redis that is gone is waited for."""
        outage = Outage(log)
        while not stop.wait(self._every_s):
            try:
                if self._may_work():
                    self.tick()
                outage.over()
                self._pulse.begin()
            except RedisError as error:
                outage.met(error)
                self._pulse.beat()  # waiting is all that it can do
        self._leave()

    def tick(self) -> None:
        """Look once."""
        at_s = time.monotonic()
        watched_s = min(at_s - self._ticked_s, self._every_s)  # more than that was an outage, or this process slept
        self._ticked_s = at_s
        self._give_back_lost(watched_s)
        for job_id in turns.due(self._store.redis):
            self._store.wake(job_id)
        turns.forget_idle(self._store.redis)
        self._add_missing_tickets()

    def _may_work(self) -> bool:
        try:
            if self._lock.owned():
                return bool(self._lock.reacquire())
        except LockError:
            pass  # it expired between the two questions
        return bool(self._lock.acquire())

    def _leave(self) -> None:
        try:
            if self._lock.owned():
                self._lock.release()
        except (LockError, RedisError):
            pass  # it expires

    def _give_back_lost(self, watched_s: float) -> None:
        silent: dict[str, tuple[float, float]] = {}
        for job_id, heartbeat in self._store.running().items():
            before, silent_s = self._silent.get(job_id, (heartbeat, -watched_s))
            silent[job_id] = heartbeat, silent_s + watched_s if heartbeat == before else 0.0
        self._silent = silent
        for job_id, (_, silent_s) in silent.items():
            if silent_s >= self._lease_s:
                self._give_back(job_id)

    def _give_back(self, job_id: str) -> None:
        try:
            record = self._store.get(job_id)
            if not record.status.running or record.attempt is None:
                self._store.redis.zrem(RUNNING, job_id)
                return
            message = (
                f"Worker {record.attempt.worker} fell silent for {self._lease_s:.0f} s: "
                "it was killed, froze, or its machine or network went away."
            )
            failure = Failure(reason=FailureReason.WORKER_LOST, message=message)
            after = self._store.give_back(job_id, record.attempt.number, failure)
            log.warning("Attempt %d at job %s is lost; the job is %s", record.attempt.number, job_id, after.status)
        except JobNotFound:
            self._store.redis.zrem(RUNNING, job_id)
        except (StaleAttempt, IllegalTransition) as error:
            log.info("Job %s moved meanwhile: %s", job_id, error)

    def _add_missing_tickets(self) -> None:
        """Tickets die with a worker that was killed between taking one and claiming. Twice short means lost."""
        missing = self._store.missing_tickets()
        if missing and self._short_of_tickets:
            log.warning("The queue lacks %d tickets: adding them", missing)
            self._store.add_tickets(missing)
        self._short_of_tickets = bool(missing) and not self._short_of_tickets


def main() -> int:
    """Run the reaper until SIGTERM. Returns the exit code."""
    set_up_logging()
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    settings = Settings()
    store = open_store(settings)
    sender = threading.Thread(target=WebhookSender(store, Allowed(settings.webhook_allow)).run, args=(stop,))
    mirror = threading.Thread(
        target=Mirror(store.redis, Storage(settings), settings.reap_every_s).run, args=(stop,), daemon=True
    )
    sender.start()
    mirror.start()
    try:
        Reaper(store, settings.lease_s, settings.reap_every_s, Pulse(settings.alive_file)).run(stop)
    finally:
        stop.set()
        sender.join()
        mirror.join(10)  # one that hangs on the object store is not waited for: what it has not saved stays noted
    return 0


if __name__ == "__main__":
    sys.exit(main())

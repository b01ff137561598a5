"""`python -m api.reaper`: gives back what dead workers held, and wakes what waits. It depends on no idle worker.
The sender of webhooks and the housekeeping run beside it, in threads of their own.

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

from api.housekeeping import housekeeping
from api.public_address import Allowed
from api.webhook_sender import WebhookSender
from jobs import turns
from jobs import workers as registry
from jobs.alive import Pulse
from jobs.errors import FailureReason, IllegalTransition, JobNotFound, StaleAttempt
from jobs.gpu_class import GpuClass
from jobs.logs import set_up_logging
from jobs.outage import Outage
from jobs.record import Failure
from jobs.settings import Settings
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
        self._missing: dict[GpuClass, int] = {}  # tickets, at the last look
        self._unserved: set[GpuClass] = set()  # classes of idle workers that could have had a turn, at the last look
        self._beyond_all: set[GpuClass] = set()  # what waiting jobs need and no worker has, at the last look

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
        self._put_tickets_right()
        self._offer_turns_to_idle()
        self._say_what_is_beyond_all()

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
            number, ids = record.attempt.number, {"job_id": job_id, "attempt": record.attempt.number}
            log.warning("Attempt %d at job %s is lost; the job is %s", number, job_id, after.status, extra=ids)
        except JobNotFound:
            self._store.redis.zrem(RUNNING, job_id)
        except (StaleAttempt, IllegalTransition) as error:
            log.info("Job %s moved meanwhile: %s", job_id, error, extra={"job_id": job_id})

    def _put_tickets_right(self) -> None:
        """Tickets die with a worker that was killed between taking one and claiming, and the home of a job changes with
        the workers that live. Only what is so twice is put right: a worker may just be about to claim.
        """
        missing = self._store.missing_tickets()
        for gpu_class, count in missing.items():
            before = self._missing.get(gpu_class, 0)
            change = min(count, before) if count > 0 else max(count, before)
            if change * count > 0:
                log.info("Putting %+d tickets into the queue of %s", change, gpu_class)
                self._store.add_tickets(gpu_class, change)
                missing[gpu_class] = 0
        self._missing = missing

    def _offer_turns_to_idle(self) -> None:
        """Let workers that have nothing to do take what fits them and waits for others. Twice as well: the others' turn
        comes first.
        """
        idle = {
            GpuClass.parse(worker.gpu_class) for worker in registry.workers(self._store.redis) if worker.job_id is None
        }
        for gpu_class in idle & self._unserved:
            if self._store.offer_turn(gpu_class):
                idle.discard(gpu_class)
        self._unserved = {each for each in idle if self._store.could_have_a_turn(each)}

    def _say_what_is_beyond_all(self) -> None:
        """Say it once when jobs wait for a class that no worker has, and once when that is over."""
        beyond = set(self._store.beyond_all_workers())
        for each in beyond - self._beyond_all:
            log.warning("Jobs wait that need %s, and no worker that lives has it", each, extra={"needs": each.name})
        for each in self._beyond_all - beyond:
            log.info("No job waits in vain for %s any more", each, extra={"needs": each.name})
        self._beyond_all = beyond


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
    beside = threading.Thread(target=housekeeping, args=(store, settings, stop), daemon=True)
    sender.start()
    beside.start()
    try:
        Reaper(store, settings.lease_s, settings.reap_every_s, Pulse(settings.alive_file)).run(stop)
    finally:
        stop.set()
        sender.join()
        beside.join(10)  # one that hangs on the object store is not waited for: what it has not done stays noted
    return 0


if __name__ == "__main__":
    sys.exit(main())

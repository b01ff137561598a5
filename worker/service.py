"""The worker's parent process: takes tickets from RQ, forks a horse for each, and never imports torch.

A fork of a process that has used CUDA cannot use CUDA again, so neither this process nor the horse does: the trainer is
a fresh process. What RQ 3.0 leaves open and is closed here: SIGTERM reaches the job; a Redis that is gone ends no
worker, whether it trains or waits; a horse that is killed is explained in the job's record at once.
"""

import logging
import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import Any

from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty, HorseMonitorTimeoutException

from jobs import gpus, logs, metrics, workers
from jobs.alive import Pulse
from jobs.errors import FailureReason, IllegalTransition, JobNotFound, StaleAttempt
from jobs.gpus import Gpus
from jobs.queue import DeliveryJob
from jobs.record import Failure, now
from jobs.settings import Settings
from jobs.store import Store
from jobs.workers import WorkerInfo
from worker import attempt, scratch, stop, telemetry  # noqa: F401  (imported before the fork, so that every horse starts at once)
from worker.lifeline import die_with_parent
from worker.metrics import WorkerMetrics
from worker.own_class import OwnClass, own_class

log = logging.getLogger(__name__)

RESTART_WAIT_S = 2.0
"""Before RQ's loop is entered again, when it ended because of Redis."""

HORSE_POLL_S = 0.1
"""How often the parent looks whether its horse has ended."""


class NoAlarm(BaseDeathPenalty):
    """RQ's time limits without SIGALRM, whose handler raises wherever the main thread is, so also in SIGTERM's handler:
    the job was not told, or its attempt not given back. Attempts have deadlines of their own.
    """

    def setup_death_penalty(self) -> None:
        """Set no alarm."""

    def cancel_death_penalty(self) -> None:
        """There is none."""


class AttemptWorker(Worker):
    """RQ's forking worker, on one queue, with loraq's manners."""

    death_penalty_class = NoAlarm

    store: Store
    settings: Settings
    pulse: Pulse
    own: OwnClass
    cards: Gpus
    started_at: datetime
    _has_ticket = False

    @property
    def told_to_stop(self) -> bool:
        """Whether SIGTERM or Ctrl-C came."""
        return self._shutdown_requested_date is not None

    # -- stopping -----------------------------------------------------------------------------------------------------

    def handle_warm_shutdown_request(self) -> None:
        """Pass the first SIGTERM on: the attempt stops its trainer and gives the job back, then this process ends."""
        super().handle_warm_shutdown_request()
        if self.horse_pid:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.horse_pid, signal.SIGTERM)

    def set_shutdown_requested_date(self) -> None:
        """Tell RQ's dashboard. Not while Redis is gone: the horse still has its grace period."""
        try:
            super().set_shutdown_requested_date()
        except RedisError as error:
            log.warning("Redis was not told of the shutdown: %s", error)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """The second SIGTERM: end at once, and give the job back. What is lost is what came after its checkpoint."""
        try:
            super().request_force_stop(signum, frame)
        except SystemExit:
            self._give_back(None)
            raise

    # -- while a horse runs -------------------------------------------------------------------------------------------

    def setup_work_horse_signals(self) -> None:
        """In the horse: SIGTERM becomes a flag, the horse does not outlive its parent, and knows what that has."""
        logs.bind()  # until it holds a job
        stop.listen()
        os.environ["LORAQ_WORKER_CLASS"] = self.own.gpu_class.name
        if self.own.gpu_class.gpus and self.settings.device == "auto":
            os.environ["LORAQ_DEVICE"] = "cuda"  # a trainer that sees no GPU must say so, not train without for weeks
        die_with_parent(self.pid)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Tell RQ and `loraq workers` that this process lives; when idle, look whether something else fits."""
        if not self.is_horse:
            self.pulse.beat()  # also while Redis is gone
        super().heartbeat(timeout, pipeline=pipeline)
        if self.is_horse:
            return
        workers.announce(
            self.store.redis,
            WorkerInfo(
                name=self.name,
                host=socket.gethostname(),
                pid=os.getpid(),
                queue=self.queues[0].name,
                gpu_class=self.own.gpu_class.name,
                gpus=tuple(map(str, self.cards.gpus)),
                refuses=self.own.refuses,
                started_at=self.started_at,
                seen_at=now(),
            ),
        )
        self.pulse.begin()
        if not self._has_ticket and not self.horse_pid and not self.told_to_stop:
            self.store.offer_turn(self.own.gpu_class)

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for a ticket."""
        self._has_ticket = False
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    def reorder_queues(self, reference_queue: Any) -> None:
        """Note that a ticket has come, as RQ says by this call: its next heartbeat, before the fork, is no idle one."""
        self._has_ticket = True
        super().reorder_queues(reference_queue)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Tell RQ that the horse runs; a Redis outage is waited out, not died of."""
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            log.warning("RQ's heartbeat found Redis gone, and will be made again: %s", error)

    def monitor_work_horse(self, job: Job, queue: Any, execution: Execution) -> None:
        """Wait for the horse; Redis may be gone when it ends."""
        try:
            super().monitor_work_horse(job, queue, execution)
        except RedisError as error:
            log.warning("RQ was not told how the horse ended: %s", error)
        finally:
            telemetry.tell("ended")  # by the same pipe, so after all that the horse told

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """The horse's pid, status and usage when it has ended; all None if they were taken before.

        Raises:
            HorseMonitorTimeoutException: it still runs after `job_monitoring_interval`, and RQ's heartbeat is due.
        """
        deadline = time.monotonic() + self.job_monitoring_interval
        with suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(self.horse_pid, os.WNOHANG)
                if pid:
                    return pid, status, usage
                if time.monotonic() >= deadline:
                    raise HorseMonitorTimeoutException
                time.sleep(HORSE_POLL_S)
        return None, None, None

    def handle_work_horse_killed(self, job: Job, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """A horse ended without reporting: say so in the record, which still shows it at work."""
        name = (
            signal.Signals(os.WTERMSIG(ret_val)).name
            if os.WIFSIGNALED(ret_val)
            else f"code {os.waitstatus_to_exitcode(ret_val)}"
        )
        message = f"The attempt's process was ended by {name} before it could report."
        log.warning("%s", message)
        self._give_back(Failure(reason=FailureReason.CRASHED, message=message))

    def _give_back(self, failure: Failure | None) -> None:
        """End the attempt that this worker still holds, if any. If Redis is gone, the reaper will."""
        try:
            held = self.store.held_by(self.name)
            if held is not None:
                logs.bind(job_id=held[0], attempt=held[1])
                self.store.give_back(*held, failure)
        except (StaleAttempt, IllegalTransition, JobNotFound) as error:
            log.info("The attempt had been ended already: %s", error)
        except RedisError as error:
            log.warning("The attempt is left to the reaper, Redis does not answer: %s", error)

    def register_death(self) -> None:
        """Say good-bye, unless Redis is gone: then it forgets this worker by itself."""
        try:
            workers.leave(self.store.redis, self.name)
            super().register_death()
        except RedisError as error:
            log.warning("Redis was not told of the worker's end: %s", error)


def open_worker(store: Store, settings: Settings, pulse: Pulse | None = None) -> AttemptWorker:
    """A worker on the queue of its class, named for this machine and process, that tells `pulse` that it is well.

    Raises:
        ClassTooLarge: LORAQ_WORKER_CLASS asks for more than there is.
    """
    cards = Gpus((), "it was not asked") if settings.device == "cpu" else gpus.look()
    own = own_class(settings, cards)
    worker = AttemptWorker(
        [store.queues.of(own.gpu_class)],
        name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
        connection=store.redis,
        job_class=DeliveryJob,
        serializer=JSONSerializer,
        job_monitoring_interval=10,
        maintenance_interval=60,
        worker_ttl=90,
    )
    worker.store, worker.settings, worker.pulse = store, settings, pulse or Pulse(None)
    worker.own, worker.cards, worker.started_at = own, cards, now()
    return worker


def work(store: Store, settings: Settings, once: bool = False) -> int:
    """Work off the queue until SIGTERM. RQ's loop ends whenever Redis fails it in a way it does not expect.

    Args:
        once: use one ticket, or find that there is none, and end: for those who start a worker for each job.

    Returns:
        The process's exit code: other than 0 if it was to take one job and can take none.

    Raises:
        ClassTooLarge: LORAQ_WORKER_CLASS asks for more than there is.
    """
    pulse = Pulse(settings.alive_file)
    scratch.collect(settings.data_dir.expanduser() / "scratch")  # of a worker that was killed, with its attempt
    figures = WorkerMetrics()
    figures.listen(telemetry.open_pipe())
    metrics.serve(figures.registry, settings)
    introduced = False
    while True:
        try:
            worker = open_worker(store, settings, pulse)
            if not introduced:
                _introduce(worker)
                figures.introduce(worker.own.gpu_class)
                introduced = True
            if once and worker.own.refuses:
                return os.EX_CONFIG
            worker.work(logging_level="WARNING", burst=once, max_jobs=1 if once else None)
            if once or worker.told_to_stop:
                return 0
            log.warning("RQ's loop has ended, and is begun again")
        except RedisError as error:
            log.warning("Redis does not answer at LORAQ_REDIS_URL, trying again: %s", error)
        pulse.beat()
        try:
            time.sleep(RESTART_WAIT_S)
        except StopRequested:  # the handler of the worker that has ended still listens
            return 0


def _introduce(worker: AttemptWorker) -> None:
    """Say in the log what this worker has and takes."""
    if worker.own.refuses:
        log.error("%s", worker.own.refuses)
        return
    cards = "; ".join(map(str, worker.cards.gpus)) or "its CPU"
    log.info("Takes jobs from queue %s, with %s", worker.queues[0].name, cards)

"""The worker's parent process: takes deliveries from RQ, forks a horse for each, and never imports torch.

A fork of a process that has used CUDA cannot use CUDA again, so neither this process nor the horse does: the trainer is
a fresh process. What RQ 3.0 leaves open and is closed here: SIGTERM reaches the job; a heartbeat that finds Redis gone
does not end the worker; a horse that is killed is explained in the job's record.
"""

import logging
import os
import signal
import socket
from typing import Any

from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs.errors import FailureReason, IllegalTransition, JobNotFound, StaleAttempt
from jobs.queue import DeliveryJob
from jobs.record import Failure
from jobs.status import Status
from jobs.store import Store
from worker import attempt, stop  # noqa: F401  (imported before the fork, so that every horse starts at once)
from worker.lifeline import die_with_parent

log = logging.getLogger(__name__)


class AttemptWorker(Worker):
    """RQ's forking worker, on one queue, with loraq's manners."""

    store: Store

    def handle_warm_shutdown_request(self) -> None:
        """Pass the first SIGTERM on: the attempt stops its trainer and gives the job back, then this process ends."""
        super().handle_warm_shutdown_request()
        if self.horse_pid:
            os.kill(self.horse_pid, signal.SIGTERM)

    def setup_work_horse_signals(self) -> None:
        """In the horse: SIGTERM becomes a flag, and the horse does not outlive its parent."""
        stop.listen()
        die_with_parent(self.pid)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Tell RQ that the horse runs; a Redis outage is waited out, not died of."""
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            log.warning("RQ's heartbeat found Redis gone, and will be made again: %s", error)

    def handle_work_horse_killed(self, job: Job, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """A horse ended without reporting: say so in the record, which still shows it at work."""
        job_id, number = str(job.args[0]), int(job.id.rpartition("_")[2])
        name = (
            signal.Signals(os.WTERMSIG(ret_val)).name
            if os.WIFSIGNALED(ret_val)
            else f"code {os.waitstatus_to_exitcode(ret_val)}"
        )
        message = f"The attempt's process was ended by {name} before it could report. Submit the job again."
        try:
            self.store.move(job_id, number, Status.FAILED, Failure(reason=FailureReason.CRASHED, message=message))
        except (StaleAttempt, IllegalTransition, JobNotFound) as error:
            log.info("A horse of job %s was ended by %s, after it had reported: %s", job_id, name, error)


def open_worker(store: Store) -> AttemptWorker:
    """The worker on the store's queue, named for this machine and process."""
    queue: Queue = store.queue
    worker = AttemptWorker(
        [queue],
        name=f"{socket.gethostname()}-{os.getpid()}",
        connection=store.redis,
        job_class=DeliveryJob,
        serializer=JSONSerializer,
        job_monitoring_interval=10,
        maintenance_interval=60,
        worker_ttl=90,
    )
    worker.store = store
    return worker

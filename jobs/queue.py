"""RQ as the delivery of ids, and nothing else: what it carries is a job id and a function's name.

JSON instead of pickle, and an allow-list of one function, because whoever can write to Redis could otherwise run any
code here: pickle in `meta` runs at Job.fetch, and a JSON payload can still name `os.system`.
"""

# pyright: reportUnknownMemberType=false
# rq types its methods in part.

from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

RUN_ATTEMPT = "worker.attempt.run_attempt"
ALLOWED_FUNCTIONS = frozenset({RUN_ATTEMPT})

# RQ kills a horse that outlives its timeout. The attempt keeps its own deadline (max_duration_s, then grace_s), so this
# is the last resort: a deadline of RQ's that strikes first would be a failure without a reason.
RQ_TIMEOUT_MARGIN_S = 900


class ForbiddenFunction(Exception):
    """The queue holds a call that loraq never put there."""


class DeliveryJob(Job):
    """An RQ job that can name only the functions loraq enqueues."""

    @property
    def func(self) -> Any:
        """The function to call, if it is on the allow-list."""
        if self.func_name not in ALLOWED_FUNCTIONS or self.instance is not None:
            raise ForbiddenFunction(
                f"The queue names {self.func_name!r}, which loraq never enqueues. It was not called."
            )
        return super().func


class DeliveryQueue(Queue):
    """The one queue that workers listen on."""

    job_class = DeliveryJob


def open_queue(name: str, redis: "Redis") -> Queue:
    """The queue called `name`."""
    return DeliveryQueue(name, connection=redis, job_class=DeliveryJob, serializer=JSONSerializer)


def delivery_id(job_id: str, attempt: int) -> str:
    """RQ's own id for the delivery that becomes `attempt` of a job."""
    return f"{job_id}_{attempt}"


def deliver(
    queue: Queue, pipeline: "Pipeline", job_id: str, attempt: int, *, max_duration_s: int, at_front: bool
) -> None:
    """Put a job id into the queue, inside the caller's transaction: all of it is written, or nothing."""
    delivery = queue.create_job(
        RUN_ATTEMPT,
        args=(job_id,),
        job_id=delivery_id(job_id, attempt),
        timeout=max_duration_s + RQ_TIMEOUT_MARGIN_S,
        result_ttl=0,  # the record keeps what is worth keeping
        failure_ttl=86_400,
        description=f"attempt {attempt} of job {job_id}",
    )
    queue.enqueue_job(delivery, pipeline=pipeline, at_front=at_front)


def withdraw(queue: Queue, pipeline: "Pipeline", job_id: str, attempt: int) -> None:
    """Take a delivery back out of the queue, inside the caller's transaction."""
    delivery = delivery_id(job_id, attempt)
    queue.remove(delivery, pipeline=pipeline)
    pipeline.delete(DeliveryJob.key_for(delivery))

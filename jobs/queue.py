"""RQ as the delivery of tickets, and nothing else: what it carries is a function's name. jobs/turns.py says whose turn
it is when a ticket is used.

JSON instead of pickle, and an allow-list of one function, because whoever can write to Redis could otherwise run any
code here: pickle in `meta` runs at Job.fetch, and a JSON payload can still name `os.system`.
"""

# pyright: reportUnknownMemberType=false
# rq types its methods in part.

import secrets
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

RUN_ATTEMPT = "worker.attempt.run_attempt"
ALLOWED_FUNCTIONS = frozenset({RUN_ATTEMPT})

RQ_TIMEOUT_S = 31 * 86_400
"""RQ kills a horse that outlives its timeout. The attempt keeps its own deadline: this is longer than the longest."""


USED_TICKET_S = 86_400
"""How long RQ remembers a ticket that was withdrawn or that failed."""


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


def ticket_of(job_id: str, attempt: int) -> str:
    """RQ's own id of the ticket that was made when a job began to wait for `attempt`."""
    return f"{job_id}_{attempt}"


def extra_ticket() -> str:
    """The id of a ticket that was made for no job in particular."""
    return f"extra_{secrets.token_hex(8)}"


def deliver(queue: Queue, pipeline: "Pipeline", ticket: str) -> None:
    """Put a ticket into the queue, inside the caller's transaction: all of it is written, or nothing."""
    delivery = queue.create_job(
        RUN_ATTEMPT,
        job_id=ticket,
        timeout=RQ_TIMEOUT_S,
        result_ttl=0,  # the record keeps what is worth keeping
        failure_ttl=USED_TICKET_S,
        description=f"ticket {ticket}",
    )
    queue.enqueue_job(delivery, pipeline=pipeline)


def withdraw(queue: Queue, pipeline: "Pipeline", ticket: str) -> None:
    """Take a ticket back out of the queue, inside the caller's transaction.

    It may be in use, for another job: then RQ still needs to know of it, to notice that its horse was killed.
    """
    queue.remove(ticket, pipeline=pipeline)
    pipeline.expire(DeliveryJob.key_for(ticket), USED_TICKET_S)

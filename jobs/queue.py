"""RQ as the delivery of tickets, and nothing else: what it carries is a function's name. jobs/turns.py says whose turn
it is when a ticket is used.

A queue for each class of GPUs, `loraq-24gb`, and each worker listens on that of its own class alone: a worker on two
queues can lose a job when it is killed.

JSON instead of pickle, and an allow-list of one function, because whoever can write to Redis could otherwise run any
code here: pickle in `meta` runs at Job.fetch, and a JSON payload can still name `os.system`.
"""

# pyright: reportUnknownMemberType=false
# rq types its methods in part.

import secrets
from collections.abc import Iterable
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs import workers
from jobs.gpu_class import GpuClass, home

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
    """The queue of one class."""

    job_class = DeliveryJob


def ticket_of(job_id: str, attempt: int) -> str:
    """RQ's own id of the ticket that was made when a job began to wait for `attempt`."""
    return f"{job_id}_{attempt}"


def extra_ticket() -> str:
    """The id of a ticket that was made for no job in particular."""
    return f"extra_{secrets.token_hex(8)}"


class Queues:
    """The queues of all classes.

    Args:
        name: what their names begin with.
        installed: classes that this installation has or can start, whether or not a worker of theirs lives.
    """

    def __init__(self, name: str, redis: "Redis", installed: Iterable[GpuClass] = ()) -> None:
        self.name = name
        self._redis = redis
        self._installed = frozenset(installed)

    def of(self, gpu_class: GpuClass) -> Queue:
        """The queue on which workers of a class listen."""
        name = f"{self.name}-{gpu_class}"
        return DeliveryQueue(name, connection=self._redis, job_class=DeliveryJob, serializer=JSONSerializer)

    def used(self) -> list[GpuClass]:
        """Every class whose queue ever held a ticket, or whose worker ever lived."""
        names = cast(set[bytes], self._redis.smembers(workers.CLASSES))
        return sorted(GpuClass.parse(name.decode()) for name in names)

    def there(self) -> frozenset[GpuClass]:
        """Classes whose workers live, or could be started."""
        return self._installed | workers.living_classes(self._redis)

    def home(self, needed: GpuClass) -> GpuClass:
        """The class in whose queue a job waits."""
        return home(needed, self.there())

    def tickets(self) -> list[str]:
        """The ids of all tickets that lie in queues."""
        return [ticket for each in self.used() for ticket in self.of(each).job_ids]

    def deliver(self, pipeline: "Pipeline", gpu_class: GpuClass, ticket: str) -> None:
        """Put a ticket into a class's queue, inside the caller's transaction: all of it is written, or nothing."""
        queue = self.of(gpu_class)
        delivery = queue.create_job(
            RUN_ATTEMPT,
            job_id=ticket,
            timeout=RQ_TIMEOUT_S,
            result_ttl=0,  # the record keeps what is worth keeping
            failure_ttl=USED_TICKET_S,
            description=f"ticket {ticket}",
        )
        queue.enqueue_job(delivery, pipeline=pipeline)
        pipeline.sadd(workers.CLASSES, gpu_class.name)

    def put_elsewhere(self, ticket: str, gpu_class: GpuClass) -> bool:
        """Whether a ticket was put into another class's queue. What is home to a job changes with who lives."""
        origin = cast(bytes | None, self._redis.hget(DeliveryJob.key_for(ticket), "origin"))
        return origin is not None and origin.decode() != self.of(gpu_class).name

    def withdraw(self, pipeline: "Pipeline", ticket: str, but_from: GpuClass | None = None) -> None:
        """Take a ticket back out of whichever queue it lies in, inside the caller's transaction.

        It may be in use, for another job: then RQ still needs to know of it, to notice that its horse was killed.

        Args:
            but_from: a class in whose queue it stays.
        """
        for each in self.used():
            if each != but_from:
                self.of(each).remove(ticket, pipeline=pipeline)
        pipeline.expire(DeliveryJob.key_for(ticket), USED_TICKET_S)

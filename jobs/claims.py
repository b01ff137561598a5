"""Who begins an attempt at which job, and as many tickets as there are turns: jobs/turns.py says whose turn it is."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections import Counter
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from jobs import turns, workers
from jobs.errors import JobNotFound
from jobs.gpu_class import GpuClass
from jobs.queue import Queues, extra_ticket, ticket_of
from jobs.record import JobRecord, begin_attempt
from jobs.records import Also, Records
from jobs.status import Status
from jobs.writing import record_key


class Claims(Records):
    """All records, and the turns of those that wait.

    Args:
        max_running_per_owner: None for no limit.
    """

    def __init__(self, redis: "Redis", queues: Queues, max_running_per_owner: int | None = None) -> None:
        super().__init__(redis, queues, limited=max_running_per_owner is not None)
        self.max_running_per_owner = max_running_per_owner

    # -- turns --------------------------------------------------------------------------------------------------------

    def next_turn(self, worker: str, gpu_class: GpuClass | None = None) -> JobRecord | None:
        """Begin an attempt at the job whose turn it is; None if none may begin now.

        Args:
            gpu_class: what the worker has; None: it takes everything.
        """
        while True:
            with self.redis.pipeline() as pipeline:
                try:
                    pipeline.watch(turns.TURNS)  # every claim writes it: two at once cannot exceed an owner's limit
                    turn = self._next(gpu_class)
                    if turn is None:
                        return None

                    # Its own ticket, in another queue, would wake another worker, or start one, for nothing.
                    also = None if gpu_class is None else self._withdraw_elsewhere(gpu_class)
                    try:
                        return self.change_once(pipeline, turn.job_id, lambda record: _begin(record, worker), also=also)
                    except (_NothingToClaim, JobNotFound):
                        self._forget_waiting(turn)
                except WatchError:
                    continue  # another worker was faster: look again

    def claim(self, job_id: str, worker: str) -> JobRecord | None:
        """Begin an attempt at this very job, out of turn; None unless it waits."""
        try:
            return self.change(job_id, lambda record: _begin(record, worker))
        except _NothingToClaim:
            return None

    def _next(self, gpu_class: GpuClass | None) -> turns.Turn | None:
        there = self.queues.there() if gpu_class is not None else ()
        return turns.next_job(self.redis, self.max_running_per_owner, gpu_class, there)

    def _withdraw_elsewhere(self, gpu_class: GpuClass) -> Also:
        def withdraw(pipeline: "Pipeline", begun: JobRecord) -> None:
            ticket = ticket_of(begun.id, len(begun.attempts))
            if self.queues.put_elsewhere(ticket, gpu_class):
                self.queues.withdraw(pipeline, ticket, but_from=gpu_class)

        return withdraw

    def _forget_waiting(self, turn: turns.Turn) -> None:
        """Take a job that waits no more out of its owner's, unless it has come back meanwhile."""
        with self.redis.pipeline() as pipeline:
            pipeline.watch(record_key(turn.job_id))
            raw = cast(bytes | None, pipeline.get(record_key(turn.job_id)))
            if raw is not None and JobRecord.model_validate_json(raw).status is Status.QUEUED:
                return
            pipeline.multi()
            pipeline.zrem(turns.waiting_key(turn.owner, turn.needed), turn.job_id)
            pipeline.execute()

    def wake(self, job_id: str) -> None:
        """Let a job whose wait is over have its turn."""

        def ready(record: JobRecord) -> JobRecord:
            return record.model_copy(update={"not_before": None}) if record.status is Status.QUEUED else record

        try:
            self.change(job_id, ready)
        except JobNotFound:
            self.redis.zrem(turns.DELAYED, job_id)

    # -- tickets ------------------------------------------------------------------------------------------------------

    def missing_tickets(self) -> dict[GpuClass, int]:
        """How many tickets each queue lacks: jobs that could begin there, less tickets; below 0: so many too many."""
        wanted = turns.tickets_wanted(self.redis, self.max_running_per_owner, self.queues.there())
        classes = {*wanted, *self.queues.used()}
        missing = {each: wanted.get(each, 0) - self.queues.of(each).count for each in classes}
        return {each: count for each, count in missing.items() if count}

    def add_tickets(self, gpu_class: GpuClass, count: int) -> None:
        """Put tickets that belong to no job in particular into a queue, or with a `count` below 0 take some out."""
        with self.redis.pipeline() as pipeline:
            for _ in range(count):
                self.queues.deliver(pipeline, gpu_class, extra_ticket())
            for ticket in self.queues.of(gpu_class).get_job_ids(0, -count) if count < 0 else ():
                self.queues.withdraw(pipeline, ticket)
            pipeline.execute()

    def offer_turn(self, gpu_class: GpuClass) -> bool:
        """Give an idle worker a ticket if its queue is empty and a job waits elsewhere that it may take."""
        if not self.could_have_a_turn(gpu_class):
            return False
        self.add_tickets(gpu_class, 1)
        return True

    def could_have_a_turn(self, gpu_class: GpuClass) -> bool:
        """Whether the queue of a class is empty and a job waits that its workers may take."""
        return not self.queues.of(gpu_class).count and self._next(gpu_class) is not None

    def beyond_all_workers(self) -> dict[GpuClass, int]:
        """What waiting jobs need and no living worker has, and how many they are."""
        living = workers.living_classes(self.redis)
        waiting: Counter[GpuClass] = Counter()
        for owner in turns.owners(self.redis):
            waiting.update({each: n for each, n in owner.waiting.items() if not any(own.takes(each) for own in living)})
        return dict(waiting)


class _NothingToClaim(Exception):
    """The job does not wait for an attempt."""


def _begin(record: JobRecord, worker: str) -> JobRecord:
    if record.status is not Status.QUEUED or record.not_before is not None:
        raise _NothingToClaim
    return begin_attempt(record, worker)

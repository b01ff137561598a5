"""What a change of a job's record writes, in one transaction: record, indexes, event, turn, ticket and hold.

Keys:
    loraq:job:{id}                  the record, JSON: the truth
    loraq:job:{id}:events           a stream, see jobs/events.py
    loraq:jobs:{owner}              ids of an owner's jobs, all with score 0: sorted by id, so by time
    loraq:jobs:{owner}:{status}     the same, by status
    loraq:running                   ids of jobs that an attempt holds, by when it last reported
    loraq:holds:{worker}            which job and attempt a worker holds: "<id> <attempt>"

jobs/turns.py has the keys of those that wait, jobs/mirror.py of those to be copied, jobs/webhooks.py of who is to be
told of an end, jobs/archive_index.py of those that have ended, jobs/leftovers.py of what they left.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import time

from redis.client import Pipeline

from jobs import counts, events, leftovers, turns, webhooks
from jobs.archive_index import ENDED
from jobs.queue import Queues, extra_ticket, ticket_of
from jobs.record import JobRecord
from jobs.status import Status

RUNNING = "loraq:running"
UNSAVED = "loraq:unsaved"


def record_key(job_id: str) -> str:
    """The Redis key of a job's record."""
    return f"loraq:job:{job_id}"


def holds_key(worker: str) -> str:
    """The Redis key of what a worker holds."""
    return f"loraq:holds:{worker}"


def progress_key(job_id: str) -> str:
    """The Redis key of where a job's running attempt stands."""
    return f"loraq:job:{job_id}:progress"


def forget(pipeline: "Pipeline", record: JobRecord) -> None:
    """Take a job that has ended out of Redis, inside the caller's transaction, which watches the record."""
    pipeline.delete(record_key(record.id), events.stream_key(record.id), progress_key(record.id))
    for status in (None, record.status):
        pipeline.zrem(turns.index_key(record.owner, status), record.id)
    pipeline.zrem(UNSAVED, record.id)
    pipeline.zrem(ENDED, record.id)


class Writer:
    """Puts changes of records into transactions.

    Args:
        queues: that tickets go into.
        limited: whether owners have a limit of running jobs, so that an end may let another job begin.
    """

    def __init__(self, queues: Queues, limited: bool) -> None:
        self._queues = queues
        self._limited = limited

    def write(self, pipeline: "Pipeline", old: JobRecord | None, new: JobRecord) -> None:
        """Write `new` over `old`, None for a new job, into a transaction that watches the record."""
        pipeline.set(record_key(new.id), new.model_dump_json())
        pipeline.zadd(UNSAVED, {new.id: time.time()})
        number = new.attempt.number if new.attempt else 0
        if old is None:
            pipeline.zadd(turns.index_key(new.owner, None), {new.id: 0})
            leftovers.keep_for(pipeline, new)
        if old is None or old.status is not new.status:
            if old is not None:
                pipeline.zrem(turns.index_key(new.owner, old.status), new.id)
            pipeline.zadd(turns.index_key(new.owner, new.status), {new.id: 0})
            failure = new.failure or (new.attempt.failure if new.attempt and new.status is Status.QUEUED else None)
            data = {"from": old.status if old else None, "to": new.status}
            events.append(
                pipeline, new.id, "status", number, data | (failure.model_dump(mode="json") if failure else {})
            )
            counts.note(pipeline, old, new)
            self._turn(pipeline, old, new)
            if new.status.final:
                webhooks.put(pipeline, new)
                leftovers.note_end(pipeline, new)
                pipeline.zadd(ENDED, {new.id: new.updated_at.timestamp()})
        elif old.cancel_requested_at is None and new.cancel_requested_at is not None:
            events.append(pipeline, new.id, "cancel_requested", number, {})
        elif new.status is Status.QUEUED and old.not_before is not None and new.not_before is None:
            turns.leave(pipeline, new)
            self._enter(pipeline, new)

    def _turn(self, pipeline: "Pipeline", old: JobRecord | None, new: JobRecord) -> None:
        """What a change of status means for whoever waits and whoever holds."""
        if old is not None and old.status is Status.QUEUED:
            turns.take(pipeline, new) if new.status.running else turns.leave(pipeline, new)
            if not new.status.running:
                self._queues.withdraw(pipeline, ticket_of(new.id, len(new.attempts) + 1))
        if new.attempt is not None and (old is None or not old.status.running) and new.status.running:
            pipeline.zadd(RUNNING, {new.id: time.time()})
            pipeline.set(holds_key(new.attempt.worker), f"{new.id} {new.attempt.number}")
        if old is not None and old.status.running and not new.status.running:
            pipeline.zrem(RUNNING, new.id)
            assert new.attempt is not None
            pipeline.delete(holds_key(new.attempt.worker))
            if self._limited:  # a job of the owner, of the same needs most often, may have waited for this one's end
                self._queues.deliver(pipeline, self._queues.home(new.gpu_class), extra_ticket())
        if new.status is Status.QUEUED:
            self._enter(pipeline, new)

    def _enter(self, pipeline: "Pipeline", record: JobRecord) -> None:
        if turns.enter(pipeline, record):
            ticket = ticket_of(record.id, len(record.attempts) + 1)
            self._queues.deliver(pipeline, self._queues.home(record.gpu_class), ticket)

"""Whose turn it is: fair between owners, by priority and age within one owner's jobs.

What a worker takes from the RQ queue is a ticket: the right to one turn. Which job has it is decided when the ticket is
used, so that one owner's thousand jobs, submitted first, do not stand before another's one. As many tickets as waiting
jobs lie in the queue; one too many does nothing, and one too few is noticed by the reaper.

Keys:
    loraq:waiting           owners whose jobs wait for a turn; one who has none left is taken out by the reaper
    loraq:turns             owners, by when a job of theirs last began (seconds since 1970; 0 for never)
    loraq:waiting:{owner}   ids of jobs that wait for a turn; score 0 for high priority, 1 for normal, then by age
    loraq:delayed           ids of jobs that wait out a failure, by when they may be tried again
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import time
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from jobs.record import JobRecord
from jobs.status import Status

WAITING = "loraq:waiting"
TURNS = "loraq:turns"
DELAYED = "loraq:delayed"

_RUNNING = tuple(status for status in Status if status.running)


def waiting_key(owner: str) -> str:
    """The Redis key of an owner's waiting jobs."""
    return f"loraq:waiting:{owner}"


def index_key(owner: str, status: Status | None) -> str:
    """The Redis key of an owner's jobs at `status`, or of all of them."""
    return f"loraq:jobs:{owner}:{status}" if status else f"loraq:jobs:{owner}"


def enter(pipeline: "Pipeline", record: JobRecord) -> bool:
    """Let a queued job wait, inside the caller's transaction. Returns whether it needs a ticket now."""
    if record.not_before is not None:
        pipeline.zadd(DELAYED, {record.id: record.not_before.timestamp()})
        return False
    pipeline.zadd(waiting_key(record.owner), {record.id: 0 if record.spec.priority == "high" else 1})
    pipeline.zadd(TURNS, {record.owner: 0}, nx=True)
    pipeline.sadd(WAITING, record.owner)
    return True


def leave(pipeline: "Pipeline", record: JobRecord) -> None:
    """Take a job that waits no more out, inside the caller's transaction."""
    pipeline.zrem(waiting_key(record.owner), record.id)
    pipeline.zrem(DELAYED, record.id)


def take(pipeline: "Pipeline", record: JobRecord) -> None:
    """Note that this job had its owner's turn, inside the caller's transaction."""
    leave(pipeline, record)
    pipeline.zadd(TURNS, {record.owner: time.time()})


def due(redis: "Redis") -> list[str]:
    """Ids of delayed jobs whose wait is over."""
    return [each.decode() for each in cast(list[bytes], redis.zrangebyscore(DELAYED, 0, time.time()))]


@dataclass(frozen=True)
class Owner:
    """Where one owner stands."""

    name: str
    served_at: float  # seconds since 1970
    waiting: int
    running: int

    def may_begin(self, max_running: int | None) -> int:
        """How many of the waiting jobs could begin now, with workers enough."""
        return self.waiting if max_running is None else max(0, min(self.waiting, max_running - self.running))


def owners(redis: "Redis") -> list[Owner]:
    """Every owner whose jobs wait, and perhaps some whose last one has just begun; in two round trips."""
    names = sorted(name.decode() for name in cast(set[bytes], redis.smembers(WAITING)))
    if not names:
        return []
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.zmscore(TURNS, names)
        for name in names:
            pipeline.zcard(waiting_key(name))
            for status in _RUNNING:
                pipeline.zcard(index_key(name, status))
        served, *counts = cast(tuple[list[float | None], *tuple[int, ...]], pipeline.execute())
    each = len(_RUNNING) + 1
    return [
        Owner(name, served_at or 0, counts[i * each], sum(counts[i * each + 1 : (i + 1) * each]))
        for i, (name, served_at) in enumerate(zip(names, served, strict=True))
    ]


def forget_idle(redis: "Redis") -> None:
    """Take owners out of those whose jobs wait when none do, so that a turn costs no look at them."""
    for owner in owners(redis):
        if not owner.waiting:
            with redis.pipeline() as pipeline:
                try:
                    pipeline.watch(waiting_key(owner.name))
                    if pipeline.zcard(waiting_key(owner.name)):
                        continue
                    pipeline.multi()
                    pipeline.srem(WAITING, owner.name)
                    pipeline.execute()
                except WatchError:
                    continue  # a job of theirs has just come to wait


def next_job(redis: "Redis", max_running: int | None) -> tuple[str, str] | None:
    """(owner, job id) whose turn it is: the owner with fewest running jobs, then the one who waited longest."""
    ready = [owner for owner in owners(redis) if owner.may_begin(max_running)]
    for owner in sorted(ready, key=lambda owner: (owner.running, owner.served_at)):
        first = cast(list[bytes], redis.zrange(waiting_key(owner.name), 0, 0))
        if first:
            return owner.name, first[0].decode()
    return None


def tickets_wanted(redis: "Redis", max_running: int | None) -> int:
    """How many tickets should lie in the queue."""
    return sum(owner.may_begin(max_running) for owner in owners(redis))

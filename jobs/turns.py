"""Whose turn it is: fair between owners, by priority and age within one owner's jobs.

What a worker takes from its RQ queue is a ticket: the right to one turn. Which job has it is decided when the ticket is
used, so that one owner's thousand jobs, submitted first, do not stand before another's one.

A job waits in the list of the class of GPUs that it needs, and its ticket lies in one queue, its home: that of the
smallest class which is there and fits. A worker takes what has its home with it; what fits it besides only while there
is no such job, and never what does not fit. Within what it may take, owners take turns. As many tickets lie in a queue
as jobs have their home there; one too many does nothing, and one too few is noticed by the reaper.

Keys:
    loraq:waiting                   owners whose jobs wait for a turn; who has none left is taken out by the reaper
    loraq:turns                     owners, by when a job of theirs last began (seconds since 1970; 0 for never)
    loraq:needs                     names of all classes that a job ever needed: a handful
    loraq:waiting:{owner}:{class}   ids of jobs that need it and wait for a turn; score 0 for high priority, 1 for
                                    normal, then by age
    loraq:delayed                   ids of jobs that wait out a failure, by when they may be tried again
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from jobs.gpu_class import GpuClass, home
from jobs.record import JobRecord
from jobs.status import Status

WAITING = "loraq:waiting"
TURNS = "loraq:turns"
DELAYED = "loraq:delayed"
NEEDS = "loraq:needs"

_RUNNING = tuple(status for status in Status if status.running)


def waiting_key(owner: str, needed: GpuClass) -> str:
    """The Redis key of an owner's waiting jobs that need a class."""
    return f"loraq:waiting:{owner}:{needed}"


def index_key(owner: str, status: Status | None) -> str:
    """The Redis key of an owner's jobs at `status`, or of all of them."""
    return f"loraq:jobs:{owner}:{status}" if status else f"loraq:jobs:{owner}"


def enter(pipeline: "Pipeline", record: JobRecord) -> bool:
    """Let a queued job wait, inside the caller's transaction. Returns whether it needs a ticket now."""
    if record.not_before is not None:
        pipeline.zadd(DELAYED, {record.id: record.not_before.timestamp()})
        return False
    pipeline.zadd(waiting_key(record.owner, record.gpu_class), {record.id: 0 if record.spec.priority == "high" else 1})
    pipeline.sadd(NEEDS, record.needs)
    pipeline.zadd(TURNS, {record.owner: 0}, nx=True)
    pipeline.sadd(WAITING, record.owner)
    return True


def leave(pipeline: "Pipeline", record: JobRecord) -> None:
    """Take a job that waits no more out, inside the caller's transaction."""
    pipeline.zrem(waiting_key(record.owner, record.gpu_class), record.id)
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
    waiting: dict[GpuClass, int]  # jobs, by what they need
    running: int

    def may_begin(self, max_running: int | None, needed: Collection[GpuClass] | None = None) -> int:
        """How many of the waiting jobs, or of those that need one of `needed`, could begin now, with workers enough."""
        waiting = sum(count for each, count in self.waiting.items() if needed is None or each in needed)
        return waiting if max_running is None else max(0, min(waiting, max_running - self.running))


def needs(redis: "Redis") -> list[GpuClass]:
    """Every class that a job ever needed."""
    return sorted(GpuClass.parse(name.decode()) for name in cast(set[bytes], redis.smembers(NEEDS)))


def owners(redis: "Redis") -> list[Owner]:
    """Every owner whose jobs wait, and perhaps some whose last one has just begun; in two round trips."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.smembers(WAITING)
        pipeline.smembers(NEEDS)
        waiting, needed = (
            sorted(name.decode() for name in each) for each in cast(list[set[bytes]], pipeline.execute())
        )
    if not waiting:
        return []
    classes = list(map(GpuClass.parse, needed))
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.zmscore(TURNS, waiting)
        for name in waiting:
            for each in classes:
                pipeline.zcard(waiting_key(name, each))
            for status in _RUNNING:
                pipeline.zcard(index_key(name, status))
        served, *counts = cast(tuple[list[float | None], *tuple[int, ...]], pipeline.execute())
    found: list[Owner] = []
    width = len(classes) + len(_RUNNING)
    for i, (name, served_at) in enumerate(zip(waiting, served, strict=True)):
        own = counts[i * width : (i + 1) * width]
        by_class = {each: count for each, count in zip(classes, own[: len(classes)], strict=True) if count}
        found.append(Owner(name, served_at or 0, by_class, sum(own[len(classes) :])))
    return found


def forget_idle(redis: "Redis") -> None:
    """Take owners out of those whose jobs wait when none do, so that a turn costs no look at them."""
    for owner in owners(redis):
        if not owner.waiting:
            with redis.pipeline() as pipeline:
                try:
                    pipeline.watch(NEEDS)  # before it is read: a job that needs something new must not be overlooked
                    keys = [waiting_key(owner.name, each) for each in needs(redis)]
                    if keys:
                        pipeline.watch(*keys)
                        if pipeline.exists(*keys):
                            continue
                    pipeline.multi()
                    pipeline.srem(WAITING, owner.name)
                    pipeline.execute()
                except WatchError:
                    continue  # a job of theirs has just come to wait


@dataclass(frozen=True)
class Turn:
    """A job that may begin now."""

    owner: str
    job_id: str
    needed: GpuClass


def next_job(
    redis: "Redis", max_running: int | None, worker: GpuClass | None = None, there: Iterable[GpuClass] = ()
) -> Turn | None:
    """Whose turn it is: the owner with fewest running jobs, then the one who waited longest.

    Args:
        worker: what the worker that asks has; None: it takes everything.
        there: classes whose workers live or could be started.
    """
    waiting = owners(redis)
    needed = {each for owner in waiting for each in owner.waiting}
    at_home = {each for each in needed if worker is None or home(each, there) == worker}
    besides = {each for each in needed - at_home if worker is not None and worker.takes(each)}
    for group in (at_home, besides):
        ready = [owner for owner in waiting if owner.may_begin(max_running, group)]
        for owner in sorted(ready, key=lambda owner: (owner.running, owner.served_at)):
            if first := _first(redis, owner.name, [each for each in owner.waiting if each in group]):
                return Turn(owner.name, *first)
    return None


def _first(redis: "Redis", owner: str, needed: list[GpuClass]) -> tuple[str, GpuClass] | None:
    """The owner's first job among those that need one of `needed`, by priority and age."""
    with redis.pipeline(transaction=False) as pipeline:
        for each in needed:
            pipeline.zrange(waiting_key(owner, each), 0, 0, withscores=True)
        heads = cast(list[list[tuple[bytes, float]]], pipeline.execute())
    firsts = [(head[0][1], head[0][0].decode(), each) for head, each in zip(heads, needed, strict=True) if head]
    return min(firsts)[1:] if firsts else None


def tickets_wanted(redis: "Redis", max_running: int | None, there: Collection[GpuClass] = ()) -> dict[GpuClass, int]:
    """How many tickets should lie in the queue of each class; those in which none should are left out."""
    wanted: Counter[GpuClass] = Counter()
    for owner in owners(redis):
        homes: dict[GpuClass, set[GpuClass]] = {}
        for each in owner.waiting:
            homes.setdefault(home(each, there), set()).add(each)
        for each, needed in homes.items():
            wanted[each] += owner.may_begin(max_running, needed)
    return {each: count for each, count in wanted.items() if count}

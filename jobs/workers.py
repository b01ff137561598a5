"""Which workers there are: each says every few seconds that it lives, and is forgotten when it stops saying so.

Keys:
    loraq:worker:{name}   what is known of it, JSON; expires
    loraq:workers         names of all, those that have expired included until someone looks
    loraq:class:{name}    that a worker of this class lives; expires
    loraq:classes         every class of which a worker lived, or in whose queue a ticket lay
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from datetime import datetime
from typing import cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from jobs.gpu_class import GpuClass

FORGOTTEN_AFTER_S = 180
CLASSES = "loraq:classes"
_NAMES = "loraq:workers"


class WorkerInfo(BaseModel):
    """One worker."""

    model_config = ConfigDict(frozen=True)

    name: str
    host: str
    pid: int
    queue: str
    gpu_class: str = Field(description="Of the jobs that it takes: 24gb, 24gb-x4; cpu: all; none: none.")
    gpus: tuple[str, ...] = Field(description="By name, with memory and driver; none: a CPU.")
    refuses: str | None = Field(default=None, description="Why it takes no job; null if it does.")
    started_at: datetime
    seen_at: datetime = Field(description="By its own clock.")
    job_id: str | None = Field(default=None, description="The job that it holds, if any.")
    attempt: int | None = None


def announce(redis: "Redis", worker: WorkerInfo) -> None:
    """Say that this worker lives."""
    with redis.pipeline() as pipeline:
        pipeline.set(_key(worker.name), worker.model_dump_json(), ex=FORGOTTEN_AFTER_S)
        pipeline.sadd(_NAMES, worker.name)
        pipeline.set(_class_key(worker.gpu_class), worker.name, ex=FORGOTTEN_AFTER_S)
        pipeline.sadd(CLASSES, worker.gpu_class)
        pipeline.execute()


def leave(redis: "Redis", name: str) -> None:
    """Say that this worker has ended."""
    all_of_them = workers(redis)
    own = next((each.gpu_class for each in all_of_them if each.name == name), None)
    with redis.pipeline() as pipeline:
        pipeline.delete(_key(name))
        pipeline.srem(_NAMES, name)
        if own and not any(each.gpu_class == own for each in all_of_them if each.name != name):
            pipeline.delete(_class_key(own))
        pipeline.execute()


def living_classes(redis: "Redis") -> frozenset[GpuClass]:
    """Every class of which a worker lives, however many there are; one that was killed counts for some minutes more."""
    names = [name.decode() for name in cast(set[bytes], redis.smembers(CLASSES))]
    alive = cast(list[bytes | None], redis.mget([_class_key(name) for name in names])) if names else []
    return frozenset(GpuClass.parse(name) for name, there in zip(names, alive, strict=True) if there is not None)


def workers(redis: "Redis") -> list[WorkerInfo]:
    """Every worker that lives, by name, with the job that it holds."""
    names = sorted(name.decode() for name in cast(set[bytes], redis.smembers(_NAMES)))
    if not names:
        return []
    raws = cast(list[bytes | None], redis.mget([_key(name) for name in names]))
    holds = cast(list[bytes | None], redis.mget([f"loraq:holds:{name}" for name in names]))
    if gone := [name for name, raw in zip(names, raws, strict=True) if raw is None]:
        redis.srem(_NAMES, *gone)  # one that was only slow comes back by its next heartbeat
    found: list[WorkerInfo] = []
    for raw, held in zip(raws, holds, strict=True):
        if raw is not None:
            job_id, attempt = held.decode().split() if held else (None, None)
            worker = WorkerInfo.model_validate_json(raw)
            found.append(worker.model_copy(update={"job_id": job_id, "attempt": attempt and int(attempt)}))
    return found


def _key(name: str) -> str:
    return f"loraq:worker:{name}"


def _class_key(gpu_class: str) -> str:
    return f"loraq:class:{gpu_class}"

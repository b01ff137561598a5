"""Which workers there are: each says every few seconds that it lives, and is forgotten when it stops saying so.

Keys:
    loraq:worker:{name}   what is known of it, JSON; expires
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections.abc import Iterator
from datetime import datetime
from typing import cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

FORGOTTEN_AFTER_S = 180


class WorkerInfo(BaseModel):
    """One worker."""

    model_config = ConfigDict(frozen=True)

    name: str
    host: str
    pid: int
    queue: str
    gpus: tuple[str, ...] = Field(description="As nvidia-smi names them, with memory and driver; none: a CPU.")
    started_at: datetime
    seen_at: datetime = Field(description="By its own clock.")
    job_id: str | None = Field(default=None, description="The job that it holds, if any.")
    attempt: int | None = None


def announce(redis: "Redis", worker: WorkerInfo) -> None:
    """Say that this worker lives."""
    redis.set(f"loraq:worker:{worker.name}", worker.model_dump_json(), ex=FORGOTTEN_AFTER_S)


def leave(redis: "Redis", name: str) -> None:
    """Say that this worker has ended."""
    redis.delete(f"loraq:worker:{name}")


def workers(redis: "Redis") -> list[WorkerInfo]:
    """Every worker that lives, by name, with the job that it holds."""
    keys = sorted(cast(Iterator[bytes], redis.scan_iter("loraq:worker:*", count=1000)))
    found: list[WorkerInfo] = []
    for key in keys:
        raw = cast(bytes | None, redis.get(key))
        if raw is not None:
            worker = WorkerInfo.model_validate_json(raw)
            held = cast(bytes | None, redis.get(f"loraq:holds:{worker.name}"))
            job_id, attempt = held.decode().split() if held else (None, None)
            found.append(worker.model_copy(update={"job_id": job_id, "attempt": attempt and int(attempt)}))
    return found

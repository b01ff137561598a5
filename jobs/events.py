"""What happens to a job, in order: one Redis stream a job. The stream's ids are the events' ids.

An event that must never be lost (a status) is appended in the transaction that makes it true, see jobs/store.py.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, JsonValue
from redis import Redis
from redis.client import Pipeline

Kind = Literal[
    "status",
    "cancel_requested",
    "phase",
    "encoded",
    "dataset",
    "step",
    "validation",
    "sample",
    "checkpoint",
    "warning",
]

MAX_EVENTS = 20_000
"""Events kept a job, about: the oldest are dropped first, some 2 MB in Redis at most."""


class Event(BaseModel):
    """One thing that happened to a job."""

    model_config = ConfigDict(frozen=True)

    id: str  # of the stream: "<milliseconds since 1970>-<n>", sorts by time
    kind: Kind
    attempt: int  # 0 before the first attempt
    data: dict[str, JsonValue]  # what the kind says; worker/trainer.py names the trainer's

    @property
    def at(self) -> datetime:
        """When Redis took it, UTC."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


def stream_key(job_id: str) -> str:
    """The Redis key of a job's events."""
    return f"loraq:job:{job_id}:events"


def append(redis: "Redis | Pipeline", job_id: str, kind: Kind, attempt: int, data: dict[str, Any]) -> None:
    """Append one event; on a pipeline it joins the transaction."""
    fields: dict[Any, Any] = {"kind": kind, "attempt": attempt, "data": json.dumps(data)}
    redis.xadd(stream_key(job_id), fields, maxlen=MAX_EVENTS, approximate=True)


def decode(event_id: bytes, fields: dict[bytes, bytes]) -> Event:
    """One entry of the stream, as redis-py hands it over."""
    return Event(
        id=event_id.decode(),
        kind=cast(Kind, fields[b"kind"].decode()),
        attempt=int(fields[b"attempt"]),
        data=json.loads(fields[b"data"]),
    )


def read(redis: "Redis", job_id: str, after: str = "0-0", limit: int = 1000) -> Iterator[Event]:
    """Events of a job behind the event `after`, oldest first, at most `limit`."""
    entries = cast(
        list[tuple[bytes, dict[bytes, bytes]]], redis.xrange(stream_key(job_id), min=f"({after}", count=limit)
    )
    for event_id, fields in entries:
        yield decode(event_id, fields)

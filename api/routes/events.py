"""/v1/jobs/{id}/events: what happens to a job, as server-sent events or as a list."""

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import TypeAdapter
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.deps import OwnerDep, ServicesDep
from api.following import follow as follow_job
from api.openapi import EVENT_STREAM, problems
from api.schemas import JobEvent
from jobs import events
from jobs.events import MAX_EVENTS
from jobs.record import JobRecord

router = APIRouter(tags=["jobs"])

HEARTBEAT_S = 15
"""A comment is sent this often, so that no proxy takes a quiet stream for a dead one."""

_EVENT_LIST = TypeAdapter(list[JobEvent])

LastEventId = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        pattern=r"^[0-9]{1,19}-[0-9]{1,19}$",  # Redis counts in 64 bits
        description="Only what came after this event. Browsers send it by themselves when they reconnect.",
    ),
]


@router.get(
    "/jobs/{job_id}/events",
    response_model=list[JobEvent],
    responses={**EVENT_STREAM, **problems(401, 404, 422, 503)},
)
async def list_or_follow(
    owner: OwnerDep,
    services: ServicesDep,
    job_id: str,
    after: LastEventId = "0-0",
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
    follow: Annotated[bool, Query(description="Go on until the job has ended; false: end at the present.")] = True,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events at most, where it does not follow.")] = 1000,
) -> Response:
    """The job's events, oldest first. A stream ends by itself behind the event in which the job ended.

    Each event's `data` is JSON: id, kind, at, attempt, data.
    """
    as_list = "application/json" in accept and "text/event-stream" not in accept
    record = await run_in_threadpool(services.find, job_id, owner)
    if follow and not as_list:
        if record.status.final and not await run_in_threadpool(_read, services, record, after, 1):
            return Response(status_code=204)
        if not record.status.final or not await run_in_threadpool(services.archive.holds, record):
            return EventSourceResponse(map_events(follow_job(services, job_id, after)), ping=HEARTBEAT_S)
        limit = MAX_EVENTS * 2  # all of them: the number that is kept is approximate
    present = await run_in_threadpool(_read, services, record, after, limit)
    if as_list:
        return Response(_EVENT_LIST.dump_json(present), media_type="application/json")
    return EventSourceResponse(map_events(_each(present)), ping=HEARTBEAT_S)


async def map_events(job_events: AsyncIterator[JobEvent]) -> AsyncIterator[ServerSentEvent]:
    """Job events as server-sent ones."""
    async for event in job_events:
        yield ServerSentEvent(id=event.id, event=event.kind, data=json.dumps(event.model_dump(mode="json")))


async def _each(present: list[JobEvent]) -> AsyncIterator[JobEvent]:
    for event in present:
        yield event


def _read(services: ServicesDep, record: JobRecord, after: str, limit: int) -> list[JobEvent]:
    found = list(events.read(services.store.redis, record.id, after, limit))
    # Asked second: a job that is archived in between is in one of both.
    if not found and record.status.final and services.archive.holds(record):
        found = services.archive.events(record, after, limit)
    return [JobEvent.of(event) for event in found]

"""A job's events as they happen, to the last one, over an asynchronous Redis connection."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
from collections.abc import AsyncIterator
from typing import Any, cast

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.deps import Services
from api.schemas import JobEvent
from jobs.errors import JobNotFound
from jobs.events import decode, stream_key

log = logging.getLogger(__name__)

BLOCK_MS = 5_000
BATCH = 500


async def follow(services: Services, job_id: str, after: str) -> AsyncIterator[JobEvent]:
    """Events behind the event `after`; ends behind the one in which the job ended.

    When Redis goes away, or the job into the archive, it ends early: whoever follows asks again from the last event
    that came.
    """
    try:
        while True:
            # Asked before reading: once the job has ended, nothing is appended, and an empty read is the end.
            over = (await run_in_threadpool(services.store.get, job_id)).status.final
            answer: Any = await services.followers.xread(
                {stream_key(job_id): after}, count=BATCH, block=None if over else BLOCK_MS
            )
            entries = cast(list[tuple[bytes, dict[bytes, bytes]]], answer[0][1] if answer else [])
            for event_id, fields in entries:
                event = JobEvent.of(decode(event_id, fields))
                yield event
                after = event.id
            if over and not entries:
                return
    except RedisError as error:
        log.warning("Following job %s ended early, Redis does not answer: %s", job_id, error, extra={"job_id": job_id})
    except JobNotFound:
        log.info("Following job %s ended early: it was archived", job_id, extra={"job_id": job_id})

"""Jobs that ended long ago leave Redis for the bucket: `job.json` and `events.jsonl` in the job's output folder.

First both are written and read back, then all of the job leaves Redis in one transaction, but for one line by which it
is listed and found. Killed between the two, the copies are made once more. Several archivers may run.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import cast

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import WatchError

from jobs import archive_index, events, webhooks
from jobs.archive_index import ENDED
from jobs.errors import JobNotFound, ObjectNotFound, StorageError, StorageUnavailable
from jobs.events import Event
from jobs.mirror import RECORD_NAME
from jobs.record import JobRecord
from jobs.storage import Storage
from jobs.uri import S3Uri
from jobs.writing import forget, record_key

log = logging.getLogger(__name__)

EVENTS_NAME = "events.jsonl"
AT_ONCE = 50
LATER_S = 3600.0
"""How long a job that cannot be archived now is left alone, so that it holds up no other."""


class ArchiveLost(JobNotFound):
    """A job was archived, and what lies in the bucket is not what was put there."""

    def __init__(self, job_id: str, uri: S3Uri, what: str) -> None:
        super().__init__(job_id)
        self.args = (f"Job {job_id} was archived, and somebody has {what} {uri} since.",)


class Archiver:
    """Moves jobs that have ended more than `after_s` seconds ago."""

    def __init__(self, redis: "Redis", storage: Storage, after_s: float) -> None:
        self._redis = redis
        self._storage = storage
        self._after_s = after_s

    def archive(self) -> int:
        """Move a few of those that ended first. Returns how many."""
        moved = 0
        due = self._redis.zrangebyscore(ENDED, 0, time.time() - self._after_s, start=0, num=AT_ONCE)
        for each in cast(list[bytes], due):
            try:
                moved += self._archive(each.decode())
            except (StorageError, ValidationError) as error:
                log.warning("Job %s stays in Redis for now: %s", each.decode(), error)
                self._later(each.decode())
        return moved

    def _archive(self, job_id: str) -> bool:
        raw = cast(bytes | None, self._redis.get(record_key(job_id)))
        record = None if raw is None else JobRecord.model_validate_json(raw)
        if raw is None or record is None or not record.status.final:
            self._redis.zrem(ENDED, job_id)
            return False
        told = webhooks.delivery(self._redis, job_id)
        if told is not None and told.state == "waiting":
            self._later(job_id)
            return False
        folder = S3Uri.parse(record.output_uri)
        self._keep(folder / RECORD_NAME, raw)
        self._keep_events(folder, list(_all_events(self._redis, job_id)))
        with self._redis.pipeline() as pipeline:
            try:
                pipeline.watch(record_key(job_id))
                if pipeline.get(record_key(job_id)) != raw:
                    return False  # another archiver was faster
                pipeline.multi()
                archive_index.add(pipeline, record, hashlib.sha256(raw).hexdigest())
                forget(pipeline, record)
                pipeline.execute()
            except WatchError:
                return False
        return True

    def _keep_events(self, folder: S3Uri, seen: list[Event]) -> None:
        try:
            before = _read_events(self._storage, folder)
        except (ObjectNotFound, ValidationError):
            before = []
        # A job that was archived, lost by Redis and recovered has fewer events there than in the bucket.
        if len(before) < len(seen):
            lines = "".join(f"{event.model_dump_json()}\n" for event in seen)
            self._keep(folder / EVENTS_NAME, lines.encode())

    def _keep(self, uri: S3Uri, data: bytes) -> None:
        self._storage.write(uri, data)
        if self._storage.read(uri) != data:
            raise StorageUnavailable(f"{uri} reads back as other bytes than were written.")

    def _later(self, job_id: str) -> None:
        self._redis.zadd(ENDED, {job_id: time.time() - self._after_s + LATER_S}, xx=True)


class Archive:
    """Archived jobs, as their owners ask for them."""

    def __init__(self, redis: "Redis", storage: Storage) -> None:
        self._redis = redis
        self._storage = storage

    def get(self, job_id: str, owner: str) -> JobRecord:
        """An owner's archived job.

        Raises:
            JobNotFound: there is none of that id.
            ArchiveLost: somebody has deleted or changed its record.
            StorageError.
        """
        entry = archive_index.find(self._redis, owner, job_id)
        if entry is None:
            raise JobNotFound(job_id)
        uri = S3Uri.parse(entry.output_uri) / RECORD_NAME
        try:
            raw = self._storage.read(uri)
        except ObjectNotFound:
            raise ArchiveLost(job_id, uri, "deleted") from None
        if hashlib.sha256(raw).hexdigest() != entry.sha256:
            raise ArchiveLost(job_id, uri, "changed")
        return JobRecord.model_validate_json(raw)

    def holds(self, record: JobRecord) -> bool:
        """Whether the job's events lie in the bucket."""
        return archive_index.find(self._redis, record.owner, record.id) is not None

    def events(self, record: JobRecord, after: str, limit: int | None = None) -> list[Event]:
        """Events of an archived job behind the event `after`, oldest first; none if somebody has deleted them.

        Raises:
            ArchiveLost: somebody has changed them into what are no events.
            StorageError.
        """
        folder = S3Uri.parse(record.output_uri)
        try:
            found = _read_events(self._storage, folder)
        except ObjectNotFound:
            return []
        except ValidationError:
            raise ArchiveLost(record.id, folder / EVENTS_NAME, "changed") from None
        return [event for event in found if _place(event.id) > _place(after)][:limit]


def _all_events(redis: "Redis", job_id: str) -> Iterator[Event]:
    after = "0-0"
    while page := list(events.read(redis, job_id, after)):
        yield from page
        after = page[-1].id


def _read_events(storage: Storage, folder: S3Uri) -> list[Event]:
    return [Event.model_validate_json(line) for line in storage.read(folder / EVENTS_NAME).splitlines()]


def _place(event_id: str) -> tuple[int, int]:
    at_ms, _, number = event_id.partition("-")
    return int(at_ms), int(number)

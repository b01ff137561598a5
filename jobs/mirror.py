"""A copy of every record in the bucket, `job.json` in the job's output folder, for the day when Redis loses everything.

Each change of a record puts its id into a set, in the same transaction; the mirror, beside the reaper, takes it out
when the bucket has that very record. Redis stays the truth: nothing reads the copies but `loraq recover`.

Keys:
    loraq:unsaved   ids of jobs whose record the bucket does not have yet, by when it changed
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
import time
from typing import cast

from redis import Redis
from redis.exceptions import WatchError

from jobs.errors import StorageError
from jobs.manifest import publish
from jobs.record import JobRecord
from jobs.storage import Storage
from jobs.uri import S3Uri
from jobs.writing import UNSAVED, record_key

log = logging.getLogger(__name__)

RECORD_NAME = "job.json"
AT_ONCE = 200


class Mirror:
    """Saves what has changed. Several may run: the newest record is the one that stays."""

    def __init__(self, redis: "Redis", storage: Storage) -> None:
        self._redis = redis
        self._storage = storage

    def save(self) -> int:
        """Save the records that have waited longest. Returns how many are in the bucket now."""
        saved = 0
        for each in cast(list[bytes], self._redis.zrange(UNSAVED, 0, AT_ONCE - 1)):
            try:
                saved += self._save(each.decode())
            except StorageError as error:
                log.warning(
                    "The record of job %s is not in the bucket yet: %s",
                    each.decode(),
                    error,
                    extra={"job_id": each.decode()},
                )
                self._redis.zadd(UNSAVED, {each: time.time()})  # behind the others
        return saved

    def _save(self, job_id: str) -> bool:
        raw = cast(bytes | None, self._redis.get(record_key(job_id)))
        if raw is None:
            self._redis.zrem(UNSAVED, job_id)
            return False
        record = JobRecord.model_validate_json(raw)
        self._storage.write(S3Uri.parse(record.output_uri) / RECORD_NAME, raw)
        if record.commit is not None:
            publish(self._storage, record)  # its attempt does that, unless it was killed between the two
        with self._redis.pipeline() as pipeline:
            try:
                pipeline.watch(record_key(job_id))
                same = pipeline.get(record_key(job_id)) == raw
                pipeline.multi()
                # Another mirror may have saved a newer one, which ours has just replaced.
                pipeline.zrem(UNSAVED, job_id) if same else pipeline.zadd(UNSAVED, {job_id: time.time()})
                pipeline.execute()
            except WatchError:
                return False  # the change itself put the id back
        return same

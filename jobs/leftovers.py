"""What jobs that have ended leave in the bucket beside their output: checkpoints, and uploads that were never ended.

The attempt that ends a job deletes them itself, unless it is killed before, or the reaper ended the job. Checkpoints of
a job that failed are kept for `loraq retry`, for as long as the operator says; a retry lets that time begin anew.

Keys:
    loraq:left   output folders of jobs that have ended and were not looked at since, by when they ended
    loraq:kept   output folders whose checkpoints are kept, by when the job failed or was last tried again
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
import time
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.client import Pipeline

from jobs.checkpoint import delete_checkpoints
from jobs.errors import StorageError
from jobs.record import JobRecord
from jobs.status import Status
from jobs.storage import Storage
from jobs.uri import S3Uri

log = logging.getLogger(__name__)

LEFT = "loraq:left"
KEPT = "loraq:kept"

SETTLES_WITHIN_S = 900.0
"""After the end of a job: an attempt that was given up has noticed by then, and writes no more."""

AT_ONCE = 50
LATER_S = 3600.0
"""How long a folder that cannot be cleaned now is left alone, so that it holds up no other."""


def note_end(pipeline: "Pipeline", record: JobRecord) -> None:
    """Let somebody look at what the job left, inside the transaction that ends it."""
    pipeline.zadd(LEFT, {record.output_uri: record.updated_at.timestamp()})
    if record.status is Status.FAILED:
        pipeline.zadd(KEPT, {record.output_uri: record.updated_at.timestamp()})


def keep_for(pipeline: "Pipeline", record: JobRecord) -> None:
    """Keep what a new job may go on from, inside the transaction that submits it."""
    if record.retry_of:
        pipeline.zadd(KEPT, dict.fromkeys(record.checkpoint_uris[1:], record.created_at.timestamp()))


class Sweeper:
    """Deletes what nobody needs.

    Args:
        keep_s: how long the checkpoints of a failed job are kept.
        settles_s: how long after its end a job's folder is left alone.
    """

    def __init__(self, redis: "Redis", storage: Storage, keep_s: float, settles_s: float = SETTLES_WITHIN_S) -> None:
        self._redis = redis
        self._storage = storage
        self._keep_s = keep_s
        self._settles_s = settles_s

    def sweep(self) -> int:
        """Clean a few of the folders that are due. Returns how many."""
        return self._each(LEFT, self._settles_s, self._clean) + self._each(KEPT, self._keep_s, self._drop_checkpoints)

    def _each(self, key: str, after_s: float, clean: Callable[[str], None]) -> int:
        cleaned = 0
        due = self._redis.zrangebyscore(key, 0, time.time() - after_s, start=0, num=AT_ONCE)
        for folder in [each.decode() for each in cast(list[bytes], due)]:
            try:
                clean(folder)
                self._redis.zrem(key, folder)
                cleaned += 1
            except StorageError as error:
                log.warning("What is left in %s stays for now: %s", folder, error)
                self._redis.zadd(key, {folder: time.time() - after_s + LATER_S}, xx=True)
        return cleaned

    def _clean(self, folder: str) -> None:
        if self._redis.zscore(KEPT, folder) is None:
            self._drop_checkpoints(folder)
        self._storage.abort_uploads(S3Uri.parse(folder))

    def _drop_checkpoints(self, folder: str) -> None:
        delete_checkpoints(self._storage, S3Uri.parse(folder))

"""What is done beside the reaper, a little at a time: it waits for the bucket, so that the reaper need not."""

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from jobs.archive import Archiver
from jobs.leftovers import Sweeper
from jobs.mirror import Mirror
from jobs.outage import Outage
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store

log = logging.getLogger(__name__)

DAY_S = 86_400.0


def housekeeping(store: Store, settings: Settings, stop: threading.Event) -> None:
    """Copy records to the bucket, archive old jobs and delete what they left, until `stop` is set.

    Each turn does a bounded number of each, so that records never wait for long behind the others.
    """
    storage = Storage(settings)
    steps: list[Callable[[], int]] = [Mirror(store.redis, storage).save]
    if settings.archive_after_days is not None:
        steps.append(Archiver(store.redis, storage, settings.archive_after_days * DAY_S).archive)
    steps.append(Sweeper(store.redis, storage, settings.keep_checkpoints_days * DAY_S).sweep)
    outage = Outage(log)
    while not stop.wait(settings.reap_every_s):
        for step in steps:
            try:
                step()
                outage.over()
            except RedisError as error:
                outage.met(error)
            except Exception:  # a thread that dies quietly would be noticed by nobody
                log.exception("A step of the housekeeping failed, and will be made again")

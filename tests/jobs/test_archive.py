"""Jobs that ended long ago leave Redis, after a true copy of them lies in the bucket, and never before."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from jobs import archive_index, events, webhooks
from jobs.archive import EVENTS_NAME, Archive, ArchiveLost, Archiver
from jobs.archive_index import ENDED
from jobs.errors import FailureReason, JobNotFound, StorageUnavailable
from jobs.mirror import RECORD_NAME, Mirror
from jobs.record import Failure, JobRecord, now
from jobs.recovery import recover
from jobs.status import Status
from jobs.store import Progress
from jobs.uri import S3Uri
from tests.integration.conftest import worker_env

pytestmark = pytest.mark.integration

STEPS = 1200  # more events than a page of them holds


@pytest.fixture
def ended(store, make_spec, settings) -> Callable[..., JobRecord]:
    """A job of alice's that has failed, with events and progress."""

    def end(steps: int = 3, **changes) -> JobRecord:
        uri = f"s3://outputs/alice/{settings.queue}/"
        job = store.submit(JobRecord.create("alice", make_spec(output={"uri": uri}, **changes)))
        store.claim(job.id, "worker")
        progress = Progress(attempt=1, phase="training", step=steps, steps=steps, at=now())
        store.report(job.id, progress, [("step", {"step": step}) for step in range(steps)])
        return store.give_back(job.id, 1, Failure(reason=FailureReason.NAN_LOSS, message="NaN"))

    return end


@pytest.fixture
def archiver(store, storage) -> Archiver:
    return Archiver(store.redis, storage, after_s=0)


@pytest.fixture
def archive(store, storage) -> Archive:
    return Archive(store.redis, storage)


def keys_about(store, job_id: str) -> set[str]:
    """Keys that name the job, and sorted sets that hold it."""
    named = {key.decode() for key in store.redis.keys(f"loraq:*{job_id}*")}
    sets = [key.decode() for key in store.redis.keys("loraq:*") if store.redis.type(key) == b"zset"]
    return named | {key for key in sets if store.redis.zscore(key, job_id) is not None}


def test_all_of_a_job_leaves_redis_but_one_line_and_reads_the_same(store, archiver, archive, ended):
    job = ended(STEPS)
    told = list(archive_events(store, job.id))

    assert archiver.archive() == 1

    assert keys_about(store, job.id) == set()
    assert archive.get(job.id, "alice") == job
    assert archive.events(job, "0-0") == told
    assert [event.id for event in archive.events(job, told[2].id, limit=2)] == [told[3].id, told[4].id]
    (entry,) = archive_index.newest(store.redis, "alice", None, None, 10)
    assert (entry.id, entry.status, entry.failure.reason) == (job.id, Status.FAILED, FailureReason.NAN_LOSS)
    assert archiver.archive() == 0


def archive_events(store, job_id: str):
    after = "0-0"
    while page := list(events.read(store.redis, job_id, after)):
        yield from page
        after = page[-1].id


def test_another_owner_s_archived_job_looks_like_none(archiver, archive, ended):
    job = ended()
    archiver.archive()

    for owner, job_id in (("bob", job.id), ("alice", job.id[:-1]), ("alice", ""), ("alice", f"{job.id} {{")):
        with pytest.raises(JobNotFound):
            archive.get(job_id, owner)


def test_only_those_that_ended_long_ago_and_whose_owners_have_been_told(store, storage, archiver, ended, make_spec):
    waiting = store.submit(JobRecord.create("alice", make_spec()))
    untold = ended(webhook="https://example.com/hook")
    young = ended()

    assert Archiver(store.redis, storage, after_s=3600).archive() == 0
    assert archiver.archive() == 1  # the young one
    assert store.get(waiting.id) == waiting
    assert store.get(untold.id) == untold
    with pytest.raises(JobNotFound):
        store.get(young.id)
    due = webhooks.take(store.redis, 60)
    webhooks.settle(store.redis, due, "taken", True, None)
    store.redis.zadd(ENDED, {untold.id: 1})
    assert archiver.archive() == 1


def test_without_a_true_copy_nothing_leaves_redis(store, storage, ended):
    job = ended()

    class Forgetful:
        def __init__(self, name):
            self.name = name

        def write(self, uri, data):
            storage.write(uri, data[:-1] if uri.key.endswith(self.name) else data)

        def read(self, uri):
            return storage.read(uri)

    class Gone(Forgetful):
        def write(self, uri, data):
            raise StorageUnavailable("gone")

    for broken in (Forgetful(RECORD_NAME), Forgetful(EVENTS_NAME), Gone("")):
        store.redis.zadd(ENDED, {job.id: 1})
        assert Archiver(store.redis, broken, after_s=0).archive() == 0
        assert store.get(job.id) == job
        assert [event.kind for event in events.read(store.redis, job.id)].count("step") == 3
        assert store.redis.zscore(ENDED, job.id) > time.time()  # later, behind the others


KILLED = """
import os, signal
from jobs.archive import Archiver
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import open_store

class Killed(Archiver):
    def _keep_events(self, folder, seen):
        super()._keep_events(folder, seen)
        os.kill(os.getpid(), signal.SIGKILL)

settings = Settings()
Killed(open_store(settings).redis, Storage(settings), after_s=0).archive()
"""


def test_a_kill_between_copy_and_removal_costs_nothing(store, storage, settings, archiver, archive, ended):
    job = ended()
    process = subprocess.run([sys.executable, "-c", KILLED], env=worker_env(settings), check=False)
    assert process.returncode == -signal.SIGKILL
    assert storage.stat(S3Uri.parse(job.output_uri) / EVENTS_NAME)
    assert store.get(job.id) == job

    assert archiver.archive() == 1
    assert archive.get(job.id, "alice") == job
    assert len(archive.events(job, "0-0")) == 6


def test_two_archivers_at_once_and_records_that_are_gone_or_have_not_ended(store, storage, ended, archive, make_spec):
    job, gone = ended(), ended()
    store.redis.delete(f"loraq:job:{gone.id}")
    waiting = store.submit(JobRecord.create("alice", make_spec()))
    store.redis.zadd(ENDED, {waiting.id: 1})

    class Raced(type(storage)):
        def __init__(self):
            pass

        def write(self, uri, data):
            storage.write(uri, data)

        def read(self, uri):
            data = storage.read(uri)
            if uri.key.endswith(EVENTS_NAME):
                Archiver(store.redis, storage, after_s=0).archive()
            return data

    assert Archiver(store.redis, Raced(), after_s=0).archive() == 0
    assert archive.get(job.id, "alice") == job
    assert len(archive_index.newest(store.redis, "alice", None, None, 10)) == 1
    assert store.get(waiting.id) == waiting
    assert store.redis.zcard(ENDED) == 0


def test_recovery_leaves_archived_jobs_where_they_are_and_brings_them_back_whole(
    store, storage, settings, archiver, archive, ended
):
    job = ended()
    archiver.archive()
    told = archive.events(job, "0-0")
    root = settings.model_copy(update={"writable": (f"s3://outputs/alice/{settings.queue}/",)})
    assert [(each.state, each.status) for each in recover(store, storage, root)] == [("known", Status.FAILED)]
    store.redis.flushall()

    assert [(each.state, each.status) for each in recover(store, storage, root)] == [("recovered", Status.FAILED)]
    Mirror(store.redis, storage).save()
    assert archiver.archive() == 1  # it ended as long ago as before
    assert archive.get(job.id, "alice").failure == job.failure
    assert archive.events(job, "0-0") == told


def test_a_record_that_somebody_has_changed_in_the_bucket_is_not_believed(storage, archiver, archive, ended):
    job = ended()
    archiver.archive()
    folder = S3Uri.parse(job.output_uri)
    output = job.spec.output.model_copy(update={"uri": "s3://outputs/bob/"})
    forged = job.model_copy(update={"spec": job.spec.model_copy(update={"output": output})})
    storage.write(folder / RECORD_NAME, forged.model_dump_json().encode())
    storage.write(folder / EVENTS_NAME, b"no event")

    with pytest.raises(ArchiveLost, match=f"somebody has changed .*{RECORD_NAME}"):
        archive.get(job.id, "alice")
    with pytest.raises(ArchiveLost, match=f"somebody has changed .*{EVENTS_NAME}"):
        archive.events(job, "0-0")


def test_a_record_that_somebody_has_deleted_is_told_from_none(storage, archiver, archive, ended):
    job = ended()
    archiver.archive()
    storage.delete([S3Uri.parse(job.output_uri) / name for name in (RECORD_NAME, EVENTS_NAME)])

    with pytest.raises(ArchiveLost, match=f"somebody has deleted .*{RECORD_NAME}"):
        archive.get(job.id, "alice")
    assert archive.events(job, "0-0") == []


def test_archiving_is_part_of_the_reaper_s_housekeeping(store, settings, ended):
    job = ended()
    store.redis.zadd(ENDED, {job.id: time.time() - 9 * 86_400})
    env = worker_env(settings.model_copy(update={"archive_after_days": 8.0, "reap_every_s": 0.1}))
    process = subprocess.Popen([sys.executable, "-m", "api.reaper"], env=env)
    deadline = time.monotonic() + 60
    while store.redis.zcard(ENDED):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    assert process.wait(20) == 0
    assert archive_index.find(store.redis, "alice", job.id) is not None

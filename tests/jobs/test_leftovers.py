"""What ended jobs leave in the bucket goes, and what a retry may go on from stays for as long as it was promised."""

import time
from collections.abc import Callable

import pytest

from jobs.checkpoint import MARKER_NAME
from jobs.errors import FailureReason, StorageUnavailable
from jobs.leftovers import KEPT, LEFT, Sweeper
from jobs.record import Failure, JobRecord
from jobs.status import Status
from jobs.uri import S3Uri

pytestmark = pytest.mark.integration

NAN = Failure(reason=FailureReason.NAN_LOSS, message="NaN")
DAY_S = 86_400.0


@pytest.fixture
def ended(store, storage, make_spec) -> Callable[..., JobRecord]:
    """A job that ended, its worker killed just then: checkpoint, log and an upload in parts are left."""

    def end(to: Status, age_s: float = 0) -> JobRecord:
        job = store.submit(JobRecord.create("alice", make_spec()))
        store.claim(job.id, "worker")
        folder = S3Uri.parse(job.output_uri) / "attempts/1/"
        for name in ("checkpoints/step-000001/lora.safetensors", f"checkpoints/step-000001/{MARKER_NAME}", "train.log"):
            storage.write(folder / name, b"x")
        storage._client.create_multipart_upload(Bucket=folder.bucket, Key=f"{folder.key}big")
        if to is Status.SUCCEEDED:
            for status in (Status.TRAINING, Status.UPLOADING):
                store.move(job.id, 1, status)
            store.commit(job.id, 1, "0" * 64)
            record = store.move(job.id, 1, to)
        else:
            if to is Status.CANCELLED:
                store.request_cancel(job.id)
            record = store.give_back(job.id, 1, NAN)
        assert record.status is to
        for key in (LEFT, KEPT):
            store.redis.zadd(key, {job.output_uri: time.time() - age_s}, xx=True)
        return record

    return end


@pytest.fixture
def left(storage) -> Callable[[JobRecord], set[str]]:
    """What lies in a job's folder, uploads in parts included."""

    def look(job: JobRecord) -> set[str]:
        folder = S3Uri.parse(job.output_uri)
        names = {each.uri.key.rpartition("/")[2] for each in storage.list(folder)}
        page = storage._client.list_multipart_uploads(Bucket=folder.bucket, Prefix=folder.key)
        return names | {each["Key"].rpartition("/")[2] for each in page.get("Uploads", [])}

    return look


@pytest.mark.parametrize("to", [Status.SUCCEEDED, Status.CANCELLED, Status.FAILED])
def test_uploads_are_ended_and_checkpoints_go_but_those_of_a_failed_job(store, storage, ended, left, to):
    job = ended(to, age_s=1000)
    ours = {"train.log"} | ({"lora.safetensors", MARKER_NAME} if to is Status.FAILED else set())

    assert Sweeper(store.redis, storage, keep_s=DAY_S).sweep() == 1

    assert left(job) == ours
    assert Sweeper(store.redis, storage, keep_s=DAY_S).sweep() == 0


def test_a_folder_is_left_alone_until_attempts_that_were_given_up_have_noticed(store, storage, ended, left):
    job = ended(Status.CANCELLED, age_s=60)

    assert Sweeper(store.redis, storage, keep_s=DAY_S).sweep() == 0
    assert "big" in left(job)


def test_checkpoints_of_a_failed_job_go_in_time_and_a_retry_begins_it_anew(store, storage, ended, left):
    old, tried_again = (ended(Status.FAILED, age_s=2 * DAY_S) for _ in range(2))
    store.retry(tried_again)

    Sweeper(store.redis, storage, keep_s=DAY_S).sweep()

    assert left(old) == {"train.log"}
    assert left(tried_again) == {"train.log", "lora.safetensors", MARKER_NAME}
    store.redis.zadd(KEPT, {tried_again.output_uri: time.time() - 2 * DAY_S})
    Sweeper(store.redis, storage, keep_s=DAY_S).sweep()
    assert left(tried_again) == {"train.log"}
    assert store.redis.zcard(KEPT) == store.redis.zcard(LEFT) == 0


def test_a_folder_that_cannot_be_cleaned_holds_up_no_other(store, storage, ended, left):
    broken, fine = ended(Status.CANCELLED, age_s=2000), ended(Status.CANCELLED, age_s=1000)

    class Refusing:
        list, delete = storage.list, storage.delete

        def abort_uploads(self, folder):
            if str(folder) == broken.output_uri:
                raise StorageUnavailable("not this one")
            return storage.abort_uploads(folder)

    assert Sweeper(store.redis, Refusing(), keep_s=DAY_S).sweep() == 1
    assert left(fine) == {"train.log"}
    assert store.redis.zcard(LEFT) == 1
    assert Sweeper(store.redis, storage, keep_s=DAY_S).sweep() == 0  # its turn comes later

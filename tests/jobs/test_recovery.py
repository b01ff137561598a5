"""Records are copied to the bucket, and come back from there when Redis has lost everything."""

import hashlib

import pytest
from typer.testing import CliRunner

from api.cli import app
from jobs.errors import FailureReason, StaleAttempt, StorageUnavailable
from jobs.manifest import MANIFEST_NAME, Manifest, attempt_folder, own_manifest, read_committed
from jobs.mirror import RECORD_NAME, Mirror
from jobs.record import Failure, JobRecord, now
from jobs.recovery import recover
from jobs.status import Status
from jobs.uri import S3Uri
from jobs.writing import UNSAVED

pytestmark = pytest.mark.integration


@pytest.fixture
def root(make_settings) -> str:
    return f"s3://outputs/{make_settings().queue}/"


@pytest.fixture
def settings(make_settings, root):
    return make_settings(writable=(f"{root}{{owner}}/",))


@pytest.fixture
def submit(store, make_spec, root):
    return lambda owner="alice": store.submit(JobRecord.create(owner, make_spec(output={"uri": f"{root}{owner}/"})))


@pytest.fixture
def mirror(store, storage) -> Mirror:
    return Mirror(store.redis, storage)


def copy_of(storage, record) -> JobRecord:
    return JobRecord.model_validate_json(storage.read(S3Uri.parse(record.output_uri) / RECORD_NAME))


def states(store, storage, settings, **options) -> list[tuple[str, str, Status | None]]:
    return [(each.state, each.job_id, each.status) for each in recover(store, storage, settings, **options)]


def test_every_change_reaches_the_bucket(store, storage, submit, mirror):
    job = submit()
    assert mirror.save() == 1
    assert copy_of(storage, job) == job
    assert mirror.save() == 0
    claimed = store.claim(job.id, "w")
    mirror.save()
    assert copy_of(storage, job) == claimed
    store.move(job.id, 1, Status.TRAINING)
    mirror.save()
    assert copy_of(storage, job) == store.get(job.id)


def test_a_change_while_it_is_saved_and_an_outage_of_the_bucket_lose_nothing(store, storage, submit, monkeypatch):
    job = submit()

    class Slow:
        def write(self, uri, data):
            storage.write(uri, data)
            if store.get(job.id).status is Status.QUEUED:
                store.claim(job.id, "w")

    class Gone:
        def write(self, uri, data):
            raise StorageUnavailable("gone")

    assert Mirror(store.redis, Gone()).save() == 0
    assert Mirror(store.redis, Slow()).save() == 0
    assert store.redis.zcard(UNSAVED) == 1
    Mirror(store.redis, storage).save()
    assert copy_of(storage, job) == store.get(job.id)
    assert store.redis.zcard(UNSAVED) == 0


def test_all_come_back_when_redis_has_lost_everything(store, storage, settings, submit, mirror):
    waiting, running, failed, cancelled, committed = (submit() for _ in range(5))
    asked = submit("bob")
    for job in (running, failed, committed, asked):
        while store.get(job.id).status is Status.QUEUED:
            store.claim(job.id, "w")
    store.move(running.id, 1, Status.TRAINING)
    store.give_back(failed.id, 1, Failure(reason=FailureReason.NAN_LOSS, message="NaN"))
    store.request_cancel(cancelled.id)
    store.request_cancel(asked.id)
    ended_at = store.get(failed.id).updated_at
    mirror.save()
    manifest = Manifest(job_id=committed.id, attempt=1, committed_at=now(), files=()).model_dump_json().encode()
    storage.write(S3Uri.parse(committed.output_uri) / own_manifest(1), manifest)
    storage.write(S3Uri.parse(committed.output_uri) / MANIFEST_NAME, manifest)
    storage.write(S3Uri.parse(waiting.output_uri) / MANIFEST_NAME, manifest)  # of another job: no commit
    storage.write(S3Uri.parse(running.output_uri) / f"{attempt_folder(2)}/train.log", b"of an attempt not in the copy")
    store.redis.flushall()
    expected = {
        waiting.id: Status.QUEUED,
        running.id: Status.QUEUED,
        failed.id: Status.FAILED,
        cancelled.id: Status.CANCELLED,
        asked.id: Status.CANCELLED,
        committed.id: Status.SUCCEEDED,
    }

    assert {i: status for state, i, status in states(store, storage, settings, dry_run=True)} == expected
    assert store.redis.dbsize() == 0
    assert sorted(states(store, storage, settings)) == sorted(("recovered", *each) for each in expected.items())
    assert sorted(states(store, storage, settings)) == sorted(("known", *each) for each in expected.items())

    assert {job.id for job in store.page("alice").jobs} == expected.keys() - {asked.id}
    assert store.get(failed.id).failure.reason is FailureReason.NAN_LOSS
    assert store.get(failed.id).updated_at == ended_at
    assert read_committed(storage, store.get(committed.id)) == manifest
    again = [store.next_turn("w2") for _ in range(3)]
    assert {job.id for job in again if job} == {waiting.id, running.id}
    assert store.get(running.id).attempt.number == 4  # behind the one that wrote, and one that may have begun
    with pytest.raises(StaleAttempt):
        store.move(running.id, 1, Status.UPLOADING)


def test_a_record_of_another_folder_and_one_that_is_damaged_are_named(store, storage, settings, submit, mirror, root):
    job = submit()
    mirror.save()
    raw = storage.read(S3Uri.parse(job.output_uri) / RECORD_NAME)
    storage.write(S3Uri.parse(f"{root}bob/copied/{RECORD_NAME}"), raw)
    storage.write(S3Uri.parse(f"{root}bob/damaged/{RECORD_NAME}"), raw[:50])
    store.redis.flushall()

    found = {each.folder: each for each in recover(store, storage, settings)}

    assert found[job.output_uri].state == "recovered"
    assert "another folder" in found[f"{root}bob/copied/"].message
    assert found[f"{root}bob/damaged/"].state == "unreadable"


def test_the_command_says_what_it_did_and_writes_it_down(store, storage, settings, submit, mirror, monkeypatch):
    job = submit()
    mirror.save()
    store.redis.flushall()
    for name in ("redis_url", "s3_secret_access_key", "s3_access_key_id"):
        monkeypatch.setenv(f"LORAQ_{name.upper()}", getattr(settings, name).get_secret_value())
    for name, value in (("S3_ENDPOINT_URL", settings.s3_endpoint_url), ("WRITABLE", settings.writable[0])):
        monkeypatch.setenv(f"LORAQ_{name}", value)
    monkeypatch.setenv("LORAQ_QUEUE", settings.queue)

    dry = CliRunner().invoke(app, ["recover", "--dry-run"])
    done = CliRunner().invoke(app, ["recover"])
    logged = CliRunner().invoke(app, ["audit", "--action", "recover", "--json"])

    assert "1 would be recovered" in dry.output
    assert f"recovered: {job.id} (alice, queued)" in done.output
    assert "1 recovered, 0 known, 0 unreadable." in done.output
    assert job.id in logged.output
    assert store.get(job.id).status is Status.QUEUED


def test_a_published_manifest_that_is_not_the_committed_one_is_put_right(store, storage, mirror, submit):
    job = submit()
    folder = S3Uri.parse(job.output_uri)
    store.claim(job.id, "worker")
    for status in (Status.TRAINING, Status.UPLOADING):
        store.move(job.id, 1, status)
    storage.write(folder / own_manifest(1), b"committed")
    store.commit(job.id, 1, hashlib.sha256(b"committed").hexdigest())
    storage.write(folder / MANIFEST_NAME, b"another")

    mirror.save()

    assert storage.read(folder / MANIFEST_NAME) == b"committed"

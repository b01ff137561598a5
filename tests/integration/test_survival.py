"""Whatever dies, the next attempt goes on, and the weights are those of a run that nothing disturbed, to the bit."""

import json
import os
import signal
import time
from collections.abc import Callable

import pytest
import safetensors.numpy

from jobs import events
from jobs.checkpoint import MARKER_NAME, CheckpointMarker
from jobs.errors import FailureReason
from jobs.manifest import ManifestFile
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.uri import S3Uri
from tests.integration.test_main_job import assert_gone, child_of, ended, manifest_of, wait_for
from worker.checkpoints import CheckpointDamaged, fetch_checkpoint, find_checkpoints

pytestmark = pytest.mark.integration

TRAINING = {"resolution": 64, "steps": 60, "seed": 7}
FAST = {"lease_s": 2.0, "reap_every_s": 0.2, "retry_wait_s": 0.2, "grace_s": 20.0}


@pytest.fixture
def settings(make_settings) -> Settings:
    return make_settings(**FAST)


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    """The weights of the run that nothing disturbed, made by the first test that asks."""
    return {}


@pytest.fixture
def weights(storage, tmp_path) -> Callable[[JobRecord], dict]:
    """A succeeded job's adapter, after checking that every file is what the manifest says."""

    def read(record: JobRecord) -> dict:
        for file in manifest_of(storage, record).files:
            target = tmp_path / record.id / file.path
            storage.download(S3Uri.parse(record.output_uri) / file.stored_as, target)
            assert target.stat().st_size == file.size_bytes
        return safetensors.numpy.load_file(tmp_path / record.id / "lora.safetensors")

    return read


@pytest.fixture
def job(submit, bucket, make_spec) -> JobRecord:
    dataset = bucket("survival", count=2)
    return submit(
        make_spec(
            dataset={"uri": dataset},
            training=TRAINING,
            checkpoints={"every_n_steps": 10},
            samples={"prompts": ["a cat"], "every_n_steps": 20},
        )
    )


def checkpoints(storage, record: JobRecord) -> list[int]:
    uris = storage.list(S3Uri.parse(record.output_uri) / "attempts/")
    return [int(e.uri.key.split("/step-")[1][:6]) for e in uris if e.uri.key.endswith(MARKER_NAME)]


def until_checkpoint(store, storage, record: JobRecord, at_least: int = 10) -> None:
    deadline = time.monotonic() + 300  # of a busy machine
    while max(checkpoints(storage, record), default=0) < at_least:
        assert time.monotonic() < deadline, store.get(record.id)
        assert not store.get(record.id).status.final, store.get(record.id)
        time.sleep(0.05)


def until_checkpoints_are_gone(storage, record: JobRecord) -> None:
    """Nothing will go on from one. The worker deletes them just after the job has succeeded, not before."""
    deadline = time.monotonic() + 30
    while left := checkpoints(storage, record):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def assert_same_as_undisturbed(store, storage, record, weights, undisturbed, submit, bucket, make_spec) -> None:
    ours = weights(record)
    if not undisturbed:
        plain = submit(record.spec.model_copy(update={"name": "undisturbed"}))
        undisturbed.update(weights(wait_for(store, plain.id, ended)))
    assert ours.keys() == undisturbed.keys()
    assert all((ours[name] == undisturbed[name]).all() for name in ours)


@pytest.fixture
def assert_same(store, storage, weights, undisturbed, submit, bucket, make_spec):
    """The job succeeded on a later attempt that went on from a checkpoint, with the same weights to the bit."""

    def check(job_id: str) -> JobRecord:
        record = wait_for(store, job_id, ended)
        assert record.status is Status.SUCCEEDED, record
        assert record.attempt.resumed_from_step
        assert_same_as_undisturbed(store, storage, record, weights, undisturbed, submit, bucket, make_spec)
        names = {file.path for file in manifest_of(storage, record).files}
        assert {f"samples/step-{step:06d}-0.png" for step in (20, 40, 60)} <= names
        until_checkpoints_are_gone(storage, record)
        return record

    return check


def test_sigkill_of_all_at_once(store, storage, worker, reaper, job, assert_same):
    process = worker()
    until_checkpoint(store, storage, job)
    horse = child_of(process.pid)
    trainer = child_of(horse)
    for pid in (process.pid, horse, trainer):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    worker()

    record = assert_same(job.id)

    assert record.attempts[0].failure.reason is FailureReason.WORKER_LOST


def test_sigterm_to_the_worker_costs_no_step_and_no_budget(store, storage, worker, job, assert_same):
    process = worker()
    until_checkpoint(store, storage, job)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    waiting = store.get(job.id)
    newest = max(checkpoints(storage, job))
    worker()

    record = assert_same(job.id)

    assert (waiting.status, waiting.attempt.outcome) == (Status.QUEUED, "preempted")
    assert record.attempt.resumed_from_step == newest


def test_a_second_sigterm_ends_at_once_and_keeps_the_checkpoints(store, storage, worker, job, assert_same):
    process = worker()
    until_checkpoint(store, storage, job)
    trainer = child_of(child_of(process.pid))
    os.kill(trainer, signal.SIGSTOP)  # it would never finish its step
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)  # RQ takes two within a second of the first one's handling for one
    process.send_signal(signal.SIGTERM)
    process.wait(15)  # less than the grace period of 20 s
    assert_gone(trainer)
    assert store.get(job.id).attempt.outcome == "preempted"
    worker()

    assert_same(job.id)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store, storage, worker, job, assert_same, s3_server):
    process = worker()
    until_checkpoint(store, storage, job, at_least=20)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    newest, before = sorted(checkpoints(storage, job), reverse=True)[:2]
    folder = S3Uri.parse(job.output_uri) / f"attempts/1/checkpoints/step-{newest:06d}"
    damaged = bytearray(storage.read(folder / "lora.safetensors"))
    damaged[-1] ^= 1
    storage.write(folder / "lora.safetensors", bytes(damaged))
    worker()

    assert assert_same(job.id).attempt.resumed_from_step == before


def test_a_trainer_that_hangs_is_ended_explained_and_tried_again(store, storage, worker, reaper, job, assert_same):
    process = worker(hang_s=3.0)
    until_checkpoint(store, storage, job)
    trainer = child_of(child_of(process.pid))
    os.kill(trainer, signal.SIGSTOP)

    record = assert_same(job.id)

    assert record.attempts[0].failure.reason is FailureReason.HUNG
    assert "LORAQ_HANG_S" in record.attempts[0].failure.message
    assert_gone(trainer)


def test_an_attempt_that_slept_through_its_lease_writes_no_more(store, storage, worker, reaper, job, assert_same):
    process = worker()
    until_checkpoint(store, storage, job)
    horse = child_of(process.pid)
    os.kill(horse, signal.SIGSTOP)
    wait_for(store, job.id, lambda record: record.attempt.number == 1 and record.status is Status.QUEUED, 30)
    worker()
    wait_for(store, job.id, lambda record: len(record.attempts) == 2, 30)
    os.kill(horse, signal.SIGCONT)

    record = assert_same(job.id)

    assert (len(record.attempts), manifest_of(storage, record).attempt) == (2, 2)
    assert_gone(horse)


def test_redis_killed_and_gone_for_longer_than_the_lease(store, storage, worker, reaper, job, redis_server, settings):
    worker()
    until_checkpoint(store, storage, job)
    redis_server.kill()
    time.sleep(3 * settings.lease_s)
    redis_server.start()

    record = wait_for(store, job.id, ended)

    assert (record.status, len(record.attempts)) == (Status.SUCCEEDED, 1)


def test_a_checkpoint_that_names_a_file_outside_its_folder_is_damaged(storage, make_spec, tmp_path):
    folder = S3Uri.parse(JobRecord.create("me", make_spec()).output_uri)
    file = ManifestFile(path="../escaped", stored_as="x", size_bytes=1, sha256="0" * 64)
    marker = CheckpointMarker(job_id="x", attempt=1, step=1, files=(file,))
    storage.write(folder / "attempts/1/checkpoints/step-000001/checkpoint.json", marker.model_dump_json().encode())
    (checkpoint,) = find_checkpoints(storage, folder)

    with pytest.raises(CheckpointDamaged, match="outside"):
        fetch_checkpoint(storage, checkpoint, tmp_path / "to", lease=None)
    assert not (tmp_path / "escaped").exists()


def test_a_retry_goes_on_from_the_old_job_s_checkpoint(store, storage, worker, job, assert_same):
    process = worker()
    until_checkpoint(store, storage, job)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    store.change(job.id, lambda record: record.model_copy(update={"status": Status.FAILED}))
    newest = max(checkpoints(storage, job))
    again = store.retry(store.get(job.id))
    worker()

    record = wait_for(store, again.id, ended)

    assert (record.status, record.attempt.resumed_from_step) == (Status.SUCCEEDED, newest)


def test_a_retry_with_other_steps_goes_on_from_a_checkpoint_that_is_not_behind_them(store, storage, worker, job):
    process = worker()
    until_checkpoint(store, storage, job, at_least=20)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    failed = store.change(job.id, lambda record: record.model_copy(update={"status": Status.FAILED}))
    newest, before = sorted(checkpoints(storage, job), reverse=True)[:2]
    fewer, more = store.retry(failed, steps=newest - 1), store.retry(failed, steps=70)
    worker()

    fewer, more = (wait_for(store, each.id, ended, 300) for each in (fewer, more))

    assert (fewer.status, fewer.attempt.resumed_from_step) == (Status.SUCCEEDED, before)
    assert (more.status, more.attempt.resumed_from_step) == (Status.SUCCEEDED, newest)
    told = [event.data for event in events.read(store.redis, fewer.id) if event.kind == "warning"]
    assert told == [{"message": f"Passed over the checkpoint of step {newest}: this job has fewer steps."}]
    for record in (fewer, more):
        (file,) = (file for file in manifest_of(storage, record).files if file.path == "metrics.jsonl")
        lines = storage.read(S3Uri.parse(record.output_uri) / file.stored_as).decode().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, record.spec.training.steps + 1))

"""The whole job on real servers, and every way in which it can end."""

import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy
from pydantic import SecretStr

from jobs import events
from jobs.errors import FailureReason, ObjectNotFound
from jobs.manifest import MANIFEST_NAME, Manifest, sha256_of
from jobs.record import JobRecord
from jobs.spec_text import read_spec
from jobs.status import Status
from jobs.uri import S3Uri

pytestmark = pytest.mark.integration

ENDLESS = {"resolution": 64, "steps": 100_000}


def wait_for(store, job_id: str, reached: Callable[[JobRecord], bool], timeout_s: float = 120) -> JobRecord:
    """The record, once `reached` says so."""
    deadline = time.monotonic() + timeout_s
    while not reached(record := store.get(job_id)):
        assert time.monotonic() < deadline, f"still {record.status}: {record.failure}"
        time.sleep(0.1)
    return record


def ended(record: JobRecord) -> bool:
    return record.status.final


def waits_for_its_next_try(record: JobRecord) -> bool:
    return record.status is Status.QUEUED and record.not_before is not None


def manifest_of(storage, record: JobRecord) -> Manifest:
    return Manifest.model_validate_json(storage.read(S3Uri.parse(record.output_uri) / MANIFEST_NAME))


def assert_no_output(storage, record: JobRecord) -> None:
    with pytest.raises(ObjectNotFound):
        manifest_of(storage, record)


def assert_told(file, record: JobRecord) -> None:
    """A LoRA's file says of its job what is true."""
    with safetensors.safe_open(file, "np") as opened:
        header = opened.metadata()
    attempt = record.attempts[0]
    assert header["ss_output_name"] == header["modelspec.title"] == record.spec.name
    assert header["ss_sd_model_name"] == record.spec.base_model.rpartition("/")[2]
    assert read_spec(header["loraq_spec"]) == record.spec
    assert float(header["ss_training_started_at"]) == attempt.started_at.timestamp()
    assert attempt.started_at.timestamp() < float(header["ss_training_finished_at"]) < attempt.ended_at.timestamp()
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_two_jobs_in_order_each_with_one_committed_output(store, storage, worker, submit, bucket, make_spec, tmp_path):
    dataset = bucket("main-job")
    told = {"resolution": 64, "steps": 4, "validation": {"share": 0.25, "every_n_steps": 2}}
    first = submit(make_spec(dataset={"uri": dataset}, samples={"prompts": ["a photo of a cat"]}, training=told))
    second = submit(make_spec(dataset={"uri": dataset}))
    worker()

    done = wait_for(store, first.id, ended)
    after = wait_for(store, second.id, ended)

    assert (done.status, after.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
    assert done.attempt.ended_at <= after.attempt.started_at
    manifest = manifest_of(storage, done)
    assert {file.path for file in manifest.files} >= {
        "lora.safetensors", "lora_diffusers.safetensors", "loss.png", "metrics.jsonl", "spec.yaml", "train.log",
    }  # fmt: skip
    for file in manifest.files:
        storage.download(S3Uri.parse(done.output_uri) / file.stored_as, tmp_path / file.path)
        assert sha256_of(tmp_path / file.path) == file.sha256
    assert_told(tmp_path / "lora.safetensors", done)
    happened = list(events.read(store.redis, first.id))
    moves = [event.data["to"] for event in happened if event.kind == "status"]
    assert moves == ["queued", "preparing", "training", "uploading", "succeeded"]
    (report,) = (event.data for event in happened if event.kind == "dataset")
    assert (report["pictures"], len(report["held_out"])) == (6, 2)
    assert [event.data["step"] for event in happened if event.kind == "validation"] == [0, 2, 4]


def test_a_fine_tuned_checkpoint_is_the_base_model_of_the_next_job(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("fine-tuned", count=2)
    training = {"resolution": 64, "steps": 2, "optimizer": {"name": "adafactor", "learning_rate": 1e-5}}
    first = submit(
        make_spec(dataset={"uri": dataset}, fine_tuning={"weights": "bfloat16"}, training=training),
    )
    worker()
    done = wait_for(store, first.id, ended)
    assert done.status is Status.SUCCEEDED, done.failure
    files = {file.path: file.stored_as for file in manifest_of(storage, done).files}
    assert "model.safetensors" in files
    assert not [path for path in files if path.startswith("lora")]

    checkpoint = str(S3Uri.parse(done.output_uri) / files["model.safetensors"])
    second = submit(make_spec(base_model=checkpoint, dataset={"uri": dataset}))
    after = wait_for(store, second.id, ended)
    assert after.status is Status.SUCCEEDED, after.failure


def test_a_job_goes_on_from_what_another_has_left(store, storage, worker, submit, bucket, make_spec, tmp_path):
    dataset = bucket("goes-on", count=2)
    first = submit(make_spec(dataset={"uri": dataset}))
    worker()
    done = wait_for(store, first.id, ended)
    (left,) = [file for file in manifest_of(storage, done).files if file.path == "lora.safetensors"]
    begun_with = S3Uri.parse(done.output_uri) / left.stored_as
    training = {"resolution": 64, "steps": 1, "optimizer": {"learning_rate": 1e-12, "weight_decay": 0}}
    second = submit(make_spec(dataset={"uri": dataset}, lora={"init_from": str(begun_with)}, training=training))
    after = wait_for(store, second.id, ended)
    assert after.status is Status.SUCCEEDED, after.failure
    weights = []
    for record in (done, after):
        (file,) = [file for file in manifest_of(storage, record).files if file.path == "lora.safetensors"]
        storage.download(S3Uri.parse(record.output_uri) / file.stored_as, tmp_path / record.id)
        weights.append(safetensors.numpy.load_file(tmp_path / record.id))
    for name, weight in weights[0].items():
        assert abs(weights[1][name] - weight).max() <= 2e-12, name  # one step of AdamW: the learning rate


def test_a_zipped_dataset_gives_the_weights_of_its_folder(store, storage, worker, submit, bucket, make_spec, tmp_path):
    folder = bucket("zipped", count=2)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for each in storage.list(S3Uri.parse(folder)):
            archive.writestr(f"photos/{each.uri.key.rpartition('/')[2]}", storage.read(each.uri))
    storage.upload(tmp_path / "photos.zip", S3Uri.parse("s3://datasets/zipped.zip"))
    plain = submit(make_spec(dataset={"uri": folder}))
    zipped = submit(make_spec(dataset={"uri": "s3://datasets/zipped.zip"}))
    worker()

    (ours, theirs) = (wait_for(store, job.id, ended) for job in (zipped, plain))

    assert (ours.status, theirs.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
    for record in (ours, theirs):
        (adapter,) = (file for file in manifest_of(storage, record).files if file.path == "lora_diffusers.safetensors")
        storage.download(S3Uri.parse(record.output_uri) / adapter.stored_as, tmp_path / record.id)
    ours, theirs = (safetensors.numpy.load_file(tmp_path / record.id) for record in (ours, theirs))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_cancel_while_training_frees_the_worker_and_leaves_no_output(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("cancel", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS))
    worker()
    wait_for(store, job.id, lambda record: record.status is Status.TRAINING)
    store.request_cancel(job.id)

    record = wait_for(store, job.id, ended, timeout_s=30)

    assert (record.status, record.attempt.outcome) == (Status.CANCELLED, "cancelled")
    assert_no_output(storage, record)


def test_cancel_while_queued_is_done_at_once(store, submit, make_spec):
    job = submit(make_spec())

    assert store.request_cancel(job.id).status is Status.CANCELLED
    assert store.queues.tickets() == []
    assert store.claim(job.id, "worker") is None


def test_a_worker_that_is_told_to_stop_gives_the_job_back(store, worker, submit, bucket, make_spec):
    dataset = bucket("preempted", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS))
    process = worker()
    wait_for(store, job.id, lambda record: record.status is Status.TRAINING)
    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == 0
    record = store.get(job.id)
    assert (record.status, record.attempt.outcome) == (Status.QUEUED, "preempted")
    assert len(store.queues.tickets()) == 1


def test_a_deadline_ends_the_attempt(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("deadline", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS, max_duration_s=20))
    worker()

    record = wait_for(store, job.id, ended)

    assert record.failure.reason is FailureReason.TIMED_OUT
    assert "max_duration_s" in record.failure.message
    assert_no_output(storage, record)


def child_of(pid: int) -> int:
    """The one child process of `pid`."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def assert_gone(pid: int) -> None:
    """The process ends within ten seconds. One that only waits to be reaped has ended."""
    deadline = time.monotonic() + 10
    while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.1)


def test_a_killed_trainer_is_told_by_its_signal(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("killed", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS))
    process = worker()
    wait_for(store, job.id, lambda record: record.status is Status.TRAINING)
    os.kill(child_of(child_of(process.pid)), signal.SIGSEGV)  # worker, horse, trainer

    record = wait_for(store, job.id, waits_for_its_next_try, timeout_s=30)

    assert record.attempt.failure.reason is FailureReason.CRASHED
    assert "SIGSEGV" in record.attempt.failure.message
    assert_no_output(storage, record)


def test_a_killed_horse_is_told_and_takes_its_trainer_with_it(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("horse", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS))
    process = worker()
    wait_for(store, job.id, lambda record: record.status is Status.TRAINING)
    horse = child_of(process.pid)
    trainer = child_of(horse)
    os.kill(horse, signal.SIGKILL)

    record = wait_for(store, job.id, waits_for_its_next_try, timeout_s=30)

    assert record.attempt.failure.reason is FailureReason.CRASHED
    assert "SIGKILL" in record.attempt.failure.message
    assert_no_output(storage, record)
    assert_gone(trainer)
    assert process.poll() is None  # the worker itself goes on


def test_a_killed_worker_takes_horse_and_trainer_with_it(store, storage, worker, submit, bucket, make_spec):
    dataset = bucket("parent", count=2)
    job = submit(make_spec(dataset={"uri": dataset}, training=ENDLESS))
    process = worker()
    wait_for(store, job.id, lambda record: record.status is Status.TRAINING)
    horse = child_of(process.pid)
    trainer = child_of(horse)
    process.kill()
    process.wait()

    assert_gone(horse)
    assert_gone(trainer)
    assert_no_output(storage, store.get(job.id))


@pytest.mark.parametrize(
    ("changes", "filled", "reason", "says"),
    [
        ({"dataset": {"uri": "s3://datasets/nowhere/"}}, {}, FailureReason.DATASET_INVALID, "nothing at"),
        ({}, {"without": ("brick.txt",)}, FailureReason.DATASET_INVALID, "brick"),
        ({}, {"broken": "brick.jpg"}, FailureReason.DATASET_INVALID, "brick.jpg"),
        ({"base_model": "s3://models/none.safetensors"}, {}, FailureReason.BASE_MODEL_INVALID, "none.safetensors"),
        ({"base_model": "s3://models/wrong.safetensors"}, {}, FailureReason.BASE_MODEL_INVALID, "safetensors"),
        ({"lora": {"rank": 64}}, {}, FailureReason.INVALID_SPEC, "rank"),
        ({"lora": {"init_from": "s3://models/none.safetensors"}}, {}, FailureReason.INVALID_SPEC, "lora.init_from: "),
        ({"lora": {"init_from": "s3://models/wrong.safetensors"}}, {}, FailureReason.INVALID_SPEC, "is a pickle"),
    ],
    ids=[
        "no dataset",
        "no caption",
        "truncated picture",
        "no base model",
        "no checkpoint",
        "rank too large",
        "no adapter",
        "an adapter that is a pickle",
    ],
)
def test_bad_input_ends_with_its_reason_and_a_sentence(
    store, storage, worker, submit, bucket, make_spec, changes, filled, reason, says
):
    dataset = bucket(f"bad-{abs(hash(str(changes) + str(filled)))}", count=3, **filled)
    storage.write(S3Uri("models", "wrong.safetensors"), b"\x80\x02this is a pickle, not a checkpoint" * 10)
    job = submit(make_spec(**({"dataset": {"uri": dataset}} | changes)))
    worker()

    record = wait_for(store, job.id, ended)

    assert (record.status, record.failure.reason) == (Status.FAILED, reason)
    assert says in record.failure.message
    assert_no_output(storage, record)


def test_refused_credentials_are_told_as_such(store, worker, submit, bucket, make_spec):
    dataset = bucket("denied", count=2)
    job = submit(make_spec(dataset={"uri": dataset}))
    worker(s3_secret_access_key=SecretStr("not-the-secret"))

    record = wait_for(store, job.id, waits_for_its_next_try)

    assert record.attempt.failure.reason is FailureReason.STORAGE_DENIED
    assert "LORAQ_S3_ACCESS_KEY_ID" in record.attempt.failure.message

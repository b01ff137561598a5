"""A job of two ranks, on a worker without GPU: whatever ends an attempt ends all of it, and the next one goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy

from jobs.errors import FailureReason
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.status import Status
from jobs.uri import S3Uri
from tests.integration.test_main_job import assert_gone, child_of, ended, manifest_of, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def settings(make_settings) -> Settings:
    return make_settings(lease_s=5.0, heartbeat_s=0.5, reap_every_s=0.2, retry_wait_s=0.2, grace_s=60.0, hang_s=30.0)


@pytest.fixture
def job(submit, bucket, make_spec) -> Callable[..., JobRecord]:
    """Submits a job of two ranks."""
    return lambda **changes: submit(
        make_spec(
            dataset={"uri": bucket("several", count=2), "captions": {"dropout": 0.3}},
            training={"resolution": 64, "steps": 60, "seed": 7},
            checkpoints={"every_n_steps": 10},
            gpus=2,
            **changes,
        )
    )


@pytest.fixture
def read_weights(storage, tmp_path) -> Callable[[JobRecord], dict]:
    def read(record: JobRecord) -> dict:
        file = next(file for file in manifest_of(storage, record).files if file.path == "lora.safetensors")
        storage.download(S3Uri.parse(record.output_uri) / file.stored_as, tmp_path / record.id)
        return safetensors.numpy.load_file(tmp_path / record.id)

    return read


def ranks_of(worker_pid: int) -> tuple[int, int, list[int]]:
    """Process ids of the horse, of torchrun and of the ranks."""
    horse = child_of(worker_pid)
    torchrun = child_of(horse)
    ranks = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    assert len(ranks) == 2
    return horse, torchrun, [int(rank) for rank in ranks]


def until_step(store, job: JobRecord, attempt: int, step: int) -> None:
    """The attempt trains, and has done so many steps more than it went on from."""

    def reached(record: JobRecord) -> bool:
        assert not record.status.final, record
        progress = store.progress(job.id)
        if len(record.attempts) != attempt or record.status is not Status.TRAINING or progress.attempt != attempt:
            return False
        return progress.step >= (record.attempt.resumed_from_step or 0) + step

    wait_for(store, job.id, reached, 200)


def test_ranks_and_workers_are_killed_frozen_and_stopped_and_the_weights_are_the_same_to_the_bit(
    store, storage, worker, reaper, job, read_weights
):
    disturbed = job()
    process = worker()

    until_step(store, disturbed, attempt=1, step=12)
    *_, first_ranks = ranks_of(process.pid)
    os.kill(first_ranks[1], signal.SIGKILL)

    until_step(store, disturbed, attempt=2, step=1)
    horse, torchrun, second_ranks = ranks_of(process.pid)
    assert_gone(first_ranks[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    waiting = store.get(disturbed.id)
    for pid in (horse, torchrun, *second_ranks):
        assert_gone(pid)

    process = worker()
    until_step(store, disturbed, attempt=3, step=1)
    horse, torchrun, third_ranks = ranks_of(process.pid)
    for pid in (process.pid, horse):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    for pid in (torchrun, *third_ranks):
        assert_gone(pid)

    worker()
    undisturbed = job(name="undisturbed")
    record, plain = (wait_for(store, each.id, ended, 300) for each in (disturbed, undisturbed))

    crashed, preempted, lost, last = record.attempts
    assert record.status is Status.SUCCEEDED
    assert (crashed.failure.reason, crashed.failure.reason.retryable) == (FailureReason.CRASHED, True)
    assert "SIGKILL" in crashed.failure.message
    assert (waiting.status, preempted.outcome) == (Status.QUEUED, "preempted")
    assert lost.failure.reason is FailureReason.WORKER_LOST
    assert last.resumed_from_step >= lost.resumed_from_step > preempted.resumed_from_step >= 10
    ours, theirs = read_weights(record), read_weights(plain)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_rank_that_hangs_is_explained_by_where_all_of_them_stand(store, storage, worker, job):
    hanging = job()
    process = worker(hang_s=60.0, max_failures=1)
    until_step(store, hanging, attempt=1, step=2)
    *_, ranks = ranks_of(process.pid)
    os.kill(ranks[1], signal.SIGSTOP)

    record = wait_for(store, hanging.id, ended, 240)

    assert (record.status, record.failure.reason) == (Status.FAILED, FailureReason.HUNG)
    log = storage.read(S3Uri.parse(record.output_uri) / "attempts/1/train.log").decode()
    assert "most recent call first" in log
    assert "worker/loop/ranks.py" in log  # it waited for the other one
    for rank in ranks:
        assert_gone(rank)

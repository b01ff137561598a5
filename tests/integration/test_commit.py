"""A job has one output, named in its record by the attempt that held it: whoever wakes late changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from jobs.errors import FailureReason, ObjectNotFound
from jobs.leftovers import Sweeper
from jobs.manifest import MANIFEST_NAME, Manifest, attempt_folder, own_manifest, read_committed
from jobs.record import JobRecord
from jobs.status import Status
from jobs.uri import S3Uri
from tests.integration.conftest import worker_env
from tests.integration.test_main_job import ended, wait_for
from worker.checkpoints import find_checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ATTEMPT = """
import os, signal, sys
from jobs.storage import Storage
from worker import attempt

when, name = sys.argv[1:]
write = Storage.write

def stopping(self, uri, data):
    if when == "before" and uri.key.endswith(name):
        os.kill(os.getpid(), signal.SIGSTOP)
    write(self, uri, data)
    if when == "after" and uri.key.endswith(name):
        os.kill(os.getpid(), signal.SIGSTOP)

Storage.write = stopping
if when == "at its end":
    attempt._forget_checkpoints = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
attempt.run_attempt()
"""


@pytest.fixture
def settings(make_settings):
    return make_settings(lease_s=5.0, reap_every_s=0.2, retry_wait_s=0.1)


@pytest.fixture
def job(submit, bucket, make_spec) -> JobRecord:
    return submit(make_spec(dataset={"uri": bucket("commit", count=2)}, checkpoints={"every_n_steps": 2}))


@pytest.fixture
def attempt(settings) -> Iterator[Callable[..., subprocess.Popen]]:
    """Runs an attempt as its horse does; stopped before or after it writes a named object, or at its end."""
    started: list[subprocess.Popen] = []

    def start(when: str = "never", name: str = "") -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", ATTEMPT, when, name], env=worker_env(settings))
        started.append(process)
        if when != "never":
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def published(storage) -> Callable[[JobRecord], bytes | None]:
    """The manifest where people look for it; None if there is none."""

    def read(job: JobRecord) -> bytes | None:
        try:
            return storage.read(S3Uri.parse(job.output_uri) / MANIFEST_NAME)
        except ObjectNotFound:
            return None

    return read


def go_on(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGCONT)
    assert process.wait(240) == 0


def test_an_attempt_that_wakes_before_its_commit_leaves_the_next_one_s_alone(
    store, storage, reaper, job, attempt, published
):
    stalled = attempt("after", own_manifest(1))
    wait_for(store, job.id, lambda record: record.status is Status.QUEUED and record.not_before is None, 120)
    assert attempt().wait(240) == 0
    record, manifest = store.get(job.id), published(job)
    assert (record.status, record.commit.attempt) == (Status.SUCCEEDED, 2)

    go_on(stalled)

    assert store.get(job.id) == record
    assert published(job) == manifest == read_committed(storage, record)
    assert Manifest.model_validate_json(manifest).attempt == 2


@pytest.mark.parametrize("killed", [False, True], ids=["wakes", "is killed"])
def test_an_attempt_that_stalls_behind_its_commit_has_succeeded(
    store, storage, reaper, job, attempt, published, killed
):
    stalled = attempt("before", f"{job.id}/{MANIFEST_NAME}")
    assert published(job) is None
    record = wait_for(store, job.id, ended, 120)
    wait_for(store, job.id, lambda _: published(job) is not None, 120)  # the mirror publishes it
    assert (record.status, record.commit.attempt, len(record.attempts)) == (Status.SUCCEEDED, 1, 1)
    assert published(job) == read_committed(storage, record)

    stalled.kill() if killed else go_on(stalled)

    assert store.get(job.id) == record
    assert published(job) == read_committed(storage, record)


def test_what_the_bucket_gives_back_as_other_bytes_is_not_committed(store, storage, job, attempt, published):
    stalled = attempt("after", own_manifest(1))
    weights = S3Uri.parse(job.output_uri) / attempt_folder(1) / "lora.safetensors"
    as_uploaded = storage.read(weights)
    storage.write(weights, as_uploaded[:-1] + bytes([as_uploaded[-1] ^ 1]))
    go_on(stalled)

    record = store.get(job.id)
    assert (record.status, record.commit, published(job)) == (Status.QUEUED, None, None)
    assert record.attempts[0].failure.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "lora.safetensors reads back as other bytes" in record.attempts[0].failure.message


def test_a_cancel_that_comes_before_the_commit_is_obeyed(store, job, attempt, published):
    stalled = attempt("after", own_manifest(1))
    store.request_cancel(job.id)
    go_on(stalled)

    assert store.get(job.id).status is Status.CANCELLED
    assert published(job) is None


def test_checkpoints_that_a_worker_left_when_it_was_killed_at_its_end_are_swept(store, storage, job, attempt):
    folder = S3Uri.parse(job.output_uri)
    attempt("at its end").kill()
    assert store.get(job.id).status is Status.SUCCEEDED
    assert find_checkpoints(storage, folder)

    assert Sweeper(store.redis, storage, keep_s=86_400, settles_s=0).sweep() == 1

    assert [each for each in storage.list(folder / "attempts/") if "checkpoints" in each.uri.key] == []
    read_committed(storage, store.get(job.id))

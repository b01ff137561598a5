"""A job has one output, named in its record by the attempt that held it: whoever wakes late changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from jobs.errors import ObjectNotFound
from jobs.manifest import MANIFEST_NAME, Manifest, own_manifest, read_committed
from jobs.record import JobRecord
from jobs.status import Status
from jobs.uri import S3Uri
from tests.integration.conftest import worker_env
from tests.integration.test_main_job import ended, wait_for

pytestmark = pytest.mark.integration

ATTEMPT = """
import os, signal, sys
from jobs.storage import Storage
from worker.attempt import run_attempt

when, name = sys.argv[1:]
write = Storage.write

def stopping(self, uri, data):
    if when == "before" and uri.key.endswith(name):
        os.kill(os.getpid(), signal.SIGSTOP)
    write(self, uri, data)
    if when == "after" and uri.key.endswith(name):
        os.kill(os.getpid(), signal.SIGSTOP)

Storage.write = stopping
run_attempt()
"""


@pytest.fixture
def settings(make_settings):
    return make_settings(lease_s=1.0, reap_every_s=0.2, retry_wait_s=0.1)


@pytest.fixture
def reaper(settings) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "api.reaper"], env=worker_env(settings))
    yield
    process.terminate()
    process.wait(10)


@pytest.fixture
def job(submit, bucket, make_spec) -> JobRecord:
    return submit(make_spec(dataset={"uri": bucket("commit", count=2)}))


@pytest.fixture
def attempt(settings) -> Iterator[Callable[..., subprocess.Popen]]:
    """Runs an attempt as its horse does; stopped before or after it writes an object, if one is named."""
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
    assert process.wait(60) == 0


def test_an_attempt_that_wakes_before_its_commit_leaves_the_next_one_s_alone(
    store, storage, reaper, job, attempt, published
):
    stalled = attempt("after", own_manifest(1))
    wait_for(store, job.id, lambda record: record.status is Status.QUEUED and record.not_before is None, 30)
    assert attempt().wait(120) == 0
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
    record = wait_for(store, job.id, ended, 30)
    wait_for(store, job.id, lambda _: published(job) is not None, 30)  # the mirror publishes it
    assert (record.status, record.commit.attempt, len(record.attempts)) == (Status.SUCCEEDED, 1, 1)
    assert published(job) == read_committed(storage, record)

    stalled.kill() if killed else go_on(stalled)

    assert store.get(job.id) == record
    assert published(job) == read_committed(storage, record)


def test_a_cancel_that_comes_before_the_commit_is_obeyed(store, job, attempt, published):
    stalled = attempt("after", own_manifest(1))
    store.request_cancel(job.id)
    go_on(stalled)

    assert store.get(job.id).status is Status.CANCELLED
    assert published(job) is None

"""A cancel is obeyed at whatever stage the job is, although nothing moves there; the worker is free for the next."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from jobs.record import JobRecord
from jobs.status import Status
from tests.faults.proxy import FaultProxy
from tests.integration.test_main_job import assert_gone, assert_no_output, child_of, ended, wait_for

pytestmark = pytest.mark.integration

WITHIN_S = 30.0
"""Far less than what holds the attempt up lasts."""


@pytest.fixture
def proxy(s3_server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def job(submit, bucket, make_spec) -> JobRecord:
    training = {"resolution": 64, "steps": 4}
    return submit(
        make_spec(dataset={"uri": bucket("cancel", count=2)}, training=training, checkpoints={"every_n_steps": 2})
    )


@pytest.fixture
def cancel(store, storage, settings) -> Callable[..., None]:
    """Cancels the job, and sees to it that nothing is left of its attempt but the worker."""

    def ask(job: JobRecord, worker: int, tidy: bool = True) -> None:
        horse = child_of(worker)
        store.request_cancel(job.id)
        record = wait_for(store, job.id, ended, WITHIN_S)
        assert (record.status, record.attempt.outcome) == (Status.CANCELLED, "cancelled")
        assert_no_output(storage, record)
        assert_gone(horse)
        if tidy:
            assert [path for path in (settings.data_dir / "scratch").iterdir() if path.is_dir()] == []

    return ask


def until(reached: Callable[[], object], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stage_of(store, job: JobRecord) -> tuple[Status, str]:
    progress = store.progress(job.id)
    return store.get(job.id).status, progress.phase if progress else ""


@pytest.mark.parametrize(
    ("kind", "what"), [("trickle", "tiny.safetensors"), ("stall", "cancel/")], ids=["base model", "dataset"]
)
def test_while_downloading(store, proxy, worker, job, cancel, kind, what):
    with proxy.fault(kind, method="GET", path=what):
        process = worker(s3_endpoint_url=proxy.url)
        until(lambda: proxy.hit)
        assert stage_of(store, job) in ((Status.PREPARING, ""), (Status.PREPARING, "fetching"))
        cancel(job, process.pid)


def test_while_encoding(store, worker, job, cancel):
    process = worker()
    until(lambda: stage_of(store, job)[1] == "reading")
    trainer = child_of(child_of(process.pid))
    until(lambda: stage_of(store, job)[1] == "encoding" or store.get(job.id).status.final)
    os.kill(trainer, signal.SIGSTOP)
    cancel(job, process.pid)
    assert_gone(trainer)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/checkpoints/step-000004/"), ("PUT", "/attempts/1/lora.safetensors"), ("GET", "/attempts/1/train.log")],
    ids=["checkpoint", "output", "read back"],
)
def test_while_uploading(store, proxy, worker, job, cancel, method, path):
    """Also while the files are read back, before the commit."""
    with proxy.fault("stall", method=method, path=path):
        process = worker(s3_endpoint_url=proxy.url)
        until(lambda: proxy.hit)
        until(lambda: stage_of(store, job)[0] is Status.UPLOADING)
        cancel(job, process.pid)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "list-type"), ("PUT", "/attempts/1/manifest.json")], ids=["listing", "manifest"]
)
def test_while_a_server_says_nothing_to_a_request_that_nobody_can_break_off(
    store, proxy, worker, job, cancel, method, path
):
    """The attempt hears nothing until that ends, so its process is ended, after the grace period."""
    with proxy.fault("stall", method=method, path=path):
        process = worker(s3_endpoint_url=proxy.url, grace_s=2.0)
        until(lambda: proxy.hit)
        cancel(job, process.pid, tidy=False)

"""Workers of different classes, as processes: who takes what, and who says that it takes nothing."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from jobs.gpus import look
from jobs.status import Status
from jobs.waiting import why_it_waits
from jobs.workers import workers
from tests.integration.conftest import worker_env

pytestmark = pytest.mark.integration

without_gpu = pytest.mark.skipif(bool(look().gpus), reason="this machine has a GPU: its worker would take the job")


def wait_for(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@without_gpu
def test_a_worker_without_gpu_takes_no_job_and_says_why_in_the_log_the_list_and_the_job(
    store, submit, worker, bucket, make_spec, tmp_path
):
    job = submit(make_spec(dataset={"uri": bucket("refused", 2)}, training={"steps": 1}))
    worker(device="auto")
    wait_for(lambda: bool(workers(store.redis)))

    (info,) = workers(store.redis)
    assert info.gpu_class == "none"
    assert "takes no job, because every job needs a GPU" in info.refuses
    assert "1 with no GPU" in why_it_waits(store.redis, store.get(job.id))
    assert not store.offer_turn(store.queues.used()[0])
    worker(device="cpu")
    wait_for(lambda: store.get(job.id).status is Status.SUCCEEDED)
    assert store.get(job.id).attempt.worker != info.name


@without_gpu
def test_a_worker_without_gpu_that_was_to_take_one_job_fails_and_says_why(settings):
    env = worker_env(settings.model_copy(update={"device": "auto"}))
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "--once"], env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == os.EX_CONFIG
    assert "This worker takes no job" in ended.stderr
    assert "LORAQ_DEVICE=cpu" in ended.stderr


def test_a_small_worker_leaves_the_large_job_and_a_large_one_helps_with_the_small(
    store, submit, worker, bucket, make_spec
):
    uri = bucket("classes", 2)
    quick = {"dataset": {"uri": uri}, "training": {"steps": 1}}
    large = submit(make_spec(memory={"budget_gib": 24}, **quick))
    small = submit(make_spec(memory={"budget_gib": 12}, **quick))
    process = worker(device="cpu", worker_class="12gb")
    wait_for(lambda: store.get(small.id).status is Status.SUCCEEDED)
    assert store.get(large.id).status is Status.QUEUED
    assert "needs a GPU of 24 GB" in why_it_waits(store.redis, store.get(large.id))
    process.terminate()
    process.wait(30)

    # No ticket lies in its queue: it finds what fits by itself.
    another = submit(make_spec(memory={"budget_gib": 12}, **quick))
    worker(device="cpu", worker_class="48gb")
    wait_for(lambda: all(store.get(each.id).status is Status.SUCCEEDED for each in (large, another)))

"""The worker's parent process: light, and on one queue."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from rq import Worker

from jobs.record import JobRecord, now
from jobs.status import Status
from worker.service import AttemptWorker, open_worker, work


def test_parent_and_horse_import_no_torch():
    program = "import sys, worker.__main__, worker.service, worker.attempt; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.integration
def test_one_queue_a_worker(store, settings):
    assert [queue.name for queue in open_worker(store, settings).queues] == [f"{settings.queue}-cpu"]


@pytest.mark.parametrize(
    "name",
    [
        "handle_warm_shutdown_request",
        "set_shutdown_requested_date",
        "request_force_stop",
        "setup_work_horse_signals",
        "heartbeat",
        "dequeue_job_and_maintain_ttl",
        "reorder_queues",
        "maintain_heartbeats",
        "monitor_work_horse",
        "wait_for_horse",
        "handle_work_horse_killed",
        "register_death",
    ],
)
def test_what_is_overridden_is_there_in_rq(name):
    """RQ is pinned, and these are its insides: a new version that renames one must not pass unseen."""
    assert callable(getattr(Worker, name))
    assert name in vars(AttemptWorker)


@pytest.fixture
def horse():
    """A process to watch, in a group of its own, as RQ's horse is."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def watching(store, settings, horse, monkeypatch):
    """A worker that holds a job and is about to watch its horse, with a heartbeat every second."""
    worker = open_worker(store, settings)
    worker._horse_pid, worker.job_monitoring_interval = horse.pid, 1
    worker.heartbeats = 0

    def beat(job, execution):
        worker.heartbeats += 1

    monkeypatch.setattr(worker, "maintain_heartbeats", beat)
    return worker


def watch(worker: AttemptWorker) -> None:
    worker.monitor_work_horse(SimpleNamespace(id="job", timeout=-1), worker.queues[0], SimpleNamespace(id="execution"))


@pytest.mark.integration
def test_a_second_sigterm_longer_than_the_monitoring_interval_gives_the_attempt_back(
    watching, horse, store, make_spec, monkeypatch
):
    job = store.submit(JobRecord.create("me", make_spec()))
    store.next_turn(watching.name)
    watching._shutdown_requested_date = now() - timedelta(seconds=2)
    held_by = store.held_by
    monkeypatch.setattr(store, "held_by", lambda name: time.sleep(2) or held_by(name))  # a slow Redis
    before = signal.signal(signal.SIGTERM, watching.request_force_stop)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(SystemExit):
        watch(watching)
    signal.signal(signal.SIGTERM, before)

    record = store.get(job.id)
    assert (record.status, record.attempt.outcome) == (Status.QUEUED, "preempted")
    assert horse.poll() is not None


@pytest.mark.integration
def test_rq_has_its_heartbeats_until_the_horse_ends(watching):
    with subprocess.Popen(["sleep", "2.5"]) as horse:
        watching._horse_pid = horse.pid
        watch(watching)

    assert (watching.heartbeats, watching.horse_pid) == (2, 0)


@pytest.mark.integration
def test_a_first_sigterm_that_finds_the_horse_gone_is_no_error(watching, horse):
    horse.kill()
    horse.wait()

    watching.handle_warm_shutdown_request()


@pytest.mark.integration
def test_scratch_of_a_worker_that_was_killed_is_collected_when_the_next_one_starts(store, settings, monkeypatch):
    left = settings.data_dir / "scratch" / "job-1-abcd"
    left.mkdir(parents=True)
    left.with_name("job-1-abcd.lock").touch()
    monkeypatch.setattr(AttemptWorker, "work", lambda self, **_: None)

    work(store, settings, once=True)

    assert not left.exists()

"""The worker's parent process: light, and on one queue."""

import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from rq import Worker

from jobs.record import JobRecord, now
from jobs.status import Status
from worker.service import AttemptWorker, no_alarm, open_worker


def test_parent_and_horse_import_no_torch():
    program = "import sys, worker.__main__, worker.service, worker.attempt; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.integration
def test_one_queue_a_worker(store, settings):
    assert open_worker(store, settings).queues == [store.queue]


@pytest.mark.parametrize(
    "name",
    [
        "request_stop",
        "handle_warm_shutdown_request",
        "set_shutdown_requested_date",
        "request_force_stop",
        "setup_work_horse_signals",
        "heartbeat",
        "maintain_heartbeats",
        "monitor_work_horse",
        "handle_work_horse_killed",
        "register_death",
    ],
)
def test_what_is_overridden_is_there_in_rq(name):
    """RQ is pinned, and these are its insides: a new version that renames one must not pass unseen."""
    assert callable(getattr(Worker, name))
    assert name in vars(AttemptWorker)


class AlarmRang(Exception):
    """What RQ's alarm raises."""


@pytest.fixture
def alarm():
    """An alarm like RQ's, rung by calling it."""

    def ring(signum, frame):
        raise AlarmRang

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)


def test_an_alarm_waits_for_the_end_of_a_handler(alarm):
    done = []

    with pytest.raises(AlarmRang), no_alarm():  # noqa: PT012
        alarm()
        time.sleep(0.01)
        done.append("all of it")

    assert done


@pytest.mark.integration
def test_an_alarm_during_the_second_sigterm_leaves_no_attempt_open(store, settings, make_spec, alarm, monkeypatch):
    worker = open_worker(store, settings)
    job = store.submit(JobRecord.create("me", make_spec()))
    store.next_turn(worker.name)
    worker._shutdown_requested_date = now() - timedelta(seconds=2)
    worker._horse_pid = 1
    monkeypatch.setattr(worker, "kill_horse", alarm)
    monkeypatch.setattr(worker, "wait_for_horse", lambda: time.sleep(0.01))

    with pytest.raises(SystemExit):
        worker.request_force_stop(signal.SIGTERM, None)

    record = store.get(job.id)
    assert (record.status, record.attempt.outcome) == (Status.QUEUED, "preempted")


@pytest.mark.integration
def test_a_horse_whose_end_nobody_saw_is_given_back(store, settings, make_spec):
    worker = open_worker(store, settings)
    job = store.submit(JobRecord.create("me", make_spec()))
    store.next_turn(worker.name)

    worker.handle_work_horse_killed(None, None, None, None)

    assert "unknown signal" in store.get(job.id).attempt.failure.message

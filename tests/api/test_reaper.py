"""The reaper on a real Redis: it gives back what is silent, and nothing else."""

import threading
import time

import pytest

from api.reaper import Reaper
from jobs.errors import FailureReason
from jobs.record import JobRecord, now
from jobs.status import Status
from jobs.store import Progress

pytestmark = pytest.mark.integration

LEASE_S = 0.6


@pytest.fixture
def reaper(store) -> Reaper:
    """One that ticks when told to, and whose lock is no matter."""
    return Reaper(store, LEASE_S, every_s=0.1)


def report(store, job_id: str, attempt: int = 1) -> None:
    store.report(job_id, Progress(attempt=attempt, phase="training", at=now()))


def tick_for(reaper: Reaper, seconds: float, between=lambda: None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reaper.tick()
        between()
        time.sleep(0.05)


def test_a_silent_attempt_is_given_back_and_a_speaking_one_is_not(store, reaper, make_spec):
    silent, speaking = (store.submit(JobRecord.create("me", make_spec())) for _ in range(2))
    for job in (silent, speaking):
        store.claim(job.id, f"worker-of-{job.id}")

    tick_for(reaper, 2 * LEASE_S, lambda: report(store, speaking.id))

    lost = store.get(silent.id)
    assert (lost.status, lost.attempt.outcome) == (Status.QUEUED, "failed")
    assert lost.attempt.failure.reason is FailureReason.WORKER_LOST
    assert "fell silent" in lost.attempt.failure.message
    assert store.get(speaking.id).status is Status.PREPARING


def test_an_outage_of_redis_ends_no_attempt(store, make_spec, redis_server):
    job = store.submit(JobRecord.create("me", make_spec()))
    store.claim(job.id, "worker")
    stop = threading.Event()
    thread = threading.Thread(target=Reaper(store, LEASE_S, every_s=0.1).run, args=(stop,))
    thread.start()
    try:
        time.sleep(0.3)
        redis_server.kill()
        time.sleep(2 * LEASE_S)
        redis_server.start()
        for _ in range(10):
            report(store, job.id)
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join()

    assert store.get(job.id).status is Status.PREPARING


def test_a_reaper_that_slept_trusts_nothing_it_saw(store, reaper, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    store.claim(job.id, "worker")
    reaper.tick()
    time.sleep(1.5)  # as if stopped by SIGSTOP; the attempt may have reported all the while

    reaper.tick()

    assert store.get(job.id).status is Status.PREPARING


def test_of_two_reapers_one_works_and_the_other_takes_over(store, make_spec):
    first, second = Reaper(store, LEASE_S, every_s=0.1), Reaper(store, LEASE_S, every_s=0.1)

    assert (first._may_work(), second._may_work(), first._may_work()) == (True, False, True)
    time.sleep(1.6)  # the first one died: its lock expires
    assert (second._may_work(), first._may_work()) == (True, False)


def test_lost_tickets_are_replaced(store, reaper, make_spec):
    queue = store.queues.of(store.submit(JobRecord.create("me", make_spec())).gpu_class)
    queue.empty()

    reaper.tick()
    assert queue.count == 0  # a worker may be about to claim with it
    reaper.tick()
    assert queue.count == 1


def test_a_job_whose_wait_is_over_is_woken(store, reaper, make_spec):
    store.retries = type(store.retries)(wait_s_first=0.01)
    job = store.submit(JobRecord.create("me", make_spec()))
    store.claim(job.id, "worker")
    store.give_back(job.id, 1, store_failure())

    tick_for(reaper, 0.2)

    assert store.next_turn("worker").id == job.id


def store_failure():
    from jobs.record import Failure

    return Failure(reason=FailureReason.CRASHED, message="It crashed.")

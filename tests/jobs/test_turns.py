"""Whose turn it is: fair between owners, within limits, and no turn is lost."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import turns
from jobs.errors import FailureReason
from jobs.queue import DeliveryJob, ticket_of
from jobs.record import Failure, JobRecord
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration

CRASH = Failure(reason=FailureReason.CRASHED, message="It crashed.")


@pytest.fixture
def submit(store, make_spec):
    """Submits a job for an owner."""
    return lambda owner, **changes: store.submit(JobRecord.create(owner, make_spec(**changes)))


def test_a_thousand_jobs_of_one_owner_do_not_stand_before_another_s_one(store, submit):
    many = [submit("alice").id for _ in range(1000)]
    one = submit("bob")

    first, second, third = (store.next_turn(f"worker-{n}") for n in range(3))

    assert (first.id, second.id, third.id) == (many[0], one.id, many[1])


def test_owners_take_turns_by_who_was_served_longest_ago(store, submit):
    for owner in ("alice", "alice", "bob", "bob"):
        submit(owner)
    order = []
    for n in range(4):
        record = store.next_turn(f"worker-{n}")
        order.append(record.owner)
        store.move(record.id, 1, Status.CANCELLED)  # so that none runs

    assert order == ["alice", "bob", "alice", "bob"]


def test_an_owner_s_limit_holds_also_when_many_workers_ask_at_once(store, submit):
    limited = Store(store.redis, store.queues, max_running_per_owner=2)
    for _ in range(6):
        submit("alice")
    with ThreadPoolExecutor(6) as pool:
        begun = [record for record in pool.map(limited.next_turn, map(str, range(6))) if record is not None]

    assert len(begun) == 2
    assert turns.tickets_wanted(store.redis, 2) == {}
    limited.move(begun[0].id, 1, Status.CANCELLED)
    assert limited.next_turn("again") is not None


def test_an_owner_s_limit_holds_when_another_worker_claims_between_two_looks(store, submit, monkeypatch):
    limited = Store(store.redis, store.queues, max_running_per_owner=1)
    first, _ = submit("alice"), submit("alice")
    look = turns.owners

    def slowly(redis):
        seen = look(redis)
        limited.claim(first.id, "faster")
        return seen

    with monkeypatch.context() as patched:
        patched.setattr(turns, "owners", slowly)
        assert limited.next_turn("slower") is None


def test_a_job_that_failed_waits_before_its_next_turn(store, submit):
    store.retries = type(store.retries)(wait_s_first=0.4)
    job = submit("me")
    store.give_back(store.next_turn("worker").id, 1, CRASH)

    assert store.get(job.id).status is Status.QUEUED
    assert store.next_turn("worker") is None
    assert store.claim(job.id, "worker") is None
    deadline = time.monotonic() + 5
    while not turns.due(store.redis):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store.wake(job.id)
    assert store.queues.tickets()[-1] == f"{job.id}_2"
    assert store.next_turn("worker").id == job.id


def test_a_ticket_that_died_with_its_worker_is_missed(store, submit):
    needed = submit("me").gpu_class
    store.queues.of(needed).empty()

    assert store.missing_tickets() == {needed: 1}
    store.add_tickets(needed, 1)
    assert (store.missing_tickets(), store.queues.of(needed).count) == ({}, 1)


def test_tickets_that_are_too_many_are_counted_and_taken_out(store, submit):
    needed = submit("me").gpu_class
    store.add_tickets(needed, 2)

    assert store.missing_tickets() == {needed: -2}
    store.add_tickets(needed, -2)
    assert (store.missing_tickets(), store.queues.of(needed).count) == ({}, 1)


def test_cancelling_a_waiting_job_takes_its_ticket_back(store, submit):
    job = submit("me")
    store.request_cancel(job.id)

    assert store.queues.tickets() == []
    assert store.next_turn("worker") is None


def test_a_waiting_list_that_names_a_job_which_is_gone_stops_nobody(store, submit):
    gone, ended, job = submit("me"), submit("me"), submit("me")
    store.redis.delete(f"loraq:job:{gone.id}")
    store.request_cancel(ended.id)
    store.redis.zadd(turns.waiting_key("me", ended.gpu_class), {ended.id: 0})

    assert store.next_turn("worker").id == job.id
    assert store.redis.zcard(turns.waiting_key("me", ended.gpu_class)) == 0


def test_a_ticket_in_use_for_another_job_outlives_the_cancel_of_the_one_it_was_made_for(store, submit):
    submit("me")
    second = submit("me")
    store.request_cancel(second.id)

    assert len(store.queues.tickets()) == 1
    assert DeliveryJob.exists(ticket_of(second.id, 1), connection=store.redis)  # RQ watches its horse by it
    assert 0 < store.redis.ttl(DeliveryJob.key_for(ticket_of(second.id, 1))) <= 86_400


def test_an_owner_whose_jobs_have_all_begun_costs_no_look_and_comes_back(store, submit):
    submit("alice"), submit("bob")
    store.next_turn("worker")

    turns.forget_idle(store.redis)

    assert [owner.name for owner in turns.owners(store.redis)] == ["bob"]
    submit("alice")
    assert {owner.name for owner in turns.owners(store.redis)} == {"alice", "bob"}
    assert [store.next_turn(f"worker-{n}").owner for n in (2, 3)] == ["bob", "alice"]


def test_an_owner_whose_job_comes_while_idle_ones_are_forgotten_is_kept(store, submit, monkeypatch):
    submit("alice")
    store.next_turn("worker")
    look = turns.owners

    def slowly(redis):
        seen = look(redis)
        submit("alice")
        return seen

    with monkeypatch.context() as patched:
        patched.setattr(turns, "owners", slowly)
        turns.forget_idle(store.redis)
    assert store.next_turn("again") is not None

"""What becomes of a job whose attempt ended early: two budgets, told apart by reason."""

from pathlib import Path

import pytest

from jobs.errors import FailureReason, InvalidSpec, NotRetryable
from jobs.record import Failure, JobRecord, begin_attempt, give_back, now
from jobs.retries import RetryPolicy
from jobs.spec_text import read_spec
from jobs.status import Status

ROOT = Path(__file__).parents[2]
SPEC = read_spec((ROOT / "jobs" / "examples" / "photos.yaml").read_text())
LOST = Failure(reason=FailureReason.WORKER_LOST, message="The worker fell silent.")


def again(record: JobRecord) -> JobRecord:
    return begin_attempt(record, "worker")


@pytest.fixture
def running() -> JobRecord:
    return again(JobRecord.create("me", SPEC))


def test_a_job_that_kills_three_workers_stops_there_and_says_so(running):
    policy = RetryPolicy(max_failures=3)
    first = give_back(running, LOST, policy)
    second = give_back(again(first), LOST, policy)
    third = give_back(again(second), LOST, policy)

    assert [first.status, second.status, third.status] == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    assert third.failure.reason is FailureReason.WORKER_LOST
    assert "failure 3 of at most 3" in third.failure.message


def test_a_preemption_costs_nothing_of_the_failures(running):
    policy = RetryPolicy(max_failures=2)
    record = running
    for _ in range(10):
        record = again(give_back(record, None, policy))
    once = give_back(record, LOST, policy)

    assert (once.status, once.not_before is not None) == (Status.QUEUED, True)
    assert give_back(again(once), LOST, policy).status is Status.FAILED


def test_preemptions_have_a_budget_of_their_own(running):
    policy = RetryPolicy(max_preemptions=1)
    once = give_back(running, None, policy)
    twice = give_back(again(once), None, policy)

    assert (once.status, once.not_before) == (Status.QUEUED, None)
    assert twice.failure.reason is FailureReason.PREEMPTED


@pytest.mark.parametrize("reason", list(FailureReason))
def test_a_reason_that_cannot_pass_is_never_tried_again(running, reason):
    after = give_back(running, Failure(reason=reason, message="So it is."), RetryPolicy())

    assert after.status is (Status.QUEUED if reason.retryable else Status.FAILED)


def test_a_cancel_outlives_the_attempt_that_should_have_obeyed_it(running):
    asked = running.model_copy(update={"cancel_requested_at": now()})

    assert give_back(asked, LOST, RetryPolicy()).status is Status.CANCELLED
    assert give_back(asked, None, RetryPolicy()).status is Status.CANCELLED


def test_waits_double_up_to_a_limit_with_jitter():
    policy = RetryPolicy(wait_s_first=10, wait_s_longest=30)
    waits = {failures: [policy.wait_s(failures) for _ in range(200)] for failures in (1, 2, 3, 9)}

    for failures, full in ((1, 10), (2, 20), (3, 30), (9, 30)):
        assert all(full / 2 <= wait <= full for wait in waits[failures])
        assert len(set(waits[failures])) > 100


@pytest.mark.integration
def test_a_retry_is_a_new_job_that_knows_the_old_one(store, make_spec):
    old = store.submit(JobRecord.create("me", make_spec()))
    with pytest.raises(NotRetryable, match="queued"):
        store.retry(store.get(old.id))
    store.request_cancel(old.id)

    new = store.retry(store.get(old.id))

    assert new.id != old.id
    assert new.retry_of == (old.id,)
    assert new.checkpoint_uris == (new.output_uri, old.output_uri)
    assert store.retry(store.get(old.id)) == new
    assert store.get(old.id).status is Status.CANCELLED


@pytest.mark.integration
def test_each_number_of_steps_is_a_retry_of_its_own(store, make_spec):
    training = {"steps": 10, "lr_schedule": {"warmup_steps": 5}}
    old = store.get(store.submit(JobRecord.create("me", make_spec(training=training))).id)
    old = store.request_cancel(old.id)
    as_before = store.retry(old)

    longer = store.retry(old, steps=20)

    assert longer.id != as_before.id
    assert longer.spec.training.steps == 20
    assert longer.spec == old.spec.model_copy(update={"training": old.spec.training.model_copy(update={"steps": 20})})
    assert (longer.retry_of, longer.checkpoint_uris[1]) == ((old.id,), old.output_uri)
    assert store.retry(old, steps=20) == longer
    assert store.retry(old, steps=10) == as_before
    assert store.retry(old, steps=21).id not in (longer.id, as_before.id)
    with pytest.raises(InvalidSpec, match="warmup_steps is 5, but there are 5 steps"):
        store.retry(old, steps=5)

"""What has happened is counted once, in the transaction that did it."""

import pytest

from jobs import counts
from jobs.errors import FailureReason, StaleAttempt
from jobs.record import Failure, JobRecord
from jobs.status import Status

pytestmark = pytest.mark.integration

CRASH = Failure(reason=FailureReason.CRASHED, message="It crashed.")


def test_a_job_s_way_is_counted_and_what_is_refused_is_not(store, make_spec):
    store.retries = type(store.retries)(wait_s_first=0.0)
    job = store.submit(JobRecord.create("me", make_spec()), "key")
    store.submit(JobRecord.create("me", job.spec), "key")  # the same one
    store.claim(job.id, "w")
    store.give_back(job.id, 1, CRASH)
    store.wake(job.id)
    store.claim(job.id, "w")
    with pytest.raises(StaleAttempt):
        store.give_back(job.id, 1, CRASH)
    store.give_back(job.id, 2, None)
    store.claim(job.id, "w")
    store.move(job.id, 3, Status.FAILED, Failure(reason=FailureReason.NAN_LOSS, message="NaN"))
    found = counts.read(store.redis)

    assert found.pop(("wait_ms", job.needs)) < 60_000
    assert sum(found.pop(field) for field in list(found) if field[0] == "wait") == 3
    assert found == {
        ("submissions",): 1,
        ("attempts", "failed", "crashed"): 1,
        ("attempts", "preempted", ""): 1,
        ("attempts", "failed", "nan_loss"): 1,
        ("ends", "failed", "nan_loss"): 1,
    }


def test_a_wait_counts_under_the_first_bound_that_holds_it(store, make_spec, monkeypatch):
    for age_s in (0.5, 1.5, 1e6):
        job = JobRecord.create("me", make_spec())
        begun = store.submit(
            job.model_copy(update={"updated_at": job.updated_at.fromtimestamp(0, job.updated_at.tzinfo)})
        )
        monkeypatch.setattr(
            "jobs.record.now", lambda at=begun.updated_at, age_s=age_s: at.fromtimestamp(age_s, at.tzinfo)
        )
        store.claim(job.id, "w")
        monkeypatch.undo()
    found = {field[2]: number for field, number in counts.read(store.redis).items() if field[0] == "wait"}

    assert found == {"1.0": 1, "5.0": 1, "+Inf": 1}

"""Records in a real Redis: all is written or nothing, one attempt holds a job, and a stale one writes no more."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs import events
from jobs.errors import IdempotencyConflict, IllegalTransition, JobNotFound, StaleAttempt
from jobs.gpu_class import CPU
from jobs.queue import DeliveryJob, ForbiddenFunction
from jobs.record import Commit, JobRecord, advance, now
from jobs.status import Status
from jobs.store import Progress

pytestmark = pytest.mark.integration


def statuses(store, job_id: str) -> list[str]:
    return [event.data["to"] for event in events.read(store.redis, job_id) if event.kind == "status"]


def test_a_submission_is_record_index_event_and_delivery(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))

    assert store.get(job.id) == job
    assert [each.id for each in store.page("me", Status.QUEUED).jobs] == [job.id]
    assert statuses(store, job.id) == ["queued"]
    assert store.queues.tickets() == [f"{job.id}_1"]


def test_a_submission_that_fails_half_way_leaves_nothing(store, make_spec, monkeypatch):
    monkeypatch.setattr(store.writer, "_enter", lambda *_: 1 / 0)  # the last write of the transaction

    with pytest.raises(ZeroDivisionError):
        store.submit(JobRecord.create("me", make_spec()), "key")

    assert [key for key in store.redis.keys("*") if b"loraq" in key] == []


def test_an_idempotency_key_gives_one_job_and_refuses_another_body(store, make_spec):
    spec = make_spec()
    with ThreadPoolExecutor(10) as pool:
        jobs = list(pool.map(lambda _: store.submit(JobRecord.create("me", spec), "key"), range(50)))

    assert len({job.id for job in jobs}) == 1
    assert len(store.queues.tickets()) == 1
    assert store.submit(JobRecord.create("you", spec), "key").id != jobs[0].id  # a key is its owner's
    with pytest.raises(IdempotencyConflict, match=jobs[0].id):
        store.submit(JobRecord.create("me", make_spec(name="another")), "key")


def test_an_idempotency_key_is_kept_for_seven_days(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()), "key")
    store.claim(job.id, "worker")
    store.move(job.id, 1, Status.FAILED)  # its end changes nothing of that

    (key,) = store.redis.keys("loraq:idempotency:*")
    assert 7 * 86_400 - 60 < store.redis.ttl(key) <= 7 * 86_400


def test_of_many_deliveries_one_claims(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    gate = threading.Barrier(8)

    def claim(number: int) -> JobRecord | None:
        gate.wait()
        return store.claim(job.id, f"worker-{number}")

    with ThreadPoolExecutor(8) as pool:
        claims = [record for record in pool.map(claim, range(8)) if record is not None]

    assert len(claims) == 1
    assert store.get(job.id).attempts == claims[0].attempts


def test_a_stale_attempt_writes_neither_status_nor_progress(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    store.claim(job.id, "worker-1")
    store.move(job.id, 1, Status.QUEUED)
    store.claim(job.id, "worker-2")

    with pytest.raises(StaleAttempt, match="attempt 2"):
        store.move(job.id, 1, Status.TRAINING)
    with pytest.raises(StaleAttempt):
        store.report(job.id, Progress(attempt=1, phase="training", at=now()))
    assert store.get(job.id).status is Status.PREPARING
    assert store.progress(job.id) is None


def test_a_stale_attempt_commits_nothing_and_a_cancel_behind_a_commit_changes_nothing(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    for worker in ("worker-1", "worker-2"):
        store.claim(job.id, worker)
        store.move(job.id, store.get(job.id).attempt.number, Status.TRAINING)
        store.move(job.id, store.get(job.id).attempt.number, Status.UPLOADING)
        if worker == "worker-1":
            store.give_back(job.id, 1, None)

    with pytest.raises(StaleAttempt, match="attempt 2"):
        store.commit(job.id, 1, "1" * 64)
    committed = store.commit(job.id, 2, "2" * 64)
    assert committed.commit == Commit(attempt=2, sha256="2" * 64)
    assert store.request_cancel(job.id) == committed


def test_a_job_that_goes_back_is_delivered_again(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    store.claim(job.id, "worker-1")
    store.move(job.id, 1, Status.QUEUED)

    assert store.queues.tickets()[-1] == f"{job.id}_2"


def test_a_final_job_stays_as_it_is(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))
    cancelled = store.request_cancel(job.id)

    assert store.request_cancel(job.id) == cancelled
    with pytest.raises(IllegalTransition):
        store.change(job.id, lambda record: advance(record, Status.QUEUED))


def test_high_priority_goes_before_the_owner_s_others(store, make_spec):
    normal = store.submit(JobRecord.create("me", make_spec()))
    high = store.submit(JobRecord.create("me", make_spec(priority="high")))

    assert [store.next_turn(f"worker-{n}").id for n in (1, 2)] == [high.id, normal.id]


def test_pages_hold_every_job_once_newest_first(store, make_spec):
    made = [store.submit(JobRecord.create("me", make_spec())).id for _ in range(7)]
    store.submit(JobRecord.create("you", make_spec()))

    seen: list[str] = []
    cursor = None
    while True:
        page = store.page("me", cursor=cursor, limit=3)
        seen += [job.id for job in page.jobs]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == sorted(made, reverse=True)


def test_another_owner_s_job_looks_like_none(store, make_spec):
    job = store.submit(JobRecord.create("me", make_spec()))

    with pytest.raises(JobNotFound) as theirs:
        store.get(job.id, owner="you")
    assert str(theirs.value).replace(job.id, "x") == str(JobNotFound("x"))


def test_what_loraq_never_enqueued_is_not_called(store):
    store.queues.of(CPU).enqueue("os.getpid")
    (job_id,) = store.queues.of(CPU).job_ids
    job = DeliveryJob.fetch(job_id, connection=store.redis, serializer=JSONSerializer)

    with pytest.raises(ForbiddenFunction, match=r"os\.getpid"):
        job.perform()
    assert Job.fetch(job_id, connection=store.redis, serializer=JSONSerializer).func_name == "os.getpid"

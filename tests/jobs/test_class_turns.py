"""Turns by class of GPUs: nothing lands on too small a card, large cards help when idle, and it stays fair."""

import pytest

from jobs.gpu_class import GpuClass
from jobs.queue import DeliveryJob, Queues, ticket_of
from jobs.record import JobRecord, now
from jobs.status import Status
from jobs.store import Store
from jobs.waiting import why_it_waits
from jobs.workers import WorkerInfo, announce, leave, living_classes, workers

pytestmark = pytest.mark.integration

SMALL, LARGE = GpuClass.parse("12gb"), GpuClass.parse("80gb")


@pytest.fixture
def submit(store, make_spec):
    """Submits a job that needs so many GB of a card."""
    return lambda owner, gb, **changes: store.submit(
        JobRecord.create(owner, make_spec(memory={"budget_gib": gb}, **changes))
    )


@pytest.fixture
def living(store):
    """Lets a worker of a class live."""

    def live(gpu_class: GpuClass | str, refuses: str | None = None) -> str:
        name = f"worker-{gpu_class}"
        worker = WorkerInfo(
            name=name,
            host="here",
            pid=1,
            queue="q",
            gpu_class=str(gpu_class),
            gpus=(),
            refuses=refuses,
            started_at=now(),
            seen_at=now(),
        )
        announce(store.redis, worker)
        return name

    return live


def tickets(store) -> dict[str, int]:
    counts = {each.name: store.queues.of(each).count for each in store.queues.used()}
    return {name: count for name, count in counts.items() if count}


def test_a_job_of_24_gb_never_lands_on_a_card_of_12(store, submit, living):
    living(SMALL)
    submit("me", 24)

    assert store.next_turn("small", SMALL) is None
    assert store.next_turn("none", GpuClass.parse("none")) is None
    assert store.next_turn("two small ones", GpuClass.parse("12gb-x2")) is None
    assert not store.offer_turn(SMALL)
    assert store.next_turn("large", LARGE) is not None


def test_a_job_of_two_gpus_never_lands_on_a_worker_of_one(store, submit, living):
    living(LARGE)
    submit("me", 12, gpus=2)

    assert tickets(store) == {"12gb-x2": 1}
    assert store.next_turn("one", LARGE) is None
    assert not store.offer_turn(LARGE)
    assert store.next_turn("two", GpuClass.parse("12gb-x2")) is not None


def test_a_worker_without_gpu_takes_no_job_of_more_ranks_than_it_can_bear_and_the_job_says_so(store, submit, living):
    living("cpu")
    job = submit("me", 12, gpus=5)

    assert store.next_turn("cpu", GpuClass.parse("cpu")) is None
    assert "5 GPUs of 12 GB each, and no worker has that" in why_it_waits(store.redis, job)
    assert "1 with a CPU, which stands in for 4 GPUs at most" in why_it_waits(store.redis, job)


def test_a_ticket_lies_with_the_smallest_worker_that_lives_and_fits(store, submit, living):
    submit("me", 12)
    assert tickets(store) == {"12gb": 1}  # nobody lives: its own class
    living(LARGE)
    submit("me", 12)
    assert tickets(store) == {"12gb": 1, "80gb": 1}
    living("16gb")
    submit("me", 12)
    assert tickets(store) == {"12gb": 1, "16gb": 1, "80gb": 1}


def test_a_class_that_can_be_started_counts_like_one_that_lives(store, make_spec):
    installed = Store(store.redis, Queues(store.queues.name, store.redis, [GpuClass.parse("24gb")]))
    installed.submit(JobRecord.create("me", make_spec()))

    assert tickets(store) == {"24gb": 1}


def test_a_large_card_takes_its_own_jobs_first_and_small_ones_when_there_are_none(store, submit, living):
    living(SMALL), living(LARGE)
    small, large = submit("alice", 12), submit("bob", 48)

    assert store.next_turn("large-1", LARGE).id == large.id
    assert tickets(store) == {"12gb": 1, "80gb": 1}
    assert store.next_turn("large-2", LARGE).id == small.id
    assert tickets(store) == {"80gb": 1}  # no worker is woken, or started, for what another has taken
    assert DeliveryJob.exists(ticket_of(small.id, 1), connection=store.redis)  # RQ may be using it
    assert store.next_turn("small", SMALL) is None


def test_owners_take_turns_within_what_a_worker_may_take(store, submit, living):
    living(SMALL), living(LARGE)
    for _ in range(3):
        submit("alice", 48)
    submit("bob", 48), submit("bob", 12), submit("carol", 12)

    order = []
    for _ in range(6):
        record = store.next_turn("w", LARGE)
        order.append((record.owner, record.needs))
        store.move(record.id, 1, Status.CANCELLED)  # so that none runs

    assert order[:4] == [("alice", "48gb"), ("bob", "48gb"), ("alice", "48gb"), ("alice", "48gb")]
    assert sorted(order[4:]) == [("bob", "12gb"), ("carol", "12gb")]


def test_within_one_owner_priority_goes_before_age_whatever_the_class(store, submit):
    submit("me", 12), submit("me", 24)
    high = submit("me", 24, priority="high")

    assert store.next_turn("w", LARGE).id == high.id


def test_an_idle_worker_is_offered_what_waits_elsewhere_and_one_ticket_only(store, submit, living):
    living(SMALL), living(LARGE)
    submit("me", 12), submit("me", 12)

    assert store.offer_turn(LARGE)
    assert tickets(store) == {"12gb": 2, "80gb": 1}
    assert not store.offer_turn(LARGE)
    assert store.next_turn("large", LARGE) is not None


def test_tickets_follow_when_the_home_of_jobs_changes(store, submit, living):
    submit("me", 12), submit("me", 12)
    living(LARGE)

    assert store.missing_tickets() == {SMALL: -2, LARGE: 2}
    for gpu_class, count in store.missing_tickets().items():
        store.add_tickets(gpu_class, count)
    assert tickets(store) == {"80gb": 2}


def test_an_owner_s_limit_counts_over_all_classes(store, submit, living):
    limited = Store(store.redis, store.queues, max_running_per_owner=1)
    living(SMALL), living(LARGE)
    submit("me", 12), submit("me", 48)

    assert limited.next_turn("small", SMALL) is not None
    assert limited.next_turn("large", LARGE) is None
    assert limited.missing_tickets() == {SMALL: -1, LARGE: -1}


def test_a_job_that_no_worker_can_take_says_so_to_whoever_asks(store, submit, living):
    job = submit("me", 24)
    assert "needs a GPU of 24 GB, and no worker has that; workers that live: none" in why_it_waits(store.redis, job)
    living(SMALL), living("none", refuses="It has no GPU.")
    assert "1 with no GPU, 1 with a GPU of 12 GB" in why_it_waits(store.redis, job)
    assert store.beyond_all_workers() == {GpuClass.parse("24gb"): 1}
    living("24gb")
    assert why_it_waits(store.redis, job) is None
    assert store.beyond_all_workers() == {}


def test_a_worker_that_leaves_takes_its_class_along_unless_another_has_it(store, living):
    name = living(LARGE)
    announce(store.redis, workers(store.redis)[0].model_copy(update={"name": "another"}))
    leave(store.redis, name)
    assert living_classes(store.redis) == {LARGE}
    leave(store.redis, "another")
    assert living_classes(store.redis) == frozenset()
    assert workers(store.redis) == []


def test_a_worker_that_says_nothing_any_more_is_forgotten(store, living):
    name = living(LARGE)
    store.redis.delete(f"loraq:worker:{name}")  # as by expiry

    assert workers(store.redis) == []
    assert store.redis.scard("loraq:workers") == 0


def test_a_record_from_before_there_were_classes_gets_its_own(store, submit):
    job = submit("me", 24)
    old = job.model_dump(mode="json")
    del old["needs"]

    assert JobRecord.model_validate(old).needs == "24gb"

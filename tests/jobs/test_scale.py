"""What has ended slows nothing: Redis is asked as often, and answers as briefly, however many jobs have finished.

Counted, not timed. benchmarks/submit_load.py times the same with 100,000.
"""

from collections.abc import Callable

import pytest

from jobs import turns
from jobs.record import JobRecord, advance, begin_attempt, commit
from jobs.status import Status
from jobs.writing import Writer

pytestmark = pytest.mark.integration

FINISHED = 1000
FINISHED_OWNERS = 50


@pytest.fixture
def submit(store, make_spec):
    return lambda owner="me": store.submit(JobRecord.create(owner, make_spec()))


def cost(store, call: Callable[[], object]) -> tuple[int, int]:
    """Commands that Redis carried out for `call`, and bytes that it answered."""
    before = store.redis.info("stats")
    call()
    after = store.redis.info("stats")
    count, size = (after[name] - before[name] for name in ("total_commands_processed", "total_net_output_bytes"))
    return count, size


class Unticketed(Writer):
    """Nobody would use the tickets."""

    def _enter(self, pipeline, record) -> None:
        turns.enter(pipeline, record)


def finish_many(store, make_spec) -> None:
    """Jobs of `me` and of other owners that have succeeded, through the writer that every change goes through."""
    writer, spec = Unticketed(store.queues, limited=False), make_spec()
    with store.redis.pipeline(transaction=False) as pipeline:
        for number in range(FINISHED):
            record = JobRecord.create("me" if number % 2 else f"owner-{number % FINISHED_OWNERS}", spec)
            writer.write(pipeline, None, record)
            for new in (begin_attempt(record, "w"), *_ends(begin_attempt(record, "w"))):
                writer.write(pipeline, record, new)
                record = new
        pipeline.execute()
    turns.forget_idle(store.redis)


def _ends(record: JobRecord):
    for to in (Status.TRAINING, Status.UPLOADING):
        record = advance(record, to)
        yield record
    record = commit(record, "0" * 64)
    yield record
    yield advance(record, Status.SUCCEEDED)


@pytest.mark.parametrize("limit", [None, 3])
def test_submit_list_and_claim_ask_redis_for_no_more_when_a_thousand_jobs_have_finished(
    store, submit, make_spec, limit
):
    store.max_running_per_owner = limit
    for _ in range(60):
        submit()
    for _ in range(5):
        submit("you")

    def costs() -> dict[str, tuple[int, int]]:
        return {
            "submit": cost(store, submit),
            "list": cost(store, lambda: store.page("me", limit=20)),
            "list queued": cost(store, lambda: store.page("me", Status.QUEUED, limit=20)),
            "claim": cost(store, lambda: store.next_turn("w")),
            "missing tickets": cost(store, store.missing_tickets),
        }

    costs()  # opens the connections
    before = costs()
    finish_many(store, make_spec)
    for _ in range(21):  # so that the newest page holds the same jobs
        submit()
    after = costs()

    for what, (commands, answered_bytes) in after.items():
        assert commands == before[what][0], what
        assert answered_bytes < before[what][1] * 1.1 + 500, what  # ids and counts have a few more digits

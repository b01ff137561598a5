"""The status table, the record that moves along it, and the page that shows it."""

import itertools
from pathlib import Path

import pytest

from jobs.errors import FailureReason, IllegalTransition
from jobs.record import Failure, JobRecord, advance, begin_attempt, commit, give_back
from jobs.retries import RetryPolicy
from jobs.spec_text import read_spec
from jobs.status import TRANSITIONS, Status, check_transition

ROOT = Path(__file__).parents[2]
SPEC = read_spec((ROOT / "jobs" / "examples" / "photos.yaml").read_text())
FAILURE = Failure(reason=FailureReason.CRASHED, message="It crashed.")


def table_rows(heading: str) -> list[list[str]]:
    """Cells of the Markdown table in docs/lifecycle.md that starts with `heading`."""
    text = (ROOT / "docs" / "lifecycle.md").read_text()
    rows = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_page_shows_the_table():
    shown = {row[0]: set() if "nothing" in row[1] else set(row[1].split(", ")) for row in table_rows("| from | to |")}

    assert shown == {str(status): {str(to) for to in targets} for status, targets in TRANSITIONS.items()}


def test_the_page_explains_every_failure_reason():
    shown = {row[0]: row[2] == "yes" for row in table_rows("| reason |")}

    assert shown == {str(reason): reason.retryable for reason in FailureReason}


@pytest.mark.parametrize(("current", "to"), list(itertools.product(Status, Status)))
def test_no_arrow_but_the_table_s(current, to):
    if to in TRANSITIONS[current]:
        check_transition(current, to)
    else:
        with pytest.raises(IllegalTransition, match=f"{current} cannot become {to}"):
            check_transition(current, to)


def test_final_states_lead_nowhere():
    assert {status for status in Status if status.final} == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


def test_an_attempt_carries_the_job_and_ends_with_it():
    claimed = begin_attempt(JobRecord.create("me", SPEC), "worker-1")
    uploading = advance(advance(claimed, Status.TRAINING), Status.UPLOADING)
    done = advance(commit(uploading, "0" * 64), Status.SUCCEEDED)

    assert (claimed.status, claimed.attempt.number, claimed.attempt.ended_at) == (Status.PREPARING, 1, None)
    assert (done.attempt.outcome, done.failure) == ("succeeded", None)
    assert done.attempt.ended_at is not None


def test_a_preempted_job_waits_again_and_its_next_attempt_has_the_next_number():
    waiting = advance(begin_attempt(JobRecord.create("me", SPEC), "worker-1"), Status.QUEUED)
    again = begin_attempt(waiting, "worker-2")

    assert waiting.attempt.outcome == "preempted"
    assert [attempt.number for attempt in again.attempts] == [1, 2]


def test_a_failed_job_keeps_its_reason_in_record_and_attempt():
    failed = advance(begin_attempt(JobRecord.create("me", SPEC), "worker-1"), Status.FAILED, FAILURE)

    assert failed.failure == failed.attempt.failure == FAILURE
    assert failed.attempt.outcome == "failed"


def test_ids_sort_by_time_and_fit_rq():
    records = [JobRecord.create("me", SPEC) for _ in range(3)]

    assert sorted(records, key=lambda r: r.id[:18]) == sorted(records, key=lambda r: r.created_at.isoformat()[:23])
    assert all(set(record.id) <= set("0123456789abcdef-") for record in records)


def test_a_job_that_has_committed_its_output_can_but_succeed():
    uploading = advance(advance(begin_attempt(JobRecord.create("me", SPEC), "w"), Status.TRAINING), Status.UPLOADING)
    committed = commit(uploading, "0" * 64)
    cancelled = committed.model_copy(update={"cancel_requested_at": committed.updated_at})

    assert commit(committed, "1" * 64) == committed
    for failure in (None, FAILURE):
        assert give_back(committed, failure, RetryPolicy()).status is Status.SUCCEEDED
        assert give_back(cancelled, failure, RetryPolicy()).status is Status.SUCCEEDED
    for to in (Status.QUEUED, Status.FAILED, Status.CANCELLED):
        with pytest.raises(IllegalTransition, match="has committed its output"):
            advance(committed, to)


def test_nothing_succeeds_without_an_output_and_nothing_is_committed_early_or_after_a_cancel():
    training = advance(begin_attempt(JobRecord.create("me", SPEC), "w"), Status.TRAINING)
    uploading = advance(training, Status.UPLOADING)
    cancelled = uploading.model_copy(update={"cancel_requested_at": uploading.updated_at})

    with pytest.raises(IllegalTransition, match="has committed no output"):
        advance(uploading, Status.SUCCEEDED)
    with pytest.raises(IllegalTransition, match="only one that is uploading"):
        commit(training, "0" * 64)
    assert commit(cancelled, "0" * 64) == cancelled

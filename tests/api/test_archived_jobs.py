"""An archived job looks to its owner as it did before."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.client import Loraq
from api.client_errors import ApiError
from jobs.archive import Archiver
from jobs.record import JobRecord
from jobs.status import Status
from jobs.store import Store

pytestmark = pytest.mark.integration


@pytest.fixture
def archive(store: Store, storage) -> Callable[[], int]:
    """Archive all jobs that have ended."""
    return Archiver(store.redis, storage, after_s=0).archive


def test_it_is_shown_listed_followed_and_pulled(
    loraq: Loraq, make_spec, end_job: Callable[..., JobRecord], archive, tmp_path: Path
) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, files={"lora.safetensors": b"weights"})
    shown, told = loraq.get(job_id), list(loraq.events(job_id, follow=False))
    assert archive() == 1

    assert loraq.get(job_id) == shown.model_copy(update={"progress": None})
    assert list(loraq.events(job_id, follow=False)) == told
    assert list(loraq.events(job_id)) == told  # a stream, too, and it ends
    assert list(loraq.events(job_id, after=told[-1].id)) == []
    assert loraq.wait(job_id).status is Status.SUCCEEDED
    loraq.pull(job_id, tmp_path)
    assert (tmp_path / "lora.safetensors").read_bytes() == b"weights"
    assert loraq.cancel(job_id).status is Status.SUCCEEDED
    with pytest.raises(ApiError) as refused:
        loraq.retry(job_id)
    assert refused.value.code == "not_retryable"


def test_pages_hold_every_job_once_newest_first_archived_or_not(
    loraq: Loraq, make_spec, end_job: Callable[..., JobRecord], archive, client_of
) -> None:
    made = [loraq.submit(make_spec()).id for _ in range(9)]
    for job_id, to in zip(made[::2], [Status.SUCCEEDED, Status.FAILED] * 3, strict=False):
        end_job(job_id, to)
    assert archive() == 5
    end_job(made[3])

    for limit in (1, 2, 3, 5, 9, 50):
        seen, cursor, pages = [], None, 0
        while True:
            page = loraq.list(limit=limit, cursor=cursor)
            seen += page.jobs
            pages += 1
            if (cursor := page.next_cursor) is None:
                break
        assert [job.id for job in seen] == made[::-1]
        assert pages == -(-9 // limit)  # no page is empty
        assert [job.archived for job in seen] == [n % 2 == 0 for n in range(9)]
    assert [job.id for job in loraq.list(Status.FAILED).jobs] == [made[6], made[2]]
    assert {job.failure.reason for job in loraq.list(Status.FAILED).jobs} == {"nan_loss"}
    assert [job.id for job in loraq.list(Status.SUCCEEDED).jobs] == [made[8], made[4], made[3], made[0]]
    assert [job.id for job in loraq.list(Status.QUEUED).jobs] == [made[7], made[5], made[1]]
    assert client_of("bob").list().jobs == ()


def test_a_retry_of_it_is_a_new_job(loraq: Loraq, make_spec, end_job: Callable[..., JobRecord], archive) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id, Status.FAILED)
    archive()

    again = loraq.retry(job_id)

    assert (again.status, again.retry_of) == (Status.QUEUED, (job_id,))
    assert loraq.retry(job_id).id == again.id


def test_it_is_its_owner_s(loraq: Loraq, make_spec, end_job, archive, client_of) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id)
    archive()
    bob = client_of("bob")

    for ask in (bob.get, bob.cancel, bob.retry, bob.artifacts, lambda job: list(bob.events(job, follow=False))):
        with pytest.raises(ApiError) as refused:
            ask(job_id)
        assert refused.value.code == "job_not_found"


def test_the_command_line_shows_it(loraq: Loraq, url, make_spec, end_job, archive, monkeypatch) -> None:
    job_id = loraq.submit(make_spec()).id
    end_job(job_id)
    archive()
    monkeypatch.setenv("LORAQ_API_URL", url)
    monkeypatch.setenv("LORAQ_API_TOKEN", loraq._http.headers["Authorization"].removeprefix("Bearer "))

    for command in (["show", job_id], ["list"], ["logs", job_id]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        assert "succeeded" in result.output

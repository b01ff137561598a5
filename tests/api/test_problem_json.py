"""Every error is problem+json with a stable code, and none shows our insides."""

from collections.abc import Callable
from time import monotonic, sleep

import httpx
import pytest

from api.access_log import AccessLog
from api.schemas import ProblemDetails
from api.servers import free_port
from jobs.errors import StorageUnavailable
from jobs.record import JobRecord
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.storage import Storage
from jobs.store import Store

pytestmark = pytest.mark.integration


def _problem(answer: httpx.Response, status: int, code: str) -> ProblemDetails:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = ProblemDetails.model_validate_json(answer.content)
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert problem.type == f"urn:loraq:problem:{code}"
    assert problem.instance == answer.request.url.path
    return problem


def test_unknown_paths_and_methods(url: str, alice: dict[str, str]) -> None:
    _problem(httpx.get(f"{url}/v1/nothing", headers=alice), 404, "not_found")
    answer = httpx.delete(f"{url}/v1/jobs", headers=alice)
    _problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


def test_an_unknown_job(url: str, alice: dict[str, str]) -> None:
    assert "loraq list" in _problem(httpx.get(f"{url}/v1/jobs/x", headers=alice), 404, "job_not_found").detail


def test_redis_out_of_reach(serve: Callable[[Settings], str], make_settings: Callable[..., Settings]) -> None:
    url = serve(make_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    answer = httpx.get(f"{url}/v1/jobs", headers={"Authorization": "Bearer lrq_x"}, timeout=30)
    problem = _problem(answer, 503, "redis_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert "127.0.0.1" not in problem.detail


def test_an_object_store_out_of_reach_is_a_503(
    url: str,
    alice: dict[str, str],
    make_spec: Callable[..., JobSpec],
    monkeypatch: pytest.MonkeyPatch,
    end_job: Callable[..., JobRecord],
) -> None:
    def unavailable(*_: object) -> bytes:
        raise StorageUnavailable("The object store did not answer.")

    job_id = httpx.post(f"{url}/v1/jobs", json=make_spec().model_dump(mode="json"), headers=alice).json()["id"]
    end_job(job_id)
    monkeypatch.setattr(Storage, "read", unavailable)
    _problem(httpx.get(f"{url}/v1/jobs/{job_id}/artifacts", headers=alice), 503, "storage_unavailable")


def test_a_bug_of_ours_shows_no_insides(
    url: str, alice: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret insides")

    monkeypatch.setattr(Store, "page", broken)
    answer = httpx.get(f"{url}/v1/jobs", headers=alice)
    problem = _problem(answer, 500, "internal_error")
    assert "secret insides" not in answer.text
    assert answer.headers["X-Request-ID"] in problem.detail
    assert "secret insides" in caplog.text  # but the log has them


def test_each_request_is_logged_on_one_line(url: str, alice: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=AccessLog.__module__)
    answer = httpx.get(f"{url}/v1/jobs/a%0Ab", headers=alice)
    deadline = monotonic() + 5
    while not caplog.records:  # it is written when the answer is out
        assert monotonic() < deadline
        sleep(0.01)
    line = caplog.records[-1]
    assert line.getMessage().startswith("GET /v1/jobs/a%0Ab gave 404 in ")
    assert line.__dict__["request_id"] == answer.headers["X-Request-ID"]
    assert alice["Authorization"].removeprefix("Bearer ") not in caplog.text

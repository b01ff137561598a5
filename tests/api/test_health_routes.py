"""/healthz and /readyz tell a supervisor what to do, and never keep it waiting."""

import threading
from collections.abc import Callable
from time import monotonic

import httpx
import pytest

from api.readiness import Readiness
from api.servers import free_port
from jobs.settings import Settings


@pytest.mark.integration
def test_ready_when_redis_and_all_buckets_answer(url: str) -> None:
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"] == {
        "redis": "ok",
        "bucket datasets": "ok",
        "bucket models": "ok",
        "bucket outputs": "ok",
    }


@pytest.mark.integration
def test_alive_but_not_ready_without_redis_or_a_bucket(
    serve: Callable[[Settings], str], make_settings: Callable[..., Settings]
) -> None:
    url = serve(
        make_settings(
            redis_url=f"redis://127.0.0.1:{free_port()}/0", readable=("s3://models/",), writable=("s3://missing/",)
        )
    )
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    answer = httpx.get(f"{url}/readyz", timeout=20)
    checks = answer.json()["checks"]
    assert answer.status_code == 503
    assert checks["bucket models"] == "ok"
    assert "no bucket 'missing'" in checks["bucket missing"]
    assert checks["redis"] != "ok"


def test_a_check_that_hangs_is_waited_for_briefly_and_not_started_twice() -> None:
    go_on, started = threading.Event(), []

    def hang() -> None:
        started.append(1)
        go_on.wait(10)

    readiness = Readiness({"hangs": hang, "works": lambda: None})
    begin = monotonic()
    for _ in range(3):
        assert readiness.look(timeout_s=0.1) == {"hangs": "no answer within 0 s", "works": "ok"}
    assert monotonic() - begin < 5
    assert len(started) == 1
    go_on.set()
    assert readiness.look(timeout_s=5)["hangs"] == "ok"
    readiness.close()

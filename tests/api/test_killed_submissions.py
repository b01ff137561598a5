"""The API is killed between any two commands of a submission: the job is whole or not there; to ask again is safe."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from pydantic import SecretStr

from api.auth import create_token
from api.servers import free_port
from jobs.spec import JobSpec
from jobs.store import Store
from tests.faults.redis_proxy import RedisProxy
from tests.integration.conftest import worker_env

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FORKS = """
import os, sys, uvicorn
from api.app import create_app
from jobs.settings import Settings

app = create_app(Settings())  # once: some forty processes serve it here
for port in sys.stdin:
    pid = os.fork()
    if pid == 0:
        uvicorn.run(app, port=int(port), log_config=None)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def proxy(redis_server) -> Iterator[RedisProxy]:
    with RedisProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def start(proxy, redis_server, settings) -> Iterator[Callable[[], tuple[int, str]]]:
    """Starts the API as a process of its own, once the one before has ended. Gives its id and its URL."""
    through = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
    env = worker_env(settings.model_copy(update={"redis_url": SecretStr(through)}))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=env, **pipes) as forks:

        def serve() -> tuple[int, str]:
            port = free_port()
            forks.stdin.write(f"{port}\n")
            forks.stdin.flush()
            pid = int(forks.stdout.readline())
            wait_until_it_listens(port)
            return pid, f"http://127.0.0.1:{port}"

        yield serve


def submit(url: str, token: str, spec: JobSpec) -> httpx.Response | None:
    """The answer; None if there was none, because the API died."""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "once"}
    try:
        return httpx.post(f"{url}/v1/jobs", json=spec.model_dump(mode="json"), headers=headers, timeout=60)
    except httpx.TransportError:
        return None


def there(store: Store) -> dict[str, set[str]]:
    """Which jobs each part of a submission names. Keys that no submission writes are left out."""
    keys = [key.decode() for key in store.redis.keys("loraq:*")]
    return {
        "records": {key.split(":")[2] for key in keys if key.startswith("loraq:job:") and key.count(":") == 2},
        "events": {key.split(":")[2] for key in keys if key.startswith("loraq:job:") and key.endswith(":events")},
        "list": {job.id for job in store.page("alice").jobs},
        "tickets": {ticket.rpartition("_")[0] for ticket in store.queues.tickets()},
        "rq jobs": {key.decode().split(":")[2].rpartition("_")[0] for key in store.redis.keys("rq:job:*")},
        "unsaved": {job_id.decode() for job_id in store.redis.zrange("loraq:unsaved", 0, -1)},
        "keys": {
            value.decode().split('"')[3]
            for key in keys
            if key.startswith("loraq:idempotency:") and (value := store.redis.get(key))
        },
        "audit": {
            fields[b"subject"].decode()
            for key in keys
            if key.startswith("loraq:audit")
            for _, fields in store.redis.xrange(key)
        },
    }


def test_the_job_is_whole_or_not_there(proxy, start, store, url, make_spec):
    spec = make_spec()
    killed_before: list[str] = []
    for number in range(200):
        store.redis.flushall()
        token = create_token(store.redis, "alice")
        pid, its_url = start()
        proxy.kill_before(number, pid)

        answer = submit(its_url, token, spec)

        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        found = there(store)
        assert len({frozenset(ids) for ids in found.values()}) == 1, (proxy.killed_before, found)
        if answer is not None:
            assert (answer.status_code, {answer.json()["id"]}) == (201, found["records"])
            break
        killed_before.append(proxy.killed_before)
        again = submit(url, token, spec)
        assert found["records"] in (set(), {again.json()["id"]})
        assert there(store)["records"] == {again.json()["id"]}

    assert answer is not None
    begun = killed_before.index("MULTI")
    written = killed_before[begun:]
    assert {"GET", "WATCH"} <= set(killed_before[:begun])
    assert {"SET", "ZADD", "XADD", "HSET", "EXEC"} <= set(written), written


def wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz")
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)

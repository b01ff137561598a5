"""What the job store and its API take: 200 submissions a second for a minute, and 100,000 finished jobs besides.

    python benchmarks/submit_load.py [--rate 200] [--seconds 60] [--finished 100000]

A real Redis-protocol server with `appendfsync always`, the API as `python -m api` starts it, and this process as the
users, over HTTP on loopback. Arrivals keep to the clock, whether or not the API has answered the one before, and a
latency counts from when the request was due. Prints JSON lines.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from redis import Redis

from api.auth import create_token
from api.servers import RedisServer, free_port
from jobs import events, turns
from jobs.queue import Queues
from jobs.record import JobRecord, advance, begin_attempt, commit, now
from jobs.spec_text import read_spec
from jobs.status import Status
from jobs.store import Progress, Store
from jobs.writing import Writer

OWNERS = 20
CONNECTIONS = 32
MEASURES = 300
FULL_PAGES = 5
"""Owners whose requests are timed: so few that each has a page full of jobs, also where no job has finished."""

EVENTS_A_JOB = 30
SPEC = Path(__file__).parent.parent / "jobs" / "examples" / "photos.yaml"


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--finished", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:
        redis = Redis.from_url(server.url)
        store = Store(redis, Queues("loraq", redis))
        with api(server.url, Path(folder)) as port:
            say("load", **asyncio.run(load(port, tokens(redis), options.rate, options.seconds)), **acknowledged(store))
            for finished in (0, options.finished, 0):
                redis.flushall()
                say(f"{finished} finished", **memory(redis, finished) | latencies(store, port, tokens(redis)))


def say(case: str, **figures: object) -> None:
    """One line of results."""
    print(json.dumps({"case": case, "load_average": round(os.getloadavg()[0], 1), **figures}), flush=True)


@contextmanager
def api(redis_url: str, folder: Path) -> Iterator[int]:
    """The API as a process of its own; gives its port."""
    port = free_port()
    opened = {"LORAQ_READABLE": "s3://datasets/,s3://models/", "LORAQ_WRITABLE": "s3://outputs/"}
    env = os.environ | {"LORAQ_REDIS_URL": redis_url, "LORAQ_S3_ENDPOINT_URL": "http://127.0.0.1:9"} | opened
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api", "--port", str(port)], env=env, stdout=log, stderr=log)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def tokens(redis: "Redis") -> list[str]:
    """One for each owner."""
    return [create_token(redis, f"owner-{number}") for number in range(OWNERS)]


async def load(port: int, owners: list[str], rate: float, seconds: float) -> dict[str, object]:
    """Submit at a steady rate."""
    body = json.dumps(read_spec(SPEC.read_bytes()).model_dump(mode="json")).encode()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await Connection.open(port))
    answers: list[tuple[int, float]] = []

    async def submit(number: int, due_s: float) -> None:
        connection = await idle.get()
        status = await connection.post("/v1/jobs", owners[number % OWNERS], body)
        answers.append((status, time.monotonic() - due_s))
        idle.put_nowait(connection)

    begin_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due_s = begin_s + number / rate
            await asyncio.sleep(due_s - time.monotonic())
            group.create_task(submit(number, due_s))
    took_s = time.monotonic() - begin_s
    bad = [status for status, _ in answers if status != 201]
    return {
        "submitted": len(answers),
        "errors": len(bad),
        "per_second": round(len(answers) / took_s, 1),
        **percentiles("submit", [s for _, s in answers]),
    }


def acknowledged(store: Store) -> dict[str, object]:
    """What Redis holds, to set against what was acknowledged."""
    owners = [f"owner-{number}" for number in range(OWNERS)]
    queued = sum(store.redis.zcard(turns.index_key(owner, Status.QUEUED)) for owner in owners)
    return {"in_redis": queued, "tickets": len(store.queues.tickets())}


class Connection:
    """HTTP/1.1 with keep-alive, and no more: the users should cost little beside the API."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """A connection to the API."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, token: str, body: bytes) -> int:
        """Post JSON. Returns the status of the answer."""
        head = f"POST {path} HTTP/1.1\r\nHost: loraq\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        await self._reader.readexactly(int(answer.partition("content-length: ")[2].partition("\r\n")[0]))
        return int(answer.split()[1])


def memory(redis: "Redis", finished: int) -> dict[str, object]:
    """Write finished jobs, as a life of each would have left them, and say what they cost."""
    before = redis.info("memory")["used_memory"]
    sizes = write_finished(redis, finished) if finished else 0
    cost = redis.info("memory")["used_memory"] - before
    return {"redis_bytes_a_job": round(cost / finished), "of_it_record": sizes} if finished else {}


class _Unticketed(Writer):
    """Nobody would use the tickets."""

    def _enter(self, pipeline, record) -> None:
        turns.enter(pipeline, record)


def write_finished(redis: "Redis", count: int) -> int:
    """Jobs that have succeeded, with all that their changes write. Returns the size of a record, as JSON."""
    spec = read_spec(SPEC.read_bytes())
    writer = _Unticketed(Queues("loraq", redis), limited=False)
    record = None
    for first in range(0, count, 100):
        with redis.pipeline(transaction=False) as pipeline:
            for number in range(first, min(first + 100, count)):
                record = JobRecord.create(f"owner-{number % OWNERS}", spec)
                writer.write(pipeline, None, record)
                changes: list[Callable[[JobRecord], JobRecord]] = [lambda old: begin_attempt(old, "worker")]
                changes += [lambda old, to=to: advance(old, to) for to in (Status.TRAINING, Status.UPLOADING)]
                changes += [lambda old: commit(old, "0" * 64), lambda old: advance(old, Status.SUCCEEDED)]
                for change in changes:
                    new = change(record)
                    writer.write(pipeline, record, new)
                    record = new
                for step in range(EVENTS_A_JOB):
                    data = {"step": step, "steps": EVENTS_A_JOB, "loss": 0.1234567, "lr": 1e-4, "seconds": 0.5123}
                    events.append(pipeline, record.id, "step", 1, data | {"peak_bytes": 5_000_000_000})
                progress = Progress(attempt=1, phase="training", step=1, steps=1, at=now())
                pipeline.set(f"loraq:job:{record.id}:progress", progress.model_dump_json())
            pipeline.execute()
    return len(record.model_dump_json()) if record else 0


def latencies(store: Store, port: int, owners: list[str]) -> dict[str, object]:
    """List and submit over HTTP, and a worker's claim, one after the other."""
    body = json.dumps(read_spec(SPEC.read_bytes()).model_dump(mode="json")).encode()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", trust_env=False) as http:

        def ask(number: int, method: str, **request) -> None:
            token = owners[number % FULL_PAGES]
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            http.request(method, "/jobs", headers=headers, **request).raise_for_status()

        found = percentiles("submit", timed(lambda number: ask(number, "POST", content=body)))
        found |= percentiles("list", timed(lambda number: ask(number, "GET")))
        found |= percentiles("list_queued", timed(lambda number: ask(number, "GET", params={"status": "queued"})))
    return found | percentiles("claim", timed(lambda number: store.next_turn(f"worker-{number}")))


def timed(call: Callable[[int], object]) -> list[float]:
    """Seconds of each of MEASURES calls."""
    found = []
    for number in range(MEASURES):
        begin_s = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - begin_s)
    return found


def percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p50_ms": round(cuts[49] * 1000, 1), f"{name}_p99_ms": round(cuts[98] * 1000, 1)}


if __name__ == "__main__":
    main()

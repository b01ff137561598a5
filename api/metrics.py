"""Figures of all jobs and workers, as Prometheus reads them: counted in Redis, so every API shows the same.

docs/metrics.md lists them, and a test compares. Nothing is labelled by owner or job: their number has no bound.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import cast

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError
from starlette.types import Scope

from api.reaper import LOCK
from jobs import counts, turns, webhooks
from jobs.gpu_class import GpuClass
from jobs.status import Status
from jobs.store import Store
from jobs.workers import workers
from jobs.writing import UNSAVED

log = logging.getLogger(__name__)

HTTP_BOUNDS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
IS_A_STREAM = "/v1/jobs/{job_id}/events"  # lasts as long as its job, which says nothing of the API


class ApiMetrics:
    """The figures of one API process: what it answers, and what Redis knows."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self._http = Histogram(
            "loraq_http_request_seconds",
            "Time to answer a request.",
            ["method", "route", "status"],
            buckets=HTTP_BOUNDS_S,
            registry=self.registry,
        )
        self.registry.register(Farm(store))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """One request was answered."""
        route = _pattern(scope)
        if route != IS_A_STREAM:
            self._http.labels(_method(scope["method"]), route, str(status)).observe(seconds)


class Farm(Collector):
    """What Redis knows, asked at each scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that to register it asks Redis nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every figure; while Redis is gone, only that it is."""
        try:
            found = [*self._jobs(), *self._waiting(), *self._tickets(), *self._others(), *self._counted()]
            up = 1
        except RedisError as error:
            log.warning("No figures: Redis does not answer: %s", error)
            found, up = [], 0
        yield GaugeMetricFamily("loraq_redis_up", "Whether Redis answered this scrape.", value=up)
        build = GaugeMetricFamily("loraq_build_info", "Always 1; the version is its label.", labels=["version"])
        build.add_metric([version("loraq")], 1)
        yield build
        yield from found

    def _jobs(self) -> Iterator[Metric]:
        redis = self._store.redis
        owners = [name.decode() for name in cast(list[bytes], redis.zrange(turns.TURNS, 0, -1))]
        with redis.pipeline(transaction=False) as pipeline:
            for status in Status:
                for owner in owners:
                    pipeline.zcard(turns.index_key(owner, status))
            numbers = cast(list[int], pipeline.execute()) if owners else []
        family = GaugeMetricFamily(
            "loraq_jobs", "Jobs by where they stand, as far as Redis holds them.", labels=["status"]
        )
        for i, status in enumerate(Status):
            family.add_metric([status], sum(numbers[i * len(owners) : (i + 1) * len(owners)]))
        yield family
        yield GaugeMetricFamily("loraq_jobs_delayed", "Jobs that wait out a failure.", value=redis.zcard(turns.DELAYED))

    def _waiting(self) -> Iterator[Metric]:
        waiting: Counter[GpuClass] = Counter(dict.fromkeys(turns.needs(self._store.redis), 0))
        oldest: dict[GpuClass, float] = {}
        for owner in turns.owners(self._store.redis):
            for needed, number in owner.waiting.items():
                waiting[needed] += number
                age_s = _age_of_oldest_s(self._store.redis, owner.name, needed)
                oldest[needed] = max(age_s, oldest.get(needed, 0.0))
        family = GaugeMetricFamily(
            "loraq_jobs_waiting", "Jobs that wait for a turn, by what they need.", labels=["needs"]
        )
        since = GaugeMetricFamily(
            "loraq_oldest_waiting_seconds",
            "Since the submission of the oldest job that waits; 0: none.",
            labels=["needs"],
        )
        beyond = GaugeMetricFamily(
            "loraq_jobs_beyond_all_workers", "Waiting jobs that no living worker can take.", labels=["needs"]
        )
        no_worker = self._store.beyond_all_workers()
        for needed, number in waiting.items():
            family.add_metric([needed.name], number)
            since.add_metric([needed.name], oldest.get(needed, 0.0))
            beyond.add_metric([needed.name], no_worker.get(needed, 0))
        yield from (family, since, beyond)

    def _tickets(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("loraq_tickets", "Tickets in the queue of each class of GPUs.", labels=["gpu_class"])
        for each in self._store.queues.used():
            family.add_metric([each.name], self._store.queues.of(each).count)
        yield family
        there = Counter(
            (worker.gpu_class, "refuses" if worker.refuses else "busy" if worker.job_id else "idle")
            for worker in workers(self._store.redis)
        )
        family = GaugeMetricFamily(
            "loraq_workers",
            "Workers that live: busy, idle, or without what any job needs.",
            labels=["gpu_class", "state"],
        )
        for (gpu_class, state), number in sorted(there.items()):
            family.add_metric([gpu_class, state], number)
        yield family

    def _others(self) -> Iterator[Metric]:
        redis = self._store.redis
        yield GaugeMetricFamily(
            "loraq_webhooks_waiting",
            "Ends of jobs that their owners were not told of yet.",
            value=redis.zcard(webhooks.OUTBOX),
        )
        first = cast(list[tuple[bytes, float]], redis.zrange(webhooks.OUTBOX, 0, 0, withscores=True))
        yield GaugeMetricFamily(
            "loraq_webhooks_late_seconds",
            "How long the most urgent of them is due; long, if nobody sends.",
            value=max(0.0, time.time() - first[0][1]) if first else 0.0,
        )
        yield GaugeMetricFamily(
            "loraq_records_unsaved",
            "Records whose newest state is not in the bucket yet.",
            value=redis.zcard(UNSAVED),
        )
        yield GaugeMetricFamily(
            "loraq_reaper_alive", "Whether a reaper watches over attempts.", value=redis.exists(LOCK)
        )

    def _counted(self) -> Iterator[Metric]:
        counted = counts.read(self._store.redis)
        yield CounterMetricFamily(
            "loraq_submissions", "Jobs that were submitted.", value=counted.get(("submissions",), 0)
        )
        attempts = CounterMetricFamily(
            "loraq_attempts", "Attempts that ended, by outcome and reason.", labels=["outcome", "reason"]
        )
        ends = CounterMetricFamily(
            "loraq_jobs_ended", "Jobs that ended, by status and reason.", labels=["status", "reason"]
        )
        for (kind, *labels), number in sorted(counted.items()):
            if kind in ("attempts", "ends"):
                (attempts if kind == "attempts" else ends).add_metric(labels, number)
        yield from (attempts, ends)
        waits = HistogramMetricFamily("loraq_wait_seconds", "From the queue to a worker, a try each.", labels=["needs"])
        for needed in sorted({field[1] for field in counted if field[0] == "wait"}):
            total, buckets = 0, list[tuple[str, float]]()
            for bound in (*map(str, counts.WAIT_BOUNDS_S), "+Inf"):
                total += counted.get(("wait", needed, bound), 0)
                buckets.append((bound, total))
            waits.add_metric([needed], buckets, counted.get(("wait_ms", needed), 0) / 1000)
        yield waits


def _age_of_oldest_s(redis: "Redis", owner: str, needed: GpuClass) -> float:
    """Since the submission of the oldest, which is the first of its priority."""
    key = turns.waiting_key(owner, needed)
    firsts = [cast(list[bytes], redis.zrange(key, score, score, byscore=True, offset=0, num=1)) for score in (0, 1)]
    ids = [first[0].decode() for first in firsts if first]
    if not ids:
        return 0.0
    submitted_at = datetime.strptime(min(ids)[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)  # jobs/record.py, new_job_id
    return max(0.0, (datetime.now(UTC) - submitted_at).total_seconds())


def _pattern(scope: Scope) -> str:
    """The route's pattern, of which there are only so many: /v1/jobs/{job_id}; "none" where no route is."""
    pattern = getattr(scope.get("route"), "path", None)
    if not isinstance(pattern, str):
        return "none"
    # A route knows its path below the router that it was included from: what stands before it is the rest of the URL.
    own = pattern
    for name, value in scope.get("path_params", {}).items():
        own = re.sub(rf"{{{name}(:\w+)?}}", lambda _, value=value: str(value), own)
    before = scope["path"].removesuffix(own)
    return before + pattern if before != scope["path"] else pattern


def _method(name: str) -> str:
    """A client may send any word as its method, and each would be a label of its own."""
    return name if name in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"

"""Figures of one worker, as Prometheus reads them: its attempt, its GPUs, what it moved. docs/metrics.md lists them.

They live in the parent, which outlives its horses and imports no torch; horses tell it what happens by
worker/telemetry.py.
"""

import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from jobs import gpus, logs
from jobs.gpu_class import GpuClass
from worker import telemetry

STEP_BOUNDS_S = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 15, 60)


class WorkerMetrics:
    """What this worker did, and where its attempt stands."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._busy = Gauge("loraq_worker_busy", "Whether an attempt runs here.", registry=registry)
        self._step = Gauge("loraq_job_step", "Optimizer steps done of the job here; 0: none runs.", registry=registry)
        self._steps = Gauge("loraq_job_steps", "Optimizer steps of that job in all; 0: none runs.", registry=registry)
        self._loss = Gauge("loraq_job_loss", "Loss of its newest step; NaN: none.", registry=registry)
        self._peak = Gauge("loraq_job_peak_bytes", "Most GPU memory it has allocated.", registry=registry)
        self._phase = Gauge("loraq_job_phase", "1 for the phase it is in.", ["phase"], registry=registry)
        self._seconds = Histogram(
            "loraq_step_seconds", "Time of an optimizer step.", buckets=STEP_BOUNDS_S, registry=registry
        )
        self._attempts = Counter("loraq_worker_attempts", "Attempts that began here.", registry=registry)
        self._moved = Counter("loraq_moved_bytes", "Bytes from and to the bucket.", ["direction"], registry=registry)
        self._cache = Counter(
            "loraq_cache_requests",
            "Base models and datasets that were here already, or not.",
            ["result"],
            registry=registry,
        )
        for direction in ("up", "down"):
            self._moved.labels(direction)
        for result in ("hit", "miss"):
            self._cache.labels(result)
        info = Gauge(
            "loraq_worker_info", "Always 1; what it is is its labels.", ["version", "gpu_class"], registry=registry
        )
        self._info = info
        self._clear()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def introduce(self, gpu_class: GpuClass) -> None:
        """Say what this worker is; ask its GPUs at each scrape if it has some."""
        self._info.labels(version("loraq"), gpu_class.name).set(1)
        if gpu_class.gpus:
            self.registry.register(Cards())

    def listen(self, reading: int) -> None:
        """Take what horses tell through the pipe, in a thread of its own, until this process ends."""
        threading.Thread(target=self._listen, args=(reading,), name="metrics", daemon=True).start()

    def _listen(self, reading: int) -> None:
        for fact in telemetry.lines(reading):
            self.take(fact)

    def take(self, fact: dict[str, Any]) -> None:
        """One line of the pipe, as worker/telemetry.py names them."""
        match fact["tell"]:
            case "attempt":
                self._clear()
                self._busy.set(1)
                self._attempts.inc()
                logs.bind(job_id=fact["job_id"], attempt=fact["attempt"])
            case "phase":
                self._phase.clear()
                self._phase.labels(fact["name"]).set(1)
            case "step":
                self._step.set(fact["step"])
                self._steps.set(fact["steps"])
                self._loss.set(fact["loss"])
                self._peak.set(fact["peak_bytes"] or 0)
                self._seconds.observe(fact["seconds"])
            case "moved":
                self._moved.labels(fact["direction"]).inc(fact["bytes"])
            case "cache":
                self._cache.labels("hit" if fact["hit"] else "miss").inc()
            case _:  # ended
                self._clear()
                logs.bind()

    def _clear(self) -> None:
        """No attempt runs here."""
        for gauge in (self._busy, self._step, self._steps, self._peak):
            gauge.set(0)
        self._loss.set(float("nan"))
        self._phase.clear()


class Cards(Collector):
    """This worker's GPUs, asked of the driver at each scrape."""

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that to register it asks nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Memory and load of each; a driver that does not answer shows none."""
        labels = ["gpu", "name"]
        used = GaugeMetricFamily("loraq_gpu_memory_used_bytes", "Taken by all processes.", labels=labels)
        total = GaugeMetricFamily("loraq_gpu_memory_bytes", "What the card has.", labels=labels)
        busy = GaugeMetricFamily(
            "loraq_gpu_busy_ratio", "Share of the time in which it computes, 0 to 1.", labels=labels
        )
        for number, gpu in enumerate(gpus.look().gpus):
            values = [str(number), gpu.name]
            used.add_metric(values, gpu.used_bytes)
            total.add_metric(values, gpu.memory_bytes)
            if gpu.busy is not None:
                busy.add_metric(values, gpu.busy)
        yield from (used, total, busy)

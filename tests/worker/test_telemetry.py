"""What a horse tells reaches its parent's figures, and a parent that does not read holds up nothing."""

import math
import os
import threading

import pytest
from prometheus_client import CollectorRegistry

from jobs import gpus
from jobs.gpu_class import GpuClass
from jobs.gpus import Gpu, Gpus
from worker import telemetry
from worker.metrics import WorkerMetrics


@pytest.fixture
def pipe(monkeypatch):
    """The end to read from; the other end is the module's until the test ends."""
    reading = telemetry.open_pipe()
    yield reading
    end, telemetry._end = telemetry._end, None
    os.close(end)


def read_all(reading: int) -> list[dict]:
    end, telemetry._end = telemetry._end, os.open(os.devnull, os.O_WRONLY)
    os.close(end)
    return list(telemetry.lines(reading))


def show(registry: CollectorRegistry, metric: str, **labels: str) -> float | None:
    return registry.get_sample_value(metric, labels)


def test_a_horse_that_was_forked_tells_its_parent(pipe):
    child = os.fork()
    if not child:
        telemetry.tell("step", step=3)
        os._exit(0)
    os.waitpid(child, 0)

    assert read_all(pipe) == [{"tell": "step", "step": 3}]


def test_a_parent_that_does_not_read_holds_up_nothing_and_finds_whole_lines(pipe):
    for step in range(10_000):  # far more than a pipe holds
        telemetry.tell("step", step=step)

    told = read_all(pipe)
    assert [each["step"] for each in told] == list(range(len(told)))
    assert 100 < len(told) < 10_000


def test_bytes_of_many_threads_are_summed_up_and_none_is_lost(pipe):
    threads = [threading.Thread(target=lambda: [telemetry.moved("down", 1000) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telemetry.moved("down", 0)  # as a transfer does at its end

    told = read_all(pipe)
    assert sum(each["bytes"] for each in told) == 800_000
    assert len(told) < 100


def test_without_a_parent_there_is_nobody_to_tell():
    telemetry.tell("step", step=1)


def test_figures_show_the_attempt_and_forget_it_when_it_has_ended():
    metrics = WorkerMetrics()
    step = {"tell": "step", "step": 2, "steps": 10, "lr": 1e-4, "loss": 0.25, "seconds": 0.4, "peak_bytes": 5}
    for fact in ({"tell": "attempt", "job_id": "j", "attempt": 1}, {"tell": "phase", "name": "training"}, step):
        metrics.take(fact)
    registry = metrics.registry

    assert show(registry, "loraq_worker_busy") == 1
    assert show(registry, "loraq_job_step") == 2
    assert show(registry, "loraq_job_loss") == 0.25
    assert show(registry, "loraq_job_phase", phase="training") == 1
    assert show(registry, "loraq_step_seconds_bucket", le="0.5") == 1
    metrics.take({"tell": "ended"})
    assert show(registry, "loraq_worker_busy") == 0
    assert show(registry, "loraq_job_step") == 0
    assert math.isnan(show(registry, "loraq_job_loss") or 0)
    assert show(registry, "loraq_job_phase", phase="training") is None
    assert show(registry, "loraq_step_seconds_count") == 1  # what was counted stays


def test_each_card_is_asked_at_each_scrape(monkeypatch):
    cards = [Gpu("GPU-0", "A card", "1", 24 << 30, 6 << 30, 0.5), Gpu("MIG-1", "A slice", "1", 10 << 30, 0, None)]
    monkeypatch.setattr(gpus, "look", lambda: Gpus(tuple(cards)))
    metrics = WorkerMetrics()
    metrics.introduce(GpuClass.parse("24gb-x2"))

    assert show(metrics.registry, "loraq_gpu_memory_used_bytes", gpu="0", name="A card") == 6 << 30
    assert show(metrics.registry, "loraq_gpu_busy_ratio", gpu="0", name="A card") == 0.5
    assert show(metrics.registry, "loraq_gpu_busy_ratio", gpu="1", name="A slice") is None  # it does not tell
    cards.clear()  # the driver broke
    assert show(metrics.registry, "loraq_gpu_memory_used_bytes", gpu="0", name="A card") is None


@pytest.mark.gpu
@pytest.mark.skipif(not gpus.look().gpus, reason="there is no NVIDIA GPU")
def test_real_cards_show_what_is_taken_and_how_busy_they_are():
    torch = pytest.importorskip("torch")
    metrics = WorkerMetrics()
    metrics.introduce(GpuClass.parse("4gb"))
    labels = {"gpu": "0", "name": gpus.look().gpus[0].name}

    def used() -> float:
        return show(metrics.registry, "loraq_gpu_memory_used_bytes", **labels) or 0.0

    free = used()
    taken = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    grown = used() - free

    assert grown >= taken.numel()
    assert used() <= (show(metrics.registry, "loraq_gpu_memory_bytes", **labels) or 0.0)
    busy = show(metrics.registry, "loraq_gpu_busy_ratio", **labels)
    assert busy is None or 0 <= busy <= 1

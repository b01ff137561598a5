"""Why a job waits, for whoever asks: a job that no worker can take must not look like one whose turn is near."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections import Counter

from redis import Redis

from jobs import workers
from jobs.gpu_class import CPU, CPU_RANKS, NONE, GpuClass
from jobs.record import JobRecord
from jobs.status import Status


def why_it_waits(redis: "Redis", record: JobRecord) -> str | None:
    """A sentence if no worker that lives can take the job; None if one can, or if it does not wait for a turn."""
    if record.status is not Status.QUEUED or record.not_before is not None:
        return None
    if any(each.takes(record.gpu_class) for each in workers.living_classes(redis)):
        return None
    counts = Counter(GpuClass.parse(worker.gpu_class) for worker in workers.workers(redis))
    there = ", ".join(f"{count} with {_said(each)}" for each, count in sorted(counts.items())) or "none"
    return (
        f"It needs {_said(record.gpu_class)}, and no worker has that; workers that live: {there}. It waits until one "
        "that has it starts; or submit it anew with fewer gpus, a smaller preset, resolution, batch_size or budget_gib."
    )


def _said(gpu_class: GpuClass) -> str:
    if gpu_class == CPU:
        return f"a CPU, which stands in for {CPU_RANKS} GPUs at most"
    if gpu_class == NONE:
        return "no GPU"
    one = f"a GPU of {gpu_class.size_gb} GB"
    return one if gpu_class.gpus == 1 else f"{gpu_class.gpus} GPUs of {gpu_class.size_gb} GB each"

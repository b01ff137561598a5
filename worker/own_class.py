"""What this worker has, and so which jobs it takes. One without GPU takes none, and says why, unless it was told to."""

from dataclasses import dataclass

from jobs.gpu_class import CPU, CPU_RANKS, NONE, SHARE, SIZES_GB, GpuClass, class_of_cards
from jobs.gpus import Gpus
from jobs.settings import Settings

WAY_OUT = (
    "Give this machine, or this container, an NVIDIA GPU (docs/docker.md says how); or set LORAQ_DEVICE=cpu, and it "
    "trains on its CPU, which suits small models only."
)


class ClassTooLarge(ValueError):
    """LORAQ_WORKER_CLASS asks for more than this worker has."""


@dataclass(frozen=True)
class OwnClass:
    """The class of a worker, and why it is none."""

    gpu_class: GpuClass
    refuses: str | None = None  # a sentence; None: it takes jobs


def own_class(settings: Settings, cards: Gpus) -> OwnClass:
    """What the worker registers: its cards, and as many of each other machine that trains along.

    Raises:
        ClassTooLarge: LORAQ_WORKER_CLASS asks for more than there is.
    """
    wanted = GpuClass.parse(settings.worker_class) if settings.worker_class else None
    if settings.device == "cpu":
        if wanted is not None and wanted.gpus > CPU_RANKS:
            raise ClassTooLarge(
                f"LORAQ_WORKER_CLASS is {wanted}, but a CPU stands in for {CPU_RANKS} GPUs at most: choose less."
            )
        return OwnClass(wanted or CPU)
    own = class_of_cards([gpu.memory_bytes for gpu in cards.gpus] * settings.nodes)
    if wanted is not None and own != NONE:
        if not own.takes(wanted) or wanted == CPU:
            raise ClassTooLarge(
                f"LORAQ_WORKER_CLASS is {wanted}, but this worker's cards are {own}: choose that or less."
            )
        return OwnClass(wanted)
    if own != NONE:
        return OwnClass(own)
    if cards.gpus:
        smallest = min(cards.gpus, key=lambda gpu: gpu.memory_bytes)
        why = f"{smallest.name} has {smallest.memory_bytes / 2**30:.1f} GiB, and loraq needs {SIZES_GB[0] * SHARE:.1f}"
    else:
        why = f"{cards.why_none}, and LORAQ_DEVICE is {settings.device}"
    return OwnClass(NONE, f"This worker takes no job, because every job needs a GPU: {why}. {WAY_OUT}")

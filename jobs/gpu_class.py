"""Classes of GPUs: what a job needs and what a worker has, in a word that is also the name of a queue.

    24gb       a card of 24 GB
    24gb-x4    four of them, in one worker
    cpu        a worker that trains on its CPU because LORAQ_DEVICE=cpu says so: it takes whatever needs up to four GPUs
    none       a worker that has no GPU, and was not told to train without: it takes nothing

A card counts as the largest class of which it has 92 %: makers count in other units than drivers, ECC takes up to a
sixteenth, and the driver keeps some. So 23034 MiB (L4) are 24gb and 15360 MiB (T4) are 16gb, but 11264 MiB (2080 Ti)
are no 12gb.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

SIZES_GB = (4, 6, 8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)
"""The sizes of cards that SDXL is trained on. A card between two is as good as the smaller."""

SHARE = 0.92
"""Of its class's size that a card has at least."""

CPU_RANKS = 4
"""GPUs that a CPU worker stands in for at most. Each is a process with the whole base model in memory, 10 GB of
full-size SDXL in FP32, and all share the cores: enough to try such a job out, and no more."""

_NAME = re.compile(r"(?P<gb>\d{1,3})gb(-x(?P<gpus>\d{1,2}))?")


@dataclass(frozen=True, order=True)
class GpuClass:
    """So many GPUs of such a size; sorted by number, then size."""

    gpus: int
    size_gb: int  # one of SIZES_GB; 0 for CPU and NONE
    name: str

    @classmethod
    def of(cls, size_gb: int, gpus: int = 1) -> Self:
        """`gpus` cards of a size in SIZES_GB."""
        return cls(gpus, size_gb, f"{size_gb}gb" if gpus == 1 else f"{size_gb}gb-x{gpus}")

    @classmethod
    def parse(cls, name: str) -> "GpuClass":
        """The class of a name.

        Raises:
            ValueError: no class has it.
        """
        if name in (CPU.name, NONE.name):
            return CPU if name == CPU.name else NONE
        found = _NAME.fullmatch(name)
        size_gb, gpus = (int(found["gb"]), int(found["gpus"] or 1)) if found else (0, 0)
        if size_gb not in SIZES_GB or gpus < 1:
            raise ValueError(f"{name!r} is no class of GPUs: write cpu, 24gb or 24gb-x2, of {_SIZES} GB.")
        return cls.of(size_gb, gpus)

    def takes(self, needed: "GpuClass") -> bool:
        """Whether a worker of this class may take a job that needs `needed`."""
        if self == CPU:
            return needed.gpus <= CPU_RANKS
        return self != NONE and self.gpus >= needed.gpus and self.size_gb >= needed.size_gb

    @property
    def usable_gib(self) -> float:
        """What each card of this class has at least."""
        return self.size_gb * SHARE

    def __str__(self) -> str:
        return self.name


CPU = GpuClass(0, 0, "cpu")
NONE = GpuClass(0, 0, "none")
_SIZES = ", ".join(map(str, SIZES_GB))


def class_of_cards(memory_bytes: Iterable[int]) -> GpuClass:
    """The class of a worker with these cards; the smallest card decides. NONE without cards, or with too small ones."""
    cards = list(memory_bytes)
    sizes = [size for size in SIZES_GB if cards and size * SHARE <= min(cards) / 2**30]
    return GpuClass.of(sizes[-1], len(cards)) if sizes else NONE


def smallest_with(need_gib: float, gpus: int = 1) -> GpuClass | None:
    """The smallest class whose every card has `need_gib`; None if there is no such card."""
    return next((GpuClass.of(size, gpus) for size in SIZES_GB if size * SHARE >= need_gib), None)


def smallest_called(gb: float, gpus: int = 1) -> GpuClass | None:
    """The smallest class of at least so many GB by name; None if there is no such card."""
    return next((GpuClass.of(size, gpus) for size in SIZES_GB if size >= gb), None)


def home(needed: GpuClass, there: Iterable[GpuClass]) -> GpuClass:
    """The class in whose queue a job waits: the smallest of those that are there and fit, a CPU last, else its own."""
    fitting = [each for each in there if each.takes(needed)]
    return min(fitting, key=lambda each: (each == CPU, each), default=needed)

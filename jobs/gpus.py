"""The GPUs of this machine, asked of the driver through NVML: whoever asks must not touch CUDA, for it forks.

Only those that CUDA would show are counted: CUDA_VISIBLE_DEVICES may name some of them, by number or by UUID.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# nvidia-ml-py has no types.

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one slice of one (MIG), as it is at this moment."""

    uuid: str
    name: str
    driver: str
    memory_bytes: int
    used_bytes: int  # by all processes
    busy: float | None  # share of the last second in which it computed, 0..1; None: a slice does not tell

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_bytes >> 20} MiB, driver {self.driver}"


@dataclass(frozen=True)
class Gpus:
    """What was found."""

    gpus: tuple[Gpu, ...]
    why_none: str | None = None  # for a person; None if there are some


def look() -> Gpus:
    """Every GPU that CUDA would show, in its order with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    try:
        with _nvml():
            found = tuple(map(_gpu, _handles()))
    except pynvml.NVMLError as error:
        return Gpus((), f"the NVIDIA driver does not answer ({error})")
    if not found:
        return Gpus((), "the NVIDIA driver lists no GPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = found if visible is None else tuple(_visible(found, visible))
    return Gpus(shown, None if shown else f"CUDA_VISIBLE_DEVICES={visible!r} names none of its {len(found)} GPUs")


@contextmanager
def _nvml() -> Generator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()  # nothing of it is left for a fork to inherit


def _handles() -> Iterator[Any]:
    """Each GPU's handle, or those of its slices where it is sliced."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        slices: list[Any] = []
        with suppress(pynvml.NVMLError):  # a GPU that cannot be sliced
            if pynvml.nvmlDeviceGetMigMode(gpu)[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
                for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
                    with suppress(pynvml.NVMLError):
                        slices.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number))
        yield from slices or [gpu]


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    busy = None
    with suppress(pynvml.NVMLError):  # a slice does not tell
        busy = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        driver=pynvml.nvmlSystemGetDriverVersion(),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        busy=busy,
    )


def _visible(found: tuple[Gpu, ...], visible: str) -> Iterator[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names: like CUDA, up to the first name that is none."""
    for name in map(str.strip, visible.split(",")):
        named = [found[int(name)]] if name.isdecimal() and int(name) < len(found) else []
        named = named or [gpu for gpu in found if name and gpu.uuid.startswith(name)]
        if not named:
            return
        yield named[0]

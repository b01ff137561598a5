"""One step of a full-size SDXL LoRA training on one GPU, and on all of this machine's together: time, exchange, memory.

    python benchmarks/multi_gpu.py [--gpus N] [--steps 12]     needs CUDA devices; --tiny tries it out on a CPU

The step is that of worker/loop/train.py, with random weights, BF16, 1024 x 1024, AdamW, no checkpointing; each GPU has
the same work in both cases, so that the efficiency is the time on one GPU over that on several. The exchange is what
`Ranks.average` takes in steps of their own that wait for the GPU before and after; `bare_ms` is an all-reduce of a
buffer of that size by itself. torchrun starts all ranks at once; rank 0 trains alone first. One JSON line a case.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from worker.data.batches import Batches, Example, View
from worker.data.encoding import TextEmbedding
from worker.loop.config import TrainConfig
from worker.loop.ranks import Ranks
from worker.loop.train import TrainState, train
from worker.lora.config import LoRAConfig, Targets
from worker.lora.inject import LoRA, inject
from worker.model.unet import UNet
from worker.model.unet_config import UNetConfig

WARM_UP = 3  # steps that fill allocator, caches and the optimizer's state
TIMED_EXCHANGES = 5

# rank of the adapter, targets, batch on each GPU
CASES: list[tuple[int, Targets, int]] = [(4, "qkv", 1), (4, "qkv", 4), (64, "transformer", 1), (64, "transformer", 4)]


class TimedRanks(Ranks):
    """Notes how long each exchange takes, which a step otherwise hides behind what the GPU still has to do."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        super().__init__(ranks.rank, ranks.size, ranks.local_rank)
        self.device = device
        self.seconds: list[float] = []

    def average(self, tensors: Sequence[Tensor]) -> None:
        self.any(False)  # by gloo, so that what the GPUs' steps differ by is no part of the exchange
        wait(self.device)
        begin = time.perf_counter()
        super().average(tensors)
        wait(self.device)
        self.seconds.append(time.perf_counter() - begin)


@dataclass(frozen=True)
class Scene:
    """What all cases share."""

    config: UNetConfig
    device: torch.device
    dtype: torch.dtype
    side: int  # of the latents
    steps: int


def main() -> int:
    """Every case, and what it ran on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, help="default: all that CUDA shows")
    parser.add_argument("--steps", type=int, default=12, help="timed steps a case")
    parser.add_argument("--tiny", action="store_true", help="a tiny U-Net, in FP32 on the CPU, by gloo")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        gpus = options.gpus or torch.cuda.device_count()
        torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={gpus}"]
        return subprocess.run([sys.executable, "-m", *torchrun, *sys.argv], check=False).returncode
    ranks = Ranks.of_environment()
    ranks.join("cpu" if options.tiny else "cuda")
    if options.tiny:
        scene = Scene(UNetConfig.tiny(), torch.device("cpu"), torch.float32, 8, options.steps)
    else:
        scene = Scene(UNetConfig.sdxl(), torch.device("cuda"), torch.bfloat16, 128, options.steps)
    if ranks.first:
        print(json.dumps({"gpus": ranks.size, "gpu": name(scene.device), "torch": torch.__version__}), flush=True)
    for case in CASES:
        measured = measure(scene, *case, ranks)
        if ranks.first:
            print(json.dumps(measured), flush=True)
    ranks.any(False)
    ranks.leave()
    return 0


def measure(scene: Scene, rank: int, targets: Targets, batch: int, ranks: Ranks) -> dict[str, object]:
    """One case: rank 0 alone while the others wait, then all together."""
    unet, lora = model(scene, rank, targets)
    found: dict[str, object] = {"rank": rank, "targets": targets, "batch_per_gpu": batch}
    found["exchanged_mb"] = round(4 * lora.parameter_count() / 1e6, 1)
    alone = medians(scene, unet, lora, batch, Ranks()) if ranks.first else {}
    ranks.any(False)
    together = medians(scene, unet, lora, batch, ranks)
    timed = TimedRanks(ranks, scene.device)
    for _ in steps(scene, unet, lora, batch, timed, WARM_UP + TIMED_EXCHANGES):
        pass
    found["exchange_ms"] = round(1e3 * statistics.median(timed.seconds[WARM_UP:]), 2)
    found["bare_ms"] = round(1e3 * bare(lora.parameter_count(), scene.device, ranks), 2)
    if ranks.first:
        found |= {"one": alone, "all": together, "efficiency": round(alone["ms"] / together["ms"], 3)}
    del unet, lora
    gc.collect()
    torch.cuda.empty_cache()
    return found


def medians(scene: Scene, unet: UNet, lora: LoRA, batch: int, ranks: Ranks) -> dict[str, float]:
    """Median time of a step, the peak of allocated memory, and all that the driver says is taken, NCCL's included."""
    if scene.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = list(steps(scene, unet, lora, batch, ranks, WARM_UP + scene.steps))[WARM_UP:]
    measured = {"ms": round(1e3 * statistics.median(seconds), 1)}
    if scene.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        measured["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        measured["process_gib"] = round((total - free) / 2**30, 2)
    return measured


def steps(scene: Scene, unet: UNet, lora: LoRA, batch: int, ranks: Ranks, count: int) -> Iterator[float]:
    """Train; the seconds of each step. A step ends with a host sync, so its time is the GPU's."""
    config = TrainConfig(count, max_grad_norm=1.0)
    results = train(unet, lora, batches(scene, batch * ranks.size), config, TrainState.begin(lora, config), ranks)
    return (result.seconds for result in results)


def batches(scene: Scene, size: int) -> Batches:
    """Eight pictures of noise."""
    source = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source).to(scene.dtype)

    side_px = 8.0 * scene.side
    time_ids = torch.tensor([side_px, side_px, 0, 0, side_px, side_px])
    texts = [TextEmbedding(noise(77, scene.config.text_embed_dim), noise(scene.config.pooled_text_embed_dim))] * 8
    pictures = [View(noise(4, scene.side, scene.side), time_ids) for _ in texts]
    return Batches([Example(view, (text,)) for view, text in zip(pictures, texts, strict=True)], texts[0], size, 0)


def model(scene: Scene, rank: int, targets: Targets) -> tuple[UNet, LoRA]:
    """The same random weights on every rank."""
    torch.manual_seed(0)
    torch.set_default_dtype(scene.dtype)
    with scene.device:
        unet = UNet(scene.config).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    rank = min(rank, *scene.config.block_channels)  # the tiny one has room for no more
    return unet, inject(unet, LoRAConfig(rank=rank, alpha=float(rank), targets=targets), seed=0)


def bare(numbers: int, device: torch.device, ranks: Ranks) -> float:
    """Median seconds of an all-reduce of so many FP32 numbers, without anything around it."""
    buffer = torch.zeros(numbers, device=device)
    seconds: list[float] = []
    for _ in range(WARM_UP + 10):
        ranks.any(False)
        wait(device)
        begin = time.perf_counter()
        dist.all_reduce(buffer)
        wait(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[WARM_UP:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())

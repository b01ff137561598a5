"""Peak GPU memory of a full-size SDXL LoRA step, by resolution, batch, checkpointing and rank.

    python benchmarks/peak_memory.py     needs a CUDA device

Random weights, BF16, AdamW. jobs/needs.py chooses a job's class of GPUs by these figures. `process_gib` is what the
driver says is taken, CUDA's context and the allocator's spare blocks included. Prints one JSON line a case.
"""

import gc
import itertools
import json

import torch
import torch.nn.functional as F

from worker.lora.config import LoRAConfig
from worker.lora.inject import inject
from worker.memory.checkpoint import enable_checkpointing
from worker.model.unet import UNet, UNetConfig

STEPS = 3  # the first fills the optimizer's state
BFLOAT16_CUDA = {"device": "cuda", "dtype": torch.bfloat16}

# checkpointing, resolution, batch, rank, targets
CASES = [(c, r, b, 4, "qkv") for c, r, b in itertools.product(("all", "none"), (512, 768, 1024), (1, 2, 4))] + [
    ("all", 1024, 8, 4, "qkv"),
    ("all", 2048, 1, 4, "qkv"),
    ("none", 2048, 1, 4, "qkv"),
    ("all", 1024, 1, 64, "transformer"),
    ("none", 1024, 1, 16, "transformer"),
    ("none", 1024, 4, 16, "transformer"),
]


def train(checkpointing: str, resolution: int, batch: int, rank: int, targets: str) -> None:
    """Some steps, as worker/loop/train.py makes them."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    lora = inject(unet, LoRAConfig(rank=rank, alpha=rank, targets=targets), seed=0)
    enable_checkpointing(unet, checkpointing)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-4, fused=True)
    side = resolution // 8
    for _ in range(STEPS):
        latents = torch.randn(batch, 4, side, side, **BFLOAT16_CUDA)
        prediction = unet(
            latents,
            torch.full((batch,), 500, device="cuda"),
            torch.randn(batch, 77, 2048, **BFLOAT16_CUDA),
            torch.randn(batch, 1280, **BFLOAT16_CUDA),
            torch.full((batch, 6), float(resolution), **BFLOAT16_CUDA),
        )
        F.mse_loss(prediction.float(), latents.float()).backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Every case, and what it ran on."""
    torch.ones(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "context": total - free}))
    for case in CASES:
        train(*case)
        free, total = torch.cuda.mem_get_info()
        peak = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        print(json.dumps([*case, {"peak_gib": peak, "process_gib": round((total - free) / 2**30, 2)}]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()

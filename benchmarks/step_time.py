"""One full-size SDXL LoRA step: time and peak memory, ours and diffusers+peft's, one after the other on the same GPU.

    python benchmarks/step_time.py [--steps 10]     needs a CUDA device, diffusers and peft

Random weights, BF16, rank 4 on the attention layers, batch 1, gradient checkpointing. Prints one JSON line a case.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig as PeftConfig

from worker.lora.config import LoRAConfig
from worker.lora.inject import inject
from worker.memory.checkpoint import enable_checkpointing
from worker.model.unet import UNet, UNetConfig

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours() -> tuple[Predict, list[torch.nn.Parameter]]:
    """loraq's U-Net with loraq's adapter: FP32 master weights."""
    unet = _in_bfloat16(lambda: UNet(UNetConfig.sdxl())).requires_grad_(False)
    lora = inject(unet, LoRAConfig(rank=4, alpha=16, targets="attention"), seed=0)
    enable_checkpointing(unet, "all")
    return unet, list(lora.parameters())


def theirs() -> tuple[Predict, list[torch.nn.Parameter]]:
    """diffusers' U-Net with peft's adapter, as the example scripts put it on."""
    config = UNetConfig.sdxl().to_diffusers()
    unet = _in_bfloat16(lambda: UNet2DConditionModel.from_config(config)).requires_grad_(False)
    unet.add_adapter(PeftConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    unet.enable_gradient_checkpointing()
    unet.train()

    def predict(noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids):
        added = {"text_embeds": pooled_text_embeds, "time_ids": time_ids}
        return unet(noisy_latents, timesteps, text_embeds, added_cond_kwargs=added, return_dict=False)[0]

    return predict, [p for p in unet.parameters() if p.requires_grad]


def measure(make: Callable[[], tuple[Predict, list]], resolution: int, steps: int) -> dict[str, object]:
    """Median time of a step, and the peak of allocated memory over all of them."""
    predict, parameters = make()
    side = resolution // 8
    size = {"device": "cuda", "dtype": torch.bfloat16}
    noisy_latents, noise = torch.randn(1, 4, side, side, **size), torch.randn(1, 4, side, side, **size)
    text_embeds, pooled = torch.randn(1, 77, 2048, **size), torch.randn(1, 1280, **size)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], **size)
    timesteps = torch.tensor([500], device="cuda")
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    for step in range(steps + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        prediction = predict(noisy_latents, timesteps, text_embeds, pooled, time_ids)
        F.mse_loss(prediction.float(), noise.float()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= 3:  # the first ones fill allocator and caches
            seconds.append(time.perf_counter() - start)
    return {
        "ms": round(1e3 * statistics.median(seconds), 1),
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "trainable": sum(p.numel() for p in parameters),
    }


def _in_bfloat16(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return make()
    finally:
        torch.set_default_dtype(torch.float32)


def main() -> None:
    """Every case, and what it ran on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}))
    for resolution in (512, 1024):
        for name, make in (("loraq", ours), ("diffusers+peft", theirs)):
            result = measure(make, resolution, steps)
            print(json.dumps({"who": name, "resolution": resolution, "batch": 1, **result}), flush=True)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Peak GPU memory of a full-size SDXL step, by resolution, batch, checkpointing, and by what is trained.

    python benchmarks/peak_memory.py [adapters] [text_encoders] [fine_tuning]     all three; needs a CUDA device

Random weights, BF16. jobs/needs.py chooses a job's class of GPUs by these figures. `process_gib` is what the driver
says is taken, CUDA's context and the allocator's spare blocks included; `step_ms` the last step's time. Prints one JSON
line a case.
"""

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from worker.fine_tuning.weights import FullWeights
from worker.loop.config import OptimizerConfig, OptimizerName, TrainConfig
from worker.loop.optim import optimizer_of
from worker.loop.trained import Trained
from worker.lora.config import LoRAConfig, Targets, TextLoRAConfig
from worker.lora.inject import inject
from worker.memory.checkpoint import Scope, enable_checkpointing
from worker.model.unet import UNet, UNetConfig

STEPS = 3  # the first fills the optimizer's state
CUDA = torch.device("cuda")
BFLOAT16_CUDA = {"device": CUDA, "dtype": torch.bfloat16}
Made = tuple[nn.Module, Trained, OptimizerName]  # what predicts, what is trained, and the optimizer's name


def adapter(scope: Scope, rank: int, targets: Targets) -> Made:
    """An adapter on the U-Net alone."""
    unet = make_unet(torch.bfloat16)
    lora = inject(unet, LoRAConfig(rank=rank, alpha=rank, targets=targets), seed=0)
    enable_checkpointing(unet, scope)
    return unet, lora, "adamw"


def with_text_encoders(scope: Scope, rank: int, targets: Targets) -> Made:
    """An adapter on both text encoders too."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from worker.model.from_captions import FromCaptions
    from worker.model.sdxl_configs import TEXT_ENCODER, TEXT_ENCODER_2
    from worker.model.text_encoders import TextEncoders

    unet = make_unet(torch.bfloat16)
    one = CLIPTextModel(CLIPTextConfig.from_dict(TEXT_ENCODER))
    other = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(TEXT_ENCODER_2))
    for encoder in (one, other):
        encoder.requires_grad_(False).to(**BFLOAT16_CUDA)
    encoders = TextEncoders(one, other)
    config = LoRAConfig(rank=rank, alpha=rank, targets=targets, text_encoders=TextLoRAConfig())
    lora = inject(unet, config, 0, encoders.towers)
    enable_checkpointing(unet, scope)
    return FromCaptions(unet, encoders), lora, "adamw"


def fine_tuning(scope: Scope, weights: str, optimizer: OptimizerName) -> Made:
    """All of the U-Net, without an adapter."""
    unet = make_unet(torch.bfloat16)
    masters = dict(make_unet(torch.float32).named_parameters()) if weights == "float32" else None
    enable_checkpointing(unet, scope)
    return unet, FullWeights(unet, masters), optimizer


def make_unet(dtype: torch.dtype) -> UNet:
    torch.set_default_dtype(dtype)
    with CUDA:
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return unet


GROUPS: dict[str, list[tuple[Callable[..., Made], tuple[Any, ...]]]] = {
    # checkpointing, resolution, batch; then what the function takes
    "adapters": [
        *(
            (adapter, (c, r, b, 4, "qkv"))
            for c, r, b in itertools.product(("all", "none"), (512, 768, 1024), (1, 2, 4))
        ),
        (adapter, ("all", 1024, 8, 4, "qkv")),
        (adapter, ("all", 2048, 1, 4, "qkv")),
        (adapter, ("none", 2048, 1, 4, "qkv")),
        (adapter, ("all", 1024, 1, 64, "transformer")),
        (adapter, ("none", 1024, 1, 16, "transformer")),
        (adapter, ("none", 1024, 4, 16, "transformer")),
        (adapter, ("none", 1024, 1, 16, "locon")),
    ],
    "text_encoders": [
        *((with_text_encoders, (c, 1024, b, 4, "qkv")) for c, b in itertools.product(("all", "none"), (1, 4))),
        (with_text_encoders, ("all", 512, 1, 16, "transformer")),
    ],
    "fine_tuning": [
        *((fine_tuning, ("all", 1024, b, "bfloat16", o)) for b, o in itertools.product((1, 4), ("adafactor", "adamw"))),
        (fine_tuning, ("all", 512, 1, "bfloat16", "adafactor")),
        *((fine_tuning, ("all", 1024, 1, "float32", o)) for o in ("adafactor", "lion", "adamw")),
        (fine_tuning, ("none", 1024, 1, "bfloat16", "adafactor")),
    ],
}


def step_ms(made: Made, resolution: int, batch: int) -> float:
    """Some steps, as worker/loop/train.py makes them; how long the last took."""
    predictor, trained, optimizer_name = made
    config = TrainConfig(STEPS, optimizer=OptimizerConfig(optimizer_name))
    optimizer = optimizer_of(trained, config)
    side = resolution // 8
    embeddings = (torch.randn(batch, 77, 2048, **BFLOAT16_CUDA), torch.randn(batch, 1280, **BFLOAT16_CUDA))
    if not isinstance(predictor, UNet):  # it takes token ids
        embeddings = (torch.randint(0, 49_000, (batch, 2, 77)), torch.empty(batch, 0, device=CUDA))
    started = 0.0
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        latents = torch.randn(batch, 4, side, side, **BFLOAT16_CUDA)
        timesteps = torch.full((batch,), 500, device=CUDA)
        time_ids = torch.full((batch, 6), float(resolution), **BFLOAT16_CUDA)
        prediction = predictor(latents, timesteps, *embeddings, time_ids)
        F.mse_loss(prediction.float(), latents.float()).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        trained.write_back()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def main(groups: list[str]) -> None:
    """Every case, and what it ran on."""
    torch.ones(1, device=CUDA)
    free, total = torch.cuda.mem_get_info()
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "context": total - free}))
    for make, (scope, resolution, batch, *told) in (case for group in groups or GROUPS for case in GROUPS[group]):
        case = {"trained": make.__name__, "checkpointing": scope, "px": resolution, "batch": batch, "told": told}
        made = make(scope, *told)
        try:
            case["step_ms"] = round(step_ms(made, resolution, batch))
        except torch.OutOfMemoryError:
            case["out_of_memory"] = True
        free, total = torch.cuda.mem_get_info()
        case["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        case["process_gib"] = round((total - free) / 2**30, 2)
        print(json.dumps(case), flush=True)
        del made
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main(sys.argv[1:])

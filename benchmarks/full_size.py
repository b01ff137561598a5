"""Whole trainings of a full-size SDXL, from the file of the base to the files they leave, in one go and in two.

    python -m benchmarks.full_size FOLDER     needs a CUDA device of 48 GiB, and 60 GB in FOLDER

Random weights in SDXL's own shapes, the eight photographs at 512 px, four steps. A LoRA with both text encoders, and a
fine-tuning in BF16, are trained twice: in one go, and stopped after step 2 and gone on with by another `Training`; a
fine-tuning with FP32 masters once. Prints one JSON line a training: when each phase was reached, the steps, the peaks
of GPU and host; and one for each pair: how far apart its files are.
"""

import argparse
import gc
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.data.config import DatasetConfig
from worker.loop.config import (
    CheckpointsConfig,
    FineTuningConfig,
    OptimizerConfig,
    SamplesConfig,
    TrainConfig,
    TrainerConfig,
)
from worker.loop.training import Training
from worker.lora.config import LoRAConfig, TextLoRAConfig
from worker.model.base_writer import Configs, published_states, write_single_file
from worker.model.sdxl_configs import TEXT_ENCODER, TEXT_ENCODER_2, VAE
from worker.model.single_file import Part
from worker.model.unet import UNet, UNetConfig

PHOTOS = Path(__file__).parents[1] / "jobs" / "examples" / "photos"
STEPS, STOP_AFTER = 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    base = folder / "base.safetensors"
    write_base(base)
    config = TrainerConfig(
        base_model=str(base),
        output="",
        cache=str(folder / "cache"),
        dataset=DatasetConfig(str(PHOTOS)),
        train=TrainConfig(STEPS, optimizer=OptimizerConfig("adamw", learning_rate=1e-4)),
        resolution=512,
        device="cuda",
        checkpoints=CheckpointsConfig(every_n_steps=STOP_AFTER, keep=1),
        samples=SamplesConfig(("a cat",), sampler_steps=4),
    )
    lora = LoRAConfig(rank=8, alpha=8, targets="transformer", text_encoders=TextLoRAConfig())
    twice(replace(config, lora=lora), folder / "lora", "lora.safetensors")
    sparing = replace(config.train, optimizer=OptimizerConfig("adafactor", learning_rate=1e-5))
    whole = replace(config, train=sparing, fine_tuning=FineTuningConfig("bfloat16"))
    twice(whole, folder / "bfloat16", "model.safetensors")
    masters = replace(config.train, optimizer=OptimizerConfig("adamw", learning_rate=1e-5))
    whole = replace(config, train=masters, fine_tuning=FineTuningConfig("float32"), checkpoints=CheckpointsConfig())
    run(replace(whole, output=str(folder / "float32")))


def write_base(file: Path) -> None:
    """A single file like SDXL's, of 6.9 GB, whose weights are as PyTorch initialises them."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        unet, vae = UNet(UNetConfig.sdxl()), AutoencoderKL.from_config(VAE)
        encoder_1 = CLIPTextModel(CLIPTextConfig.from_dict(TEXT_ENCODER))
        encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(TEXT_ENCODER_2))
    torch.set_default_dtype(torch.float32)
    assert isinstance(vae, AutoencoderKL)
    configs: Configs = {"unet": unet.config.to_diffusers(), "vae": VAE}
    configs |= {"text_encoder": TEXT_ENCODER, "text_encoder_2": TEXT_ENCODER_2}
    parts: dict[Part, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": encoder_1, "text_encoder_2": encoder_2}
    write_single_file(file, configs, published_states(parts))


def twice(config: TrainerConfig, folder: Path, name: str) -> None:
    """In one go and in two; then how far apart the files called `name` are. The folder is deleted."""
    run(replace(config, output=str(folder / "whole")))
    config = replace(config, output=str(folder / "parts"))
    stopped = run(config, stop_after=STOP_AFTER)
    run(replace(config, resume_from=str(folder / "parts" / stopped)))
    one, other = (safetensors.torch.load_file(folder / half / name) for half in ("whole", "parts"))
    apart = [(weight.float() - other[key].float()).abs().max().item() for key, weight in one.items()]
    print(json.dumps({"file": name, "tensors": len(one), "equal": apart.count(0.0), "apart": max(apart)}), flush=True)
    shutil.rmtree(folder)


def run(config: TrainerConfig, stop_after: int | None = None) -> str:
    """Train; the path of the checkpoint that a stop has left, or nothing."""
    began = perf_counter()
    reached: dict[str, float] = {}
    steps: list[dict] = []
    stopped = ""

    def emit(fact: str, **fields) -> None:
        nonlocal stopped
        if fact == "step":
            steps.append(fields)
        elif fact in ("phase", "checkpoint", "finished", "stopped"):
            name = fields.get("name", f"{fact} {fields['step']}" if "step" in fields else fact)
            reached[name] = round(perf_counter() - began, 1)
            stopped = fields["path"] if fact == "stopped" else stopped

    def stop_requested() -> bool:
        return stop_after is not None and len(steps) >= stop_after

    Training(config, emit, stop_requested).run()
    told = {"output": config.output, "reached_s": reached, "ms": [round(1e3 * step["seconds"]) for step in steps]}
    told["losses"] = [round(step["loss"], 4) for step in steps]
    told["gpu_gib"] = round(steps[-1]["peak_bytes"] / 2**30, 2)
    told["host_gib_so_far"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    print(json.dumps(told), flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    return stopped


if __name__ == "__main__":
    main()

"""Writes an adapter in the two formats that others read.

Weights are written in float32, as they were trained: at rank 4 that is 18 MB for all of SDXL's attention projections,
and a reader casts down to what it computes in anyway. bfloat16 would lose what the optimizer's last steps brought.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from worker.lora.dora import DoRAConv2d, DoRALinear
from worker.lora.inject import LoRA
from worker.lora.metadata import diffusers_header, hashes, kohya_header
from worker.lora.names import kohya_name, peft_name
from worker.lora.serialized import Serialized


def save_kohya(lora: LoRA, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write the adapter as sd-scripts does: loads in ComfyUI, A1111, Forge and diffusers, at strength 1.0.

    Each module has `<name>.lora_down.weight` [r, in] or [r, in, k, k], `.lora_up.weight` [out, r] or [out, r, 1, 1] and
    a 0-dim `.alpha`, by which readers scale with alpha / r; with DoRA also LyCORIS' `.dora_scale` [out, 1(, 1, 1)].

    alpha is the same in the whole file, and where a layer was trained with another, the difference is folded into its
    lora_up: diffusers 0.42 takes the commonest alpha for all modules, without a word.

    Args:
        lora: the adapter.
        path: of the .safetensors file; written whole or not at all.
        metadata: further header entries, as `ss_steps` and `modelspec.title`; they win over those made here.
        dtype: of lora_down and lora_up; alpha and dora_scale are always float32.
    """
    tensors: dict[str, Tensor] = {}
    config = lora.config
    alpha = config.alpha * (math.sqrt(config.rank) if config.rslora else 1)  # alpha / rank is then our scale
    for module_path, layer in lora.modules.items():
        as_asked = layer.rank == config.rank and layer.scale == config.scale
        name, folded = kohya_name(module_path), 1.0 if as_asked else layer.scale * layer.rank / alpha
        tensors[f"{name}.lora_down.weight"] = _portable(layer.lora_A, dtype)
        tensors[f"{name}.lora_up.weight"] = _portable(layer.lora_B * folded, dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
        if isinstance(layer, DoRALinear | DoRAConv2d):
            shape = (-1, *(1 for _ in layer.weight.shape[1:]))
            tensors[f"{name}.dora_scale"] = _portable(layer.lora_magnitude.view(shape), torch.float32)
    _write(tensors, path, kohya_header(lora.config, metadata))


def save_diffusers(lora: LoRA, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write the adapter with PEFT's names: `unet.<path>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r].

    The scale is folded into lora_B, and no alpha is told: readers that know of no alpha and readers that take
    alpha = rank for granted then both get the trained strength. With DoRA, `.lora_magnitude_vector` [out] or
    [1, out, 1, 1] joins them; on text encoders with `.weight` behind it, as transformers 5 reads it and diffusers does
    not. The arguments are those of `save_kohya`.
    """
    tensors: dict[str, Tensor] = {}
    for module_path, layer in lora.modules.items():
        name = peft_name(module_path)
        tensors[f"{name}.lora_A.weight"] = _portable(layer.lora_A, dtype)
        tensors[f"{name}.lora_B.weight"] = _portable(layer.lora_B * layer.scale, dtype)
        if isinstance(layer, DoRALinear | DoRAConv2d):
            magnitude = layer.lora_magnitude
            shaped = magnitude.view(1, -1, 1, 1) if isinstance(layer, DoRAConv2d) else magnitude
            end = ".weight" if name.startswith("text_encoder") else ""
            tensors[f"{name}.lora_magnitude_vector{end}"] = _portable(shaped, torch.float32)
    _write(tensors, path, diffusers_header(lora.config, metadata))


def _portable(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype).contiguous()


def _write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    serialized = Serialized(tensors)
    serialized.write(path, header | hashes(serialized, header))
